"""Convolutions and matrix products of a graph in the terms of the latency model, and what other forms of them are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod

import onnx

from graphopt.graph.cost import CONVOLUTIONS, MATRIX_PRODUCTS, Scope
from graphopt.graph.cost.kinds import attribute, weight_name
from graphopt.graph.cost.parameters import source
from graphopt.latency import KernelWork, convolution, fully_connected


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product with stored weights.

    Attributes:
        channels: read, of all groups.
        filters: channels written, of all groups.
        kernel: window; empty for a matrix product.
        strides: steps of the window.
        groups: groups of channels.
        out_size: spatial size of the output.
        batch: samples, or rows of a matrix product.
        keeps_channels: whether the channels read are those of a model's input.
        keeps_filters: whether the channels written are those of a model's output.
    """

    channels: int
    filters: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int
    out_size: tuple[int, ...]
    batch: int
    keeps_channels: bool
    keeps_filters: bool

    def work(self, precision: str) -> KernelWork:
        """What the latency model prices."""
        if not self.kernel:
            return fully_connected(self.channels, self.filters, rows=self.batch, precision=precision)
        return convolution(
            self.channels,
            self.filters,
            kernel=self.kernel,
            strides=self.strides,
            groups=self.groups,
            out_size=self.out_size,
            batch=self.batch,
            precision=precision,
        )

    def halved(self) -> Product | None:
        """With half of the channels; None where none can go."""
        channels = self.channels if self.keeps_channels else self.channels // 2
        filters = self.filters if self.keeps_filters else self.filters // 2
        groups = self.groups
        if groups > 1:  # groups go whole
            if self.keeps_channels or self.keeps_filters:
                return None
            kept = groups // 2
            groups, channels, filters = kept, self.channels // groups * kept, self.filters // groups * kept
        if channels < 1 or filters < 1 or (channels, filters) == (self.channels, self.filters):
            return None
        return replace(self, channels=channels, filters=filters, groups=groups)

    def separated(self, rank: int, form: str) -> tuple[Product, Product]:
        """As ``rank`` pairs, those of one kind written as one convolution; the depthwise one has the strides."""
        ones = (1,) * len(self.kernel)
        if form == "depthwise_first":
            between = self.channels * rank
            depthwise = replace(self, filters=between, groups=self.channels)
            pointwise = replace(self, channels=between, kernel=ones, strides=ones)
            return depthwise, pointwise
        between = self.filters * rank
        read = tuple(size * stride for size, stride in zip(self.out_size, self.strides, strict=True))
        pointwise = replace(self, filters=between, kernel=ones, strides=ones, out_size=read)
        depthwise = replace(self, channels=between, groups=self.filters)
        return pointwise, depthwise


def product_of(node: onnx.NodeProto, scope: Scope, inputs: Collection[str], ends: Collection[str]) -> Product | None:
    """The sizes of a product with stored weights; None for other nodes and where a size is unknown."""
    if node.op_type not in CONVOLUTIONS | MATRIX_PRODUCTS or not node.output:
        return None
    weight, written = _known(scope, weight_name(node)), _known(scope, node.output[0])
    if weight is None or written is None or source(weight_name(node), scope) is None:
        return None
    if 0 in weight or 0 in written:
        return None
    reads_input, writes_output = node.input[0] in inputs, node.output[0] in ends
    if node.op_type in CONVOLUTIONS:
        if len(weight) < 3 or len(written) != len(weight):
            return None
        groups = attribute(node, "group", 1)
        strides = next((tuple(a.ints) for a in node.attribute if a.name == "strides"), (1,) * (len(weight) - 2))
        return Product(
            weight[1] * groups, weight[0], weight[2:], strides, groups, written[2:], written[0], reads_input,
            writes_output,
        )  # fmt: skip
    if len(weight) != 2 or not written:
        return None
    features = prod(weight) // written[-1]
    return Product(features, written[-1], (), (), 1, (), prod(written[:-1]), reads_input, writes_output)


def _known(scope: Scope, name: str) -> tuple[int, ...] | None:
    shape = scope.shapes.get(name)
    if shape is None or None in shape:
        return None
    return tuple(size for size in shape if size is not None)


# What stands between a layer and the model's output without mixing channels: the layer's channels are the output's.
_KEEPS_CHANNELS = {
    "Add", "AveragePool", "Cast", "Clip", "DequantizeLinear", "Dropout", "Flatten", "GlobalAveragePool", "Identity",
    "LogSoftmax", "MaxPool", "Mul", "QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Softmax",
    "Squeeze", "Sub", "Tanh",
}  # fmt: skip


def behind(scope: Scope, outputs: Collection[str]) -> set[str]:
    """The tensors whose channels are those of an output."""
    found, pending = set(outputs), list(outputs)
    while pending:
        node = scope.producers.get(pending.pop())
        if node is not None and node.op_type in _KEEPS_CHANNELS:
            fresh = [name for name in node.input if name and name not in found]
            found.update(fresh)
            pending.extend(fresh)
    return found
