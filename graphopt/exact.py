"""Runs exact passes on one opened graph, again and again until none finds anything more to do.

What one pass does is what another waits for: a folded constant makes a Reshape a no-op, which brings a convolution and
a normalization together. So the order of the passes matters little, and running them twice changes nothing. The graph
is opened once, written once and checked once; where something goes wrong in that, the passes are run one at a time,
each result checked on its own, and the one at fault is left out and named.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx

from graphopt.errors import DataError, ModelError, UsageError
from graphopt.graph import (
    WorkGraph,
    dismantle,
    export_graph,
    forget_types,
    import_graph,
    remove_unused,
    toposort,
    verify,
)
from graphopt.passes.base import Context, ExactPass, PassReport, Preparing, Skip

log = logging.getLogger(__name__)

# Errors that are the user's to mend; everything else that a pass raises costs only that pass.
PROPAGATED = (DataError, UsageError)

# Each round makes the graph smaller or cheaper, so the rounds end; this bound is for passes that are wrong about it.
MAX_ROUNDS = 20


@dataclass(frozen=True)
class Outcome:
    """What became of one pass over all rounds.

    Attributes:
        name: of the pass.
        report: changes and figures summed over the rounds; places left alone as of the last.
        seconds: time spent in it.
        failure: why the pass was left out; empty where it was not.
        observed: what ``observe`` made of the model after the first round in which the pass changed anything.
    """

    name: str
    report: PassReport
    seconds: float
    failure: str = ""
    observed: Any = None


# Nodes and tensors refer to each other, so the weights of those that went are freed by the collector only; in graphs of
# more nodes weights are small, and a walk over all objects dear.
COLLECTED_NODES = 5_000

Check = Callable[[onnx.ModelProto, onnx.ModelProto], str | None]
Observe = Callable[[onnx.ModelProto], Any] | None


def run_exact(
    passes: Sequence[ExactPass],
    model: onnx.ModelProto,
    context: Context,
    *,
    why_different: Check = lambda before, after: None,
    observe: Observe = None,
) -> tuple[onnx.ModelProto, tuple[Outcome, ...]]:
    """Apply exact passes until none changes anything; where none does at all, the very model comes back.

    Args:
        passes: in the order they run in each round.
        model: not edited.
        context: what the passes may use.
        why_different: says how the outputs of a second model differ from those of a first, None: they do not.
        observe: shown the model as it is when a pass has changed anything for the first time.

    Returns:
        the model, and one outcome for each pass.

    Raises:
        DataError: the data do not fit the model.
        UsageError: an option of a pass does not fit the model.
    """
    with paused_collector():
        return _run(passes, model, context, why_different, observe)


def _run(
    passes: Sequence[ExactPass], model: onnx.ModelProto, context: Context, why_different: Check, observe: Observe
) -> tuple[onnx.ModelProto, tuple[Outcome, ...]]:
    tallies = [_Tally(one.name) for one in passes]
    try:
        changed = _together(passes, model, context, tallies, observe=observe)
        if changed is model:
            return model, tuple(tally.outcome() for tally in tallies)
        problem = _problem(model, changed, why_different)
    except PROPAGATED:
        raise
    except Exception as error:  # the passes are run one at a time to tell which is at fault
        log.debug("the exact passes failed together", exc_info=error)
        problem = told(error)
    if problem is None:
        return changed, tuple(tally.outcome() for tally in tallies)
    log.debug("the exact passes are run one at a time: %s", problem)
    tallies = [_Tally(one.name) for one in passes]
    changed = _one_at_a_time(passes, model, context, tallies, why_different, observe=observe)
    return changed, tuple(tally.outcome() for tally in tallies)


@dataclass
class _Tally:
    """What one pass has done so far."""

    name: str
    changes: int = 0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()
    failure: str = ""
    observed: Any = None

    def add(self, report: PassReport, seconds: float) -> None:
        """Add one application."""
        if report.changes or not self.changes:
            self.details = summed(self.details, report.details) if self.changes else dict(report.details)
        self.changes += report.changes
        self.seconds += seconds
        self.skipped = report.skipped

    def outcome(self) -> Outcome:
        """Everything told of the pass."""
        report = PassReport(self.changes, self.skipped, self.details)
        return Outcome(self.name, report, self.seconds, self.failure, self.observed)


def summed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Add figures of equal names, mappings likewise; of anything else the second counts."""
    total = dict(first)
    for key, value in second.items():
        old = total.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            total[key] = summed(old, value)
        elif isinstance(old, (int, float)) and isinstance(value, (int, float)) and not isinstance(value, bool):
            total[key] = old + value
        else:
            total[key] = value
    return total


