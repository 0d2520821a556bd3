"""Multiply-adds and predicted time of a network as functions of how many channels each group keeps.

The time is computed, not measured, so that plans are reproducible: ``kernels`` has the formulas of this CPU, ``device``
those of a GPU. Where int8 follows, each node takes the better of its times in float and in int8.
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
from graphopt.passes.pruning import device, kernels
from graphopt.passes.pruning.sizes import Counts, Extent, Sizes, tensor_sizes
from graphopt.targets.schema import Hardware

Floats: TypeAlias = npt.NDArray[np.float64]
Removed: TypeAlias = Sequence[Counts]

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


@dataclass(frozen=True)
class Target:
    """What kernels there are.

    Attributes:
        multiple: channels that those in float32 compute at a time (``Hardware.channel_multiple``).
        int8: whether nodes may run in int8.
        hardware: the target, where it is a device that is not at hand: times are then predicted for it
            (docs/latency.md); None: ONNX Runtime's kernels on this CPU (``kernels``).
    """

    multiple: int = 16
    int8: bool = False
    hardware: Hardware | None = None


def costs(
    dependencies: Dependencies,
    target: Target = Target(),
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Costs:
    """Find what every node of the model costs as a function of the channels removed.

    Args:
        dependencies: groups of the model.
        target: what kernels there are.
        shapes: shapes of inputs whose axes are open; a first axis that is open counts as 1.
    """
    scope = scopes(dependencies.model, shapes)[0]
    names = {name for node in scope.nodes for name in (*node.input, *node.output)}
    sizes = tensor_sizes(dependencies, scope.shapes, names)
    layers = []
    for node in scope.nodes:
        layer = _layer(node, sizes, target, frozenset(scope.constants))
        if layer is not None:
            layers.append(layer)
    return Costs(layers, len(dependencies))


def _layer(node: onnx.NodeProto, sizes: Mapping[str, Sizes], target: Target, constants: frozenset[str]) -> Layer | None:
    computed = [name for name in node.input if name and name not in constants]
    if not node.output or any(name not in sizes for name in (*computed, node.output[0])):
        return None
    groups = frozenset[int]().union(*(sizes[name].groups for name in (*computed, node.output[0])))
    name = node.output[0]
    if node.op_type in ("Conv", "ConvTranspose", "FusedConv") and len(node.input) > 1 and node.input[1] in sizes:
        return Layer(name, groups, *_convolution(node, sizes, target))
    if node.op_type in ("Gemm", "MatMul"):
        return Layer(name, groups, *_product(node, sizes, target, constant=len(computed) == 1))
    if node.op_type in _FREE or not computed:
        return None
    moved = [sizes[each] for each in (*dict.fromkeys(computed), *node.output) if each in sizes]
    return Layer(name, groups, _nothing, _movement(moved, target, node.op_type))


def _nothing(removed: Removed) -> Floats:
    return np.zeros(())


def _movement(moved: Sequence[Sizes], target: Target, operator: str) -> Callable[[Removed], Floats]:
    multiple = target.multiple
    if target.hardware is not None:
        return device.movement_time(moved, operator, target.hardware)

    def time(removed: Removed) -> Floats:
        total, total_int8 = np.zeros(()), np.zeros(())
        for each in moved:
            elements = each.elements(removed)
            ragged = np.asarray(len(each.axes) == 4 and multiple > 1 and each.axes[1].length(removed) % multiple != 0)
            total = total + kernels.float_movement(elements, ragged)
            total_int8 = total_int8 + kernels.int8_movement(elements)
        movable = target.int8 and operator in kernels.INT8_MOVEMENT
        return kernels.NODE + (np.minimum(total, total_int8) if movable else total)

    return time


def _convolution(
    node: onnx.NodeProto, sizes: Mapping[str, Sizes], target: Target
) -> tuple[Callable[[Removed], Floats], Callable[[Removed], Floats]]:
    source, result = sizes[node.input[0]], sizes[node.output[0]]
    weight = tuple(axis.full for axis in sizes[node.input[1]].axes)
    transposed = node.op_type == "ConvTranspose"
    blocks = attribute(node, "group", 1)
    read, written = source.axes[1], result.axes[1]
    # Multiply-adds for each pair of channels: over the pixels of the output, or of the input of a transposed one.
    axes = (source if transposed else result).axes
    pixels = Sizes((axes[0], *axes[2:]))
    depthwise = blocks > 1 and blocks == read.full

    def work(removed: Removed) -> kernels.Convolution:
        inside, outside = read.length(removed), written.length(removed)
        return kernels.Convolution(pixels.elements(removed), prod(weight[2:]), inside, outside, blocks, depthwise)

    def macs(removed: Removed) -> Floats:
        return work(removed).macs

    def time(removed: Removed) -> Floats:
        sized = work(removed)
        if target.hardware is not None:
            read_elements = source.elements(removed)
            return device.convolution_time(sized, read_elements, transposed, target.hardware, target.int8)
        found = kernels.float_convolution(sized, target.multiple)
        if target.int8 and not transposed:
            found = np.minimum(found + kernels.conversions(sized), kernels.int8_convolution(sized))
        return kernels.NODE + found

    return macs, time


def _product(
    node: onnx.NodeProto, sizes: Mapping[str, Sizes], target: Target, *, constant: bool
) -> tuple[Callable[[Removed], Floats], Callable[[Removed], Floats]]:
    """Multiply-adds and time; ``constant``: one of the matrices is."""
    first, result = sizes[node.input[0]], sizes[node.output[0]]
    turned = node.op_type == "Gemm" and attribute(node, "transA", 0) == 1
    summed = first.axes[-2 if turned else -1] if first.axes else Extent(1)
    one_row = len(result.axes) < 2 or prod(axis.full for axis in result.axes[:-1]) == 1
    kernel = kernels.int8_product if target.int8 and constant else kernels.float_product

    def macs(removed: Removed) -> Floats:
        return np.asarray(result.elements(removed) * summed.length(removed), dtype=np.float64)

    def time(removed: Removed) -> Floats:
        if target.hardware is not None:
            sides = summed.length(removed), result.elements(removed)
            wide = result.axes[-1].length(removed) if result.axes else np.asarray(1)
            return device.product_time(*sides, wide, constant, target.hardware, target.int8)
        return kernels.NODE + kernel(macs(removed), one_row)

    return macs, time
