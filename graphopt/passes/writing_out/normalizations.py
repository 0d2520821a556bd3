"""Normalizations as means, products and roots. Formulas: ONNX operator documentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.passes.writing_out.draft import CannotWriteError, Draft, Value

_NARROW = frozenset({"float16", "bfloat16"})
_TINY = {"float16": 2.0**-14, "float32": 2.0**-126, "float64": 2.0**-1022}


def layer_normalization(draft: Draft) -> None:
    """``(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias`` over the axes from ``axis`` on."""
    draft.only_output()
    axes = _last_axes(draft)
    source, widened = _widened(draft)
    centered = draft.op("Sub", source, draft.reduce("ReduceMean", source, axes))
    normal = draft.op("Div", centered, _root_mean_square(draft, centered, axes, draft.attr("epsilon", 1e-5), widened))
    scaled = draft.op("Mul", _narrowed(draft, normal, widened), draft.node.inputs[1])
    bias = draft.input(2)
    if bias is not None:
        draft.op("Add", scaled, bias)


def rms_normalization(draft: Draft) -> None:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the axes from ``axis`` on."""
    axes = _last_axes(draft)
    source, widened = _widened(draft)
    normal = draft.op("Div", source, _root_mean_square(draft, source, axes, draft.attr("epsilon", 1e-5), widened))
    draft.op("Mul", _narrowed(draft, normal, widened), draft.node.inputs[1])


def mean_variance_normalization(draft: Draft) -> None:
    """``(x - mean) / (sqrt(mean((x - mean)^2)) + 1e-9)``."""
    axes = list(draft.attr("axes", [0, 2, 3]))
    centered = draft.op("Sub", draft.node.inputs[0], draft.reduce("ReduceMean", draft.node.inputs[0], axes))
    deviation = draft.op("Sqrt", draft.reduce("ReduceMean", draft.op("Mul", centered, centered), axes))
    draft.op("Div", centered, draft.op("Add", deviation, draft.scalar(1e-9)))


def lp_normalization(draft: Draft) -> None:
    """``x / norm``, and 0 where the norm is 0."""
    source, order = draft.node.inputs[0], int(draft.attr("p", 2))
    norm = draft.reduce(f"ReduceL{order}", source, [int(draft.attr("axis", -1))])
    tiny = _TINY.get(draft.dtype(0).name)
    if tiny is None:
        raise CannotWriteError(f"its data type is {draft.dtype(0).name}")
    draft.op("Div", source, draft.op("Max", norm, draft.scalar(tiny)))


def group_normalization(draft: Draft) -> None:
    """InstanceNormalization of the groups, then scale and bias, which are one a group before opset 21."""
    sizes, groups = draft.sizes(0), int(draft.attr("num_groups"))
    source, by_group, rank = draft.node.inputs[0], draft.opset < 21, len(sizes) + 1
    if rank < 3:
        raise CannotWriteError("its input has no axis after the channels")
    if int(draft.attr("stash_type", 1)) == 1 and draft.dtype(0).name in _NARROW:
        raise CannotWriteError("it computes in float32 what it reads in less")
    apart = draft.reshape(source, [0, groups, -1])
    epsilon = float(draft.attr("epsilon", 1e-5))
    neutral = (np.ones(groups, draft.dtype(0)), np.zeros(groups, draft.dtype(0)))
    scale, bias = draft.node.inputs[1:3] if by_group else neutral
    normal = draft.op("InstanceNormalization", apart, scale, bias, epsilon=epsilon)
    whole = draft.reshape(normal, [0, *sizes])
    if by_group:
        return
    axes = list(range(1, rank - 1))
    scale, bias = (_by_channel(draft, slot, axes) for slot in (1, 2))
    draft.op("Add", draft.op("Mul", whole, scale), bias)


def _by_channel(draft: Draft, slot: int, axes: Sequence[int]) -> Value:
    values = draft.values(slot)
    if values is None:
        return draft.unsqueeze(draft.node.inputs[slot], axes)
    return np.ascontiguousarray(values.reshape(-1, *[1] * len(axes)))


def _last_axes(draft: Draft) -> list[int]:
    """The axes from ``axis`` on, counted from the last."""
    axis = int(draft.attr("axis", -1))
    return list(range(axis if axis < 0 else axis - draft.rank(0), 0))


def _widened(draft: Draft) -> tuple[Value, bool]:
    """The input in the precision that the operator computes in, and whether that is another."""
    source = draft.node.inputs[0]
    if draft.dtype(0).name in _NARROW and int(draft.attr("stash_type", 1)) == 1:
        return draft.cast(source, np.float32), True
    return source, False


def _narrowed(draft: Draft, value: Value, widened: bool) -> Value:
    return draft.cast(value, draft.dtype(0)) if widened else value


def _root_mean_square(draft: Draft, value: Value, axes: Sequence[int], epsilon: float, widened: bool) -> Value:
    dtype = np.dtype(np.float32) if widened else draft.dtype(0)
    mean = draft.reduce("ReduceMean", draft.op("Mul", value, value), axes)
    return draft.op("Sqrt", draft.op("Add", mean, np.asarray(epsilon, dtype)))
