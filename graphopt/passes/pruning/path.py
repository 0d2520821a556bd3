"""Plans of how many channels each group keeps, nested, and which of them answers a budget or a price."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Time saved for each unit of harm over that of the last step alone.
ON_AVERAGE = 2.0


@dataclass(frozen=True)
class Step:
    """One plan of the path.

    Attributes:
        kept: channels that each group keeps, by number of the group; groups left whole are left out.
        macs: multiply-adds as a share of the whole model's.
        time: predicted time as a share of the whole model's.
        noise: predicted noise-to-signal power at the outputs.
        harm: the same, groups that lose much weighing more than others (``Curve.harm``).
    """

    kept: Mapping[int, int]
    macs: float
    time: float
    noise: float
    harm: float = 0.0


@dataclass(frozen=True)
class Path:
    """Plans from the whole model to the smallest, each a cut of the one before.

    Attributes:
        steps: the plans; the first removes nothing.
        time: predicted nanoseconds of the whole model.
        give_back: gives channels of a plan back as long as a share of the multiply-adds is kept within.
    """

    steps: tuple[Step, ...]
    time: float
    give_back: Callable[[Step, float], Step] | None = field(default=None, repr=False, compare=False)

    def within(self, macs: float) -> Step:
        """The plan for a share of multiply-adds: the first of the path within it, with what fits given back.

        The step that crosses the budget may overshoot it by far, where a wide residual stream is cut. Then other groups
        get channels back, those first whose loss is predicted to make the most noise.
        """
        step = self.at(macs=macs)
        return step if self.give_back is None or step.macs > macs else self.give_back(step, macs)

    def at(self, *, macs: float | None = None, speedup: float | None = None, noise: float | None = None) -> Step:
        """The first plan that is within every budget given; the last where none is.

        Args:
            macs: share of the multiply-adds that may remain.
            speedup: predicted speed-up to reach.
            noise: predicted noise that the plan must have reached (for steps of about equal damage).
        """
        for step in self.steps:
            if macs is not None and step.macs > macs:
                continue
            if speedup is not None and step.time * speedup > 1:
                continue
            if noise is not None and step.noise < noise:
                continue
            return step
        return self.steps[-1]

    def at_price(self, price: float) -> Step:
        """The plan that gives up most time where one unit of noise is worth ``price``.

        It is the furthest that is faster than all before it and whose time saved, for each unit of harm, is worth twice
        the price on average: on paths whose saving goes by the root of the harm, the last step then just pays. Going by
        each step alone would leave out all plans between the corners of the path's convex hull, which lie far apart
        where many channels go at once.

        Args:
            price: share of the whole model's predicted time that a noise-to-signal power of 1 at the outputs must
                save: at a price of 20 the last step may add 1 % of noise (20 dB) for each 20 % of the time.
        """
        found = self.steps[0]
        fastest = found.time
        for step in self.steps:
            if step.time < fastest and 1 - step.time >= ON_AVERAGE * price * step.harm:
                found = step
            fastest = min(fastest, step.time)
        return found
