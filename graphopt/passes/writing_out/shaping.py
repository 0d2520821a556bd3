"""Operators that move, pick or compare values, as Reshape, Transpose, Where and the like."""

from __future__ import annotations

import numpy as np

from graphopt.passes.writing_out.draft import CannotWriteError, Draft


def depth_to_space(draft: Draft) -> None:
    """Reshape, Transpose, Reshape; the block's rows and columns come before the channels (DCR) or after (CRD)."""
    (channels, height, width), block = _image(draft), int(draft.attr("blocksize"))
    deep = channels // block**2
    if draft.attr("mode", "DCR") == "CRD":
        apart, order = [0, deep, block, block, height, width], [0, 1, 4, 2, 5, 3]
    else:
        apart, order = [0, block, block, deep, height, width], [0, 3, 4, 1, 5, 2]
    moved = draft.op("Transpose", draft.reshape(draft.node.inputs[0], apart), perm=order)
    draft.reshape(moved, [0, deep, height * block, width * block])


def space_to_depth(draft: Draft) -> None:
    """Reshape, Transpose, Reshape."""
    (channels, height, width), block = _image(draft), int(draft.attr("blocksize"))
    apart = [0, channels, height // block, block, width // block, block]
    moved = draft.op("Transpose", draft.reshape(draft.node.inputs[0], apart), perm=[0, 3, 5, 1, 2, 4])
    draft.reshape(moved, [0, channels * block**2, height // block, width // block])


def global_average_pool(draft: Draft) -> None:
    """AveragePool with a window as large as the image."""
    spatial = draft.sizes(0)[1:]
    draft.op("AveragePool", draft.node.inputs[0], kernel_shape=list(spatial), strides=[1] * len(spatial))


def reduce_mean(draft: Draft) -> None:
    """GlobalAveragePool, where the mean is over all axes but batch and channels."""
    rank = draft.rank(0)
    axes = draft.fixed(1, "axes").tolist() if draft.opset >= 18 and draft.input(1) else draft.attr("axes", [])
    if rank < 3 or sorted(int(axis) % rank for axis in axes) != list(range(2, rank)):
        raise CannotWriteError("its mean is not over all axes but batch and channels")
    pooled = draft.op("GlobalAveragePool", draft.node.inputs[0])
    if not draft.attr("keepdims", 1):
        draft.squeeze(pooled, list(range(2, rank)))


def hardmax(draft: Draft) -> None:
    """Where the position along the axis is that of the largest value."""
    shape = draft.shape(0)
    axis, rank = int(draft.attr("axis", -1)), draft.rank(0)
    size = None if shape is None else shape[axis]
    if not isinstance(size, int):
        raise CannotWriteError("the size of its axis is not known")
    if draft.opset < 13:
        raise CannotWriteError("before opset 13 it ran over all axes from the one given on")
    largest = draft.op("ArgMax", draft.node.inputs[0], axis=axis, keepdims=1)
    here = draft.op("Equal", largest, _positions(size, axis % rank, rank))
    draft.cast(here, draft.dtype(0))


def one_hot(draft: Draft) -> None:
    """Where the position along the new axis is the index, the second value; else the first."""
    depth = int(draft.fixed(1, "depth").reshape(-1)[0])
    axis, rank = int(draft.attr("axis", -1)), draft.rank(0) + 1
    index = draft.unsqueeze(draft.cast(draft.node.inputs[0], np.int64), [axis])
    below = draft.op("Less", index, np.asarray(0, np.int64))
    positive = draft.op("Where", below, draft.op("Add", index, np.asarray(depth, np.int64)), index)
    here = draft.op("Equal", positive, _positions(depth, axis % rank, rank))
    values = draft.fixed(2, "pair of values")
    draft.op("Where", here, values[1], values[0])


def trilu(draft: Draft) -> None:
    """Zero, but in a triangle that a constant draws."""
    shape = draft.shape(0)
    diagonal = 0 if draft.input(1) is None else int(draft.fixed(1, "diagonal").reshape(-1)[0])
    last = () if shape is None else shape[-2:]
    if len(last) < 2 or not all(isinstance(size, int) for size in last):
        raise CannotWriteError("its sizes are not known")
    upper = bool(draft.attr("upper", 1))
    ones = np.ones(tuple(int(size or 0) for size in last), bool)
    triangle = np.triu(ones, diagonal) if upper else np.tril(ones, diagonal)
    draft.op("Where", triangle, draft.node.inputs[0], draft.scalar(0))


def cast_like(draft: Draft) -> None:
    """Cast to the type that the other input is known to have."""
    draft.cast(draft.node.inputs[0], draft.dtype(1))


def shape_of_some(draft: Draft) -> None:
    """Shape, and a Slice of it."""
    start, end = int(draft.attr("start", 0)), int(draft.attr("end", np.iinfo(np.int64).max))
    whole = draft.op("Shape", draft.node.inputs[0])
    draft.op("Slice", whole, *(np.asarray([bound], np.int64) for bound in (start, end)))


def exclusive_or(draft: Draft) -> None:
    """Not equal."""
    draft.op("Not", draft.op("Equal", *draft.node.inputs))


def at_least(draft: Draft) -> None:
    """Greater, or equal; not the opposite of less, as NaN is neither."""
    draft.op("Or", draft.op("Greater", *draft.node.inputs), draft.op("Equal", *draft.node.inputs))


def at_most(draft: Draft) -> None:
    """Less, or equal."""
    draft.op("Or", draft.op("Less", *draft.node.inputs), draft.op("Equal", *draft.node.inputs))


def sign(draft: Draft) -> None:
    """Whether above zero, minus whether below."""
    source, zero = draft.node.inputs[0], draft.scalar(0)
    above, below = (draft.cast(draft.op(op, source, zero), draft.dtype(0)) for op in ("Greater", "Less"))
    draft.op("Sub", above, below)


def softmax(draft: Draft) -> None:
    """The same along the last axis, between two Transposes: before opset 13 it runs over all axes that follow, too."""
    axis, rank = int(draft.attr("axis", -1)) % draft.rank(0), draft.rank(0)
    order = [*(each for each in range(rank) if each != axis), axis]
    turned = draft.op("Transpose", draft.node.inputs[0], perm=order)
    curve = draft.op(draft.node.op, turned, axis=rank - 1)
    draft.op("Transpose", curve, perm=[order.index(each) for each in range(rank)])


def _image(draft: Draft) -> tuple[int, int, int]:
    sizes = draft.sizes(0)
    if len(sizes) != 3:
        raise CannotWriteError("its input is not an image")
    return sizes[0], sizes[1], sizes[2]


def _positions(size: int, axis: int, rank: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """0, 1, 2, ... along an axis, to compare with a tensor of ``rank`` axes."""
    shape = [1] * (rank - axis)
    shape[0] = size
    return np.arange(size, dtype=np.int64).reshape(shape)
