"""Constant targets for operators whose target is computed and partly open.

Reshape copies the size of the same axis where the target says 0, and takes what is left over where it says -1; Expand
keeps a size where it says 1; Slice goes to the end of an axis whatever its size; Resize scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.sizes.arithmetic import Element, Partial, ShapeArithmetic, Unknown
from graphopt.passes.sizes.symbolic import Open, Size, ratio

Array: TypeAlias = np.ndarray[Any, Any]
# Inputs by slot with the constant to read there, None: to be left out.
Closed: TypeAlias = Iterator[tuple[int, Array | None]]


def _target(state: ShapeArithmetic, node: gs.Node, slot: int) -> Partial | None:
    """An input that is computed from shapes, a list, and partly open."""
    if len(node.inputs) <= slot:
        return None
    target = state.found.get(id(node.inputs[slot]))
    return None if target is None or target.known or len(target.shape) != 1 else target


def _reshape(state: ShapeArithmetic, node: gs.Node) -> Closed:
    target = _target(state, node, 1)
    if target is None:
        return
    dims = state.dims(node.inputs[0])
    closed = _reshaped(target.items, dims, copies=not node.attrs.get("allowzero", 0))
    if closed is not None:
        yield 1, np.array(closed, dtype=np.int64)


def _reshaped(items: Sequence[Element], dims: Sequence[Size] | None, *, copies: bool) -> list[int] | None:
    """The target with 0 and -1 for what is open; None where that cannot say it for every size."""
    sizes: list[int] = []
    for axis, item in enumerate(items):
        if isinstance(item, int):
            sizes.append(item)
        elif copies and dims is not None and axis < len(dims) and dims[axis] == item:
            sizes.append(0)
        else:
            sizes.append(-1)
    if sizes.count(-1) > 1:
        return None
    if -1 in sizes and -1 not in items:
        # What is left over can be told only if nothing else is empty; the original was told.
        for axis, size in enumerate(sizes):
            copied = dims[axis] if size == 0 and copies and dims is not None and axis < len(dims) else size
            if size != -1 and not (isinstance(copied, int) and copied > 0):
                return None
    return sizes


def _expand(state: ShapeArithmetic, node: gs.Node) -> Closed:
    target = _target(state, node, 1)
    dims = None if target is None else state.dims(node.inputs[0])
    if target is None or dims is None:
        return
    own = [1] * (len(target.items) - len(dims)) + list(dims)
    own = own[len(own) - len(target.items) :]
    sizes = [
        1 if isinstance(item, Open) and item == size else item for item, size in zip(target.items, own, strict=True)
    ]
    if all(isinstance(size, int) for size in sizes):
        yield 1, np.array(sizes, dtype=np.int64)


def _slice(state: ShapeArithmetic, node: gs.Node) -> Closed:
    target = _target(state, node, 2) if state.opset >= 10 else None
    dims = None if target is None else state.dims(node.inputs[0])
    if target is None or dims is None:
        return
    try:
        axes = state.optional(node, 3) or list(range(len(target.items)))
        steps = state.optional(node, 4) or [1] * len(target.items)
    except Unknown:
        return
    ends: list[int] = []
    for end, axis, step in zip(target.items, axes, steps, strict=True):
        if isinstance(end, int):
            ends.append(end)
        elif step > 0 and -len(dims) <= axis < len(dims) and end == dims[axis]:
            ends.append(int(np.iinfo(target.dtype).max))
        else:
            return
    yield 2, np.array(ends, dtype=target.dtype)


def _resize(state: ShapeArithmetic, node: gs.Node) -> Closed:
    """Sizes that are whole multiples of the input's: the runtime divides them to get the very scales given here."""
    target = _target(state, node, 3) if state.opset >= 11 else None
    dims = None if target is None else state.dims(node.inputs[0])
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if target is None or dims is None or mode == "tf_crop_and_resize" or len(dims) != len(target.items):
        return
    if node.attrs.get("axes") or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return
    scales: list[int] = []
    for size, dim in zip(target.items, dims, strict=True):
        times = None if isinstance(size, float) else ratio(size, dim)
        # Powers of two are exact in a float whatever the sizes.
        if times is None or times & (times - 1):
            return
        scales.append(times)
    yield 2, np.array(scales, dtype=np.float32)
    yield 3, None


CLOSERS: Mapping[str, Callable[[ShapeArithmetic, gs.Node], Closed]] = {
    "Expand": _expand,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
}
