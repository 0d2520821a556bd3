"""Convolutions and matrix products as kernels: taps at offsets of the input, within groups of channels.

Along each axis, output position p reads the input at ``p * stride + j * dilation - begin`` for each tap j, zero
outside. So a kernel is told by the offsets ``j * dilation - begin`` and by ``begin + end - (taps - 1) * dilation``,
what the output has beyond ``size - 1`` before division by the stride. Two kernels with equal stride and equal such
*reach* give outputs of one size for every input, and their sum is the kernel over the union of offsets. A Gemm or
MatMul is a kernel without axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index
from graphopt.passes.affine.linear import Linear, read_linear
from graphopt.passes.affine.maps import Affine, Vector

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """Where the taps lie: per axis the number of taps, their distance, padding before and after, and the stride."""

    taps: Ints
    dilations: Ints
    begins: Ints
    ends: Ints
    strides: Ints

    @property
    def size(self) -> int:
        """Number of taps."""
        return math.prod(self.taps)

    @property
    def reach(self) -> Ints:
        """What the output has beyond ``input - 1``, before division by the stride."""
        return tuple(
            begin + end - (taps - 1) * dilation
            for taps, dilation, begin, end in zip(self.taps, self.dilations, self.begins, self.ends, strict=True)
        )

    def offsets(self, axis: int) -> list[int]:
        """Offsets of the taps along one axis."""
        return [tap * self.dilations[axis] - self.begins[axis] for tap in range(self.taps[axis])]

    @property
    def is_point(self) -> bool:
        """Whether it has one tap, at the output's own place."""
        return self.size == 1 and not any(self.begins) and not any(self.ends)

    @property
    def pads(self) -> bool:
        """Whether it may read beyond the input."""
        return any(self.begins) or any(self.ends)


@dataclass(frozen=True)
class Kernel:
    """Weights over a grid: (outputs, inputs of a group, taps) in float64; bias of the outputs or None."""

    weights: Vector
    bias: Vector | None
    groups: int
    grid: Grid

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.weights.shape[0])

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return self.groups * int(self.weights.shape[1])

    @property
    def macs(self) -> int:
        """Multiplications an output position."""
        return int(self.weights.size)


def read_kernel(node: gs.Node | None, index: Index) -> tuple[Linear, Kernel] | None:
    """Read a Conv, Gemm or MatMul with constant weights; None for others and where the padding depends on sizes."""
    linear = read_linear(node, index)
    if not isinstance(linear, Linear) or linear.node.op == "ConvTranspose":
        return None
    taps = tuple(linear.weights.shape[2:])
    grid = _grid(linear.node, taps)
    if grid is None:
        return None
    weights: Vector = linear.weights.astype(np.float64)
    if not linear.outputs_first:
        weights = weights.T
    if linear.gain != 1.0:
        weights = weights * linear.gain
    bias = linear.bias
    if bias is not None and bias.size != linear.outputs:
        bias = np.array(np.broadcast_to(bias, (linear.outputs,)))
    return linear, Kernel(weights.reshape(*weights.shape[:2], -1), bias, linear.groups, grid)


def _grid(node: gs.Node, taps: Ints) -> Grid | None:
    axes = len(taps)
    ones = (1,) * axes
    dilations = tuple(node.attrs.get("dilations", ones))
    strides = tuple(node.attrs.get("strides", ones))
    pads = tuple(node.attrs.get("pads", (0,) * (2 * axes)))
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = (0,) * (2 * axes)
    elif mode in {"SAME_UPPER", "SAME_LOWER"}:
        if any(stride != 1 for stride in strides):
            return None
        totals = [(count - 1) * dilation for count, dilation in zip(taps, dilations, strict=True)]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = (*less, *more) if mode == "SAME_UPPER" else (*more, *less)
    if len(dilations) != axes or len(strides) != axes or len(pads) != 2 * axes or any(pad < 0 for pad in pads):
        return None
    return Grid(taps, dilations, pads[:axes], pads[axes:], strides)


def diagonal(affine: Affine, channels: int, axes: int) -> Kernel:
    """The kernel of a map of each channel by itself."""
    ones, zeros = (1,) * axes, (0,) * axes
    scale = np.array(np.broadcast_to(affine.scale, (channels,)))
    bias = np.array(np.broadcast_to(affine.shift, (channels,))) if affine.shifts else None
    return Kernel(scale.reshape(-1, 1, 1), bias, channels, Grid(ones, ones, zeros, zeros, ones))


