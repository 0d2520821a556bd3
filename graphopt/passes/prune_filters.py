"""Cut whole filters, so that the network really gets smaller and faster, and make up for them in closed form.

::

    before   x -> Conv 64 -> BatchNorm -> Relu -> Conv 128 -> y
    after    x -> Conv 40 -> BatchNorm -> Relu -> Conv 128 -> y     (weights that read the 24 others are gone, too)

1. Find which channels must go together, on any architecture (graphopt.channels).
2. Find how much each channel matters, what noise each layer's error makes at the outputs, and with it a nested path of
   plans from the whole model to the smallest (pruning/).
3. Cut along the path to the budget asked for (multiply-adds, speed-up), or as far as the accuracy allows; after each
   cut refit the layers behind it on samples, towards what the original gives (graphopt.recovery).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import onnx

from graphopt.errors import UsageError
from graphopt.passes.base import Candidate, Context, Declined, Dial, Goals, PassReport, Skip, kernel_multiple
from graphopt.passes.pruning.dial import PruneDial
from graphopt.passes.pruning.importance import Criterion
from graphopt.passes.pruning.plan import Price, Scope
from graphopt.passes.pruning.remaining import composed
from graphopt.passes.pruning.result import Pruned, fit_summary
from graphopt.passes.pruning.settings import Recovery, Settings
from graphopt.passes.pruning.work import Pruning

# Shares tried on the way to the strongest cut that holds the accuracy, by bisection on a logarithmic scale.
TRIALS = 6
# Gentler candidates after one that did not hold.
GENTLER = 3
# Reasons listed of layers that cannot be cut.
MOST_REASONS = 50


@dataclass(frozen=True)
class PruneFilters:
    """Filter pruning.

    Attributes:
        max_macs: multiply-adds to reach, as a share of the original's; None: what ``optimize`` was asked for.
        share: instead of a budget, the share of the channels to cut from every group.
        importance: what decides which channels go; "auto" is "refit" with samples and "l2" without.
        recovery: "refit" on calibration samples, "data_free" on random inputs, "none"; "auto": by what there is.
        scope: cut where it costs least ("global"), or the same share everywhere ("uniform").
        price: what a cut is to save: multiply-adds ("macs"), predicted time on the target ("latency"), or both alike
            ("both"); "auto": both, but time where a planner weighs it against other passes.
        steps: number of cuts, each followed by recovery and a new measure of importance.
        samples: most calibration samples used.
        align: channels kept are multiples of this; 0 takes the target's.
        exclude: names of nodes whose filters stay, separated by spaces.
    """

    name: ClassVar[str] = "prune_filters"
    summary: ClassVar[str] = "cut whole filters along with all that depends on them, and refit what is left"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    max_macs: float | None = None
    share: float | None = None
    importance: Literal["auto", "refit", "activation", "l1", "l2", "batchnorm"] = "auto"
    recovery: Literal["auto", "refit", "data_free", "none"] = "auto"
    scope: Scope = "global"
    price: Literal["auto", "macs", "latency", "both"] = "auto"
    steps: int = 1
    samples: int = 512
    align: int = 0
    exclude: str = ""

    def __post_init__(self) -> None:
        if self.max_macs is not None and not 0 < self.max_macs <= 1:
            raise UsageError(f"prune_filters.max_macs is {self.max_macs:g}; it is a share, above 0 and at most 1")
        if self.share is not None and not 0 < self.share < 1:
            raise UsageError(f"prune_filters.share is {self.share:g}; it is a share, above 0 and below 1")
        if self.share is not None and self.max_macs is not None:
            raise UsageError("prune_filters.share and .max_macs exclude each other")
        if self.steps < 1 or self.samples < 1 or self.align < 0:
            raise UsageError("prune_filters.steps and .samples must be at least 1, .align at least 0")

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield the smallest model that the goals allow, then gentler ones where no budget forbids them.

        Raises:
            Declined: nothing can be cut, nothing was asked for, or the budget cannot be reached; says why.
            UsageError: an excluded node does not exist, or the model's multiply-adds are not known.
        """
        goals = context.goals
        budget = self.max_macs if self.max_macs is not None else goals.max_macs
        if budget is None and self.share is None and not goals.to_threshold:
            raise Declined(
                "no budget was given: say how far to cut with --max-macs 0.5, or with "
                "--option prune_filters.max_macs=0.5"
            )
        work = self._work(model, context, "both")
        try:
            if self.share is not None:
                yield _candidate(work, work.prune_evenly(self.share))
            elif budget is not None:
                yield self._to_budget(work, budget, goals.original_macs)
            else:
                yield from self._to_threshold(work, context)
        finally:
            work.close()

    def open_ended(self, goals: Goals) -> bool:
        """Whether neither the goals nor the options say how far to cut."""
        return goals.max_macs is None and self.max_macs is None and self.share is None

    def dial(self, model: onnx.ModelProto, context: Context) -> Dial:
        """Measure a model, to cut it as far as a price says.

        Raises:
            Declined: nothing can be cut.
            UsageError: as for ``candidates``.
        """
        return PruneDial(self._work(model, context, "latency"), _candidate)

    def _work(self, model: onnx.ModelProto, context: Context, auto: Price) -> Pruning:
        """Measure a model; ``auto``: the price where the option leaves it open."""
        price = auto if self.price == "auto" else self.price
        work = Pruning(model, self._settings(model, context, price), context)
        if len(work.path.steps) < 2:
            raise Declined("no group of channels can be cut", _report(work, None))
        return work

    def _to_budget(self, work: Pruning, budget: float, original_macs: int | None) -> Candidate:
        share = budget * (original_macs or work.macs) / work.macs
        if share >= 1:
            raise Declined(f"the model has no more than {budget:.1%} of the multiply-adds as it is")
        found = work.prune_to(share)
        if found.macs > share * work.macs * (1 + 1e-9):
            raise Declined(
                f"{budget:.1%} of the multiply-adds cannot be reached: the smallest cut leaves "
                f"{found.macs / (original_macs or work.macs):.1%} (inspect --groups says what cannot be cut)",
                _report(work, found),
            )
        return _candidate(work, found)

    def _to_threshold(self, work: Pruning, context: Context) -> Iterator[Candidate]:
        """Find the strongest cut that holds the accuracy, or the weakest as fast as asked; then gentler ones."""
        goals = context.goals
        if goals.drop is None:
            raise Declined("there are no samples to see how far it can cut: give --data, or a budget with --max-macs")
        low, high, best = max(work.smallest(), 1e-3), 1.0, None
        if goals.min_speedup > 1 and goals.speedup is not None:
            low = self._fast_enough(work, context, low)
        share = low
        for trial in range(TRIALS):
            context.progress("prune_filters: how far", trial, TRIALS)
            found = work.prune_to(share)
            if goals.drop(found.model) <= goals.max_drop:
                best, high = found, share
                if share == low:
                    break
            else:
                low = share
            share = (low * high) ** 0.5
        if best is None:
            raise Declined(f"even {1 - share:.1%} fewer multiply-adds cost more accuracy than allowed")
        yield _candidate(work, best)
        for _ in range(GENTLER):
            high = high**0.5
            if high > 0.98:
                return
            yield _candidate(work, work.prune_to(high))

    @staticmethod
    def _fast_enough(work: Pruning, context: Context, low: float) -> float:
        """The largest share of multiply-adds with which the model is as fast as asked; ``low`` where none is."""
        assert context.goals.speedup is not None
        high = 1.0
        for trial in range(TRIALS):
            context.progress("prune_filters: how far for the speed-up", trial, TRIALS)
            share = (low * high) ** 0.5
            if context.goals.speedup(work.cut_only(share)) >= context.goals.min_speedup:
                low = share
            else:
                high = share
        return low

    def _settings(self, model: onnx.ModelProto, context: Context, price: Price) -> Settings:
        known = {name for node in model.graph.node for name in (node.name or node.output[0],)}
        unknown = [name for name in self.exclude.split() if name not in known]
        if unknown:
            raise UsageError(f"prune_filters.exclude names no node of the model: {', '.join(unknown)}")
        there = context.calibration is not None
        recovery: Recovery = ("refit" if there else "data_free") if self.recovery == "auto" else self.recovery
        criterion: Criterion = ("refit" if there else "l2") if self.importance == "auto" else self.importance
        if not there and recovery == "refit":
            what = "recovery" if recovery == "refit" else "importance"
            raise UsageError(f"prune_filters.{what} needs calibration samples; give --data or --calibration-data")
        multiple = self.align or kernel_multiple(context)
        exclude = frozenset(self.exclude.split())
        return Settings(criterion, recovery, self.scope, price, self.samples, self.steps, multiple, exclude)


