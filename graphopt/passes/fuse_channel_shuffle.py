"""Remove channel shuffles by permuting weights, or make each one operator.

Before: ``Conv -> Relu -> Reshape -> Transpose -> Reshape -> depthwise Conv -> Conv``. After: the same without
the three, with the weights of both Convs and the depthwise one permuted. The algebra, each part in a module of
``channel_shuffle``:

1. A tensor that data movement makes of others is a shuffle if its axes but one are theirs, whole and in place, and
   along that one it holds their channels in any order: ``layout``, proven for all sizes that are open.
2. Operators that treat all channels alike hand an order on; those that sum over channels take any, those with weights
   for each output give any: ``operators``. Tensors tied together form a class with one order: ``tracing``.
3. A shuffle between two classes goes if one order suits both. Where Concat and Split make tensors of parts of others,
   each part is ordered by where it goes: ``ordering``. What is then left to move is priced: ``planning``.
4. What cannot be absorbed becomes one Gather where that is faster (1.2-2.7 times; measurements in ``prices``).

ONNX Runtime 1.31, CPU, one thread, against the exported file: torchvision's ShuffleNet v2 1.05-1.14 times as fast (186
nodes -> 128), ShuffleNet v1 with 4 groups 1.20 times (133 -> 105). Keeping the passed-on half as parts until it is
read beats one Gather a unit by 1-6 % and two Convs in place of each Split by 5-14 %.

Left alone: numbers of channels or indices that are not fixed, shuffles read in their middle, orders that graph inputs,
outputs, subgraphs or operators not understood hold, large weights that others share, and whatever would cost more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, remove_unused, types_of, walk
from graphopt.passes.base import Context, PassReport
from graphopt.passes.channel_shuffle.finding import Shuffle, find_shuffles, picks_channels, worth_a_look
from graphopt.passes.channel_shuffle.moves import Move, of_node, of_shuffle
from graphopt.passes.channel_shuffle.ordering import is_identity, needs_of, orders_for
from graphopt.passes.channel_shuffle.planning import Plan, cost_of, plan, prefers_gather
from graphopt.passes.channel_shuffle.prices import Prices, prices_for
from graphopt.passes.channel_shuffle.shapes import Known
from graphopt.passes.channel_shuffle.tracing import Trace, Tracer
from graphopt.passes.channel_shuffle.writing import Writer


@dataclass(frozen=True)
class FuseChannelShuffle:
    """Remove channel shuffles by permuting weights, or make each one operator."""

    name: ClassVar[str] = "fuse_channel_shuffle"
    summary: ClassVar[str] = "remove channel shuffles by permuting weights, or make each one operator"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        counts: Counter[str] = Counter()
        prices = prices_for(context.hardware)
        # What one round leaves (two Transposes side by side) may be another shuffle.
        while graph.opset >= 7:
            before = counts.total()
            _round(graph, counts, prices)
            if counts.total() == before:
                break
        return PassReport(counts.total(), (), dict(sorted(counts.items())))


def _round(graph: gs.Graph, counts: Counter[str], prices: Prices) -> None:
    homes = [home for home in walk(graph) if worth_a_look(home.nodes)]
    if not homes:
        return
    known = Known(graph.opset, types_of(graph, distinct=True))
    index = Index(graph)
    found = [find_shuffles(index, home, known) for home in homes]
    before = counts.total()
    for home, shuffles in zip(homes, found, strict=True):
        fused = [shuffle for shuffle in shuffles if _becomes_gather(shuffle, known, prices)]
        _fuse(index, home, fused, known, counts)
    if counts.total() > before:
        index.finish()
        # What computed the shapes must not keep tensors alive any longer.
        remove_unused(graph)
        index = Index(graph)
        found = [find_shuffles(index, home, known) for home in homes]
    for home, shuffles in zip(homes, found, strict=True):
        _absorb(index, home, shuffles, known, counts, prices)
    index.finish()


def _fuse(index: Index, home: gs.Graph, shuffles: Sequence[Shuffle], known: Known, counts: Counter[str]) -> None:
    """Make each of these shuffles one Gather."""
    writer = Writer(index, home, known.opset)
    index.drop(list({id(node): node for shuffle in shuffles for node in shuffle.nodes}.values()))
    for shuffle in shuffles:
        source, target = shuffle.sources[0], shuffle.target
        if _changes_nothing(shuffle, known):
            writer.hand_on(source, target)
        else:
            writer.gather(source, shuffle.channel, shuffle.axis, target)
        known.learn(target, source, shuffle.axis, len(shuffle.channel))
        counts["fused"] += 1


def _becomes_gather(shuffle: Shuffle, known: Known, prices: Prices) -> bool:
    if len(shuffle.sources) != 1:
        return False
    if _changes_nothing(shuffle, known):
        return True
    return prices.gathers and prefers_gather(shuffle.sources[0], shuffle.axis, known, prices)


def _changes_nothing(shuffle: Shuffle, known: Known) -> bool:
    sizes = known.sizes(shuffle.sources[0])
    whole = sizes is not None and sizes[shuffle.axis].number == len(shuffle.channel)
    return whole and is_identity(shuffle.channel)


def _absorb(
    index: Index, home: gs.Graph, shuffles: Sequence[Shuffle], known: Known, counts: Counter[str], prices: Prices
) -> None:
    """Permute weights so that the least data movement is left."""
    several = [of_shuffle(shuffle) for shuffle in shuffles]
    seeds = several + _scrambling(home, known)
    if not seeds:
        return
    trace = Tracer(index, home, known, several).run(seeds)
    classes = {number: each for number, each in enumerate(trace.classes) if each is not None}
    channels = {number: each.channels for number, each in classes.items()}
    writer = Writer(index, home, known.opset)
    for moves in _components(trace):
        best = _best(trace, moves, channels, known, prices)
        if best is not None:
            _, nodes = cost_of(moves, known, prices)
            writer.carry_out(best, moves, classes)
            counts["rewritten"] += 1
            counts["nodes_saved"] += max(0, nodes - best.nodes)


def _scrambling(home: gs.Graph, known: Known) -> list[Move]:
    """Single nodes that take channels out of their order."""
    found: list[Move] = []
    for node in filter(picks_channels, home.nodes):
        rank = len(known.shape(node.inputs[0]) or ())
        axes = range(rank) if node.op == "Slice" else [int(node.attrs.get("axis", 0)) % max(rank, 1)]
        if rank > 1:
            found += [move for axis in axes for move in of_node(node, axis, known) if move.scrambles]
    return found


def _components(trace: Trace) -> list[list[Move]]:
    """Moves in groups that share classes, each in the order of the graph."""
    leader: dict[int, int] = {}

    def find(number: int) -> int:
        while leader.setdefault(number, number) != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for move in trace.moves.values():
        first = find(trace.class_of[id(move.target)])
        for source in move.sources:
            leader[find(trace.class_of[id(source)])] = first
            first = find(first)
    groups: dict[int, list[Move]] = {}
    for move in trace.moves.values():
        groups.setdefault(find(trace.class_of[id(move.target)]), []).append(move)
    return list(groups.values())


def _best(
    trace: Trace, moves: Sequence[Move], channels: Mapping[int, int], known: Known, prices: Prices
) -> Plan | None:
    """The cheapest way found to do what these moves do, if it is cheaper than they are."""
    if not all(map(trace.is_clear, moves)):
        return None
    needs = needs_of(trace, moves)
    if len(needs) == len(moves) and all(
        trace.is_fixed(number) for need in needs for number in (need.owner, *need.owners)
    ):
        return None
    best = plan(orders_for(trace, needs), needs, channels, known, prices)
    cost, nodes = cost_of(moves, known, prices)
    return best if best.cost < cost and best.nodes <= nodes else None