def union(grids: Sequence[Grid]) -> Grid | None:
    """The smallest grid with all taps of all grids; None where outputs differ in size or padding would be negative."""
    first = grids[0]
    if any(grid.strides != first.strides or grid.reach != first.reach for grid in grids):
        return None
    taps, dilations, begins, ends = [], [], [], []
    for axis in range(len(first.taps)):
        offsets = sorted({offset for grid in grids for offset in grid.offsets(axis)})
        step = reduce(math.gcd, (offset - offsets[0] for offset in offsets), 0) or 1
        count = (offsets[-1] - offsets[0]) // step + 1
        taps.append(count)
        dilations.append(step)
        begins.append(-offsets[0])
        ends.append(first.reach[axis] + (count - 1) * step + offsets[0])
    if min((*begins, *ends), default=0) < 0:
        return None
    return Grid(tuple(taps), tuple(dilations), tuple(begins), tuple(ends), first.strides)


def summed(kernels: Sequence[Kernel]) -> Kernel | None:
    """The kernel that gives the sum of what all give; None where they do not fit, or where it takes more work."""
    first = kernels[0]
    if any((one.outputs, one.inputs) != (first.outputs, first.inputs) for one in kernels):
        return None
    grid = union([one.grid for one in kernels])
    groups = reduce(math.gcd, (one.groups for one in kernels))
    if grid is None or first.outputs * (first.inputs // groups) * grid.size > sum(
        one.macs for one in kernels if not _is_diagonal(one)
    ):
        return None
    total = np.zeros((first.outputs, first.inputs // groups, *grid.taps))
    for one in kernels:
        places = np.ix_(
            np.arange(total.shape[0]),
            np.arange(total.shape[1]),
            *(
                np.array([(offset + grid.begins[axis]) // grid.dilations[axis] for offset in one.grid.offsets(axis)])
                for axis in range(len(grid.taps))
            ),
        )
        wide = regrouped(one, groups)
        total[places] += wide.reshape(*wide.shape[:2], *one.grid.taps)
    biases = [one.bias for one in kernels if one.bias is not None]
    bias = None if not biases else np.sum(biases, axis=0)
    return Kernel(total.reshape(*total.shape[:2], -1), bias, groups, grid)


def _is_diagonal(kernel: Kernel) -> bool:
    """Whether it costs next to nothing: a map of each channel by itself, at one tap."""
    return kernel.weights.shape[1:] == (1, 1) and kernel.groups > 1


def regrouped(kernel: Kernel, groups: int) -> Vector:
    """The weights for fewer groups, which divide those that it has; zero between the old ones."""
    if groups == kernel.groups:
        return kernel.weights
    outputs, within, taps = kernel.weights.shape
    wide = np.zeros((outputs, kernel.inputs // groups, taps))
    own = np.arange(outputs) // (outputs // kernel.groups)
    starts = own * within - np.arange(outputs) // (outputs // groups) * wide.shape[1]
    columns = starts[:, None] + np.arange(within)[None, :]
    wide[np.arange(outputs)[:, None], columns] = kernel.weights
    return wide


def chained(first: Kernel, second: Kernel) -> Kernel | None:
    """The kernel that gives what ``second`` makes of ``first``; None where it is none, or takes more work.

    One of the two has one tap. A bias of the first must not be padded with zeros by the second.
    """
    groups = math.gcd(first.groups, second.groups)
    if first.outputs != second.inputs:
        return None
    if second.grid.is_point:
        strides = tuple(a * b for a, b in zip(first.grid.strides, second.grid.strides, strict=True))
        base = first.grid
        grid = Grid(base.taps, base.dilations, base.begins, base.ends, strides)
    elif first.grid.is_point and all(stride == 1 for stride in first.grid.strides):
        grid = second.grid
        if grid.pads and first.bias is not None and first.bias.any():
            return None
    else:
        return None
    if second.outputs * (first.inputs // groups) * grid.size > first.macs + second.macs:
        return None
    if second.outputs * (second.inputs // groups) > 1 << 24:
        return None
    inner, outer = regrouped(first, groups), regrouped(second, groups)
    inner = inner.reshape(groups, -1, *inner.shape[1:])
    outer = outer.reshape(groups, -1, *outer.shape[1:])
    product = np.einsum("gomt,gmis->goits", outer, inner, optimize=True)
    weights = product.reshape(second.outputs, first.inputs // groups, -1)
    bias = second.bias
    if first.bias is not None:
        moved = np.einsum("gomt,gm->go", outer, first.bias.reshape(groups, -1)).reshape(-1)
        bias = moved if bias is None else bias + moved
    return Kernel(weights, bias, groups, grid)