def _candidate(work: Pruning, found: Pruned) -> Candidate:
    label = f"{found.macs / work.macs:.1%} of the multiply-adds"
    return Candidate(found.model, _report(work, found), label, kept=composed(work.origin.kept, found.kept))


def _report(work: Pruning, found: Pruned | None) -> PassReport:
    reasons: dict[tuple[str, str], int] = {}
    for fixed in work.dependencies.fixed:
        key = fixed.node, fixed.reason
        reasons[key] = reasons.get(key, 0) + len(fixed.indices)
    skipped = [Skip(node, f"{count} filters cannot be cut: {reason}") for (node, reason), count in reasons.items()]
    if len(skipped) > MOST_REASONS:
        more = len(skipped) - MOST_REASONS
        skipped = [*skipped[:MOST_REASONS], Skip(f"{more} more layers", "see graphopt inspect --groups")]
    details: dict[str, Any] = {
        "importance": work.settings.criterion,
        "recovery": work.settings.recovery,
        "groups": len(work.dependencies),
    }
    removed = 0
    if found is not None:
        removed = sum(before - after for before, after in found.widths.values())
        details |= {
            "macs_share": round(found.macs / work.macs, 4),
            "predicted_speedup": round(found.predicted_speedup, 3) if found.predicted_speedup else None,
            "channels": {name: [before, after] for name, (before, after) in found.widths.items()},
            "refit": fit_summary(found.fits),
        }
    return PassReport(removed, tuple(skipped), details)
