"""Which groups to cut how far: a nested path of plans, each step the least predicted noise for what it saves.

The savings of one step depend on the others, for a convolution costs the product of its two sides; they are computed
anew when a step comes up. They only shrink along the path, so the step at the top of a heap whose ratio is up to date
is the best of all (lazy greedy; Minoux 1978).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from graphopt.channels import Dependencies
from graphopt.passes.pruning.alignment import Ladder
from graphopt.passes.pruning.curves import Curve
from graphopt.passes.pruning.path import Path, Step
from graphopt.passes.pruning.times import Costs

# What a step is paid in: multiply-adds, predicted time, or both alike (the mean of the two shares).
Price: TypeAlias = Literal["macs", "latency", "both"]
Scope: TypeAlias = Literal["global", "uniform"]


def plan_path(
    dependencies: Dependencies,
    curves: Mapping[int, Curve],
    costs: Costs,
    ladders: Sequence[Ladder],
    *,
    price: Price = "both",
    scope: Scope = "global",
) -> Path:
    """Find the path.

    Args:
        dependencies: groups of the model.
        curves: predicted noise by group; groups without a curve are left whole.
        costs: what layers cost.
        ladders: counts that groups may keep.
        price: what counts as saved.
        scope: "global": cut where it costs least; "uniform": the same share of every group.
    """
    usable = [ladder for ladder in ladders if all(number in curves for number in ladder.groups)]
    walk = _Walk(dependencies, curves, costs, price, usable)
    return walk.uniform() if scope == "uniform" else walk.greedy()


class _Walk:
    def __init__(
        self,
        dependencies: Dependencies,
        curves: Mapping[int, Curve],
        costs: Costs,
        price: Price,
        ladders: Sequence[Ladder],
    ) -> None:
        self.dependencies = dependencies
        self.ladders = ladders
        self.curves = curves
        self.costs = costs
        self.removed = [0] * len(dependencies)
        self.full_macs = max(costs.macs(self.removed), 1.0)
        self.full_time = max(costs.time(self.removed), 1.0)
        self.now = (self.full_macs, self.full_time)
        self.shares = {"macs": (1.0, 0.0), "latency": (0.0, 1.0), "both": (0.5, 0.5)}[price]
        self.steps = [Step({}, 1.0, 1.0, 0.0)]

    def greedy(self) -> Path:
        ladders = self.ladders
        places = [0] * len(ladders)
        heap: list[tuple[float, int, int, int]] = []

        def push(number: int) -> None:
            found = self._best(ladders[number], places[number])
            if found is not None:
                heapq.heappush(heap, (found[0], number, found[1], len(self.steps)))

        for number in range(len(ladders)):
            push(number)
        while heap:
            _, number, target, when = heapq.heappop(heap)
            if when != len(self.steps):
                push(number)
                continue
            # Counts that are passed over are plans, too: a budget may lie between.
            for place in range(places[number] + 1, target + 1):
                self._take(self.ladders[number], place)
            places[number] = target
            push(number)
        return Path(tuple(self.steps), self.full_time, self.given_back)

    def uniform(self) -> Path:
        moves = [
            (float(count / ladder.counts[0]), number, place)
            for number, ladder in enumerate(self.ladders)
            for place, count in enumerate(ladder.counts)
            if place
        ]
        for _, number, place in sorted(moves, key=lambda move: (-move[0], move[1])):
            self._take(self.ladders[number], place)
        return Path(tuple(self.steps), self.full_time, self.given_back)

    def _best(self, ladder: Ladder, place: int) -> tuple[float, int] | None:
        """Least noise for what is saved over all further counts of a ladder, and the count's place; None: no more."""
        harm = np.array([self._harm(ladder, further) for further in range(place, len(ladder.kept))])
        if len(harm) < 2:
            return None
        macs, time = self.costs.saved(self.removed, ladder.groups, ladder.kept[0] - ladder.kept[place + 1 :])
        saved = self.shares[0] * macs / self.full_macs + self.shares[1] * time / self.full_time
        added = np.maximum(harm[1:] - harm[0], 1e-15)
        ratio = np.where((saved > 0) & np.isfinite(added), added / np.maximum(saved, 1e-30), np.inf)
        best = int(np.argmin(ratio))
        return None if not np.isfinite(ratio[best]) else (float(ratio[best]), place + 1 + best)

    def _harm(self, ladder: Ladder, place: int) -> float:
        kept = ladder.kept[place]
        pairs = zip(ladder.groups, kept, strict=True)
        return sum(self.curves[number].harm(int(count)) for number, count in pairs)

    def _noise(self, ladder: Ladder, place: int) -> float:
        kept = ladder.kept[place]
        return sum(self.curves[number].at(int(count)) for number, count in zip(ladder.groups, kept, strict=True))

    def _take(self, ladder: Ladder, place: int) -> None:
        """Go from the count before to that at ``place``."""
        before = self.steps[-1]
        noise = before.noise + self._noise(ladder, place) - self._noise(ladder, place - 1)
        harm = before.harm + self._harm(ladder, place) - self._harm(ladder, place - 1)
        lost = ladder.kept[0] - ladder.kept[place]
        macs, time = self.costs.saved(self.removed, ladder.groups, lost[None])
        self.now = (self.now[0] - float(macs[0]), self.now[1] - float(time[0]))
        for number, count in zip(ladder.groups, lost, strict=True):
            self.removed[number] = int(count)
        kept = {n: self.dependencies[n].size - count for n, count in enumerate(self.removed) if count}
        self.steps.append(Step(kept, self.now[0] / self.full_macs, self.now[1] / self.full_time, noise, harm))

    def given_back(self, step: Step, budget: float) -> Step:
        """Give channels back as long as the multiply-adds stay within the budget."""
        removed = [group.size - step.kept.get(group.number, group.size) for group in self.dependencies]
        places = [self._place(ladder, removed) for ladder in self.ladders]
        macs, time, noise, harm = step.macs * self.full_macs, step.time * self.full_time, step.noise, step.harm
        while True:
            best: tuple[float, int, float, float] | None = None
            for number, (ladder, place) in enumerate(zip(self.ladders, places, strict=True)):
                if place == 0:
                    continue
                gained = self._harm(ladder, place) - self._harm(ladder, place - 1)
                if best is not None and gained <= best[0]:
                    continue
                lost = ladder.kept[0] - ladder.kept[place - 1]
                more_macs, more_time = (
                    -float(each[0]) for each in self.costs.saved(removed, ladder.groups, lost[None])
                )
                if macs + more_macs <= budget * self.full_macs:
                    best = gained, number, more_macs, more_time
            if best is None:
                kept = {n: self.dependencies[n].size - count for n, count in enumerate(removed) if count}
                return Step(kept, macs / self.full_macs, time / self.full_time, noise, harm)
            less, number, more_macs, more_time = best
            ladder = self.ladders[number]
            noise -= self._noise(ladder, places[number]) - self._noise(ladder, places[number] - 1)
            harm -= less
            places[number] -= 1
            for group, count in zip(ladder.groups, ladder.kept[0] - ladder.kept[places[number]], strict=True):
                removed[group] = int(count)
            macs, time = macs + more_macs, time + more_time

    @staticmethod
    def _place(ladder: Ladder, removed: Sequence[int]) -> int:
        kept = ladder.kept[0, 0] - removed[ladder.groups[0]]
        return int(np.flatnonzero(ladder.kept[:, 0] == kept)[0])