def _together(
    passes: Sequence[ExactPass],
    model: onnx.ModelProto,
    context: Context,
    tallies: Sequence[_Tally],
    *,
    observe: Observe,
) -> onnx.ModelProto:
    """Run all passes on one opened graph; return it written, or the very model where nothing changed."""
    prepared = model
    for one, tally in zip(passes, tallies, strict=True):
        prepared = _prepared(one, prepared, tally)
    work = import_graph(prepared)
    # The state of the graph that each pass has last seen and left alone.
    idle = [-1] * len(passes)
    state = 0 if prepared is model else 1
    for _ in range(MAX_ROUNDS):
        before = state
        for position, (one, tally) in enumerate(zip(passes, tallies, strict=True)):
            if idle[position] == state:
                continue
            context.progress(one.name, 0, 0)
            started = time.perf_counter()
            report = one.apply(work.gs, context)
            if report.changes:
                remove_unused(work.gs)
                state += 1
            else:
                idle[position] = state
            tally.add(report, time.perf_counter() - started)
            if observe and report.changes and tally.observed is None:
                tally.observed = observe(export_graph(work))
        # Inference over the graph as it is now may tell more than what is remembered from before.
        if state == before and not forget_types(work.gs):
            break
        idle = [-1] * len(passes) if state == before else idle
        if len(work.gs.nodes) <= COLLECTED_NODES:
            gc.collect(1)  # everything made since the collector was stopped is in the youngest generation
    written = model if state == 0 else _written(work)
    dismantle(work.gs)
    return written


def _one_at_a_time(
    passes: Sequence[ExactPass],
    model: onnx.ModelProto,
    context: Context,
    tallies: Sequence[_Tally],
    why_different: Check,
    *,
    observe: Observe,
) -> onnx.ModelProto:
    current = model
    for _ in range(MAX_ROUNDS):
        before = current
        for one, tally in zip(passes, tallies, strict=True):
            if tally.failure:
                continue
            started = time.perf_counter()
            report = PassReport(changes=0)
            try:
                prepared = _prepared(one, current, tally)
                work = import_graph(prepared)
                report = one.apply(work.gs, context)
                if report.changes or prepared is not current:
                    remove_unused(work.gs)
                    changed = _written(work)
                    tally.failure = _problem(current, changed, why_different) or ""
                    if not tally.failure:
                        current = changed
                        if observe and tally.observed is None:
                            tally.observed = observe(current)
            except PROPAGATED:
                raise
            except Exception as error:  # a pass that fails costs only itself; the report names it
                log.debug("%s failed", one.name, exc_info=error)
                tally.failure = told(error)
            seconds = time.perf_counter() - started
            tally.add(PassReport(0, report.skipped) if tally.failure else report, seconds)
        if current is before:
            break
    return current


def _prepared(one: ExactPass, model: onnx.ModelProto, tally: _Tally) -> onnx.ModelProto:
    """The model to open; what a pass did to it beforehand counts as one change."""
    if not isinstance(one, Preparing):
        return model
    prepared = one.prepare(model)
    if prepared is not model:
        tally.add(PassReport(1, details={"prepared": 1}), 0.0)
    return prepared


def _written(work: WorkGraph) -> onnx.ModelProto:
    toposort(work.gs)
    return export_graph(work)


def _problem(before: onnx.ModelProto, after: onnx.ModelProto, why_different: Check) -> str | None:
    """Why ``after`` cannot take the place of ``before``: it is invalid, or its outputs differ; None if it can."""
    try:
        verify(after)
    except ModelError as error:
        # What onnx holds against the model as it was given is no fault of the passes.
        if _why_invalid(before) != str(error):
            raise
    difference = why_different(before, after)
    return None if difference is None else f"it changed the outputs: {difference}"


def _why_invalid(model: onnx.ModelProto) -> str | None:
    try:
        verify(model)
    except ModelError as error:
        return str(error)
    return None


def told(error: Exception) -> str:
    """How reports tell of a pass that raised."""
    return f"it failed with {type(error).__name__}: {str(error).strip() or 'no message'}"


@contextmanager
def paused_collector() -> Iterator[None]:
    """Keep Python's collector of cycles from walking over a large graph again and again while it is built."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
