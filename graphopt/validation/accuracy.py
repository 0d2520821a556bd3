"""Judge candidates against the original on samples: metric, drop, its confidence interval, SQNR."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np

from graphopt.data.sample import DataSource, Sample
from graphopt.data.spool import ArrayLog
from graphopt.errors import DataError
from graphopt.validation.intervals import drop_interval
from graphopt.validation.metrics import Metric, Outputs, resolve_metric
from graphopt.validation.model import Model, Runner
from graphopt.validation.sqnr import Sqnr

Progress: TypeAlias = Callable[[str, int, int], None]

# Outputs of the original kept on disk for further candidates; beyond it they are computed anew.
LARGEST_LOG_BYTES = 4 << 30


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a candidate against the original: the object ``accuracy`` of the report.

    Attributes:
        metric: its name.
        baseline: mean score of the original; 1 for agreement and cosine.
        optimized: mean score of the candidate.
        drop: baseline - optimized, absolute.
        max_drop: the most that is allowed.
        samples: number of samples.
        sqnr_db: over all float outputs, within ±300; None where there is no float output, or it is not finite.
        ci95: 95 % confidence interval of the drop (see graphopt.validation.intervals).
        passed: drop <= max_drop, and no output is NaN or infinite where the original's is finite.
        reason: why it did not pass, with the figures; empty when it did.
    """

    metric: str
    baseline: float
    optimized: float
    drop: float
    max_drop: float
    samples: int
    sqnr_db: float | None
    ci95: tuple[float, float]
    passed: bool
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the contract, JSON-ready."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "reason"}
        return {**values, "ci95": list(self.ci95)}


class Reference:
    """The original and its outputs on some samples, kept on disk: each further candidate costs one run a sample.

    Args:
        model: the original.
        samples: what it is judged on.
        metric: ``auto``, ``top1``, ``top5``, ``agreement``, ``cosine``, ``MODULE:FUNCTION`` or a function.
        threads: intra-op threads.
        providers: execution providers.

    Raises:
        DataError: the samples are random numbers.
    """

    def __init__(
        self,
        model: Model,
        samples: DataSource,
        *,
        metric: str | Callable[..., float] = "auto",
        threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if samples.synthetic:
            raise DataError("random data can time a model but not judge its accuracy; give real samples")
        self.samples = samples
        self.threads, self.providers = threads, tuple(providers)
        self._model, self._asked = model, metric
        self._runner: Runner | None = None
        self._log = ArrayLog()
        self._metric: Metric | None = None

    def __iter__(self) -> Iterator[tuple[Sample, Outputs]]:
        """Yield each sample with the original's outputs for it; run once, then read from disk."""
        for index, sample in enumerate(self.samples):
            if index < len(self._log):
                yield sample, self._log.read(index)
                continue
            outputs = self._run(sample, index)
            if index == len(self._log) and self._log.bytes < LARGEST_LOG_BYTES:
                self._log.append(outputs)
            yield sample, outputs

    def metric(self, outputs: Outputs) -> Metric:
        """Return the metric, which ``auto`` chooses by the original's outputs."""
        if self._metric is None:
            self._metric = resolve_metric(self._asked, self.samples.labelled, outputs)
        return self._metric

    def _run(self, sample: Sample, index: int) -> Outputs:
        if self._runner is None:
            self._runner = Runner(self._model, "the original", self.threads, self.providers)
        return self._runner.run(sample.inputs, index)


def evaluate(
    reference: Reference,
    candidates: Sequence[Model],
    *,
    max_drop: float = 0.01,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Accuracy, ...]:
    """Judge candidates against the original, all of them in one pass over the samples.

    Args:
        reference: the original with its samples and metric.
        candidates: the models; inputs as the original's, outputs matched by name, else by position.
        max_drop: the most that the metric may fall, absolute.
        progress: called with (what, done, total) after each sample; total 0 when unknown.

    Raises:
        DataError: the samples do not fit the metric or the original.
        UnsupportedModelError: a candidate cannot be run, or has other inputs or outputs.
    """
    runners = [Runner(model, "the candidate", reference.threads, reference.providers) for model in candidates]
    before = array("d")
    after = [array("d") for _ in runners]
    noise = [Sqnr() for _ in runners]
    metric: Metric | None = None
    for index, (sample, expected) in enumerate(reference):
        metric = reference.metric(expected)
        scores = metric.score(expected, expected, sample)
        before.extend(np.ones_like(scores) if metric.relative else scores)
        for runner, found_scores, sums in zip(runners, after, noise, strict=True):
            found = runner.run(sample.inputs, index, like=expected)
            sums.add(found, expected)
            found_scores.extend(metric.score(found, expected, sample))
        progress("evaluating", index + 1, reference.samples.length or 0)
    if metric is None:
        raise DataError(f"{reference.samples.description}: holds no samples")
    return tuple(_judged(metric, before, scores, sums, max_drop) for scores, sums in zip(after, noise, strict=True))


def _judged(metric: Metric, before: array[float], after: array[float], noise: Sqnr, max_drop: float) -> Accuracy:
    baseline, optimized = float(np.mean(before)), float(np.mean(after))
    # Both means are rounded sums: a drop of exactly max_drop must not fail by the last bit.
    drop = round(baseline - optimized, 12) + 0.0
    reason = ""
    if noise.broken:
        reason = f"output {noise.broken}, where the original's is finite and whole"
    elif drop > max_drop:
        reason = f"{metric.name} falls by {drop:.4f} (from {baseline:.4f} to {optimized:.4f}), allowed is {max_drop:g}"
    interval = drop_interval(before, after, metric.relative)
    return Accuracy(
        metric.name, baseline, optimized, drop, max_drop, len(before), noise.db, interval, not reason, reason
    )
