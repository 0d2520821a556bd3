"""How much faster one model is than another: measured on this machine, or estimated for a device not at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, TypeAlias

import onnx

from graphopt.data import Feed
from graphopt.decisions import Decisions, Measured, comparison_key
from graphopt.errors import GraphoptError
from graphopt.latency import Estimate, estimate, ratio_interval
from graphopt.targets import Hardware
from graphopt.validation import bench, measure

Shapes = Mapping[str, tuple[int, ...]]
Progress = Callable[[str, int, int], None]
Source: TypeAlias = Literal["measured", "estimated"]

# Seconds and precision of timings that choices rest on, and of those that the verdict rests on (``measure_rounds``).
BRIEFLY = (1.5, 0.02)
THOROUGHLY = (5.0, 0.01)


@dataclass(frozen=True)
class Weighed:
    """A model and what tells it from others.

    Attributes:
        model: the model.
        digest: of its content.
        float32: names of nodes that a runtime which chooses types by itself is told to leave in float32; None: all.
    """

    model: onnx.ModelProto
    digest: str
    float32: frozenset[str] | None = frozenset()


class Speed(Protocol):
    """Compares the speed of models."""

    @property
    def source(self) -> Source:
        """Where times come from."""

    @property
    def provider(self) -> str:
        """What runs the models."""

    @property
    def recalled(self) -> bool:
        """Whether a latency comes from an earlier run on this machine."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the times."""

    def knows(self, model: Weighed) -> bool:
        """Whether anything can be said of a model."""

    def compare(self, baseline: Weighed, model: Weighed, attempt: int) -> Measured | None:
        """Compare two models; None where nothing can be said.

        ``attempt``: 0 for a choice, 1 and 2 for the verdict.
        """


@dataclass
class MeasuredSpeed:
    """Calls timed on this machine, or recalled from an earlier run; see ``graphopt.decisions``.

    Attributes:
        feed: what the models are called with.
        shapes: shapes of its arrays.
        threads: intra-op threads.
        providers: execution providers, the preferred first.
        seed: of resampling and of the order of timings.
        progress: called with (what, done, total).
        recalled: whether a latency comes from an earlier run on this machine.
    """

    feed: Feed
    shapes: Shapes
    threads: int
    providers: Sequence[str]
    seed: int
    progress: Progress
    recalled: bool = False
    source: Source = "measured"
    _fresh: set[str] = field(default_factory=set, init=False)
    _decisions: Decisions = field(default_factory=Decisions, init=False)

    @property
    def provider(self) -> str:
        """What runs the models."""
        return self.providers[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What went wrong beside the models."""
        return (self._decisions.warning,) if self._decisions.warning else ()

    def knows(self, model: Weighed) -> bool:
        """Whatever runs can be measured."""
        return True

    def compare(self, baseline: Weighed, model: Weighed, attempt: int) -> Measured:
        """Measure, or recall. A model is not compared with itself, where only noise would tell: one timing does."""
        same = baseline.digest == model.digest
        key = comparison_key(
            baseline=baseline.digest,
            optimized=model.digest,
            shapes=sorted(self.shapes.items()),
            threads=self.threads,
            providers=",".join(self.providers),
            attempt=attempt,
        )
        known = self._decisions.recall(key)
        if known is not None:
            self.recalled |= key not in self._fresh
            return _unchanged(known.baseline_ms) if same else known
        self.progress("measuring latency", 0, 0)
        feed, threads, providers, seed = self.feed, self.threads, self.providers, self.seed
        seconds, precision = BRIEFLY if attempt == 0 else THOROUGHLY
        if same:
            timing = bench(baseline.model, feed, threads=threads, providers=providers, seconds=seconds, seed=seed)
            measured = _unchanged(timing.median_ms)
        else:
            found = measure(
                baseline.model,
                model.model,
                feed,
                threads=threads,
                providers=providers,
                seconds=seconds,
                precision=precision,
                seed=seed,
            )
            measured = Measured(found.baseline_ms, found.optimized_ms, found.speedup, *found.ci95)
        self._decisions.remember(key, measured)
        self._fresh.add(key)
        return measured


@dataclass
class EstimatedSpeed:
    """Times by the latency model, for a device that is not at hand (docs/latency.md).

    Attributes:
        hardware: the target's facts; needs a ``device``.
        shapes: shapes of the inputs.
    """

    hardware: Hardware
    shapes: Shapes
    recalled: bool = False
    source: Source = "estimated"
    _problem: str = field(default="", init=False)
    _known: dict[tuple[str, frozenset[str] | None], Estimate | None] = field(default_factory=dict, init=False)

    @cached_property
    def provider(self) -> str:
        """What runs the models."""
        version = f" {self.hardware.runtime_version}" if self.hardware.runtime_version else ""
        return f"{self.hardware.runtimes[0].name}{version}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why nothing can be estimated, or where the estimates come from."""
        if self._problem:
            return (f"the latency on the target cannot be estimated: {self._problem}",)
        made = next((one for one in self._known.values() if one is not None), None)
        if made is None:
            return ()
        low, high = (each / made.ms for each in made.interval)
        return (f"latencies are {made.source}; each may lie between {low:.2f} and {high:.2f} times the figure given",)

    def knows(self, model: Weighed) -> bool:
        """Whether all sizes in a model are known."""
        return self._estimate(model) is not None

    def compare(self, baseline: Weighed, model: Weighed, attempt: int) -> Measured | None:
        """Estimate both; None where the sizes in one of them are not known."""
        first, second = self._estimate(baseline), self._estimate(model)
        if first is None or second is None:
            return None
        if baseline.digest == model.digest:
            return _unchanged(first.ms)
        return Measured(first.ms, second.ms, first.ms / second.ms, *ratio_interval(first, second))

    def _estimate(self, one: Weighed) -> Estimate | None:
        key = one.digest, one.float32
        if key not in self._known:
            try:
                self._known[key] = estimate(one.model, self.hardware, shapes=self.shapes, float32=one.float32)
            except GraphoptError as error:
                self._problem = self._problem or str(error)
                self._known[key] = None
        return self._known[key]


def _unchanged(milliseconds: float) -> Measured:
    return Measured(milliseconds, milliseconds, 1.0, 1.0, 1.0)
