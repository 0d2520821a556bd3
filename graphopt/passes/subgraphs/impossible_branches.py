"""Which branch an If must take because the graph fails with the other one.

Exporters write ``x.squeeze(2)`` as an If: Squeeze where the size is 1, else Identity. A recurrent layer behind it takes
three axes and nothing else, so that wherever the model runs at all, the branch that brings along as many was taken::

    If(d == 1) {Squeeze(x)} else {Identity(x)}, Unsqueeze, LSTM    ->    Squeeze(x), Unsqueeze, LSTM

Numbers of axes that operators insist on are followed from these back to the Ifs, through operators that keep or shift
the number; within one graph or branch, whose nodes all run or none does. Left alone: what only a node asks for that no
output depends on (a runtime may never run it), Ifs of which both branches fit, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, reads_of, shape_of, values_of
from graphopt.passes.no_ops.knowledge import Knowledge, given, has_input

Ranks: TypeAlias = frozenset[int]

_KEEPING = frozenset(
    {
        "Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log",
        "LogSoftmax", "Mish", "Neg", "Not", "Pad", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softmax", "Softplus",
        "Sqrt", "Tanh",
    }
)  # fmt: skip
_BINARY = frozenset({"Add", "Div", "Mul", "Pow", "Sub"})
# How far back from a branch's output to look: exporters put an operator or two there.
_DEPTH = 8


def impossible_branches(graphs: Sequence[gs.Graph], known: Knowledge) -> list[tuple[gs.Node, bool]]:
    """Find Ifs with an open condition that must be true (or false) where the graph runs.

    Args:
        graphs: a graph and its subgraphs.
        known: types of the outermost one.

    Returns:
        each If, and what its condition must be.
    """
    found: list[tuple[gs.Node, bool]] = []
    for graph in graphs:
        if any(_is_open(node) for node in graph.nodes):
            search = _Search(graph, known)
            search.run()
            # In the order of the graph, in which a condition's readers are quickly taken off it.
            settled = {id(node): taken for node, taken in search.found}
            found += [(node, settled[id(node)]) for node in graph.nodes if id(node) in settled]
    return found


def _is_open(node: gs.Node) -> bool:
    return is_op(node, "If") and len(node.inputs) == 1 and values_of(node.inputs[0]) is None and _bodies(node) != {}


def _bodies(node: gs.Node) -> dict[bool, gs.Graph]:
    bodies = {True: node.attrs.get("then_branch"), False: node.attrs.get("else_branch")}
    held = {taken: body for taken, body in bodies.items() if isinstance(body, gs.Graph)}
    return held if len(held) == 2 and all(len(body.outputs) == len(node.outputs) for body in held.values()) else {}


class _Search:
    """Follows demands on numbers of axes back through one graph, and into branches that are taken for sure.

    Attributes:
        found: the Ifs settled, in the order they were.
    """

    def __init__(self, graph: gs.Graph, known: Knowledge) -> None:
        self.found: list[tuple[gs.Node, bool]] = []
        self._graph = graph
        self._known = known
        self._here = {id(node) for node in graph.nodes}
        self._siblings: dict[int, list[gs.Node]] = {}
        for node in graph.nodes:
            if _is_open(node):
                self._siblings.setdefault(id(node.inputs[0]), []).append(node)
        self._settled: dict[int, bool] = {}
        self._wanted: dict[int, Ranks] = {}
        self._pending: list[tuple[gs.Tensor, Ranks]] = []

    def run(self) -> None:
        live = _live(self._graph)
        for node in self._graph.nodes:
            if id(node) in live:
                self._pending += _demands(node)
        while self._pending:
            tensor, ranks = self._pending.pop()
            # One demand is enough: where a second contradicts it, the graph never runs.
            if id(tensor) in self._wanted or not ranks or len(tensor.inputs) != 1:
                continue
            self._wanted[id(tensor)] = ranks
            node = tensor.inputs[0]
            if id(node) not in self._here:
                continue
            if is_op(node, "If"):
                self._ask(node, _position(node, tensor), ranks)
            elif (source := _source(node, tensor, self._known)) is not None:
                held, shift, least = source
                before = {rank - shift for rank in ranks if rank >= max(shift, least)}
                # A constant of as many axes hides how many fewer there were.
                self._pending.append((held, frozenset(before | (set(range(least)) if least in before else set()))))

    def _ask(self, node: gs.Node, position: int, ranks: Ranks) -> None:
        bodies = _bodies(node)
        if id(node) in self._settled:
            self._pending.append((bodies[self._settled[id(node)]].outputs[position], ranks))
        elif _is_open(node):
            fits = [taken for taken, body in bodies.items() if self._may_have(body.outputs[position], ranks)]
            if len(fits) == 1:
                for sibling in self._siblings[id(node.inputs[0])]:
                    self._settle(sibling, fits[0])

    def _settle(self, node: gs.Node, taken: bool) -> None:
        self._settled[id(node)] = taken
        self.found.append((node, taken))
        body = _bodies(node)[taken]
        self._here.update(id(inner) for inner in body.nodes)
        for target, inner in zip(node.outputs, body.outputs, strict=True):
            if id(target) in self._wanted:
                self._pending.append((inner, self._wanted[id(target)]))

    def _may_have(self, tensor: gs.Tensor, ranks: Ranks) -> bool:
        known = self._ranks(tensor, _DEPTH)
        return known is None or not ranks.isdisjoint(known)

    def _ranks(self, tensor: gs.Tensor, depth: int) -> Ranks | None:
        """How many axes a tensor may have; None where that is not known."""
        if isinstance(tensor, gs.Constant):
            return frozenset({len(shape_of(tensor) or ())})
        shape = None if tensor.name in self._known.ambiguous else self._known.shape(tensor)
        if shape is not None:
            return frozenset({len(shape)})
        if len(tensor.inputs) != 1 or not depth:
            return None
        node = tensor.inputs[0]
        if is_op(node, "If"):
            position, each = _position(node, tensor), []
            for taken, body in _bodies(node).items():
                if self._settled.get(id(node), taken) is taken:
                    each.append(self._ranks(body.outputs[position], depth - 1))
            known = [ranks for ranks in each if ranks is not None]
            return frozenset().union(*known) if known and len(known) == len(each) else None
        source = _source(node, tensor, self._known)
        before = None if source is None else self._ranks(source[0], depth - 1)
        if source is None or before is None:
            return None
        return frozenset(max(rank + source[1], source[2]) for rank in before if rank + source[1] >= 0)


def _live(graph: gs.Graph) -> set[int]:
    """``id`` of the nodes that an output of this graph depends on."""
    here = {id(node) for node in graph.nodes}
    pending = [node for tensor in graph.outputs for node in tensor.inputs if id(node) in here]
    live = {id(node) for node in pending}
    while pending:
        node = pending.pop()
        for tensor in reads_of(node) if node.attrs else node.inputs:
            for producer in tensor.inputs:
                if id(producer) in here and id(producer) not in live:
                    live.add(id(producer))
                    pending.append(producer)
    return live


def _demands(node: gs.Node) -> Iterator[tuple[gs.Tensor, Ranks]]:
    """Inputs of which an operator takes some numbers of axes only, and these numbers."""
    if node.domain or not node.inputs:
        return
    if node.op in {"GRU", "LSTM", "RNN"}:
        yield from ((node.inputs[slot], frozenset({3})) for slot in (0, 5, 6) if has_input(node, slot))
    elif node.op in {"Conv", "ConvTranspose"} and isinstance(node.inputs[1], gs.Constant):
        shape = shape_of(node.inputs[1])
        if shape is not None:
            yield node.inputs[0], frozenset({len(shape)})
    elif node.op in {"AveragePool", "MaxPool"} and isinstance(node.attrs.get("kernel_shape"), (list, tuple)):
        yield node.inputs[0], frozenset({len(node.attrs["kernel_shape"]) + 2})
    elif node.op == "Transpose" and isinstance(node.attrs.get("perm"), (list, tuple)):
        yield node.inputs[0], frozenset({len(node.attrs["perm"])})
    elif node.op == "Gemm":  # ONNX says two, ONNX Runtime takes a vector too
        yield from ((tensor, frozenset({1, 2})) for tensor in node.inputs[:2])


def _source(node: gs.Node, result: gs.Tensor, known: Knowledge) -> tuple[gs.Tensor, int, int] | None:
    """The input that gives a result its axes, how many are added, and how many there are at least; None otherwise."""
    if node.domain or not node.inputs or result is not node.outputs[0]:
        return None
    if node.op in _KEEPING:
        return node.inputs[0], 0, 0
    if node.op in {"Squeeze", "Unsqueeze"}:
        axes = given(node, known, 1, "axes", 13)
        # Two axes given with different signs may be one.
        if axes is None or not axes.size or np.unique(axes).size != axes.size or (axes.min() < 0 <= axes.max()):
            return None
        return node.inputs[0], axes.size if node.op == "Unsqueeze" else -axes.size, 0
    if node.op in _BINARY and len(node.inputs) == 2:
        for one, other in (node.inputs, reversed(node.inputs)):
            shape = shape_of(other) if isinstance(other, gs.Constant) else None
            if shape is not None:
                return one, 0, len(shape)
    return None


def _position(node: gs.Node, tensor: gs.Tensor) -> int:
    return next(position for position, output in enumerate(node.outputs) if output is tensor)
