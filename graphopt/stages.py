"""Runs passes on one model and says what became of each.

Exact passes that follow each other run together and have one outcome: each is applied, or left out because it failed,
left an invalid graph or changed the outputs. An approximate pass has several outcomes, in the order of preference: each
candidate that holds on the selection samples, and last the model without the pass. Checkpoints are ModelProtos, which
nothing edits: every pass gets a fresh import.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeGuard
from warnings import warn

import onnx

from graphopt.errors import PassError, PassWarning
from graphopt.exact import PROPAGATED, Outcome, run_exact, told
from graphopt.graph import verify
from graphopt.graph.cost import Costs, ModelCost, cost
from graphopt.model.content import content_hash
from graphopt.model.provenance import PREFIX
from graphopt.model.skeleton import copy_model
from graphopt.passes.base import ApproximatePass, Candidate, Context, Declined, ExactPass, Pass, PassReport
from graphopt.report.schema import NOTHING_TO_DO, Stage, Status

log = logging.getLogger(__name__)

# Key in ``metadata_props`` while a model is on its way.
SIMULATED = f"{PREFIX}simulated"


def is_exact(one: Pass) -> TypeGuard[ExactPass]:
    """Tell a pass that edits in place and must not change the outputs."""
    return one.exact


def is_approximate(one: Pass) -> TypeGuard[ApproximatePass]:
    """Tell a pass that proposes candidates."""
    return not one.exact


@dataclass(frozen=True)
class Trial:
    """What one candidate was found to be on the selection samples.

    Attributes:
        problem: why it does not hold, with the figures; None when it holds.
        metric: its accuracy; None where it was not measured.
        latency_ms: median of one call; None where it was not measured.
    """

    problem: str | None
    metric: float | None = None
    latency_ms: float | None = None


class Judge(Protocol):
    """Answers for data, clocks and gates, of which the passes and their runner know nothing."""

    def why_different(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
        """Say how the outputs of ``after`` differ from those of ``before`` beyond rounding; None: they do not."""

    def why_unjudged(self, needs: frozenset[str]) -> str | None:
        """Say why an approximate pass cannot be run or judged (no data, say); None: it can."""

    def trial(self, candidate: onnx.ModelProto, current: onnx.ModelProto, *, faster: bool) -> Trial:
        """Judge a candidate: accuracy against the original, speed against the model without it.

        ``faster``: whether it must be faster to hold, or only not slower beyond what the clock can tell.
        """

    def stand_in(self, model: onnx.ModelProto, simulation: onnx.ModelProto, current: onnx.ModelProto) -> None:
        """Judge ``model`` by what answers as it will on the target, which rounds by itself.

        What answers for ``current``, the model before, goes on to do so: it is rounded more.
        """

    def verdict(self, model: onnx.ModelProto, stages: Sequence[Stage]) -> str | None:
        """Look at the evaluation samples and say why the model does not hold the gates; None: it does.

        ``stages``: what became of each pass; some ask for options of the runtime, and the model runs with these.
        """


def tried(candidate: Candidate, current: onnx.ModelProto, judge: Judge) -> tuple[Candidate, Trial]:
    """Judge a candidate of a pass; one that something else answers for gets a note of it, which tells it from others.

    Raises:
        Exception: it is not a valid model.
    """
    verify(candidate.model)
    simulation = candidate.simulation
    if simulation is not None:
        candidate = replace(candidate, model=_noted(candidate.model, simulation))
        judge.stand_in(candidate.model, simulation, current)
    return candidate, judge.trial(candidate.model, current, faster=candidate.faster)


def _noted(model: onnx.ModelProto, simulation: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a hash of what answers for it; provenance takes its place in the end."""
    noted = copy_model(model, lambda tensor: tensor)
    kept = [entry for entry in noted.metadata_props if entry.key != SIMULATED]
    del noted.metadata_props[:]
    noted.metadata_props.extend(kept)
    noted.metadata_props.add(key=SIMULATED, value=content_hash(simulation)[0].hexdigest())
    return noted


