"""Replace k x k convolutions by depthwise and pointwise ones where that makes the net faster, without training.

::

    before   x -> Conv 3x3, 64 to 64 -> Relu -> y
    rank 1   x -> Conv 3x3 depthwise -> Conv 1x1, 64 to 64 -> Relu -> y
    rank 2   x -> two such branches -> Add -> Relu -> y

1. Find the convolutions that can be separated, and time them in every form and rank on this machine (separable/).
2. Find what each form and rank loses on samples, and what noise that makes at the outputs.
3. Choose form and rank of each layer: what saves most time for its noise, as far as the accuracy or a budget asks for.
4. Refit the net on samples towards what the original gives, these layers' weights restricted to their form
   (graphopt.recovery), then write the factors into the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, get_args

import onnx

from graphopt.errors import UsageError
from graphopt.passes.base import Candidate, Context, Declined, Dial, Goals
from graphopt.passes.separable.dial import SeparationDial
from graphopt.passes.separable.factors import Form
from graphopt.passes.separable.ranks import Plan, made, path, within
from graphopt.passes.separable.settings import LayoutOption, Settings
from graphopt.passes.separable.telling import candidate_of, report_of
from graphopt.passes.separable.work import Separated, Separation

# Models made on the way to the boldest plan that holds the accuracy, by bisection.
TRIALS = 6
# Gentler candidates after one that did not hold.
GENTLER = 3


@dataclass(frozen=True)
class SeparateConvolutions:
    """Depthwise-separable substitution.

    Attributes:
        rank: number of terms of every layer; 0: chosen for each by what it costs and what it saves.
        max_macs: multiply-adds to reach, as a share of the original's; None: what ``optimize`` was asked for.
        forms: forms that layers may take, separated by spaces: ``depthwise_first``, ``pointwise_first``, ``spatial``.
        layout: how terms are written: ``sum``, ``concat`` or ``multiplier``; ``auto``: the fastest, measured.
        samples: most calibration samples used.
        exclude: names of nodes that stay as they are, separated by spaces.
    """

    name: ClassVar[str] = "separate_convolutions"
    summary: ClassVar[str] = "replace k x k convolutions by depthwise and pointwise ones where that is faster"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    rank: int = 0
    max_macs: float | None = None
    forms: str = "depthwise_first pointwise_first spatial"
    layout: LayoutOption = "auto"
    samples: int = 512
    exclude: str = ""

    def __post_init__(self) -> None:
        if self.max_macs is not None and not 0 < self.max_macs <= 1:
            raise UsageError(f"separate_convolutions.max_macs is {self.max_macs:g}; it is a share, above 0, at most 1")
        if self.rank < 0 or self.samples < 1:
            raise UsageError("separate_convolutions.rank must be at least 0 (0: chosen), .samples at least 1")
        if self.rank and self.max_macs is not None:
            raise UsageError("separate_convolutions.rank and .max_macs exclude each other")
        unknown = [form for form in self.forms.split() if form not in get_args(Form)]
        if unknown or not self.forms.split():
            raise UsageError(
                f"separate_convolutions.forms is '{self.forms}'; it takes one or more of {', '.join(get_args(Form))}"
            )

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield the fastest model that the goals allow, then gentler ones where no budget forbids them.

        Raises:
            Declined: nothing can be separated or pays, nothing was asked for, or the budget cannot be reached.
            UsageError: an excluded node does not exist, or the model's multiply-adds are not known.
        """
        goals = context.goals
        budget = None if self.rank else self.max_macs if self.max_macs is not None else goals.max_macs
        if budget is None and not self.rank and not goals.to_threshold:
            raise Declined(
                "no budget was given: say how far to go with --max-macs 0.5, or with "
                "--option separate_convolutions.rank=2"
            )
        work = self._open(model, context)
        try:
            if self.rank:
                yield candidate_of(work, work.separate(_best_at_rank(work)))
            elif budget is not None:
                yield self._to_budget(work, budget, goals.original_macs)
            else:
                yield from self._to_threshold(work, context)
        finally:
            work.close()

    def open_ended(self, goals: Goals) -> bool:
        """Whether neither the goals nor the options say how far to go."""
        return goals.max_macs is None and self.max_macs is None and not self.rank

    def dial(self, model: onnx.ModelProto, context: Context) -> Dial:
        """Measure a model, to separate its convolutions as far as a price says.

        Raises:
            Declined: nothing can be separated, or nothing pays.
            UsageError: an excluded node does not exist.
        """
        return SeparationDial(self._open(model, context))

    def _open(self, model: onnx.ModelProto, context: Context) -> Separation:
        known = {node.name or node.output[0] for node in model.graph.node if node.output}
        unknown = [name for name in self.exclude.split() if name not in known]
        if unknown:
            raise UsageError(f"separate_convolutions.exclude names no node of the model: {', '.join(unknown)}")
        forms = tuple(form for form in get_args(Form) if form in self.forms.split())
        if self.rank and len(forms) > 1:
            # Ranks of the spatial form are channels, not terms.
            forms = tuple(form for form in forms if form != "spatial")
        settings = Settings(self.rank, forms, self.layout, self.samples, frozenset(self.exclude.split()))
        work = Separation(model, settings, context)
        if not work.places:
            work.close()
            raise Declined("no convolution can be separated", report_of(work, None))
        if not work.measured.choices:
            work.close()
            raise Declined("no convolution would be faster", report_of(work, None))
        return work

    def _to_budget(self, work: Separation, budget: float, original_macs: int | None) -> Candidate:
        share = budget * (original_macs or work.macs) / work.macs
        if share >= 1:
            raise Declined(f"the model has no more than {budget:.1%} of the multiply-adds as it is")
        found = work.measured
        plan = within(found.choices, found.totals, share)
        if plan is None:
            least = path(found.choices, found.totals, by_macs=True)[-1]
            reached = least.macs * work.macs / (original_macs or work.macs)
            raise Declined(
                f"{budget:.1%} of the multiply-adds cannot be reached: the least that is faster leaves {reached:.1%}",
                report_of(work, None),
            )
        return candidate_of(work, work.separate(plan))

    def _to_threshold(self, work: Separation, context: Context) -> Iterator[Candidate]:
        """Find the boldest plan that holds the accuracy; then gentler ones."""
        goals = context.goals
        if goals.drop is None:
            raise Declined("there are no samples to see how far it can go: give --data, or a rank, or --max-macs")
        plans = path(work.measured.choices, work.measured.totals)
        low, high = 0, len(plans)  # plans[low] holds, plans[high] does not or is none
        best: Separated | None = None
        for trial in range(TRIALS):
            if high - low < 2:
                break
            context.progress("separate_convolutions: how far", trial, TRIALS)
            middle = len(plans) - 1 if trial == 0 else (low + high) // 2
            found = work.separate(plans[middle])
            if goals.drop(found.model) <= goals.max_drop:
                best, low = found, middle
            else:
                high = middle
        if best is None:
            raise Declined(
                "even the gentlest substitution tried costs more accuracy than allowed", report_of(work, None)
            )
        yield candidate_of(work, best)
        for _ in range(GENTLER):
            low = low * 2 // 3
            if low == 0:
                return
            yield candidate_of(work, work.separate(plans[low]))


def _best_at_rank(work: Separation) -> Plan:
    """Every layer in the form that loses least."""
    found = work.measured
    chosen = {choice.layer: min(choice.options, key=lambda option: option.loss) for choice in found.choices}
    return made(found.choices, found.totals, chosen)


__all__ = ["SeparateConvolutions"]
