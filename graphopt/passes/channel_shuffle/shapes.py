"""Symbolic sizes of tensors, and integer tensors computed from them (the targets of Reshape)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Shape, TensorType, is_op, shape_of, sole_producer, values_of
from graphopt.passes.channel_shuffle.layout import ONE, Size

SizesOf: TypeAlias = Callable[[gs.Tensor], Sequence[Size] | None]
# A target computed through more nodes than this is not followed.
_DEPTH = 24
_THROUGH = ("Identity", "Squeeze", "Unsqueeze", "Reshape")
_INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})


@dataclass(frozen=True)
class Known:
    """What is known of the graph.

    Attributes:
        opset: version of the operator set.
        types: by name, from ``types_of(graph, distinct=True)``.
        learned: shapes of tensors that inference did not find.
    """

    opset: int
    types: Mapping[str, TensorType]
    learned: dict[str, Shape] = field(default_factory=dict)

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """The shape, None where the rank is unknown."""
        if isinstance(tensor, gs.Constant):
            return shape_of(tensor)
        found = self.types.get(tensor.name)
        return self.learned.get(tensor.name) if found is None or found.shape is None else found.shape

    def sizes(self, tensor: gs.Tensor) -> tuple[Size, ...] | None:
        """Sizes of a tensor; an unknown one is a symbol of its own. None where the rank is unknown or a size is 0."""
        shape = self.shape(tensor)
        if shape is None or 0 in shape:
            return None
        return tuple(
            Size(dim) if isinstance(dim, int) else Size(1, (_symbol(dim, tensor, axis),))
            for axis, dim in enumerate(shape)
        )

    def learn(self, tensor: gs.Tensor, like: gs.Tensor, axis: int, channels: int) -> None:
        """Note the shape of a tensor that is like another but for the number of channels, if it is not known."""
        model = self.shape(like)
        if model is not None and self.shape(tensor) is None:
            self.learned[tensor.name] = (*model[:axis], channels, *model[axis + 1 :])


def _symbol(dim: str | None, tensor: gs.Tensor, axis: int) -> str:
    # Symbols of inputs stand for one size throughout; of those that inference makes up that is not said.
    return dim if dim is not None and "@" in dim else f"{tensor.name}?{axis}"


def integers(tensor: gs.Tensor, known: SizesOf, depth: int = _DEPTH) -> list[Size | int] | None:
    """Entries of an integer tensor of at most one axis: numbers where constant, else sizes; None where not known.

    Args:
        tensor: the tensor.
        known: gives the sizes of a tensor that a Shape node reads.
        depth: how many more nodes to follow.
    """
    values = values_of(tensor)
    if values is not None:
        if values.ndim > 1 or values.dtype.kind not in "iu" or values.size > 64:
            return None
        return [int(value) for value in values.ravel()]
    node = sole_producer(tensor)
    if node is None or depth == 0:
        return None
    if is_op(node, "Shape"):
        sizes = known(node.inputs[0])
        return None if sizes is None else list(sizes[int(node.attrs.get("start", 0)) : node.attrs.get("end")])
    if is_op(node, "Concat"):
        joined: list[Size | int] = []
        for each in node.inputs:
            part = integers(each, known, depth - 1)
            if part is None:
                return None
            joined += part
        return joined
    if is_op(node, *_THROUGH) or (is_op(node, "Cast") and node.attrs.get("to") in _INTEGERS):
        # Sizes keep their order; what is more than a list of numbers no Reshape takes.
        return integers(node.inputs[0], known, depth - 1)
    if is_op(node, "Gather", "Slice", "Mul", "Div"):
        parts = [integers(each, known, depth - 1) for each in node.inputs if not each.is_empty()]
        return None if not parts or None in parts else _combined(node, [part for part in parts if part is not None])
    return None


def _combined(node: gs.Node, parts: list[list[Size | int]]) -> list[Size | int] | None:
    first, rest = parts[0], parts[1:]
    if node.op in {"Mul", "Div"}:
        if len(first) != 1 or len(rest) != 1 or len(rest[0]) != 1:
            return None
        one, other = (each if isinstance(each, Size) else Size(each) for each in (first[0], rest[0][0]))
        if node.op == "Mul":
            return [one * other]
        quotient = one.over(other) if other.number > 0 else None
        return None if quotient is None else [quotient]
    numbers = [[value for value in part if isinstance(value, int)] for part in rest]
    if not numbers or any(len(part) != len(given) for part, given in zip(numbers, rest, strict=True)):
        return None
    if node.op == "Gather":
        return [first[at] for at in numbers[0] if -len(first) <= at < len(first)]
    if (
        len(numbers) < 2
        or any(len(part) != 1 for part in numbers)
        or (len(numbers) > 2 and numbers[2][0] not in {0, -1})
    ):
        return None
    step = numbers[3][0] if len(numbers) > 3 else 1
    return first[numbers[0][0] : numbers[1][0] : step] if step > 0 else None


def reshaped(sizes: Sequence[Size], target: Sequence[Size | int], *, allowzero: bool) -> list[Size] | None:
    """The sizes that a Reshape with this target gives; None where they cannot be told."""
    total = ONE
    for size in sizes:
        total = total * size
    found: list[Size | None] = []
    for axis, wanted in enumerate(target):
        size = wanted if isinstance(wanted, Size) else Size(wanted)
        if size.number > 0:
            found.append(size)
        elif size == Size(0) and not allowzero and axis < len(sizes):
            found.append(sizes[axis])
        elif size == Size(-1) and None not in found:
            found.append(None)
        else:
            return None
    left: Size | None = total
    for each in found:
        left = left.over(each) if each is not None and left is not None else left
    if left is None or (None not in found and left != ONE):
        return None
    return [left if each is None else each for each in found]
