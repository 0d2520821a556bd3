"""Nets as tf2onnx writes them: NHWC throughout, and a Transpose before and after every convolution and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


class Net:
    """Builds an NHWC graph node by node; every method takes and returns names of NHWC tensors."""

    def __init__(self, shape: Sequence[int | str], opset: int = 17) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> str:
        names = [f"t{len(self.nodes)}" + (f"_{place}" if place else "") for place in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}_{len(self.nodes)}", **attrs))
        return names[0]

    def weight(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def drawn(self, *shape: int) -> str:
        return self.weight(self.rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[1:]))))

    def in_nchw(self, op: str, x: str, *weights: str, **attrs: Any) -> str:
        moved = self.node("Transpose", [x], perm=TO_NCHW)
        return self.node("Transpose", [self.node(op, [moved, *weights], **attrs)], perm=TO_NHWC)

    def conv(self, x: str, cin: int, cout: int, kernel: int = 3, *, stride: int = 1, group: int = 1) -> str:
        w = self.drawn(cout, cin // group, kernel, kernel)
        pads = [kernel // 2] * 4
        return self.in_nchw("Conv", x, w, pads=pads, strides=[stride, stride], group=group)

    def bias(self, x: str, channels: int) -> str:
        return self.node("Add", [x, self.drawn(channels)])

    def scale(self, x: str, channels: int) -> str:
        return self.bias(self.node("Mul", [x, self.drawn(1, 1, 1, channels)]), channels)

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, self.weight(0.0), self.weight(6.0)])

    def swish(self, x: str) -> str:
        return self.node("Mul", [x, self.node("Sigmoid", [x])])

    def mean(self, x: str, *, keepdims: int = 1) -> str:
        if self.opset >= 18:
            return self.node("ReduceMean", [x, self.weight([1, 2], np.int64)], keepdims=keepdims)
        return self.node("ReduceMean", [x], axes=[1, 2], keepdims=keepdims)

    def pad(self, x: str, mode: str = "constant") -> str:
        return self.node("Pad", [x, self.weight([0, 0, 0, 0, 0, 1, 1, 0], np.int64)], mode=mode)

    def build(self, y: str, shape: Sequence[int | str | None]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = y
        result = helper.make_tensor_value_info(y, TensorProto.FLOAT, list(shape))
        graph = helper.make_graph(self.nodes, "nhwc", [self.input], [result], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def dense(net: Net, x: str, cin: int, cout: int) -> onnx.ModelProto:
    net.bias(net.node("MatMul", [x, net.drawn(cin, cout)]), cout)
    return net.build("y", ["N", cout])


def resnet(opset: int = 17) -> onnx.ModelProto:
    net = Net(["N", 16, 16, 3], opset)
    x = net.node("Relu", [net.scale(net.conv(net.pad("x"), 3, 8, stride=2), 8)])
    for _ in range(2):
        left = net.node("Relu", [net.scale(net.conv(x, 8, 8), 8)])
        left = net.scale(net.conv(left, 8, 8), 8)
        x = net.node("Relu", [net.node("Add", [x, left])])
    left = net.scale(net.conv(net.node("Relu", [net.conv(x, 8, 16, stride=2)]), 16, 16), 16)
    x = net.node("Relu", [net.node("Add", [left, net.conv(x, 8, 16, 1, stride=2)])])
    return dense(net, net.mean(x, keepdims=0), 16, 5)


def mobilenet(opset: int = 17) -> onnx.ModelProto:
    net = Net(["N", 16, 16, 3], opset)
    x = net.relu6(net.bias(net.conv("x", 3, 8, stride=2), 8))
    for _ in range(2):
        wide = net.relu6(net.bias(net.conv(x, 8, 24, 1), 24))
        wide = net.relu6(net.bias(net.conv(wide, 24, 24, group=24), 24))
        x = net.node("Add", [x, net.bias(net.conv(wide, 24, 8, 1), 8)])
    return dense(net, net.node("Squeeze", [net.mean(x), net.weight([1, 2], np.int64)]), 8, 5)


def efficientnet(opset: int = 17) -> onnx.ModelProto:
    net = Net([2, 16, 16, 3], opset)
    scaled = net.node("Sub", [net.node("Mul", ["x", net.weight(1 / 127.5)]), net.drawn(1, 1, 1, 3)])
    x = net.swish(net.bias(net.conv(scaled, 3, 8, stride=2), 8))
    for _ in range(2):
        wide = net.swish(net.bias(net.conv(x, 8, 16, 1), 16))
        wide = net.swish(net.scale(net.conv(net.pad(wide), 16, 16, group=16), 16))
        squeezed = net.mean(wide, keepdims=0)
        squeezed = net.node("Reshape", [squeezed, net.weight([-1, 1, 1, 16], np.int64)])
        gate = net.swish(net.bias(net.conv(squeezed, 16, 4, 1), 4))
        gate = net.node("Sigmoid", [net.bias(net.conv(gate, 4, 16, 1), 16)])
        narrow = net.conv(net.node("Mul", [wide, gate]), 16, 8, 1)
        x = net.node("Add", [x, net.in_nchw("AveragePool", narrow, kernel_shape=[2, 2])])
    x = net.swish(net.conv(x, 8, 32, 1))
    flat = net.node("Reshape", [net.in_nchw("GlobalAveragePool", x), net.weight([-1, 32], np.int64)])
    return dense(net, flat, 32, 5)


def inception(opset: int = 17) -> onnx.ModelProto:
    net = Net(["N", 12, 12, 4], opset)
    x = net.conv("x", 4, 8)
    for _ in range(2):
        branches = [
            net.node("Relu", [net.conv(x, 8, 2, 1)]),
            net.node("Relu", [net.conv(net.node("Relu", [net.conv(x, 8, 4, 1)]), 4, 3)]),
            net.node("Tanh", [net.in_nchw("MaxPool", net.conv(x, 8, 3, 1), kernel_shape=[3, 3], pads=[1, 1, 1, 1])]),
        ]
        x = net.scale(net.node("Concat", branches, axis=3), 8)
    first = net.node("Split", [x, net.weight([3, 5], np.int64)], 2, axis=-1)
    upper = net.node("Resize", [first, "", net.weight([1, 2, 2, 1])], mode="nearest")
    lower = net.in_nchw("ConvTranspose", f"{first}_1", net.drawn(5, 3, 2, 2), strides=[2, 2])
    return _softmax_over_channels(net, net.node("Where", [net.node("Less", [upper, lower]), upper, lower]))


def _softmax_over_channels(net: Net, x: str) -> onnx.ModelProto:
    net.node("Softmax", [x], axis=-1)
    return net.build("y", ["N", 24, 24, 3])


NETS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "efficientnet": efficientnet,
    "inception": inception,
    "mobilenet": mobilenet,
    "resnet": resnet,
}
