"""What the rules on nodes that change nothing may ask: types, inferred when first asked for, and constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Shape, TensorType, types_of, values_of, walk
from graphopt.graph.values import StoredValues

# Types whose values lie in the file as they lie in memory.
_T = onnx.TensorProto
_PLAIN = frozenset("fiub")


class Knowledge:
    """The operator set version, types and shapes of a graph; valid through edits, since tensors keep their meaning."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self.opset = int(graph.opset)

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        """Types by name of tensor, with a symbol of its own for every open dimension of every input."""
        return types_of(self._graph, distinct=True)

    @property
    def has_types(self) -> bool:
        """Whether anything has asked for types yet."""
        return "types" in self.__dict__

    @cached_property
    def ambiguous(self) -> frozenset[str]:
        """Names that stand for several tensors, in sibling subgraphs or where an inner one hides an outer one."""
        return ambiguous_names(tuple(walk(self._graph)))

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """Inferred shape, None where the rank is unknown."""
        found = self.types.get(tensor.name)
        return None if found is None else found.shape

    def dtype(self, tensor: gs.Tensor) -> int:
        """Inferred ONNX element type, 0 where it is unknown."""
        found = self.types.get(tensor.name)
        return 0 if found is None else found.dtype

    def same_shape(self, first: gs.Tensor, second: gs.Tensor) -> bool:
        """Whether both shapes are known and equal, axis by axis."""
        shape = self.shape(first)
        return shape is not None and None not in shape and shape == self.shape(second)


def ambiguous_names(graphs: Sequence[gs.Graph]) -> frozenset[str]:
    """Names that several tensors of these graphs have: to read such a one in another graph may mean another."""
    if len(graphs) == 1:
        return frozenset()
    holders: dict[str, gs.Tensor] = {}
    found: set[str] = set()
    for graph in graphs:
        for tensors in (graph.inputs, *(tensors for node in graph.nodes for tensors in (node.inputs, node.outputs))):
            for tensor in tensors:
                if holders.setdefault(tensor.name, tensor) is not tensor:
                    found.add(tensor.name)
    return frozenset(found)


Rule: TypeAlias = Callable[[gs.Node, Knowledge], gs.Tensor | None]


def holds_only(tensor: gs.Tensor, value: float) -> bool:
    """Whether the tensor is a constant with at least one element, and all of them equal ``value``."""
    if isinstance(tensor, gs.Constant) and isinstance(tensor._values, StoredValues):
        # Most constants are told by their first element; unpacking one takes many times as long.
        first = _first(tensor._values)
        if first is not None and first != value:
            return False
    values = values_of(tensor)
    return values is not None and values.dtype != object and values.size > 0 and bool((values == value).all())


def _first(held: StoredValues) -> Any:
    """The first element of stored values, None where it is not to be had at once."""
    stored = held.tensor
    if held.dtype.kind in _PLAIN and stored.raw_data:
        return np.frombuffer(stored.raw_data, held.dtype, 1)[0] if len(stored.raw_data) == held.nbytes else None
    plain = stored.float_data or stored.int64_data
    return plain[0] if plain and stored.data_type in {_T.FLOAT, _T.INT64} else None


def input_values(node: gs.Node, slot: int) -> np.ndarray[Any, Any] | None:
    """The constant at an input; None where there is none or it is not constant."""
    return values_of(node.inputs[slot]) if has_input(node, slot) else None


def has_input(node: gs.Node, slot: int) -> bool:
    """Whether an optional input is given."""
    return slot < len(node.inputs) and not node.inputs[slot].is_empty()


def given(node: gs.Node, known: Knowledge, slot: int, name: str, since: int) -> np.ndarray[Any, Any] | None:
    """What an attribute said before opset ``since`` and an input says from there on."""
    if known.opset >= since:
        return input_values(node, slot)
    found = node.attrs.get(name)
    return None if found is None else np.asarray(found)
