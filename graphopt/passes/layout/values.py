"""A tensor and all its transposed forms seen as one value, with who reads which form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.graph import Index, consumers, is_op, sole_producer
from graphopt.passes.layout.moves import Knowledge
from graphopt.passes.layout.permutations import Perm, compose, identity, is_permutation

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
LINEAR = CONVOLUTIONS | {"Gemm", "MatMul"}


@dataclass(eq=False, slots=True)
class Form:
    """A Transpose node and what it writes: the value in the order ``label`` of the root's axes."""

    node: gs.Node
    tensor: gs.Tensor
    label: Perm


@dataclass(eq=False, slots=True)
class Use:
    """An input of a node that is no Transpose, and the order in which it reads the value."""

    node: gs.Node
    slot: int
    label: Perm


@dataclass(eq=False)
class Value:
    """One value in all its orders.

    Attributes:
        root: the tensor as its producer writes it; its own order is the identity.
        rank: its number of axes.
        producer: the node of this graph that writes it; None for inputs and what comes from an outer graph.
        forms: its Transposes in this graph, each after the one it reads.
        plain: the order of the root.
        uses: readers in this graph.
        pinned: ids of forms (or the root) that must stay: outputs, and what subgraphs read.
        pinned_labels: their orders.
    """

    root: gs.Tensor
    rank: int
    producer: gs.Node | None
    forms: list[Form]
    plain: Perm
    uses: list[Use] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    pinned_labels: set[Perm] = field(default_factory=set)


class Values:
    """The values of one graph (not of its subgraphs), found as they are asked for."""

    def __init__(self, index: Index, graph: gs.Graph, known: Knowledge) -> None:
        self.index, self.graph, self.known = index, graph, known
        self._forms: dict[int, tuple[gs.Tensor, Perm]] = {}
        self._transposes: dict[int, list[Form]] = {}
        self._nodes: set[int] = set()
        self._found: dict[int, Value | None] = {}
        self._roots: list[gs.Tensor] = []
        self._inputs = {id(tensor) for tensor in graph.inputs}
        self._here = {id(node) for node in graph.nodes}
        for node in graph.nodes:
            perm = order_of(node, known)
            if perm is None:
                continue
            root, label = self.form(node.inputs[0], len(perm))
            form = Form(node, node.outputs[0], compose(label, perm))
            if id(root) not in self._transposes:
                self._roots.append(root)
            self._transposes.setdefault(id(root), []).append(form)
            self._forms[id(form.tensor)] = (root, form.label)
            self._nodes.add(id(node))

    def form(self, tensor: gs.Tensor, rank: int) -> tuple[gs.Tensor, Perm]:
        """The root of a tensor and its order."""
        return self._forms.get(id(tensor)) or (tensor, identity(rank))

    def transposed(self) -> Iterator[Value]:
        """Values that have a Transpose, in the order of the graph."""
        for root in self._roots:
            value = self.of(root)
            if value is not None:
                yield value

    def is_form(self, node: gs.Node) -> bool:
        """Whether the node is a Transpose that belongs to a value."""
        return id(node) in self._nodes

    def of(self, tensor: gs.Tensor) -> Value | None:
        """The value that a tensor is a form of; None where its rank is unknown or it is no value of the graph."""
        root = self._forms[id(tensor)][0] if id(tensor) in self._forms else tensor
        if id(root) not in self._found:
            self._found[id(root)] = self._make(root)
        return self._found[id(root)]

    def _make(self, root: gs.Tensor) -> Value | None:
        forms = self._transposes.get(id(root), [])
        rank = len(forms[0].label) if forms else self.known.rank(root)
        if rank is None or root.is_empty() or isinstance(root, gs.Constant):
            return None
        if any(len(form.label) != rank for form in forms):
            return None
        producer = sole_producer(root)
        inside = id(root) in self._inputs
        if producer is not None and id(producer) in self._here:
            inside = True
        else:
            producer = None
        value = Value(root, rank, producer, forms, identity(rank))
        for tensor, label in [(root, value.plain), *((form.tensor, form.label) for form in forms)]:
            if self.index.is_output(tensor):
                _pin(value, tensor, label)
            for node in tensor.outputs if len(tensor.outputs) < 2 else consumers(tensor):
                if id(node) in self._nodes:
                    continue
                if id(node) in self._here:
                    for slot, read in enumerate(node.inputs):
                        if read is tensor:
                            value.uses.append(Use(node, slot, label))
                elif inside or tensor is not root:
                    _pin(value, tensor, label)
        return value


def order_of(node: gs.Node, known: Knowledge) -> Perm | None:
    """The permutation of a Transpose; None for other nodes, for constants, and where the rank is unknown."""
    if not is_op(node, "Transpose") or len(node.inputs) != 1 or len(node.outputs) != 1:
        return None
    if isinstance(node.inputs[0], gs.Constant) or node.outputs[0].is_empty():
        return None
    given = node.attrs.get("perm")
    rank = known.rank(node.inputs[0])
    if given is None:
        return None if rank is None else tuple(reversed(range(rank)))
    perm = tuple(int(axis) for axis in given)
    return perm if is_permutation(perm) and rank in {None, len(perm)} else None


def _pin(value: Value, tensor: gs.Tensor, label: Perm) -> None:
    value.pinned.add(id(tensor))
    value.pinned_labels.add(label)
