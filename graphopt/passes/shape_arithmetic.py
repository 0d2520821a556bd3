"""Integer tensors followed through the graph where only some of their elements are known.

Exporters compute target shapes at run time: ``Shape -> Gather -> Mul -> Concat -> Reshape``. With a dynamic batch the
first element stays open while all others are fixed. Each tensor is held as an array of Python objects: an ``int`` is
known; a ``str`` names an open size, equal names meaning equal sizes. A tensor all of whose elements are ints is a
constant, whatever it was computed from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, is_op, onnx_dtype, values_of

# Shapes and indices are short; longer integer tensors are data, and none of this module's business.
MAX_ELEMENTS = 1024
Elements: TypeAlias = np.ndarray[Any, np.dtype[np.object_]]
_INTEGERS = (np.dtype(np.int64), np.dtype(np.int32))


@dataclass(frozen=True)
class Partial:
    """A tensor of integers, some known (int) and some open (str): an object array of its shape, and its dtype."""

    elements: Elements
    dtype: np.dtype[Any]

    @property
    def known(self) -> bool:
        """Whether every element is known."""
        return all(isinstance(element, int) for element in self.elements.flat)

    def values(self) -> np.ndarray[Any, Any]:
        """The elements as numbers; all must be known. Raises OverflowError where they do not fit the dtype."""
        return np.array(self.elements.tolist(), dtype=self.dtype).reshape(self.elements.shape)


@dataclass
class ShapeArithmetic:
    """What is known of the integer tensors of one model.

    Attributes:
        opset: of the default domain.
        types: inferred types by tensor name, every open size with a symbol of its own.
        found: ``id`` of a tensor -> what is known of its elements.
    """

    opset: int
    types: Mapping[str, TensorType]
    found: dict[int, Partial] = field(default_factory=dict)
    _fresh: Iterator[int] = field(default_factory=itertools.count)

    def of(self, tensor: gs.Tensor) -> Partial | None:
        """What is known of a tensor's elements; None if nothing."""
        if id(tensor) in self.found:
            return self.found[id(tensor)]
        if isinstance(tensor, gs.Constant) and np.prod(tuple(tensor.shape), dtype=float) > MAX_ELEMENTS:
            return None
        values = values_of(tensor)
        if values is None or values.dtype not in _INTEGERS or values.size > MAX_ELEMENTS:
            return None
        self.found[id(tensor)] = Partial(_filled(values.shape, values.ravel().tolist()), values.dtype)
        return self.found[id(tensor)]

    def dims(self, tensor: gs.Tensor) -> list[int | str] | None:
        """The sizes of a tensor, an open one by its symbol; None where the rank is unknown."""
        known = self.types.get(tensor.name)
        if known is None or known.shape is None:
            return None
        return [f"{tensor.name}@{axis}" if size is None else size for axis, size in enumerate(known.shape)]

    def visit(self, node: gs.Node) -> None:
        """Work out what is known of the outputs of ``node``; its producers must have been visited."""
        rule = RULES.get(node.op)
        if rule is None or not is_op(node, node.op) or len(node.outputs) != 1:
            return
        try:
            result = rule(self, node)
        except (IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError):
            return  # The node would fail at run time as well, or is beyond these rules; the runtime says which.
        if result is not None and result.elements.size <= MAX_ELEMENTS:
            self.found[id(node.outputs[0])] = result

    def open_size(self) -> str:
        """A symbol for a size of which nothing is known."""
        return f"?{next(self._fresh)}"


def _inputs(state: ShapeArithmetic, node: gs.Node) -> list[Partial | None]:
    return [None if tensor.is_empty() else state.of(tensor) for tensor in node.inputs]


def _numbers(state: ShapeArithmetic, node: gs.Node, slot: int, name: str, since: int) -> list[int] | None:
    """What an attribute said before opset ``since`` and a fully known input says from there on."""
    if state.opset < since:
        given = node.attrs.get(name)
        return None if given is None else [int(item) for item in given]
    if slot >= len(node.inputs) or node.inputs[slot].is_empty():
        return None
    found = state.of(node.inputs[slot])
    if found is None or not found.known:
        raise ValueError(name)
    return [int(item) for item in found.elements.flat]


def _filled(shape: Sequence[int], items: Sequence[int | str]) -> Elements:
    flat = np.empty(len(items), dtype=object)
    flat[:] = items
    return flat.reshape(tuple(shape))


def _objects(items: Sequence[int | str], dtype: Any = np.int64) -> Partial:
    return Partial(_filled([len(items)], items), np.dtype(dtype))


