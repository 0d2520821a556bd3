"""What a layer's filters see at chosen positions of its output (im2col of those positions only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.recovery.layers import Array, Layer, attributes
from graphopt.recovery.net import Net

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Where the taps of a layer lie, for one shape of its input.

    Attributes:
        sizes: output sizes along the spatial axes.
        places: for each spatial axis the input index of each tap, [output size, taps]; the input's size where a tap
            lies in the padding (or, in a transposed convolution, between two steps).
    """

    sizes: tuple[int, ...]
    places: tuple[Places, ...]


def window(net: Net, layer: Layer, shape: Sequence[int]) -> Window:
    """Find where the taps of a convolution lie (ONNX operator specifications, Conv and ConvTranspose).

    Args:
        net: the net of the layer.
        layer: a convolution, of any number of spatial axes.
        shape: shape of its input, [batch, channels, spatial axes].
    """
    node = net.steps[layer.step][0]
    kernel = tuple(net.constants[node.input[1]].dims)[2:]
    given = attributes(node)
    axes = len(kernel)
    strides = given.get("strides") or [1] * axes
    dilations = given.get("dilations") or [1] * axes
    pads = given.get("pads") or [0] * (2 * axes)
    mode = given.get("auto_pad", b"NOTSET").decode()
    extra = given.get("output_padding") or [0] * axes
    asked = given.get("output_shape")
    sizes: list[int] = []
    places: list[Places] = []
    for axis in range(axes):
        length, step, spread = int(shape[2 + axis]), strides[axis], (kernel[axis] - 1) * dilations[axis] + 1
        before, after = pads[axis], pads[axes + axis]
        if mode == "VALID":
            before = after = 0
        if layer.kind == "convolution":
            if mode.startswith("SAME"):
                before, after = _shares(max((-(-length // step) - 1) * step + spread - length, 0), mode)
            sizes.append((length + before + after - spread) // step + 1)
            index = np.arange(sizes[-1])[:, None] * step + np.arange(kernel[axis])[None] * dilations[axis] - before
            places.append(np.where((index >= 0) & (index < length), index, length))
            continue
        full = (length - 1) * step + extra[axis] + spread
        if asked or mode.startswith("SAME"):
            size = asked[axis - axes] if asked else length * step
            before, after = _shares(full - size, mode)
        sizes.append(full - before - after)
        reach = np.arange(sizes[-1])[:, None] + before - np.arange(kernel[axis])[None] * dilations[axis]
        index = reach // step
        places.append(np.where((reach % step == 0) & (index >= 0) & (index < length), index, length))
    return Window(tuple(sizes), tuple(places))


def _shares(total: int, mode: str) -> tuple[int, int]:
    """Split padding between the two ends: the odd one goes to the end for SAME_UPPER, else to the start."""
    less = total // 2
    return (less, total - less) if mode == "SAME_UPPER" else (total - less, less)


def positions_shape(net: Net, layer: Layer, shape: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the axes over which a layer is the same everywhere: its output's without the channels."""
    if layer.kind in ("convolution", "transposed"):
        return (int(shape[0]), *window(net, layer, shape).sizes)
    if layer.kind == "normalization":
        return (int(shape[0]), *(int(size) for size in shape[2:]))
    if layer.kind == "gemm" and attributes(net.steps[layer.step][0]).get("transA", 0):
        return (int(shape[1]),)
    return tuple(int(size) for size in shape[:-1])


def arranged(net: Net, layer: Layer, values: Array) -> Array:
    """Bring a layer's input into the order in which ``columns`` takes it apart: channels last, [places, channels]."""
    if layer.kind in ("convolution", "transposed"):
        padded = np.pad(values.astype(np.float32, copy=False), [(0, 0), (0, 0), *[(0, 1)] * (values.ndim - 2)])
        return np.ascontiguousarray(np.moveaxis(padded, 1, -1)).reshape(-1, values.shape[1])
    if layer.kind == "normalization":
        moved = np.moveaxis(values, 1, -1).astype(np.float32, copy=False)
        return np.ascontiguousarray(moved).reshape(-1, values.shape[1])
    if layer.kind == "gemm" and attributes(net.steps[layer.step][0]).get("transA", 0):
        values = values.T
    return values.astype(np.float32, copy=False).reshape(-1, values.shape[-1])


def columns(net: Net, layer: Layer, shape: Sequence[int], values: Array, chosen: Places) -> Array:
    """Return what the filters see at chosen positions.

    Args:
        net: the net of the layer.
        layer: the layer.
        shape: shape of its input.
        values: the input as ``arranged`` gives it.
        chosen: positions, indices into the flattened axes of ``positions_shape``.

    Returns:
        float32 [groups, positions, unknowns], in the order of the common form of weights.
    """
    if layer.kind not in ("convolution", "transposed"):
        return values[chosen].T[:, :, None] if layer.kind == "normalization" else values[chosen][None]
    found = window(net, layer, shape)
    batch, *point = np.unravel_index(chosen, (int(shape[0]), *found.sizes))
    flat = np.asarray(batch, dtype=np.int64)[:, None]
    for size, taps, index in zip(shape[2:], found.places, point, strict=True):
        # One more place along each axis holds the zeros that taps in the padding see.
        flat = (flat[:, :, None] * (size + 1) + taps[index][:, None, :]).reshape(len(chosen), -1)
    seen = values[flat]
    split = seen.reshape(len(chosen), flat.shape[1], layer.groups, -1)
    return np.ascontiguousarray(split.transpose(2, 0, 1, 3)).reshape(layer.groups, len(chosen), -1)
