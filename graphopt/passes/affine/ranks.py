"""How many axes tensors have: told by the weights of convolutions where it can be, else by inference.

Inference over a large graph costs more than all else that is done with ranks, so that it is asked only when needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import onnx_graphsurgeon as gs

from graphopt.graph import Index, Shape, TensorType, is_op, shape_of, sole_producer, types_of

_KEEPING = frozenset(
    {"BatchNormalization", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Identity"}
)
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})


class Knowledge:
    """Inferred types, made when first asked for, and ranks.

    What a name stands for never changes during a pass, so that types and ranks once known stay true.

    Attributes:
        index: of the edits under way, if any; they are finished before anything is inferred.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self.index: Index | None = None
        self._ranks: dict[int, tuple[gs.Tensor, int | None]] = {}

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        """Type by name of tensor."""
        if self.index is not None:
            self.index.finish()
        return types_of(self._graph, distinct=True)

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """Inferred shape; None where the rank is not known."""
        if isinstance(tensor, gs.Constant):
            return shape_of(tensor)
        found = self.types.get(tensor.name)
        return None if found is None else found.shape

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Number of axes; None where it is not known."""
        path: list[tuple[gs.Tensor, int]] = []
        rank: int | None = None
        least = 0
        current: gs.Tensor | None = tensor
        while current is not None:
            if id(current) in self._ranks:
                rank = self._ranks[id(current)][1]
                rank = None if rank is None else max(rank, least)
                break
            path.append((current, least))
            node = sole_producer(current)
            rank = _own_rank(node)
            if rank is not None:
                break
            current, least = _source(node)
            if current is None:
                break
        for reached, wanted in reversed(path):
            if rank is None:
                shape = self.shape(reached)
                rank = None if shape is None else len(shape)
            self._ranks[id(reached)] = (reached, rank)
            # ``wanted`` is what the constant of the node that reads this tensor brings along.
            rank = None if rank is None else max(rank, wanted)
        return self._ranks[id(tensor)][1]


def _own_rank(node: gs.Node | None) -> int | None:
    if node is None:
        return None
    if is_op(node, "Conv", "ConvTranspose"):
        shape = shape_of(node.inputs[1])
        return None if shape is None or not isinstance(node.inputs[1], gs.Constant) else len(shape)
    return 2 if is_op(node, "Gemm") else None


def _source(node: gs.Node | None) -> tuple[gs.Tensor | None, int]:
    """The input that an elementwise node takes its rank from, and how many axes it has at least."""
    if node is None or node.domain or not node.inputs:
        return None, 0
    if node.op in _KEEPING:
        return node.inputs[0], 0
    if node.op in _BINARY and len(node.inputs) == 2:
        for slot in (0, 1):
            given = node.inputs[slot]
            if isinstance(given, gs.Constant):
                shape = shape_of(given)
                other = node.inputs[1 - slot]
                return (None if shape is None or isinstance(other, gs.Constant) else other), len(shape or ())
    return None, 0
