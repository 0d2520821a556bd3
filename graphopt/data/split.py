"""Split data into disjoint parts: calibration, selection, evaluation.

Samples are dealt in runs of four: one to calibration, one to selection, two to evaluation, in an order drawn for each
run from the seed. So a stream of unknown length is split in one pass, three samples already fill every part, data
sorted by class is spread evenly over the parts, and the same seed and data give the same parts everywhere.

Calibration and selection are capped. Where the length is known, the members that are kept are spread evenly over the
data; of a stream, the first ones are kept. The others go to evaluation; where the data are not for evaluation, what
calibration leaves goes to selection, for choices rest on few samples much longer than statistics do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from graphopt.data.sample import DataSource
from graphopt.errors import DataError, UsageError

CALIBRATION, SELECTION, EVALUATION = "calibration", "selection", "evaluation"
_ALL = (CALIBRATION, SELECTION, EVALUATION, EVALUATION)
_CHOICES = (CALIBRATION, SELECTION)


@dataclass(frozen=True)
class Parts:
    """Three disjoint sources; None where no data was given for that use.

    Attributes:
        calibration: for statistics and refits; labels unused (read its ``feeds``).
        selection: for choices: sensitivity, back-off, planning.
        evaluation: for the verdict alone; nothing is ever chosen on it.
    """

    calibration: DataSource | None = None
    selection: DataSource | None = None
    evaluation: DataSource | None = None


@dataclass(frozen=True)
class Caps:
    """The most samples (feeds) that each part yields; evaluation is capped so that endless streams come to an end."""

    calibration: int = 512
    selection: int = 4096
    evaluation: int = 50_000


def split(source: DataSource, *, seed: int = 0, caps: Caps | None = None) -> Parts:
    """Split one source into calibration, selection and evaluation, about 25, 25 and 50 %.

    Raises:
        DataError: fewer than three samples.
    """
    return Parts(**_deal(source, _ALL, seed, caps or Caps()))


def assemble(
    data: Any = None,
    calibration_data: Any = None,
    eval_data: Any = None,
    *,
    opener: Callable[[Any], DataSource],
    seed: int = 0,
    caps: Caps | None = None,
) -> Parts:
    """Make the parts from what the user gave.

    ``calibration_data`` feeds calibration and selection, ``eval_data`` evaluation, ``data`` whatever the other two
    leave open.

    Args:
        data: one source for everything.
        calibration_data: source for calibration and selection.
        eval_data: source for evaluation.
        opener: opens a source, e.g. ``lambda source: open_data(source, specs)``.
        seed: seed of the split.
        caps: most samples of each part.

    Raises:
        UsageError: all three are given, or the same source for calibration and evaluation.
        DataError: a source cannot be read, or is too short to be split.
    """
    caps = caps or Caps()
    if data is not None and calibration_data is not None and eval_data is not None:
        raise UsageError("--data is not needed beside --calibration-data and --eval-data; leave it out")
    given = {"--data": data, "--calibration-data": calibration_data, "--eval-data": eval_data}
    _refuse_same({name: source for name, source in given.items() if source is not None})
    if data is not None and calibration_data is None and eval_data is None:
        return split(opener(data), seed=seed, caps=caps)
    choosing = calibration_data if calibration_data is not None else data if eval_data is not None else None
    judging = eval_data if eval_data is not None else data if calibration_data is not None else None
    chosen = _deal(opener(choosing), _CHOICES, seed, caps) if choosing is not None else {}
    evaluation = None
    if judging is not None:
        evaluation = _deal(opener(judging), (EVALUATION,), seed, caps)[EVALUATION]
    return Parts(chosen.get(CALIBRATION), chosen.get(SELECTION), evaluation)


def role(index: int, pattern: Sequence[str], seed: int) -> str:
    """Return the part that sample ``index`` is dealt to.

    Args:
        index: position in the source.
        pattern: the parts of one run; the first run deals one of each before any part gets a second.
        seed: the order within each run is drawn from it.
    """
    run, position = divmod(index, len(pattern))
    distinct = list(dict.fromkeys(pattern))
    if run == 0 and position >= len(distinct):
        return pattern[position]
    names = distinct if run == 0 else list(pattern)
    # SHA-256 and not Python's hash or random: the same on every platform and version.
    digest = hashlib.sha256(f"{seed}:{run}".encode()).digest()
    keys = [digest[4 * place : 4 * place + 4] for place in range(len(names))]
    return names[sorted(range(len(names)), key=keys.__getitem__)[position]]


def _deal(source: DataSource, pattern: Sequence[str], seed: int, caps: Caps) -> dict[str, DataSource]:
    parts = list(dict.fromkeys(pattern))
    if source.synthetic:
        raise DataError("random data can time a model but not calibrate or judge it; give real samples")
    total = source.length
    found = total if total is not None else sum(1 for _ in islice(source, len(parts)))
    if found < len(parts):
        raise DataError(
            f"{source.description}: {found} samples cannot be split into {len(parts)} parts ({', '.join(parts)}); "
            f"give at least {len(parts)}, better some hundreds"
        )
    limit = {CALIBRATION: caps.calibration, SELECTION: caps.selection, EVALUATION: caps.evaluation}
    if min(limit[part] for part in parts) < 1:
        raise UsageError("every part of the data needs at least one sample; raise its cap")
    runs = None if total is None else -(-total // len(pattern))

    spills = parts == list(_CHOICES) and (runs is None or runs > limit[CALIBRATION])
    # Runs that calibration does not keep give two members each to selection.
    selected = -(-limit[SELECTION] // 2) if spills else limit[SELECTION]

    def dealt(index: int) -> str | None:
        part, run = role(index, pattern, seed), index // len(pattern)
        if part == EVALUATION or (part == CALIBRATION and _kept(run, runs, limit[CALIBRATION])):
            return part
        if (part == SELECTION or spills) and _kept(run, runs, selected):
            return SELECTION
        return EVALUATION if EVALUATION in parts else None

    def only(part: str) -> DataSource:
        size = None
        if total is not None:
            size = min(limit[part], sum(dealt(index) == part for index in range(total)))
        described = f"{source.description} ({part})" if len(parts) > 1 else source.description
        return source.only(lambda index: dealt(index) == part, description=described, size=size, limit=limit[part])

    return {part: only(part) for part in parts}


def _kept(run: int, runs: int | None, cap: int) -> bool:
    """Whether the member of a capped part in this run is kept: evenly spread, or the first ones of a stream."""
    if runs is None or runs <= cap:
        return run < cap
    return (run + 1) * cap // runs > run * cap // runs


def _refuse_same(given: dict[str, Any]) -> None:
    seen: dict[Any, str] = {}
    for name, source in given.items():
        key = os.path.realpath(source) if isinstance(source, (str, os.PathLike)) else id(source)
        if key in seen:
            raise UsageError(
                f"{seen[key]} and {name} are the same data, so the result would be judged on what it was tuned on; "
                "give it once as --data and it is split"
            )
        seen[key] = name
