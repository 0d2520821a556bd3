"""Find channel shuffles: tensors that data movement makes of others, and that hold their channels in another order.

Backwards from each tensor that ends a stretch of data movement, the latest node is opened time and again; whenever
all that is left are tensors of the right rank, the layout is computed from them. The nearest such sources are taken,
unless going a little further back leads to a single one (Split, then Concat in turns).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import Index, is_constant, is_op, shape_of, sole_producer, values_of
from graphopt.passes.channel_shuffle.layout import Labels, Layout, Size, start
from graphopt.passes.channel_shuffle.nodes import MOVING, data_inputs, outputs_of
from graphopt.passes.channel_shuffle.shapes import Known

# Nodes that one shuffle is written with, at most; fused sources further back than this many nodes are not sought.
_REACH, _FURTHER = 24, 3
# Without one of these nothing changes places.
_MIXING = frozenset({"Transpose", "DepthToSpace", "SpaceToDepth", "Concat"})
# Nodes that by themselves say which channels they move.
_PLAIN = frozenset({"Concat", "Split", "Slice", "Gather"})
_MOST_CHANNELS = 1 << 16


@dataclass(frozen=True)
class Shuffle:
    """A tensor that holds the channels of others in another order.

    Attributes:
        target: the tensor.
        sources: what it is made of.
        axis: the channel axis, of all of them.
        origin: for each channel of ``target`` the number of the source.
        channel: for each channel of ``target`` the channel there.
        nodes: all nodes in between, the one that writes ``target`` first.
    """

    target: gs.Tensor
    sources: tuple[gs.Tensor, ...]
    axis: int
    origin: Labels
    channel: Labels
    nodes: tuple[gs.Node, ...]


def worth_a_look(nodes: Sequence[gs.Node]) -> bool:
    """Whether these nodes may hold a shuffle at all; quick, and needs no types."""
    return any((node.op in _MIXING and _may_mix(node)) or picks_channels(node) for node in nodes)


def picks_channels(node: gs.Node) -> bool:
    """Whether a Gather or Slice chooses channels otherwise than in one stretch, so far as constants tell."""
    if node.op == "Gather" and is_op(node, "Gather"):
        indices = node.inputs[1]
        return is_constant(indices) and shape_of(indices) not in {(), (0,), (1,)}
    if node.op == "Slice" and is_op(node, "Slice") and len(node.inputs) > 4:
        steps = values_of(node.inputs[4])
        return steps is not None and steps.size > 0 and not (steps == 1).all()
    return False


def _may_mix(node: gs.Node) -> bool:
    if not is_op(node, node.op):
        return False
    if node.op == "Concat":
        # Shapes are put together along axis 0.
        return node.attrs.get("axis") != 0 and any(_moved(tensor) for tensor in node.inputs)
    return _moved(node.inputs[0]) or any(reader.op in MOVING for reader in node.outputs[0].outputs)


def find_shuffles(index: Index, home: gs.Graph, known: Known) -> list[Shuffle]:
    """All shuffles among the nodes of one graph whose inner tensors nothing else reads, in the graph's order."""
    place = {id(node): number for number, node in enumerate(home.nodes) if node.op in MOVING and is_op(node, node.op)}
    found: list[Shuffle] = []
    ends: set[int] = set()
    for node in home.nodes:
        if id(node) not in place or not _may_end(node, place):
            continue
        for tensor in node.outputs:
            shuffle = _behind(tensor, place, known)
            if shuffle is not None:
                found.append(shuffle)
                # What comes after starts from here.
                ends.add(id(tensor))
        if all(id(tensor) in ends for tensor in node.outputs):
            del place[id(node)]
    return _self_contained(index, found)


def _moved(tensor: gs.Tensor) -> bool:
    producer = sole_producer(tensor)
    return producer is not None and producer.op in MOVING


def _may_end(node: gs.Node, place: Mapping[int, int]) -> bool:
    """Whether a shuffle may end here: its nodes are more than one, and a mere join along the channels is none."""
    return any(id(producer) in place for tensor in data_inputs(node) for producer in tensor.inputs)


