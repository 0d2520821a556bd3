"""What each operator makes of a small tensor of which only some elements are known; see ``shape_arithmetic``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import onnx_dtype, values_of
from graphopt.passes.sizes import symbolic as sizes
from graphopt.passes.sizes.arithmetic import DTYPES, Element, Partial, Rule, ShapeArithmetic, Unknown, partial_of
from graphopt.passes.sizes.symbolic import Open, Size

_INT64 = np.dtype(np.int64)
_BOOL = np.dtype(np.bool_)


def _shape(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    dims = state.dims(node.inputs[0])
    if dims is None:
        return None
    # Attributes of opset 15; they count and clamp as Python's own slices do.
    taken = dims[node.attrs.get("start", 0) : node.attrs.get("end", len(dims))]
    return Partial((len(taken),), tuple(taken), _INT64)


def _size(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    dims = state.dims(node.inputs[0])
    return None if dims is None else Partial((), (_product(dims),), _INT64)


def _product(items: Sequence[Element]) -> Size:
    total: Size | None = 1
    for item in items:
        total = None if total is None or isinstance(item, float) else sizes.multiply(total, item)
    if total is None:
        raise Unknown
    return total


def _same(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    return state.of(node.inputs[0])


def _cast(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, dtype = state.input(node, 0), DTYPES.get(node.attrs.get("to", 0))
    if dtype is None:
        return None
    return Partial(source.shape, tuple(_converted(state, item, source.dtype, dtype) for item in source.items), dtype)


def _converted(state: ShapeArithmetic, item: Element, source: np.dtype[Any], target: np.dtype[Any]) -> Element:
    if isinstance(item, Open):
        # An integer type takes a size over. A float does so only up to 2^24 elements, of which nothing is known.
        return item if source.kind == "i" and target.kind == "i" else state.unknown()
    value = source.type(item)
    if target.kind == "i":
        bounds = np.iinfo(target)
        if not (math.isfinite(value) and int(bounds.min) <= int(value) <= int(bounds.max)):
            raise Unknown
    converted: Element = value.astype(target).item()
    return converted


def _gather(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, index = state.input(node, 0), state.input(node, 1)
    if len(source.shape) == 1:
        length = source.shape[0]
        if any(not -length <= place < length for place in index.numbers()):
            return None
        return Partial(index.shape, tuple(source.items[place] for place in index.numbers()), source.dtype)
    taken = np.empty((), dtype=object)
    taken = np.take(source.array(), np.array(index.numbers()).reshape(index.shape), axis=node.attrs.get("axis", 0))
    return partial_of(taken, source.dtype)


def _concat(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    parts = [_known_or_named(state, tensor) for tensor in node.inputs]
    if all(len(part.shape) == 1 for part in parts):
        items = tuple(item for part in parts for item in part.items)
        return Partial((len(items),), items, parts[0].dtype)
    joined = np.concatenate([part.array() for part in parts], axis=node.attrs.get("axis", 1 if state.opset < 4 else 0))
    return partial_of(joined, parts[0].dtype)


def _known_or_named(state: ShapeArithmetic, tensor: gs.Tensor) -> Partial:
    """What is known of a tensor; where that is its shape only, every element gets a name."""
    found = state.of(tensor)
    if found is not None:
        return found
    known = state.types.get(tensor.name)
    dtype = None if known is None else DTYPES.get(known.dtype)
    if known is None or dtype is None or known.shape is None:
        raise Unknown
    shape = [size for size in known.shape if isinstance(size, int)]
    if len(shape) < len(known.shape) or math.prod(shape) > 16:
        raise Unknown
    named = Partial(tuple(shape), tuple(state.unknown() for _ in range(math.prod(shape))), dtype)
    state.found[id(tensor)] = named
    return named


def _slice(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source = state.input(node, 0)
    starts, ends = state.setting(node, 1, "starts", 10), state.setting(node, 2, "ends", 10)
    if starts is None or ends is None:
        return None
    axes = state.setting(node, 3, "axes", 10) or list(range(len(starts)))
    steps = (state.optional(node, 4) if state.opset >= 10 else None) or [1] * len(starts)
    array = source.array()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        array = np.take(array, _places(start, end, step, array.shape[axis]), axis=axis)
    return partial_of(array, source.dtype)


def _places(start: int, end: int, step: int, length: int) -> list[int]:
    start, end = start + length * (start < 0), end + length * (end < 0)
    if step > 0:
        return list(range(min(max(start, 0), length), min(max(end, 0), length), step))
    return list(range(min(max(start, 0), length - 1), min(max(end, -1), length - 1), step))


def _split(state: ShapeArithmetic, node: gs.Node) -> list[Partial] | None:
    source, lengths = state.input(node, 0), state.setting(node, 1, "split", 13)
    if len(source.shape) != 1:
        return None
    if lengths is None:
        each = -(-source.shape[0] // len(node.outputs))
        lengths = [each] * (len(node.outputs) - 1)
        lengths.append(source.shape[0] - sum(lengths))
    if sum(lengths) != source.shape[0] or min(lengths) < 0:
        return None
    bounds = [sum(lengths[:position]) for position in range(len(lengths) + 1)]
    pieces = [source.items[low:high] for low, high in pairwise(bounds)]
    return [Partial((len(piece),), piece, source.dtype) for piece in pieces]


def _unsqueeze(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, axes = state.input(node, 0), state.setting(node, 1, "axes", 13)
    if axes is None:
        return None
    if not source.shape and axes in ([0], [-1]):
        return Partial((1,), source.items, source.dtype)
    return partial_of(np.expand_dims(source.array(), tuple(axes)), source.dtype)


def _squeeze(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, axes = state.input(node, 0), state.setting(node, 1, "axes", 13)
    return partial_of(np.squeeze(source.array(), None if axes is None else tuple(axes)), source.dtype)


def _reshape(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, target = state.input(node, 0), state.setting(node, 1, "shape", 5)
    if target is None:
        return None
    if 0 in target and not node.attrs.get("allowzero", 0):
        target = [source.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return partial_of(source.array().reshape(target), source.dtype)


def _transpose(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source = state.input(node, 0)
    return partial_of(np.transpose(source.array(), node.attrs.get("perm")), source.dtype)


def _expand(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source, target = state.input(node, 0), state.input(node, 1).numbers()
    shape = np.broadcast_shapes(source.shape, tuple(target))
    if math.prod(shape) > 256:
        return None
    return partial_of(np.broadcast_to(source.array(), shape), source.dtype)


def _constant_of_shape(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    shape = tuple(state.input(node, 0).numbers())
    held = node.attrs.get("value")
    values = values_of(held) if isinstance(held, gs.Constant) else np.zeros(1, np.float32)
    if values is None or onnx_dtype(values.dtype) not in DTYPES or math.prod(shape) > 256 or min(shape, default=0) < 0:
        return None
    return Partial(shape, (values.ravel()[0].item(),) * math.prod(shape), values.dtype)


def _where(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    test, first, second = (state.input(node, slot) for slot in range(3))
    arrays = np.broadcast_arrays(test.array(), first.array(), second.array())
    items: list[Element] = []
    for flag, left, right in zip(*(array.ravel().tolist() for array in arrays), strict=True):
        if isinstance(flag, Open):
            items.append(left if left == right and type(left) is type(right) else state.unknown())
        else:
            items.append(left if flag else right)
    return Partial(arrays[0].shape, tuple(items), first.dtype)


def _reduce(
    name: str, fold: Callable[[Sequence[Element]], Element], since: int
) -> Callable[[ShapeArithmetic, gs.Node], Partial | None]:
    def rule(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
        source, axes = state.input(node, 0), state.setting(node, 1, "axes", since)
        if len(source.shape) != 1 or source.dtype.kind != "i" or axes not in (None, [0], [-1], []):
            return None
        if axes == [] or (axes is None and node.attrs.get("noop_with_empty_axes", 0)):
            return None
        return Partial((1,) if node.attrs.get("keepdims", 1) else (), (fold(source.items),), source.dtype)

    return rule


def _sum(items: Sequence[Element]) -> Size:
    total: Size | None = 0
    for item in items:
        total = None if total is None or isinstance(item, float) else sizes.add(total, item)
    if total is None:
        raise Unknown
    return total


def _unary(
    apply: Callable[[Any], Any], *, opened: Callable[[Open], Element | None] = lambda item: None
) -> Callable[[ShapeArithmetic, gs.Node], Partial | None]:
    """Element by element, numbers in the tensor's own type; ``opened`` says what becomes of an open integer."""

    def rule(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
        source = state.input(node, 0)
        items: list[Element] = []
        for item in source.items:
            made = opened(item) if isinstance(item, Open) and source.dtype.kind == "i" else None
            if made is None:
                made = state.unknown() if isinstance(item, Open) else apply(source.dtype.type(item)).item()
            items.append(made)
        return Partial(source.shape, tuple(items), source.dtype)

    return rule


def _binary(
    symbolic: Callable[[Size, Size], Element | None], numeric: Callable[[Any, Any], Any], result: Any = None
) -> Callable[[ShapeArithmetic, gs.Node], Partial | None]:
    """Element by element: ``symbolic`` for integers, ``numeric`` for floats in their own type."""

    def rule(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
        if state.opset < 7 or len(node.inputs) != 2:
            return None
        first, second = state.input(node, 0), state.input(node, 1)

        def each(left: Element, right: Element) -> Element:
            made: Element | None = None
            if first.dtype.kind == "i":
                assert not isinstance(left, float)
                assert not isinstance(right, float)
                made = symbolic(left, right)
            elif not isinstance(left, Open) and not isinstance(right, Open):
                with np.errstate(all="ignore"):
                    made = numeric(first.dtype.type(left), first.dtype.type(right)).item()
            # Runtimes differ in what they make of NaN, which is not equal to itself.
            return state.unknown() if made is None or made != made else made  # noqa: PLR0124

        shape, pairs = _pairs(first, second)
        items = tuple(each(left, right) for left, right in pairs)
        if first.dtype.kind == "i" and result is None:
            bounds = np.iinfo(first.dtype)
            if any(isinstance(item, int) and not bounds.min <= item <= bounds.max for item in items):
                return None
        return Partial(shape, items, first.dtype if result is None else result)

    return rule


def _pairs(first: Partial, second: Partial) -> tuple[tuple[int, ...], list[tuple[Element, Element]]]:
    if first.shape == second.shape:
        return first.shape, list(zip(first.items, second.items, strict=True))
    if second.shape in {(), (1,)} and len(first.shape) >= len(second.shape):
        return first.shape, [(item, second.items[0]) for item in first.items]
    left, right = np.broadcast_arrays(first.array(), second.array())
    return left.shape, list(zip(left.ravel().tolist(), right.ravel().tolist(), strict=True))


def _remainder(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    return None if node.attrs.get("fmod", 0) else _MOD(state, node)


def _ordered(first: Size, second: Size) -> bool | None:
    """Whether the first is less."""
    if isinstance(first, int) and isinstance(second, int):
        return first < second
    gap = sizes.subtract(second, first)
    if isinstance(gap, int):
        return gap > 0
    if gap is not None and gap.is_size and dict(gap.terms).get((), 0) > 0:
        return True
    other = None if gap is None else sizes.negative(gap)
    return False if isinstance(other, Open) and other.is_size else None


def _not(flag: bool | None) -> bool | None:
    return None if flag is None else not flag


def _invert(state: ShapeArithmetic, node: gs.Node) -> Partial | None:
    source = state.input(node, 0)
    return Partial(
        source.shape, tuple(state.unknown() if isinstance(item, Open) else not item for item in source.items), _BOOL
    )


def _truncated(left: Any, right: Any) -> Any:
    return np.divide(left, right, dtype=left.dtype)


_MOD = _binary(sizes.modulo, np.mod)

RULES: Mapping[str, Rule] = {
    "Abs": _unary(np.abs, opened=lambda item: item if item.is_size else None),
    "Add": _binary(sizes.add, np.add),
    "Cast": _cast,
    "Ceil": _unary(np.ceil),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(sizes.divide, _truncated),
    "Equal": _binary(sizes.equal, np.equal, _BOOL),
    "Expand": _expand,
    "Floor": _unary(np.floor),
    "Gather": _gather,
    "Greater": _binary(lambda a, b: _ordered(b, a), np.greater, _BOOL),
    "GreaterOrEqual": _binary(lambda a, b: _not(_ordered(a, b)), np.greater_equal, _BOOL),
    "Identity": _same,
    "Less": _binary(_ordered, np.less, _BOOL),
    "LessOrEqual": _binary(lambda a, b: _not(_ordered(b, a)), np.less_equal, _BOOL),
    "Max": _binary(lambda a, b: sizes.pick("max", max, a, b), np.maximum),
    "Min": _binary(lambda a, b: sizes.pick("min", min, a, b), np.minimum),
    "Mod": _remainder,
    "Mul": _binary(sizes.multiply, np.multiply),
    "Neg": _unary(np.negative, opened=sizes.negative),
    "Not": _invert,
    "ReduceProd": _reduce("prod", _product, 18),
    "ReduceSum": _reduce("sum", _sum, 13),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _binary(sizes.subtract, np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
