"""Fits a target's latency constants to what was measured on the device, and tells how good they are.

The error after refitting is told for nets that the constants were not fitted on: every net is left out once, with all
its batches, and predicted from the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from graphopt._version import __version__
from graphopt.errors import DataError, UsageError
from graphopt.latency import estimate
from graphopt.measured.doubts import Prediction, doubts, wrong_unit
from graphopt.measured.table import Measurement
from graphopt.model import read
from graphopt.targets import Hardware, Target

MIN_NETS = 2
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """A measurement with the model that it was made of."""

    row: Measurement
    name: str
    model: onnx.ModelProto


@dataclass(frozen=True)
class Refit:
    """Refitted constants of one runtime of a target.

    Attributes:
        target: name of the target, as it was asked for.
        runtime: whose constants they are.
        constants: name -> value.
        predictions: one for each measurement.
        warnings: what the reader should know, one sentence each.
    """

    target: str
    runtime: str
    constants: Mapping[str, float]
    predictions: tuple[Prediction, ...]
    warnings: tuple[str, ...]

    def error(self, which: str) -> float | None:
        """Mean absolute error of ``before``, ``after`` or ``left_out``, relative to what was measured."""
        errors = [
            abs(value / one.measured - 1) for one in self.predictions if (value := getattr(one, which)) is not None
        ]
        return sum(errors) / len(errors) if errors else None


def find_models(
    rows: Sequence[Measurement],
    table: Path,
    folder: Path | None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """Read the model of each measurement; weights may be absent. Returns them and warnings.

    Args:
        rows: the measurements.
        table: their file; paths of models are relative to where it lies, or to the working directory.
        folder: where models lie that were measured elsewhere, found there by hash or else by file name.
        shapes: shapes of inputs by name, for those models that have such inputs and leave axes open.

    Raises:
        DataError: a model is not found.
        ModelError: it cannot be read.
        UsageError: a shape contradicts its model.
    """
    by_hash: dict[str, Path] = {}
    if folder is not None and any(row.sha256 for row in rows):
        by_hash = {_sha256(path): path for path in sorted(folder.glob("*.onnx"))}
    paths = [(by_hash.get(row.sha256) or _by_name(row, table, folder)).resolve() for row in rows]
    names = _names(paths)
    found: dict[Path, Measured] = {}
    warnings: list[str] = []
    result = []
    for row, path in zip(rows, paths, strict=True):
        if path not in found:
            loaded = read(path, weights=False)
            if row.sha256 and loaded.sha256 != row.sha256:
                warnings.append(f"{path} is another file than was measured, by its hash; taken to be the same net")
            _fix_inputs(loaded.proto, shapes or {})
            found[path] = Measured(row, names[path], loaded.proto)
        result.append(replace(found[path], row=row))
    return tuple(result), tuple(warnings)


def _names(paths: Iterable[Path]) -> dict[Path, str]:
    """A name for each file: its own, with as many folders before it as tell files of one name apart."""
    files = list(dict.fromkeys(paths))
    most = max((len(path.parts) for path in files), default=1)
    names = {path: path.stem for path in files}
    for depth in range(1, most):
        alike = Counter(names.values())
        if len(alike) == len(files):
            break
        for path, name in list(names.items()):
            if alike[name] > 1:
                names[path] = "/".join((*path.parent.parts[-depth:], path.stem))
    return names


def _fix_inputs(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    for value in model.graph.input:
        if value.name not in shapes:
            continue
        dims = value.type.tensor_type.shape.dim
        wanted = shapes[value.name]
        fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        if len(dims) != len(wanted) or any(own not in (None, size) for own, size in zip(fixed, wanted, strict=True)):
            raise UsageError(f"input {value.name!r} has the shape {fixed}; {list(wanted)} contradicts it")
        # The first axis is the batch, which the measurement tells.
        for dim, size in list(zip(dims, wanted, strict=True))[1:]:
            dim.dim_value = size


def _by_name(row: Measurement, table: Path, folder: Path | None) -> Path:
    name = row.model.replace("\\", "/").rsplit("/", 1)[-1]
    places = [Path(row.model), table.parent / row.model, *([folder / name] if folder else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(f"{table}: the model {row.model} is not found; say where models lie with --models FOLDER")
    return path


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_runtime(rows: Iterable[Measurement], hardware: Hardware, asked: str | None) -> str:
    """The runtime of the target that the measurements are of.

    Raises:
        UsageError: the target has no device or no such runtime, or the measurements are of several or of none of its.
    """
    names = [model.name for model in hardware.runtimes]
    if hardware.device is None or not names:
        raise UsageError(f"target {hardware.name!r} has no latency model to refit: its times are measured")
    if asked is None:
        noted = sorted({row.runtime for row in rows if row.runtime})
        if len(noted) > 1:
            raise UsageError(f"the measurements are of several runtimes ({', '.join(noted)}); choose with --runtime")
        asked = noted[0] if noted else names[0]
    if asked not in names:
        raise UsageError(f"target {hardware.name!r} has no runtime {asked!r}; it has {', '.join(names)}")
    return asked


def refit_target(
    target: Target,
    measured: Sequence[Measured],
    runtime: str,
    *,
    progress: Progress = lambda what, done, total: None,
) -> Refit:
    """Refit the constants of ``runtime``, and predict every net with those of the others.

    Raises:
        DataError: fewer than two nets were measured, or times in another unit than milliseconds.
        ModelError: a model's sizes are not known.
    """
    nets = list(dict.fromkeys(one.name for one in measured))
    if len(nets) < MIN_NETS:
        raise DataError(f"{len(nets)} net measured; measure at least {MIN_NETS}, better one for each kind of layer")
    from graphopt.latency.refitting import refit

    hardware = target.hardware
    total = len(nets) + 1

    def fitted(chosen: Sequence[Measured]) -> Mapping[str, float]:
        return refit([(one.model, one.row.batch, one.row.median_ms) for one in chosen], hardware, runtime)

    def ms(one: Measured, facts: Hardware) -> float:
        return estimate(one.model, facts, runtime=runtime, batch=one.row.batch).ms

    progress("fitting", 0, total)
    before = [ms(one, hardware) for one in measured]
    if wrong := wrong_unit([one.row.median_ms for one in measured], before):
        raise DataError(wrong)
    constants = fitted(measured)
    without: dict[str, Hardware] = {}
    for done, net in enumerate(nets, 1):
        progress("fitting", done, total)
        without[net] = with_constants(hardware, runtime, fitted([one for one in measured if one.name != net]))
    after = with_constants(hardware, runtime, constants)

    predictions = tuple(
        Prediction(
            net=one.name,
            batch=one.row.batch,
            measured=one.row.median_ms,
            before=estimated,
            after=ms(one, after),
            left_out=ms(one, without[one.name]),
        )
        for one, estimated in zip(measured, before, strict=True)
    )
    return Refit(target.name, runtime, dict(constants), predictions, doubts(predictions))


def with_constants(hardware: Hardware, runtime: str, constants: Mapping[str, float]) -> Hardware:
    """The hardware with these latency constants of one runtime in place of its own."""
    runtimes = tuple(
        replace(model, latency=dict(constants)) if model.name == runtime else model for model in hardware.runtimes
    )
    return replace(hardware, runtimes=runtimes)


def as_toml(found: Refit, inherits: str, table: Path) -> str:
    """A profile that inherits everything from the target but the constants of the runtime; its name is its file's."""
    count, nets = len(found.predictions), len({one.net for one in found.predictions})
    before, after, left_out = (_percent(found.error(which)) for which in ("before", "after", "left_out"))
    lines = [
        f"# Written by graphopt {__version__} calibrate-target from {table.name}: {count} measurements of {nets} nets.",
        f"# Mean error of the estimates: {before} before, {after} after; {left_out} for nets left out of the fit.",
        *(f"# Warning: {warning}" for warning in found.warnings),
        f"inherits = {_quoted(inherits)}",
        f"summary = {_quoted(f'{found.target} with latency refitted to measurements of {nets} nets')}",
        "",
        f"[hardware.latency.{_quoted(found.runtime)}]",
        *(f"{_quoted(key)} = {value:.6g}" for key, value in sorted(found.constants.items())),
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


def _quoted(text: str) -> str:
    """A TOML basic string."""
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
