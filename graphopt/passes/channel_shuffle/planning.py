"""Which nodes the data movement that is left needs, and what they cost.

A need made of few whole stretches of its roots becomes pieces of Splits joined by one Concat; one made of many becomes
a Gather.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.channel_shuffle.layout import Labels
from graphopt.passes.channel_shuffle.moves import Move, count_runs
from graphopt.passes.channel_shuffle.ordering import Need, in_order
from graphopt.passes.channel_shuffle.prices import Prices
from graphopt.passes.channel_shuffle.shapes import Known

# Taken for sizes that are open.
_OPEN_SIZE = 14
_FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class Step:
    """How one need is made.

    Attributes:
        need: what is made.
        origin: root of each position.
        channel: position in that root.
        counts: channels of each root.
        stretches: root, first and last + 1 position of each stretch; none for a Gather.
    """

    need: Need
    origin: Labels
    channel: Labels
    counts: tuple[int, ...]
    stretches: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """New orders for classes, and what is then left of the moves.

    Attributes:
        orders: class number -> position -> channel.
        steps: one for each need.
        splits: ``id`` of a root -> where a Split cuts it, 0 and the end included; other roots are cut by Slices.
        cost: in elements copied.
        nodes: how many nodes it takes.
    """

    orders: Mapping[int, Labels]
    steps: tuple[Step, ...]
    splits: Mapping[int, tuple[int, ...]]
    cost: float
    nodes: int


def prefers_gather(tensor: gs.Tensor, axis: int, known: Known, prices: Prices) -> bool:
    """Whether Gather copies as fast as anything along this axis of a tensor."""
    return _behind(tensor, axis, known) >= prices.few


def cost_of(moves: Sequence[Move], known: Known, prices: Prices) -> tuple[float, int]:
    """Cost and number of the nodes that make these moves now."""
    nodes = {id(node): (node, move) for move in moves for node in move.nodes}
    return sum(_cost_now(node, move, known, prices) for node, move in nodes.values()), len(nodes)


def plan(
    orders: Mapping[int, Labels], needs: Sequence[Need], counts: Mapping[int, int], known: Known, prices: Prices
) -> Plan:
    """What is to be done once classes have these orders; ``counts`` gives the number of channels of a class."""
    steps = tuple(_step(orders, need, tuple(counts[owner] for owner in need.owners), known, prices) for need in needs)
    splits = _splits(steps)
    cost, nodes = 0.0, 0
    split: set[int] = set()
    for step in steps:
        unit = _unit(step.need.target, step.need.axis, known)
        if not step.stretches:
            cost += _gather_cost(step.need, unit, step.counts, known, prices)
            nodes += min(2, len(step.counts))
            continue
        pieces = 0
        for number, start, end in step.stretches:
            root = id(step.need.roots[number])
            if (start, end) == (0, step.counts[number]) and root not in splits:
                pieces += 1
            elif root not in splits:
                cost, nodes, pieces = cost + unit * (end - start) + prices.node, nodes + 1, pieces + 1
            else:
                pieces += sum(start <= place < end for place in splits[root])
                if root not in split:
                    split.add(root)
                    cost += _split_cost(unit * splits[root][-1], len(splits[root]) - 1, prices)
                    nodes += 1
        if pieces > 1:
            cost, nodes = cost + _concat_cost(unit * len(step.channel), pieces, prices), nodes + 1
            if not prefers_gather(step.need.target, step.need.axis, known, prices):
                cost += 2 * prices.scattered * unit * pieces
    return Plan(orders, steps, splits, cost, nodes)


def _split_cost(elements: float, pieces: int, prices: Prices) -> float:
    return elements + prices.split + prices.taken * pieces


def _concat_cost(elements: float, pieces: int, prices: Prices) -> float:
    copied = 0.0 if prices.concat is None else elements + prices.concat
    return copied + prices.joined * pieces


def _step(orders: Mapping[int, Labels], need: Need, counts: tuple[int, ...], known: Known, prices: Prices) -> Step:
    origin, channel = in_order(need, orders)
    runs = count_runs(origin, channel)
    unit = _unit(need.target, need.axis, known)
    if runs > len(need.roots):
        elements = unit * len(channel)
        cut_and_joined = _split_cost(elements, runs, prices) + _concat_cost(elements, runs, prices)
        if not prefers_gather(need.target, need.axis, known, prices):
            cut_and_joined += 2 * prices.scattered * unit * runs
        if cut_and_joined > _gather_cost(need, unit, counts, known, prices):
            return Step(need, origin, channel, counts, ())
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(origin) != 0) | (np.diff(channel) != 1)]))
    ends = np.append(starts[1:], len(channel)) - 1
    stretches = tuple(
        (int(origin[start]), int(channel[start]), int(channel[end]) + 1)
        for start, end in zip(starts, ends, strict=True)
    )
    return Step(need, origin, channel, counts, stretches)


def _splits(steps: Sequence[Step]) -> dict[int, tuple[int, ...]]:
    """Where roots are cut by a Split: those of which every piece is used."""
    borders: dict[int, set[int]] = {}
    ranges: dict[int, set[tuple[int, int]]] = {}
    for step in steps:
        for number, start, end in step.stretches:
            root = id(step.need.roots[number])
            borders.setdefault(root, {0, step.counts[number]}).update((start, end))
            ranges.setdefault(root, set()).add((start, end))
    found = {}
    for root, places in borders.items():
        cuts = sorted(places)
        used = all(
            any(start <= here and there <= end for start, end in ranges[root])
            for here, there in itertools.pairwise(cuts)
        )
        if used and len(cuts) > 2:
            found[root] = tuple(cuts)
    return found


def _gather_cost(need: Need, unit: float, counts: Sequence[int], known: Known, prices: Prices) -> float:
    if not prefers_gather(need.target, need.axis, known, prices):
        return math.inf
    cost = unit * len(need.channel) + prices.node
    return cost + _concat_cost(unit * sum(counts), len(counts), prices) if len(counts) > 1 else cost


def _cost_now(node: gs.Node, move: Move, known: Known, prices: Prices) -> float:
    if node.op in _FREE:
        return prices.renaming
    unit = _unit(move.target, move.axis, known)
    elements = unit * len(move.channel)
    if node.op == "Split":
        count = known.sizes(node.inputs[0])
        size = count[move.axis].number if count is not None and len(count) > move.axis else len(move.channel)
        return _split_cost(unit * size, len(node.outputs), prices)
    if node.op == "Gather":
        fast = prefers_gather(move.target, move.axis, known, prices)
        return elements * (1.0 if fast else prices.scattered) + prices.node
    if node.op == "Concat":
        return _concat_cost(elements, len(node.inputs), prices)
    return elements * (1.0 if node.op == "Slice" else prices.transpose) + prices.node


def _unit(tensor: gs.Tensor, axis: int, known: Known) -> float:
    """Entries of one channel of a tensor, for one sample."""
    sizes = known.sizes(tensor) or ()
    total = 1.0
    for place, size in enumerate(sizes):
        if place != axis and not (place == 0 and size.symbols):
            total *= _OPEN_SIZE if size.symbols else size.number
    return total


def _behind(tensor: gs.Tensor, axis: int, known: Known) -> float:
    total = 1.0
    for size in (known.sizes(tensor) or ())[axis + 1 :]:
        total *= _OPEN_SIZE if size.symbols else size.number
    return total
