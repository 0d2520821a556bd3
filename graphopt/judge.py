"""Judges models on the user's data and on the clock; the one place that knows data, clocks and gates together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import onnx

from graphopt import equality, runtime
from graphopt.as_run import AsRun
from graphopt.data import Feed, Parts
from graphopt.decisions import Measured
from graphopt.deployment import left_in_float32
from graphopt.errors import UnsupportedModelError
from graphopt.graph.cost import Costs
from graphopt.model.content import content_hash
from graphopt.passes.base import Goals
from graphopt.report.schema import AccuracyFacts, LatencyFacts, RuleFinding, Stage
from graphopt.rules import check_model
from graphopt.speed import EstimatedSpeed, MeasuredSpeed, Progress, Shapes, Speed
from graphopt.stages import Trial
from graphopt.targets import Hardware
from graphopt.validation import Accuracy, Gates, Reference, evaluate, verdict

# How they are given, for those who were not given any.
HOW_TO_GIVE = "give samples with --data (data= in Python)"


# Who takes the boldest of many models that hold on a few samples takes the luckiest: on others its metric falls more.
# Choices therefore add that part of a standard error to what they measure.
CAUTION = 0.25
Z95 = 1.96
# Places that break rules of the target, told of in a refusal.
SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Finding:
    """What the verdict on one model rests on.

    Attributes:
        accuracy: on the evaluation samples; None without any.
        latency: against the original; None where nothing can be said.
        refusal: which gates do not hold, with the figures; None when all do.
        findings: where the model breaks rules of the target.
    """

    accuracy: AccuracyFacts | None
    latency: LatencyFacts | None
    refusal: str | None
    findings: tuple[RuleFinding, ...] = ()


@dataclass
class DataJudge:
    """Judges models against the original.

    Attributes:
        original: the model as the user has it.
        gates: what the result is promised to hold.
        parts: the user's samples, in disjoint parts.
        feeds: a few inputs on which exact passes are compared; the first one is also what calls are timed with.
        metric: ``auto``, a name, or a function.
        threads: intra-op threads that latency is judged at.
        jobs: intra-op threads for what is not timed.
        providers: execution providers, the preferred first.
        seed: of resampling and of the order of timings.
        overhead: bytes that the file of the result has beyond the model (its provenance).
        allow_unvalidated: let approximate passes run without samples to judge them by.
        progress: called with (what, done, total).
        hardware: facts of the target; one with a ``device`` is not at hand, and its times are estimated.
        float16: whether one of the passes finds out what may run in float16.
    """

    original: onnx.ModelProto
    gates: Gates
    parts: Parts
    feeds: Sequence[Feed]
    metric: str | Callable[..., float] = "auto"
    threads: int = 1
    jobs: int = 1
    providers: Sequence[str] = ("CPUExecutionProvider",)
    seed: int = 0
    overhead: int = 0
    allow_unvalidated: bool = False
    progress: Progress = lambda what, done, total: None
    hardware: Hardware | None = None
    float16: bool = True
    _found: dict[tuple[str, frozenset[str] | None], Finding] = field(default_factory=dict, init=False)

    @property
    def shapes(self) -> Shapes:
        """Shapes of the inputs that calls are timed with."""
        return {name: tuple(array.shape) for name, array in self.feeds[0].items()}

    @cached_property
    def costs(self) -> Costs:
        """Counts multiply-adds and parameters for these shapes, once for each model."""
        return Costs(self.shapes)

    @cached_property
    def _as_run(self) -> AsRun:
        return AsRun(self.original, self.hardware)

    @cached_property
    def speed(self) -> Speed:
        """Compares the speed of models."""
        if self.hardware is not None and self.hardware.device is not None:
            return EstimatedSpeed(self.hardware, self.shapes)
        return MeasuredSpeed(self.feeds[0], self.shapes, self.threads, self.providers, self.seed, self.progress)

    @property
    def recalled(self) -> bool:
        """Whether a latency comes from an earlier run on this machine."""
        return self.speed.recalled

    @property
    def warnings(self) -> tuple[str, ...]:
        """What went wrong beside the models."""
        return self.speed.warnings

    def check_original(self, name: str) -> None:
        """Run the original once, before any pass: what cannot be run cannot be judged.

        Raises:
            UnsupportedModelError: ONNX Runtime does not load or run it; ``name`` is in the message.
            UsageError: a provider is not available.
        """
        try:
            opened = runtime.session(self.original, threads=self.threads, providers=self.providers)
            runtime.run(opened, self.feeds[0])
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{name}: {error}") from error

    def why_different(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
        """Say how the outputs of ``after`` differ from those of ``before`` beyond rounding; None: they do not."""
        return equality.why_different(before, after, self.feeds, self.threads)

    def why_unjudged(self, needs: frozenset[str]) -> str | None:
        """Say why an approximate pass cannot be run or judged; None: it can."""
        if "calibration" in needs and self.parts.calibration is None:
            return f"it needs samples to calibrate on: {HOW_TO_GIVE}"
        if self.allow_unvalidated:
            return None
        if self.parts.selection is None:
            return f"there are no samples to choose by: {HOW_TO_GIVE}, or allow it with --allow-unvalidated"
        if self.parts.evaluation is None:
            return f"there are no samples to judge it by: {HOW_TO_GIVE}, or allow it with --allow-unvalidated"
        return None

    def trial(self, candidate: onnx.ModelProto, current: onnx.ModelProto, *, faster: bool) -> Trial:
        """Judge a candidate: accuracy against the original, speed against the model without it."""
        found = self._trial(candidate, current, faster)
        if found.problem is not None:
            self._as_run.forget(candidate)
        return found

    def _trial(self, candidate: onnx.ModelProto, current: onnx.ModelProto, faster: bool) -> Trial:
        metric = None
        if self._selection is not None:
            accuracy = self._accuracy(self._selection, candidate)
            metric = accuracy.optimized
            if not accuracy.passed:
                return Trial(accuracy.reason, metric)
        speed = self._trial_speed(current, candidate)
        if speed is None:
            return Trial(None, metric)
        if (speed.speedup if faster else speed.high) < 1:
            return Trial(f"{_times(speed.speedup)} as fast as the model without it", metric, speed.optimized_ms)
        return Trial(None, metric, speed.optimized_ms)

    def goals(self, to_threshold: bool = False, int8_follows: bool = False) -> Goals:
        """What the user asked for, and the means to measure it on what choices may be made on.

        ``to_threshold``: whether passes go on until the accuracy asked for is reached where no budget is set.
        ``int8_follows``: whether one of the passes quantizes.
        """
        known = self.speed.knows(self._as_run.weighed(self.original, frozenset()))
        return Goals(
            max_drop=self.gates.max_drop,
            max_macs=self.gates.max_macs,
            min_speedup=self.gates.min_speedup,
            to_threshold=to_threshold,
            int8_follows=int8_follows,
            original_macs=self.costs.of(self.original).macs,
            drop=self._drop if self.parts.selection is not None else None,
            speedup=self._speedup if known else None,
            without_float16=self._speedup_without_float16 if known else None,
        )

    def _speedup(self, model: onnx.ModelProto) -> float:
        found = self._trial_speed(self.original, model)
        return 1.0 if found is None else found.speedup

    def _speedup_without_float16(self, model: onnx.ModelProto) -> float:
        found = self.speed.compare(
            self._as_run.weighed(self.original, frozenset()), self._as_run.weighed(model, None), 0
        )
        return 1.0 if found is None else found.speedup

    def stand_in(self, model: onnx.ModelProto, simulation: onnx.ModelProto, current: onnx.ModelProto) -> None:
        """Judge ``model`` by what answers as it will on the target, which rounds by itself.

        What answers for ``current``, the model before, goes on to do so: it is rounded more.
        """
        self._as_run.stand_in(model, simulation, current)

    def _drop(self, model: onnx.ModelProto) -> float:
        reference = self._selection
        assert reference is not None, "asked for only where there are selection samples"
        found = self._accuracy(reference, model)
        if not found.passed and found.drop <= self.gates.max_drop:
            return inf
        low, high = found.ci95
        return found.drop + CAUTION * (high - low) / (2 * Z95)

    def verdict(self, model: onnx.ModelProto, stages: Sequence[Stage]) -> str | None:
        """Look at the evaluation samples and say which gates the model does not hold; None: it holds all."""
        return self.finding(model, stages).refusal

    def finding(self, model: onnx.ModelProto, stages: Sequence[Stage]) -> Finding:
        """Return what the verdict on a model rests on; a model is looked at once with the same options of the runtime.

        ``stages``: what became of each pass; a runtime that chooses types by itself is told what they vouch for.
        """
        names = left_in_float32(stages)
        key = self._as_run.digest(model), None if names is None else frozenset(names)
        if key not in self._found:
            self._found[key] = self._find(model, *key)
        return self._found[key]

    def _find(self, model: onnx.ModelProto, digest: str, float32: frozenset[str] | None) -> Finding:
        accuracy = self._accuracy(self._evaluation, model) if self._evaluation is not None else None
        latency = self._latency(model, digest, float32)
        judged = verdict(
            self.gates,
            accuracy=accuracy,
            size=content_hash(model)[1] + self.overhead,
            macs=self.costs.of(model).macs,
            baseline_macs=self.costs.of(self.original).macs,
        )
        failures = list(judged.failures)
        if latency is not None and not latency.passed:
            low, high = latency.ci95
            how = "" if latency.source == "measured" else f", {latency.source}"
            interval = f"95 % interval {low:.2f} to {high:.2f}{how}"
            wanted = f"wanted is {latency.min_speedup:g}x"
            failures.append(f"{_times(latency.speedup)} as fast as the original ({interval}), {wanted}")
        findings = self._broken_rules(model)
        errors = [each for each in findings if each.level == "error"]
        for each in errors[:SHOWN_ERRORS]:
            failures.append(f"{each.code}{f' at {each.where}' if each.where else ''}: {each.message}")
        if len(errors) > SHOWN_ERRORS:
            failures.append(f"and {len(errors) - SHOWN_ERRORS} more places that break rules of the target")
        return Finding(_facts(accuracy), latency, "; ".join(failures) or None, findings)

    def _broken_rules(self, model: onnx.ModelProto) -> tuple[RuleFinding, ...]:
        """Where a model breaks the rules of the target."""
        if self.hardware is None:
            return ()
        found = check_model(model, self.hardware)
        return tuple(RuleFinding(each.code, each.where, each.message, each.level) for each in found)

    def _latency(self, model: onnx.ModelProto, digest: str, float32: frozenset[str] | None) -> LatencyFacts | None:
        speed = self._speed(self.original, model, float32=float32)
        least = self.gates.min_speedup
        same = digest == self._as_run.digest(self.original)
        if speed is not None and not same and speed.high < least:
            # One of forty equal models would fail by chance: a failure must show twice.
            speed = self._speed(self.original, model, attempt=2, float32=float32)
        if speed is None:
            return None
        return LatencyFacts(
            source=self.speed.source,
            provider=self.speed.provider,
            threads=self.threads,
            baseline_ms=speed.baseline_ms,
            optimized_ms=speed.optimized_ms,
            speedup=speed.speedup,
            ci95=(speed.low, speed.high),
            min_speedup=least,
            passed=speed.high >= least or (least <= 1 and (same or self._refused)),
        )

    @cached_property
    def _refused(self) -> bool:
        """Whether the target does not take the original, so that nothing has to be as fast as that."""
        return self.speed.source == "estimated" and any(
            each.level == "error" for each in self._broken_rules(self.original)
        )

    @cached_property
    def _selection(self) -> Reference | None:
        return self._reference("selection")

    @cached_property
    def _evaluation(self) -> Reference | None:
        return self._reference("evaluation")

    def _reference(self, part: str) -> Reference | None:
        samples = getattr(self.parts, part)
        if samples is None:
            return None
        threads = max(self.threads, self.jobs)
        return Reference(self.original, samples, metric=self.metric, threads=threads, providers=self.providers)

    def _accuracy(self, reference: Reference, model: onnx.ModelProto) -> Accuracy:
        answering = self._as_run.answering(model)
        return evaluate(reference, [answering], max_drop=self.gates.max_drop, progress=self.progress)[0]

    def _trial_speed(self, baseline: onnx.ModelProto, model: onnx.ModelProto) -> Measured | None:
        """Compare two models for a choice: nothing is known yet of what has to stay in float32."""
        return self._speed(baseline, model, attempt=0, float32=frozenset() if self.float16 else None)

    def _speed(
        self, baseline: onnx.ModelProto, model: onnx.ModelProto, attempt: int = 1, *, float32: frozenset[str] | None
    ) -> Measured | None:
        """Compare two models; ``attempt``: 0 for a choice, 1 and 2 for the verdict.

        ``float32``: nodes of both that stay in float32; None: all. What an option of the runtime alone would bring the
        baseline is no merit of ours, and what float16 would spoil in the model it would spoil there too.
        """
        first, second = (self._as_run.weighed(each, float32) for each in (baseline, model))
        return self.speed.compare(first, second, attempt)


def _facts(accuracy: Accuracy | None) -> AccuracyFacts | None:
    if accuracy is None:
        return None
    return AccuracyFacts(
        metric=accuracy.metric,
        baseline=accuracy.baseline,
        optimized=accuracy.optimized,
        drop=accuracy.drop,
        max_drop=accuracy.max_drop,
        samples=accuracy.samples,
        sqnr_db=accuracy.sqnr_db,
        ci95=accuracy.ci95,
        passed=accuracy.passed,
    )


def _times(ratio: float) -> str:
    """Write a ratio so that 0.997 does not read as 1.00."""
    return f"{ratio:.3f}x" if 0.995 <= ratio < 1 else f"{ratio:.2f}x"
