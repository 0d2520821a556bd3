"""Sizes, data types and kinds of the nodes of one graph, as the latency model needs them."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property
from math import prod

import onnx

from graphopt.errors import ModelError
from graphopt.graph.cost import Scope
from graphopt.graph.cost.kinds import kind, weight_name
from graphopt.graph.cost.macs import UnknownSizeError, macs
from graphopt.graph.cost.parameters import source

_NAMES: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
}
_WIDTH: dict[str, int] = {"float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "float8": 1}
_PICKS = {"Gather", "GatherElements", "GatherND", "Slice", "Split"}
_ASKS_ONLY_THE_SHAPE = {"Shape", "Size"}


@dataclass(frozen=True)
class Reader:
    """What can be asked of a graph.

    Attributes:
        scope: the graph, with shapes.
        precision: data type that float32 operators run in.
        float32: names of tensors that stay in float32 all the same.
        known: names of tensors that do not depend on the inputs' values: nothing is done for them in a run.
    """

    scope: Scope
    precision: str
    known: Set[str]
    float32: Set[str] = frozenset()

    @cached_property
    def working(self) -> tuple[onnx.NodeProto, ...]:
        """The nodes that do something in a run, in order."""
        return tuple(node for node in self.scope.nodes if not all(name in self.known for name in _written(node)))

    def computed(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are computed in a run, each once."""
        return [name for name in dict.fromkeys(names) if name and not self.is_known(name)]

    def is_known(self, name: str) -> bool:
        """Whether the tensor is the same in every run."""
        return name in self.scope.constants or name in self.known

    def elements(self, name: str, node: onnx.NodeProto) -> float:
        """Elements of a tensor."""
        return float(prod(self.shape(name, node)))

    def taken(self, name: str, node: onnx.NodeProto) -> float:
        """Elements of a tensor that the node reads or writes: what picks some reads no more than it writes."""
        elements = self.elements(name, node)
        if node.op_type not in _PICKS:
            return elements
        return min(elements, sum(self.elements(written, node) for written in _written(node)))

    def shape(self, name: str, node: onnx.NodeProto) -> tuple[int, ...]:
        """Shape of a tensor as inferred; raises ModelError where a size is unknown."""
        shape = self.scope.shapes.get(name)
        if shape is None or None in shape:
            shown = "unknown" if shape is None else f"[{','.join('?' if s is None else str(s) for s in shape)}]"
            raise ModelError(
                f"node '{name_of(node)}' ({node.op_type}): the shape of '{name}' is {shown}, so its time cannot be"
                " estimated; give the shapes of the inputs (--input-shape NAME:1,3,224,224)"
            )
        return tuple(size for size in shape if size is not None)

    def type_of(self, name: str) -> str:
        """Data type as the runtime computes in it; integers that are no quantized values count as float32."""
        declared = self.scope.dtypes.get(name, 0)
        if name in self.float32 and declared == onnx.TensorProto.FLOAT:
            return "float32"
        return _NAMES.get(declared, self.precision)

    def width(self, name: str) -> int:
        """Bytes of an element as the runtime stores it."""
        return _WIDTH.get(self.type_of(name), 4)

    def macs(self, node: onnx.NodeProto) -> float:
        """Multiply-adds; raises ModelError where a size is unknown."""
        try:
            return float(macs(node, self.scope))
        except UnknownSizeError as error:
            raise ModelError(f"node '{name_of(node)}' ({node.op_type}): {error}") from error

    def kind(self, node: onnx.NodeProto) -> str:
        """Kind of work, as ``graph.cost.kinds``."""
        names = [weight_name(node), node.input[0] if node.input else ""]
        found = next((s for name in names if name and (s := source(name, self.scope)) is not None), None)
        return kind(node, self.scope, found.name if found else None)


def reader(scope: Scope, precision: str, known: set[str], float32: Set[str] = frozenset()) -> Reader:
    """A reader of one graph; the nodes named in ``float32`` run in float32.

    ``known`` holds what the graphs around it know, and receives what it knows; a name may mean another tensor in a
    body that was read before.
    """
    known.difference_update(name for node in scope.nodes for name in node.output)
    for node in scope.nodes:
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            continue
        given = (name in known or name in scope.constants for name in node.input if name)
        if node.op_type in _ASKS_ONLY_THE_SHAPE or all(given):
            known.update(_written(node))
    kept = {name for node in scope.nodes if float32 and name_of(node) in float32 for name in _written(node)}
    return Reader(scope, precision, known, kept)


def name_of(node: onnx.NodeProto) -> str:
    """The name that ``graph.cost.LayerCost`` gives the node."""
    return node.name or next(iter(node.output), node.op_type)


def _written(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.output if name]