def _shape(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    dims = state.dims(node.inputs[0])
    return None if dims is None else _objects(dims[node.attrs.get("start", 0) : node.attrs.get("end", len(dims))])


def _size(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    dims = state.dims(node.inputs[0])
    if dims is None or not all(isinstance(size, int) for size in dims):
        return None
    total = 1
    for size in dims:
        total *= int(size)
    return Partial(_filled([], [total]), np.dtype(np.int64))


def _same(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    return state.of(node.inputs[0])


def _cast(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, target = state.of(node.inputs[0]), node.attrs.get("to")
    if source is None or target not in {onnx_dtype(dtype) for dtype in _INTEGERS}:
        return None
    dtype = np.dtype(np.int64 if target == onnx_dtype(np.int64) else np.int32)
    return Partial(source.elements, dtype)


def _gather(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, index = _inputs(state, node)
    if source is None or index is None or not index.known:
        return None
    taken = np.take(source.elements, index.values(), axis=node.attrs.get("axis", 0))
    elements = np.empty(np.shape(taken), dtype=object)
    elements[...] = taken
    return Partial(elements, source.dtype)


def _concat(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    parts = [
        part if part is not None else _unknown(state, tensor)
        for part, tensor in zip(_inputs(state, node), node.inputs, strict=True)
    ]
    if not parts or any(part is None for part in parts):
        return None
    arrays = [part.elements for part in parts if part is not None]
    dtype = next(part.dtype for part in parts if part is not None)
    return Partial(np.concatenate(arrays, axis=node.attrs.get("axis", 1 if state.opset < 4 else 0)), dtype)


def _unknown(state: ShapeArithmetic, tensor: gs.Tensor) -> Partial | None:
    """An integer tensor of known shape and unknown elements."""
    known = state.types.get(tensor.name)
    if known is None or known.shape is None or not all(isinstance(size, int) for size in known.shape):
        return None
    dtype = next((dtype for dtype in _INTEGERS if onnx_dtype(dtype) == known.dtype), None)
    sizes = [int(size) for size in known.shape if isinstance(size, int)]
    if dtype is None or np.prod(sizes, dtype=float) > MAX_ELEMENTS:
        return None
    return Partial(_filled(sizes, [state.open_size() for _ in range(math.prod(sizes))]), dtype)


def _slice(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source = state.of(node.inputs[0])
    starts, ends = _numbers(state, node, 1, "starts", 10), _numbers(state, node, 2, "ends", 10)
    if source is None or starts is None or ends is None:
        return None
    axes = _numbers(state, node, 3, "axes", 10) or list(range(len(starts)))
    steps = (_numbers(state, node, 4, "steps", 10) if state.opset >= 10 else None) or [1] * len(starts)
    cut = [slice(None)] * source.elements.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            return None  # Python reads the ends of a backward slice in another way.
        cut[axis] = slice(start, end, step)
    return Partial(source.elements[tuple(cut)], source.dtype)


def _unsqueeze(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, axes = state.of(node.inputs[0]), _numbers(state, node, 1, "axes", 13)
    if source is None or axes is None:
        return None
    return Partial(np.expand_dims(source.elements, tuple(axes)), source.dtype)


def _squeeze(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, axes = state.of(node.inputs[0]), _numbers(state, node, 1, "axes", 13)
    if source is None:
        return None
    return Partial(np.squeeze(source.elements, None if axes is None else tuple(axes)), source.dtype)


def _reshape(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, target = state.of(node.inputs[0]), _numbers(state, node, 1, "shape", 5)
    if source is None or target is None:
        return None
    # A size of 0 copies one of the source; numpy refuses it, and nothing is known then.
    return Partial(source.elements.reshape(target), source.dtype)


def _arithmetic(apply: Callable[[int, int], int], unit: int, *, absorbs: bool = False) -> Callable[..., Partial | None]:
    """Element by element; ``x op unit`` is ``x``, and with ``absorbs`` so that ``x * 0`` is 0."""

    def rule(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
        first, second = _inputs(state, node)
        if first is None or second is None or state.opset < 7:
            return None

        def each(a: int | str, b: int | str) -> int | str:
            if isinstance(a, int) and isinstance(b, int):
                return apply(a, b)
            if b == unit:
                return a
            if a == unit and node.op in {"Add", "Mul"}:
                return b
            return 0 if absorbs and 0 in (a, b) else state.open_size()

        left, right = np.broadcast_arrays(first.elements, second.elements)
        pairs = zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)
        return Partial(_filled(left.shape, [each(a, b) for a, b in pairs]), first.dtype)

    return rule


def _divide(a: int, b: int) -> int:
    """Integer division as in C, towards zero (ONNX Div)."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


RULES: Mapping[str, Callable[[ShapeArithmetic, gs.Node], Partial | None]] = {
    "Add": _arithmetic(lambda a, b: a + b, 0),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _arithmetic(_divide, 1),
    "Gather": _gather,
    "Identity": _same,
    "Mul": _arithmetic(lambda a, b: a * b, 1, absorbs=True),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(lambda a, b: a - b, 0),
    "Unsqueeze": _unsqueeze,
}
