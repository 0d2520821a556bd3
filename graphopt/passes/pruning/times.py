"""Multiply-adds and predicted time of a network as functions of how many channels each group keeps.

The time is computed, not measured, so that plans are reproducible. The formula is what ONNX Runtime 1.31's CPU kernels
did on one thread of an x86-64 CPU with AVX512 (medians of profiled kernels, quiet machine; channels 4 to 128 in steps
of 2 to 16, convolutions 1x1 and 3x3 on 28x28 and 40x40, depthwise, grouped, matrix products up to 2048):

- Convolutions run on blocks of 16 channels on both sides: time is flat between multiples of 16 (64 inputs, 52 to 64
  outputs: the same to 1 %; 64 outputs, 52 to 64 inputs: likewise) and proportional to the rounded product, 58
  multiply-adds a nanosecond whatever the kernel size, stride and depth. Below 16 inputs a kernel that reads plain
  tensors takes over, proportional to the inputs; below 16 outputs the convolution leaves the blocked kernels and costs
  1.2 times as much as with 16.
- Inputs that are not a multiple of 4 leave the blocked kernels, too: 44 multiply-adds a nanosecond, unrounded, and both
  sides reordered; a depthwise of 30 channels ran at half the speed of 32.
- Grouped convolutions need multiples of 16 in every block; else 40 multiply-adds a nanosecond and the windows written
  out (0.15 ns an element).
- Depthwise: 30 multiply-adds a nanosecond, rounded to 16.
- Pooling, concatenation and other movement keep the blocked layout only at multiples of 16; else the tensor is
  reordered before and behind (33 bytes a nanosecond).
- Matrix products: proportional to all three sides, 55 multiply-adds a nanosecond; one row of input: 20.

Rounding goes by the multiple that the target names; on one without such multiples all products are unrounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.channels import Dependencies
from graphopt.graph.cost.kinds import attribute
from graphopt.graph.cost.shapes import scopes
from graphopt.passes.pruning.sizes import Counts, Extent, Sizes, tensor_sizes

Floats: TypeAlias = npt.NDArray[np.float64]
Removed: TypeAlias = Sequence[Counts]

# Multiply-adds and bytes a nanosecond; see above.
BLOCKED, UNBLOCKED, WINDOWS, DEPTHWISE, PRODUCT, ONE_ROW = 58.0, 44.0, 40.0, 30.0, 55.0, 20.0
BYTES = 33.0
WINDOW_ELEMENT = 0.15
# Channels whose multiples stay on the blocked kernels at all.
QUARTER = 4

# What runs inside the convolution before it, or moves nothing.
_FREE = frozenset(
    {"BatchNormalization", "Cast", "Clip", "Constant", "Dropout", "Flatten", "Identity", "LeakyRelu", "Relu"}
    | {"Reshape", "Shape", "Sigmoid", "Squeeze", "Tanh", "Unsqueeze"}
)


@dataclass(frozen=True)
class Layer:
    """What one node costs.

    Attributes:
        name: the first tensor that it writes.
        groups: groups on which its cost depends.
        macs: multiply-adds for the channels removed.
        time: nanoseconds for the same.
    """

    name: str
    groups: frozenset[int]
    macs: Callable[[Removed], Floats]
    time: Callable[[Removed], Floats]


class Costs:
    """What a model costs when channels are gone.

    Attributes:
        layers: the nodes that have a cost.
        by_group: for each group the layers whose cost depends on it.
    """

    def __init__(self, layers: Sequence[Layer], groups: int) -> None:
        self.layers = tuple(layers)
        self.groups = groups
        self.by_group = tuple(
            tuple(layer for layer in self.layers if number in layer.groups) for number in range(groups)
        )

    def macs(self, removed: Sequence[int]) -> float:
        """Multiply-adds of the model."""
        counts = [np.asarray(count) for count in removed]
        return float(sum(float(layer.macs(counts)) for layer in self.layers))

    def time(self, removed: Sequence[int]) -> float:
        """Predicted nanoseconds of the model on one thread."""
        counts = [np.asarray(count) for count in removed]
        return float(sum(float(layer.time(counts)) for layer in self.layers))

    def saved(self, removed: Sequence[int], groups: Sequence[int], more: Counts) -> tuple[Floats, Floats]:
        """Multiply-adds and nanoseconds saved when ``groups`` lose ``more`` [n, groups] channels instead, [n] each."""
        now = [np.asarray(count) for count in removed]
        then = list(now)
        for place, group in enumerate(groups):
            then[group] = more[:, place]
        touched = {id(layer): layer for group in groups for layer in self.by_group[group]}.values()
        macs, time = np.zeros(len(more)), np.zeros(len(more))
        for layer in touched:
            macs += layer.macs(now) - layer.macs(then)
            time += layer.time(now) - layer.time(then)
        return macs, time


def costs(dependencies: Dependencies, multiple: int = 16, shapes: Mapping[str, Sequence[int]] | None = None) -> Costs:
    """Find what every node of the model costs as a function of the channels removed.

    Args:
        dependencies: groups of the model.
        multiple: channels that the target's kernels compute at a time (``Hardware.channel_multiple``).
        shapes: shapes of inputs whose axes are open; a first axis that is open counts as 1.
    """
    scope = scopes(dependencies.model, shapes)[0]
    names = {name for node in scope.nodes for name in (*node.input, *node.output)}
    sizes = tensor_sizes(dependencies, scope.shapes, names)
    layers = []
    for node in scope.nodes:
        layer = _layer(node, sizes, multiple, frozenset(scope.constants))
        if layer is not None:
            layers.append(layer)
    return Costs(layers, len(dependencies))


def _layer(node: onnx.NodeProto, sizes: Mapping[str, Sizes], multiple: int, constants: frozenset[str]) -> Layer | None:
    computed = [name for name in node.input if name and name not in constants]
    if not node.output or any(name not in sizes for name in (*computed, node.output[0])):
        return None
    groups = frozenset[int]().union(*(sizes[name].groups for name in (*computed, node.output[0])))
    name = node.output[0]
    if node.op_type in ("Conv", "ConvTranspose", "FusedConv") and len(node.input) > 1 and node.input[1] in sizes:
        macs, time = _convolution(node, sizes, multiple)
        return Layer(name, groups, macs, time)
    if node.op_type in ("Gemm", "MatMul"):
        macs, time = _product(node, sizes)
        return Layer(name, groups, macs, time)
    if node.op_type in _FREE or not computed:
        return None
    moved = [sizes[each] for each in (*dict.fromkeys(computed), *node.output) if each in sizes]
    return Layer(name, groups, _nothing, _movement(moved, multiple))


def _nothing(removed: Removed) -> Floats:
    return np.zeros(())


def _movement(moved: Sequence[Sizes], multiple: int) -> Callable[[Removed], Floats]:
    def time(removed: Removed) -> Floats:
        total = np.zeros(())
        for each in moved:
            size = 4.0 * each.elements(removed) / BYTES
            ragged = len(each.axes) == 4 and multiple > 1 and each.axes[1].length(removed) % multiple != 0
            total = total + np.where(ragged, 3.0, 1.0) * size
        return total

    return time


def _convolution(
    node: onnx.NodeProto, sizes: Mapping[str, Sizes], multiple: int
) -> tuple[Callable[[Removed], Floats], Callable[[Removed], Floats]]:
    source, result = sizes[node.input[0]], sizes[node.output[0]]
    weight = tuple(axis.full for axis in sizes[node.input[1]].axes)
    transposed = node.op_type == "ConvTranspose"
    blocks = attribute(node, "group", 1)
    taps = prod(weight[2:])
    read, written = source.axes[1], result.axes[1]
    # Multiply-adds for each pair of channels: over the pixels of the output, or of the input of a transposed one.
    pixels = _Pixels((source if transposed else result).axes)
    depthwise = blocks > 1 and blocks == read.full

    def macs(removed: Removed) -> Floats:
        wide = written.length(removed) if depthwise else read.length(removed) * written.length(removed) / blocks
        return np.asarray(pixels(removed) * taps * wide, dtype=np.float64)

    def time(removed: Removed) -> Floats:
        inside, outside = read.length(removed), written.length(removed)
        area = pixels(removed)
        if depthwise:
            off = _off(inside, multiple)
            wide = np.where(off, 2.0 * outside, _up(outside, multiple))
            return np.asarray(area * taps * wide / DEPTHWISE + off * _reorder(area, inside, outside))
        if blocks > 1:
            whole = (inside % (blocks * multiple) == 0) & (outside % (blocks * multiple) == 0)
            product = area * taps * (inside / blocks) * outside
            split = product / WINDOWS + WINDOW_ELEMENT * area * taps * inside + _reorder(area, inside, outside)
            return np.asarray(np.where(whole, product / BLOCKED, split))
        small = inside < multiple
        off = _off(inside, multiple) & ~small
        rounded = np.where(small, inside, _up(inside, multiple)) * _up(outside, multiple)
        blocked = area * taps * rounded / BLOCKED * np.where(outside < multiple, 1.2, 1.0)
        plain = area * taps * inside * outside / UNBLOCKED + _reorder(area, inside, outside)
        return np.asarray(np.where(off, plain, blocked))

    return macs, time


class _Pixels:
    """Positions of a tensor: all its axes but the channels."""

    def __init__(self, axes: Sequence[Extent]) -> None:
        self.axes = Sizes((axes[0], *axes[2:]))

    def __call__(self, removed: Removed) -> Counts:
        return self.axes.elements(removed)


def _up(count: Counts, multiple: int) -> Counts:
    return -(-count // multiple) * multiple


def _off(count: Counts, multiple: int) -> npt.NDArray[np.bool_]:
    return np.asarray(count % min(QUARTER, multiple) != 0)


def _reorder(area: Counts, inside: Counts, outside: Counts) -> Floats:
    return np.asarray(8.0 * area * (inside + outside) / BYTES)


def _product(
    node: onnx.NodeProto, sizes: Mapping[str, Sizes]
) -> tuple[Callable[[Removed], Floats], Callable[[Removed], Floats]]:
    first, result = sizes[node.input[0]], sizes[node.output[0]]
    turned = node.op_type == "Gemm" and attribute(node, "transA", 0) == 1
    summed = first.axes[-2 if turned else -1] if first.axes else Extent(1)

    def macs(removed: Removed) -> Floats:
        return np.asarray(result.elements(removed) * summed.length(removed), dtype=np.float64)

    def time(removed: Removed) -> Floats:
        one_row = len(result.axes) < 2 or prod(axis.full for axis in result.axes[:-1]) == 1
        return macs(removed) / (ONE_ROW if one_row else PRODUCT)

    return macs, time
