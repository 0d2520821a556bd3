"""Which residual blocks a graph has.

A residual block is an Add of a tensor, the *stream*, and a *branch* that starts from it::

    stream ──┬── layers ── branch ──┐
             └──────────────────────┴── Add ── stream of the next block

1. Add (or Sum of two) has two computed operands; the stream has the shape and type of the result, so that it can stand
   in for it.
2. The branch is a part of the graph with one entry and one exit: what its nodes compute is read by nodes of the branch
   only, and they read nothing computed outside but the stream, or what became the stream by moving data (a Transpose,
   say), and integers, as sizes that reshapes share. Nodes that only hand on (Identity, Dropout) may stand anywhere.
3. The branch holds a layer: Conv, ConvTranspose, Gemm or MatMul with constant weights, or a recurrent layer.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import Index, Shape, consumers, is_constant, is_op, reads_of
from graphopt.passes.base import Skip

_MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_LAYERS = ("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")


@dataclass(frozen=True)
class Block:
    """A residual block, by names, which stay what they are while other blocks go.

    Attributes:
        name: for people: name of the Add.
        output: tensor that the Add writes.
        stream: operand of the Add that stays.
        branch: operand of the Add that goes.
        layers: tensors that the layers of the branch write.
        nodes: how many nodes the branch has.
    """

    name: str
    output: str
    stream: str
    slot: int
    layers: tuple[str, ...]
    nodes: int


@dataclass(frozen=True)
class Blocks:
    """The blocks of a graph in its order, and the sums of two computed tensors that are none, with the reason."""

    all: tuple[Block, ...]
    skipped: tuple[Skip, ...]


def find_blocks(graph: gs.Graph, shapes: Mapping[str, Shape] | None, integers: Set[str] = frozenset()) -> Blocks:
    """Find the residual blocks of the outermost graph.

    Args:
        graph: an opened graph, its nodes in order.
        shapes: of its tensors, by name; None takes shapes for equal.
        integers: names of tensors that hold no floats.
    """
    places = {id(node): place for place, node in enumerate(graph.nodes)}
    reader = _Reader(Index(graph), places, _computed_from_nothing(graph), integers)
    blocks: list[Block] = []
    skipped: list[Skip] = []
    for node in graph.nodes:
        if not is_op(node, "Add", "Sum") or len(node.inputs) != 2 or any(map(reader.is_fixed, node.inputs)):
            continue
        found: Block | str = "neither operand is computed from the other alone"
        for slot in (0, 1):
            nodes = reader.branch(node, slot)
            if nodes is not None:
                layers = [one for one in nodes if reader.is_layer(one)]
                found = _block(node, slot, nodes, layers, shapes)
                break
        if isinstance(found, Block):
            blocks.append(found)
        else:
            skipped.append(Skip(node.name or node.outputs[0].name, found))
    return Blocks(tuple(blocks), tuple(skipped))


def _block(
    add: gs.Node, slot: int, nodes: Sequence[gs.Node], layers: Sequence[gs.Node], shapes: Mapping[str, Shape] | None
) -> Block | str:
    """The block that ``add`` closes, or why it cannot be dropped."""
    if not layers:
        return "its branch holds no layer with weights"
    stream, output = add.inputs[slot].name, add.outputs[0].name
    if shapes is not None and shapes[stream] != shapes[output]:
        return f"its branch widens the stream from {list(shapes[stream])} to {list(shapes[output])}"
    return Block(add.name or output, output, stream, slot, tuple(node.outputs[0].name for node in layers), len(nodes))


@dataclass(frozen=True)
class _Reader:
    """What finding branches looks things up in."""

    index: Index
    place: Mapping[int, int]
    fixed: Set[int]
    integers: Set[str]

    def is_fixed(self, tensor: gs.Tensor) -> bool:
        """Whether the value of a tensor is the same in every run."""
        return is_constant(tensor) or id(tensor) in self.fixed

    def is_layer(self, node: gs.Node) -> bool:
        """Whether a node multiplies with weights."""
        return is_op(node, *_LAYERS) and any(map(self.is_fixed, node.inputs[:2]))

    def branch(self, add: gs.Node, slot: int) -> list[gs.Node] | None:
        """The nodes between the operand at ``slot`` and the other, in order; None where the other has more entries.

        Nodes are taken from the Add backwards, the latest first: by then every node of the branch that reads their
        outputs has been taken.
        """
        entries = _entries(add.inputs[slot])
        earliest = max((self.place.get(id(node), -1) for node in entries[-1].inputs), default=-1)
        inside = {id(add)}
        taken: list[gs.Node] = []
        waiting: dict[int, gs.Node] = {}
        order: list[int] = []
        started = False
        reached = [add.inputs[1 - slot]]
        while True:
            for tensor in map(_source, reached):
                is_entry = any(tensor is entry for entry in entries)
                started |= is_entry
                if is_entry or tensor.is_empty() or self.is_fixed(tensor):
                    continue
                place = self.place.get(id(tensor.inputs[0]), -1) if tensor.inputs else -1
                if place <= earliest and tensor.name not in self.integers:
                    return None
                if place > earliest and place not in waiting:
                    waiting[place] = tensor.inputs[0]
                    heapq.heappush(order, -place)
            if not order:
                return taken[::-1] if started else None
            node = waiting[-heapq.heappop(order)]
            if all(self._is_read_inside(tensor, inside) for tensor in node.outputs):
                inside.add(id(node))
                taken.append(node)
                reached = list(reads_of(node))
            elif all(tensor.name in self.integers for tensor in node.outputs if not tensor.is_empty()):
                reached = []
            else:
                return None

    def _is_read_inside(self, tensor: gs.Tensor, inside: Set[int]) -> bool:
        pending = [tensor]
        while pending:
            tensor = pending.pop()
            if self.index.is_output(tensor):
                return False
            for node in consumers(tensor):
                if _hands_on(node):
                    pending.append(node.outputs[0])
                elif id(node) not in inside:
                    return False
        return True


def _entries(stream: gs.Tensor) -> list[gs.Tensor]:
    """The stream, and the tensors that it is made of by moving data."""
    entries = [_source(stream)]
    while len(entries[-1].inputs) == 1 and is_op(entries[-1].inputs[0], *_MOVES):
        entries.append(_source(entries[-1].inputs[0].inputs[0]))
    return entries


def _computed_from_nothing(graph: gs.Graph) -> set[int]:
    """``id`` of the tensors that depend on no input of the graph: weights that were not folded to constants."""
    fixed: set[int] = set()
    for node in graph.nodes:
        if all(tensor.is_empty() or is_constant(tensor) or id(tensor) in fixed for tensor in reads_of(node)):
            fixed.update(id(tensor) for tensor in node.outputs)
    return fixed


def _source(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that is handed on as this one."""
    while len(tensor.inputs) == 1 and _hands_on(tensor.inputs[0]):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _hands_on(node: gs.Node) -> bool:
    if is_op(node, "Dropout"):
        masked = len(node.outputs) > 1 and not node.outputs[1].is_empty()
        return not masked and len(node.inputs) < 3  # with a third input it may be in training mode
    return is_op(node, "Identity")