@dataclass(frozen=True)
class Step:
    """One outcome of one pass, or of several exact ones: the model after it, and what to tell of each.

    ``files`` travel beside the model, by the ending that takes the place of ``.onnx`` in its path.
    """

    model: onnx.ModelProto
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRunner:
    """What every stage of a run shares.

    Attributes:
        context: what the passes may use.
        judge: answers for data, clocks and gates.
        costs: counts the figures of each stage.
    """

    context: Context
    judge: Judge
    costs: Costs = field(default_factory=Costs)

    def exact(self, passes: Sequence[ExactPass], current: onnx.ModelProto) -> Step:
        """Apply exact passes until none changes anything, and prove that they were exact.

        Raises:
            DataError: the data do not fit the model.
            UsageError: an option of a pass does not fit the model.
        """

        def figures(model: onnx.ModelProto) -> ModelCost:
            # Not remembered: the model is gone as soon as it was looked at.
            return cost(model, shapes=self.costs.shapes)

        why_different = self.judge.why_different
        changed, outcomes = run_exact(passes, current, self.context, why_different=why_different, observe=figures)
        stages, warnings, after = [], [], self.costs.of(current)
        last = max((number for number, one in enumerate(outcomes) if one.report.changes), default=-1)
        for number, outcome in enumerate(outcomes):
            # What later rounds did is told with the last pass that did anything.
            after = self.costs.of(changed) if number == last else outcome.observed or after
            stages.append(self._exact_stage(outcome, after))
            if outcome.failure:
                warnings.append(f"{outcome.name} was rolled back: {outcome.failure}")
        return Step(changed, tuple(stages), tuple(warnings))

    def _exact_stage(self, outcome: Outcome, after: ModelCost) -> Stage:
        status: Status = "rolled_back" if outcome.failure else "applied"
        reason = outcome.failure or ("" if outcome.report.changes else NOTHING_TO_DO)
        return stage(outcome.name, status, reason, after, outcome.seconds, report=outcome.report)

    def approximate(
        self, one: ApproximatePass, current: onnx.ModelProto, refusals: list[str], give_up: Callable[[], bool]
    ) -> Iterator[Step]:
        """Yield the model after each candidate that holds, and last the model without the pass.

        Args:
            one: the pass.
            current: the model before it.
            refusals: why earlier candidates do not hold; the caller appends the verdict on the last step.
            give_up: asked before each candidate; True ends the search for one.

        Raises:
            DataError: the data do not fit the model.
            UsageError: an option of the pass does not fit the model.
        """
        started = time.perf_counter()
        self.context.progress(one.name, 0, 0)
        unjudged = self.judge.why_unjudged(one.needs)
        if unjudged:
            yield Step(current, (self._stage(one.name, "skipped", unjudged, current, started),))
            return
        last = PassReport(changes=0)
        candidates = one.candidates(current, self.context)
        while not give_up():
            try:
                candidate = next(candidates, None)
                if candidate is None:
                    break
                last = candidate.report
                candidate, trial = tried(candidate, current, self.judge)
            except Declined as declined:
                if refusals:
                    refusals.append(str(declined))
                    break
                last, reason = declined.report, str(declined)
                yield Step(current, (self._stage(one.name, "skipped", reason, current, started, report=last),))
                return
            except PROPAGATED:
                raise
            except Exception as error:  # a pass that fails costs only itself; the report names it
                yield self._failed(one.name, error, current, started, refusals)
                return
            if trial.problem is None:
                told = len(refusals)
                yield self._kept(one.name, candidate, trial, refusals, started)
                refusals[told:] = [_labelled(candidate, refusal) for refusal in refusals[told:]]
            else:
                refusals.append(_labelled(candidate, trial.problem))
        if not refusals:
            reason = "it found nothing to do"
            yield Step(current, (self._stage(one.name, "applied", reason, current, started, report=last),))
            return
        reason = "; ".join(refusals)
        undone = self._stage(one.name, "rolled_back", reason, current, started, report=last)
        yield Step(current, (undone,), (f"{one.name} was rolled back: {reason}",))

    def _kept(self, name: str, candidate: Candidate, trial: Trial, refusals: Sequence[str], started: float) -> Step:
        status: Status = "backed_off" if refusals else "applied"
        reason = candidate.label
        if refusals:
            reason = f"{'; '.join(refusals)}; kept: {candidate.label or 'the next candidate'}"
        kept = self._stage(name, status, reason, candidate.model, started, report=candidate.report, trial=trial)
        return Step(candidate.model, (kept,), files=candidate.files)

    def _failed(
        self, name: str, error: Exception, current: onnx.ModelProto, started: float, refusals: Sequence[str] = ()
    ) -> Step:
        log.debug("%s failed", name, exc_info=error)
        reason = "; ".join([*refusals, told(error)])
        failed = self._stage(name, "rolled_back", reason, current, started)
        return Step(current, (failed,), (f"{name} was rolled back: {reason}",))

    def _stage(
        self,
        name: str,
        status: Status,
        reason: str,
        model: onnx.ModelProto,
        started: float,
        *,
        report: PassReport | None = None,
        trial: Trial | None = None,
    ) -> Stage:
        seconds = time.perf_counter() - started
        return stage(name, status, reason, self.costs.of(model), seconds, report=report, trial=trial)


def stage(
    name: str,
    status: Status,
    reason: str,
    figures: ModelCost,
    seconds: float,
    *,
    report: PassReport | None = None,
    trial: Trial | None = None,
) -> Stage:
    """What became of one pass, with the figures of the model after it."""
    details: dict[str, Any] = dict(report.details) if report else {}
    if report and report.skipped:
        details["skipped"] = [{"where": skip.where, "reason": skip.reason} for skip in report.skipped]
    return Stage(
        name=name,
        status=status,
        reason=reason,
        changes=report.changes if report and status in ("applied", "backed_off") else 0,
        seconds=round(seconds, 3),
        nodes=figures.nodes,
        parameters=figures.parameters,
        macs=figures.macs,
        metric=trial.metric if trial else None,
        latency_ms=trial.latency_ms if trial else None,
        details=details,
    )


def _labelled(candidate: Candidate, problem: str) -> str:
    return f"{candidate.label}: {problem}" if candidate.label else problem


def run_ungated(one: ApproximatePass, model: onnx.ModelProto, context: Context) -> onnx.ModelProto:
    """Apply one approximate pass and take the first candidate that it gives.

    Raises:
        PassError: the pass failed or left an invalid graph.
        DataError: the data do not fit the model.
        UsageError: an option of the pass does not fit the model.
    """
    try:
        candidate = next(one.candidates(model, context), None)
        if candidate is not None:
            verify(candidate.model)
        return model if candidate is None else candidate.model
    except Declined as declined:
        warn(f"{one.name}: {declined}; the model is as it was", PassWarning, stacklevel=3)
        return model
    except PROPAGATED:
        raise
    except Exception as error:
        raise PassError(f"{one.name} failed: {type(error).__name__}: {error}") from error


def groups(passes: Sequence[Pass], together: bool = False) -> list[list[Pass]]:
    """Passes in runs: exact ones that follow each other together; so approximate ones if ``together``, else alone."""
    found: list[list[Pass]] = []
    for one in passes:
        if found and found[-1][-1].exact == one.exact and (one.exact or together):
            found[-1].append(one)
        else:
            found.append([one])
    return found
