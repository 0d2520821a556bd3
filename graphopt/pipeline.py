"""Runs passes, exact ones together and others one by one, and finds the first result that holds every gate.

When all passes have had their turn, a verdict is drawn on samples that no choice has seen. If it is against the
model, the search goes on where it left off: the next candidate of the last approximate pass, then the model without
that pass, then the same for the pass before it; in the end the model of the exact passes alone, and the original.
Approximate passes that can share one accuracy budget have their turn together (``graphopt.composition``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from graphopt.composition import LEFT_OUT, WORTH, composable, compose, in_the_way
from graphopt.passes.base import Pass, Priced, vouches_for_float16
from graphopt.report.schema import Stage
from graphopt.stages import StageRunner, Step, groups, is_approximate, is_exact
from graphopt.stages import stage as stage_of

# How often the evaluation samples are looked at for one result. Each look is a choice, if only between yes and no: on
# the last one only the model of the exact passes is left to answer for.
MAX_VERDICTS = 6


@dataclass(frozen=True)
class Attempt:
    """A model on which every pass has had its turn.

    Attributes:
        model: the model.
        stages: one for each pass, in order.
        warnings: what the user should know.
        refusal: why it does not hold the gates; None when it does.
        files: what travels beside the model, by the ending that takes the place of ``.onnx`` in its path.
    """

    model: onnx.ModelProto
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()
    refusal: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Level:
    """The outcomes of one pass that are still to come, and why those that came did not hold."""

    outcomes: Iterator[Step]
    refusals: list[str]


def search(original: onnx.ModelProto, passes: Sequence[Pass], runner: StageRunner) -> Attempt:
    """Return the first attempt that holds the gates; where none does, the first one made, with its refusal.

    Where what quantizes leaves float16 no accuracy, float16 without it is tried too, and taken unless clearly slower.

    Args:
        original: the model that everything is judged against; it is not edited.
        passes: in the order they run.
        runner: runs one pass.

    Raises:
        DataError: the data do not fit the model.
        UsageError: an option of a pass does not fit the model.
    """
    found = _search(original, passes, runner)
    quantizing = _in_the_way(passes, found)
    if not quantizing:
        return found
    other = _search(original, [one for one in passes if one.name not in quantizing], runner)
    speedup, without_float16 = runner.context.goals.speedup, runner.context.goals.without_float16
    if other.refusal is not None or speedup is None or without_float16 is None:
        return found
    names = {stage.name for stage in other.stages if stage.changes}
    holds = any(vouches_for_float16(one) and one.name in names for one in passes)
    if not holds or without_float16(found.model) > WORTH * speedup(other.model):
        return found
    figures = runner.costs.of(other.model)
    left_out = [stage_of(name, "skipped", LEFT_OUT, figures, 0.0) for name in quantizing]
    by_name = {each.name: each for each in (*other.stages, *left_out)}
    return replace(other, stages=tuple(by_name[one.name] for one in passes))


def _in_the_way(passes: Sequence[Pass], found: Attempt) -> list[str]:
    """Passes that quantized where float16 was refused behind them; none where all share one budget already."""
    if found.refusal is not None or any(isinstance(one, Priced) for one in passes):
        return []
    return in_the_way(passes, {each.name for each in found.stages if each.changes})


def _search(original: onnx.ModelProto, passes: Sequence[Pass], runner: StageRunner) -> Attempt:
    verdicts: list[str] = []
    warnings: list[str] = []
    first: Attempt | None = None
    for attempt, level in _attempts(original, passes, runner, give_up=lambda: len(verdicts) >= MAX_VERDICTS - 1):
        if level is not None and len(verdicts) >= MAX_VERDICTS - 1:
            level.refusals.append("given up: the evaluation samples had been looked at often enough")
            continue
        refusal = runner.judge.verdict(attempt.model, attempt.stages)
        if refusal is None:
            return replace(attempt, warnings=(*attempt.warnings, *warnings))
        verdicts.append(refusal)
        first = first or replace(attempt, refusal=refusal)
        if level is not None:
            level.refusals.append(f"{refusal} on the evaluation samples")
            taken = " and ".join(_taken(passes, attempt.stages))
            warnings.append(f"the result with {taken} was given up on the evaluation samples: {refusal}")
    assert first is not None, "every walk ends with the model of the exact passes"
    if first.model is original or runner.judge.verdict(original, ()) is not None:
        return first
    return _undone(original, first, warnings)


def _attempts(
    original: onnx.ModelProto, passes: Sequence[Pass], runner: StageRunner, give_up: Callable[[], bool]
) -> Iterator[tuple[Attempt, _Level | None]]:
    """Walk the tree of outcomes depth first; yield each leaf with the last level that took an approximate candidate."""
    runs = _runs(passes, runner)
    levels: list[_Level] = []
    steps: list[Step] = []
    while True:
        current = steps[-1].model if steps else original
        if len(steps) < len(runs):
            refusals: list[str] = []
            levels.append(_Level(_outcomes(runs[len(steps)], current, runner, refusals, give_up), refusals))
        else:
            stages = tuple(stage for step in steps for stage in step.stages)
            warnings = tuple(warning for step in steps for warning in step.warnings)
            every = zip(runs, levels, steps, strict=True)
            taken = [level for run, level, step in every if any(map(_is_taken, run, step.stages))]
            files = {ending: content for step in steps for ending, content in step.files.items()}
            yield Attempt(current, stages, warnings, files=files), taken[-1] if taken else None
        step = None
        while levels and step is None:
            del steps[len(levels) - 1 :]
            step = next(levels[-1].outcomes, None)
            if step is None:
                levels.pop()
        if step is None:
            return
        steps.append(step)


def _outcomes(
    run: Sequence[Pass], current: onnx.ModelProto, runner: StageRunner, refusals: list[str], give_up: Callable[[], bool]
) -> Iterator[Step]:
    exact = [one for one in run if is_exact(one)]
    if exact:
        yield runner.exact(exact, current)
    approximate = [one for one in run if is_approximate(one)]
    if len(approximate) > 1:
        yield from compose(approximate, current, runner, refusals, give_up)
    elif approximate:
        yield from runner.approximate(approximate[0], current, refusals, give_up)


def _runs(passes: Sequence[Pass], runner: StageRunner) -> list[list[Pass]]:
    """Passes in runs that have their outcomes together; approximate ones do where they share one accuracy budget."""
    runs: list[list[Pass]] = []
    for run in groups(passes, together=True):
        one_budget = run[0].exact or composable(run, runner.context)
        runs.extend([run] if one_budget else [[one] for one in run])
    return runs


def _is_taken(one: Pass, stage: Stage) -> bool:
    """Whether the stage left an approximation in the model."""
    return not one.exact and stage.status in ("applied", "backed_off") and stage.changes > 0


def _taken(passes: Sequence[Pass], stages: Sequence[Stage]) -> list[str]:
    return [stage.name for one, stage in zip(passes, stages, strict=True) if _is_taken(one, stage)]


def _undone(original: onnx.ModelProto, attempt: Attempt, warnings: Sequence[str]) -> Attempt:
    reason = f"the result of the passes does not hold: {attempt.refusal}"
    stages = tuple(
        replace(stage, status="rolled_back", changes=0, reason=reason) if stage.changes else stage
        for stage in attempt.stages
    )
    answer = f"{reason}; the answer is the original model"
    return Attempt(original, stages, (*attempt.warnings, *warnings, answer))