def _behind(tensor: gs.Tensor, place: Mapping[int, int], known: Known) -> Shuffle | None:
    rank = known.sizes(tensor)
    if rank is not None and len(rank) < 2:
        return None
    front: dict[int, gs.Tensor] = {id(tensor): tensor}
    nodes: list[gs.Node] = []
    mixing, plain, best, last = False, True, None, _REACH
    for step in range(_REACH):
        latest = max(
            (producer for each in front.values() for producer in each.inputs if id(producer) in place),
            key=lambda node: place[id(node)],
            default=None,
        )
        if latest is None or step >= last:
            break
        for output in latest.outputs:
            front.pop(id(output), None)
        front.update((id(each), each) for each in data_inputs(latest))
        nodes.append(latest)
        mixing = mixing or latest.op in _MIXING
        plain = plain and latest.op in _PLAIN
        # One node alone is no shuffle but what it says: a Split, a Slice, a Concat.
        if not mixing or len(nodes) < 2 or (plain and len(front) > 1):
            if plain and len(nodes) >= _FURTHER:
                break
            continue
        shuffle = _seen_from(tensor, rank, list(front.values()), nodes, known)
        if shuffle is not None and (best is None or len(shuffle.sources) < len(best.sources)):
            best, last = shuffle, min(last, step + _FURTHER)
            if len(best.sources) == 1:
                break
    return best


def _differ(wanted: Sequence[Size], shape: Sequence[Size], axis: int) -> bool:
    """Whether two tensors are known to differ along any axis but one."""
    return any(
        place != axis and size.number != other.number and not size.symbols and not other.symbols
        for place, (size, other) in enumerate(zip(wanted, shape, strict=True))
    )


def _seen_from(
    tensor: gs.Tensor,
    wanted: tuple[Size, ...] | None,
    sources: Sequence[gs.Tensor],
    nodes: Sequence[gs.Node],
    known: Known,
) -> Shuffle | None:
    """The shuffle that makes ``tensor`` of ``sources`` by ``nodes`` (last to first), if that is what they do."""
    shapes = [known.sizes(source) for source in sources]
    first = shapes[0]
    if first is None or any(shape is None or len(shape) != len(first) for shape in shapes):
        return None
    if any(is_constant(source) for source in sources) or (wanted is not None and len(wanted) != len(first)):
        return None
    rank = len(first)
    for axis in dict.fromkeys((1, rank - 1, *range(rank))):
        counts = [shape[axis] for shape in shapes if shape is not None and axis < rank]
        if len(counts) != len(shapes) or any(
            count.symbols or not 1 < count.number <= _MOST_CHANNELS for count in counts
        ):
            continue
        if wanted is not None and _differ(wanted, first, axis):
            continue
        layouts: dict[int, Layout] = {
            id(source): start(source, shape, axis) for source, shape in zip(sources, shapes, strict=True) if shape
        }
        layout = _run(tensor, nodes, layouts, known)
        selection = None if layout is None else layout.selection()
        if layout is not None and selection is not None and layout.axis == axis:
            return Shuffle(tensor, layout.sources, axis, *selection, tuple(nodes))
    return None


def _run(tensor: gs.Tensor, nodes: Sequence[gs.Node], layouts: dict[int, Layout], known: Known) -> Layout | None:
    for node in reversed(nodes):
        if any(id(each) not in layouts for each in data_inputs(node)):
            return None
        for output, layout in zip(node.outputs, outputs_of(node, layouts, known), strict=True):
            if layout is not None:
                layouts[id(output)] = layout
    return layouts.get(id(tensor))


def _self_contained(index: Index, found: list[Shuffle]) -> list[Shuffle]:
    """Those whose inner tensors are read by nodes of kept shuffles only, so that all their nodes can go."""
    while True:
        inner = {id(node): node for shuffle in found for node in shuffle.nodes}
        targets = {id(shuffle.target) for shuffle in found}
        open_nodes = {
            key
            for key, node in inner.items()
            if any(
                id(tensor) not in targets
                and (index.is_output(tensor) or any(id(reader) not in inner for reader in tensor.outputs))
                for tensor in node.outputs
            )
        }
        if not open_nodes:
            return found
        found = [shuffle for shuffle in found if not any(id(node) in open_nodes for node in shuffle.nodes)]
