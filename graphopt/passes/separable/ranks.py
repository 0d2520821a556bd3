"""Which form and rank each layer gets: the least noise for the time saved, or for the multiply-adds.

Every layer has options, each with what it costs and how much noise it adds at the outputs; the errors of different
layers are taken to add up, as in ``prune_filters`` and ``quantize_int8``. A price of noise decides each layer by itself
(the Lagrangian of the knapsack; Shoham and Gersho 1988); from high prices to low ones the plans are nested in noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.passes.separable.factors import Form
from graphopt.passes.separable.write import Layout


@dataclass(frozen=True)
class Option:
    """What a layer may become.

    Attributes:
        form: how it is separated.
        rank: number of terms.
        layout: how the terms are written.
        time: microseconds, in the best mixture of precisions.
        macs: multiply-adds.
        noise: noise-to-signal power that it adds at the model's outputs.
        loss: squared error of the layer's own output over its power about its mean.
    """

    form: Form
    rank: int
    layout: Layout
    time: float
    macs: int
    noise: float
    loss: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A layer and what it may become.

    Attributes:
        layer: the tensor that it writes.
        time: microseconds as it is.
        macs: multiply-adds as it is.
        options: what it may become.
    """

    layer: str
    time: float
    macs: int
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Totals:
    """The whole model: microseconds and multiply-adds, those of other nodes included."""

    time: float
    macs: int


@dataclass(frozen=True)
class Plan:
    """What becomes of each layer.

    Attributes:
        chosen: option by layer; layers that stay are left out.
        time: predicted time as a share of the whole model's.
        macs: multiply-adds as a share of the whole model's.
        noise: predicted noise-to-signal power at the outputs.
    """

    chosen: Mapping[str, Option] = field(default_factory=dict)
    time: float = 1.0
    macs: float = 1.0
    noise: float = 0.0


def plan(choices: Iterable[Choice], totals: Totals, price: float, *, by_macs: bool = False) -> Plan:
    """Decide every layer at a price.

    Args:
        choices: the layers.
        totals: the whole model.
        price: share of the model's time (or multiply-adds) that must be saved for one unit of noise.
        by_macs: whether multiply-adds are what is to be saved.
    """
    chosen: dict[str, Option] = {}
    for choice in choices:
        best, least = None, 0.0
        for option in choice.options:
            cost = price * option.noise - _saved(choice, option, totals, by_macs)
            if cost < least:
                best, least = option, cost
        if best is not None:
            chosen[choice.layer] = best
    return made(choices, totals, chosen)


def made(choices: Iterable[Choice], totals: Totals, chosen: Mapping[str, Option]) -> Plan:
    """The plan with given options."""
    time, macs, noise = 1.0, 1.0, 0.0
    for choice in choices:
        option = chosen.get(choice.layer)
        if option is not None:
            time -= _saved(choice, option, totals, by_macs=False)
            macs -= _saved(choice, option, totals, by_macs=True)
            noise += option.noise
    return Plan(dict(chosen), time, macs, noise)


def path(choices: Sequence[Choice], totals: Totals, *, by_macs: bool = False) -> tuple[Plan, ...]:
    """All plans that a price can give, from the whole model to the most that is saved; each once.

    Walks down the lower convex hulls of the layers, the step that saves most for its noise first.
    """
    steps: list[tuple[float, int, Option]] = []
    for number, choice in enumerate(choices):
        steps.extend((ratio, number, option) for ratio, option in _hull(choice, totals, by_macs))
    plans = [Plan()]
    chosen: dict[str, Option] = {}
    time, macs, noise = 1.0, 1.0, 0.0
    for _, number, option in sorted(steps, key=lambda step: (-step[0], step[1])):
        choice = choices[number]
        before = chosen.get(choice.layer)
        if before is not None:
            time += _saved(choice, before, totals, by_macs=False)
            macs += _saved(choice, before, totals, by_macs=True)
            noise -= before.noise
        time -= _saved(choice, option, totals, by_macs=False)
        macs -= _saved(choice, option, totals, by_macs=True)
        noise += option.noise
        chosen[choice.layer] = option
        plans.append(Plan(dict(chosen), time, macs, noise))
    return tuple(plans)


def within(choices: Sequence[Choice], totals: Totals, macs: float) -> Plan | None:
    """The plan with the least noise found whose multiply-adds are within a share of the model's; None: there is none.

    The first of the path within it, improved by exchanging the options of single layers as long as the budget holds:
    the path jumps over what lies between its steps.
    """
    found = next((each for each in path(choices, totals, by_macs=True) if each.macs <= macs), None)
    if found is None:
        return None
    chosen = dict(found.chosen)
    room = (macs - found.macs) * totals.macs
    while True:
        best: tuple[float, Choice, Option | None, int] | None = None
        for choice in choices:
            now = chosen.get(choice.layer)
            if now is None:
                continue
            others: list[Option | None] = [None, *choice.options]
            for option in others:
                more = (choice.macs if option is None else option.macs) - now.macs
                less = now.noise - (0.0 if option is None else option.noise)
                if more <= room and less > (best[0] if best else 0.0):
                    best = less, choice, option, more
        if best is None:
            return made(choices, totals, chosen)
        _, choice, option, more = best
        room -= more
        if option is None:
            del chosen[choice.layer]
        else:
            chosen[choice.layer] = option


def _hull(choice: Choice, totals: Totals, by_macs: bool) -> list[tuple[float, Option]]:
    """Options that some price chooses, from the least saving on, each with the saving for the noise of its step."""
    saved = {id(option): _saved(choice, option, totals, by_macs) for option in choice.options}
    useful = sorted(
        (option for option in choice.options if saved[id(option)] > 0), key=lambda each: (saved[id(each)], -each.noise)
    )
    hull: list[tuple[float, Option]] = []
    for option in useful:
        while True:
            before = hull[-1][1] if hull else None
            gain = saved[id(option)] - (saved[id(before)] if before else 0.0)
            noise = option.noise - (before.noise if before else 0.0)
            ratio = gain / noise if noise > 0 else float("inf")
            if before is None or ratio < hull[-1][0]:
                break
            hull.pop()
        if gain > 0:
            hull.append((ratio, option))
    return hull


def _saved(choice: Choice, option: Option, totals: Totals, by_macs: bool) -> float:
    if by_macs:
        return (choice.macs - option.macs) / max(totals.macs, 1)
    return (choice.time - option.time) / max(totals.time, 1e-9)
