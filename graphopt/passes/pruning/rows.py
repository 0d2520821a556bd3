"""What readers multiply, as arrays: rows of their input at some positions, and their weight as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.graph.cost.kinds import attribute
from graphopt.passes.pruning.readers import Reader
from graphopt.passes.pruning.weights import integers

Floats: TypeAlias = npt.NDArray[Any]


def matrix(reader: Reader, weight: Floats) -> Floats:
    """The weight as [blocks, taps, channels, outputs]."""
    if reader.form == "window":
        out, inside = weight.shape[:2]
        taps = prod(weight.shape[2:])
        split = weight.reshape(reader.blocks, out // reader.blocks, inside, taps)
        return np.asarray(split.transpose(0, 3, 2, 1))
    if reader.form == "scatter":
        return weight.reshape(reader.blocks, 1, weight.shape[0] // reader.blocks, -1)
    plain = weight.T if _turned(reader) else weight
    if reader.bundles is None:
        return plain[None, None]
    return plain[reader.bundles].transpose(1, 0, 2)[None]


def unmatrix(reader: Reader, values: Floats, shape: Sequence[int]) -> Floats:
    """The inverse of ``matrix``: [blocks, taps, channels, outputs] as a weight of ``shape``."""
    if reader.form == "window":
        return values.transpose(0, 3, 2, 1).reshape(shape)
    if reader.form == "scatter":
        return values.reshape(shape)
    plain = values[0, 0]
    if reader.bundles is not None:
        plain = np.empty((reader.bundles.size, values.shape[-1]), values.dtype)
        plain[reader.bundles] = values[0].transpose(1, 0, 2)
    return np.asarray(plain.T if _turned(reader) else plain)


def _turned(reader: Reader) -> bool:
    """Whether a matrix product's weight is stored [outputs, channels]."""
    if reader.node.op_type == "Gemm":
        return attribute(reader.node, "transB", 0) == 1
    return reader.form == "left"


def rows(reader: Reader, values: Floats, weight_shape: Sequence[int], count: int, rng: np.random.Generator) -> Floats:
    """Rows of X at up to ``count`` output positions, drawn without repetition: [blocks, rows, taps, channels].

    Args:
        reader: the layer.
        values: the tensor that it reads.
        weight_shape: shape of its weight.
        count: how many rows.
        rng: draws the positions.
    """
    if reader.form == "window":
        windows = _windows(reader.node, values, tuple(weight_shape[2:]), count, rng)
        split = windows.reshape(*windows.shape[:2], reader.blocks, -1)
        return np.asarray(split.transpose(2, 0, 1, 3))
    flat = np.moveaxis(values, reader.axis, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    if len(flat) > count:
        flat = flat[np.sort(rng.choice(len(flat), count, replace=False))]
    if reader.bundles is not None:
        return flat[:, reader.bundles.T][None]
    split = flat.reshape(len(flat), 1, reader.blocks, -1)
    return split.transpose(2, 0, 1, 3)


def _windows(
    node: onnx.NodeProto, values: Floats, kernel: tuple[int, ...], count: int, rng: np.random.Generator
) -> Floats:
    """Windows of a convolution at drawn output positions, [positions, taps, channels]."""
    dims = len(kernel)
    strides = integers(node, "strides", [1] * dims)
    dilations = integers(node, "dilations", [1] * dims)
    size = values.shape[2:]
    before, out = _extent(node, size, kernel, strides, dilations)
    total = values.shape[0] * prod(out)
    drawn = np.arange(total) if total <= count else np.sort(rng.choice(total, count, replace=False))
    sample, *at = np.unravel_index(drawn, (values.shape[0], *out))
    flat = np.zeros((len(drawn), prod(kernel)), dtype=np.int64)
    valid = np.ones(flat.shape, dtype=bool)
    for axis, taps in enumerate(np.unravel_index(np.arange(prod(kernel)), kernel)):
        index = at[axis][:, None] * strides[axis] - before[axis] + taps[None] * dilations[axis]
        valid &= (index >= 0) & (index < size[axis])
        flat = flat * size[axis] + np.clip(index, 0, size[axis] - 1)
    found = values.reshape(*values.shape[:2], -1)[sample[:, None], :, flat]
    found[~valid] = 0
    return np.asarray(found)


def _extent(
    node: onnx.NodeProto,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before the first element, and output size, along each spatial axis."""
    dims = len(kernel)
    auto = next((each.s for each in node.attribute if each.name == "auto_pad"), b"NOTSET")
    pads = integers(node, "pads", [0] * (2 * dims)) if auto in (b"NOTSET", b"") else (0,) * (2 * dims)
    before, out = [], []
    for axis in range(dims):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            count = -(-size[axis] // strides[axis])
            whole = max(0, (count - 1) * strides[axis] + reach - size[axis])
            before.append(whole // 2 if auto == b"SAME_UPPER" else whole - whole // 2)
        else:
            count = (size[axis] + pads[axis] + pads[dims + axis] - reach) // strides[axis] + 1
            before.append(pads[axis])
        out.append(max(0, count))
    return tuple(before), tuple(out)
