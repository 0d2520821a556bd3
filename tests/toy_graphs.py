"""Seven tiny networks, one for each way in which channels of common architectures hang together.

They are after the graphs on which rival tools for ONNX were measured to cut little or nothing at "50 %". Each is built
at any width, so that the network with every channel count halved can be built too: its share of the parameters is what
cutting half of every group should leave. All take an image [batch, 3, 16, 16] and end in global average pooling and a
Gemm with ten outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.support import model

CLASSES = 10


class Net:
    """Collects lines of ONNX text and the weights they need. Channels are counted at full width, and narrowed here.

    Attributes:
        wide: how many channels each tensor has at full width.
    """

    def __init__(self, share: float, *, batchnorm: bool = False) -> None:
        self.share, self.batchnorm = share, batchnorm
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.wide = {"image": 3}
        self._rng = np.random.default_rng(0)

    def narrowed(self, channels: int) -> int:
        return round(channels * self.share)

    def add(self, line: str, channels: int) -> str:
        """One node whose output is the name before the equals sign."""
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {line}")
        self.wide[name] = channels
        return name

    def weight(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = values.astype(np.float32)
        return name

    def vector(self, channels: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.weight(self._rng.uniform(low, high, self.narrowed(channels)))

    def conv(self, x: str, outputs: int, kernel: int = 3, *, stride: int = 1, group: int = 1) -> str:
        """Convolution with same padding and a bias, or with BatchNormalization behind."""
        inputs = 3 if x == "image" else self.narrowed(self.wide[x])
        group = inputs if group == self.wide[x] > 1 else group
        fan_in = inputs // group * kernel * kernel
        weight = self._rng.normal(0, np.sqrt(2 / fan_in), (self.narrowed(outputs), inputs // group, kernel, kernel))
        pads = [kernel // 2] * 4
        head = f"Conv<kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}], pads={pads}, group={group}>"
        if not self.batchnorm:
            return self.add(f"{head}({x}, {self.weight(weight)}, {self.vector(outputs)})", outputs)
        found = self.add(f"{head}({x}, {self.weight(weight)})", outputs)
        scale, shift, mean = (self.vector(outputs, low, high) for low, high in ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5)))
        return self.add(
            f"BatchNormalization({found}, {scale}, {shift}, {mean}, {self.vector(outputs, 0.5, 1.5)})", outputs
        )

    def relu(self, x: str) -> str:
        return self.add(f"Relu({x})", self.wide[x])

    def silu(self, x: str) -> str:
        return self.add(f"Mul({x}, {self.add(f'Sigmoid({x})', self.wide[x])})", self.wide[x])

    def plus(self, one: str, two: str) -> str:
        return self.add(f"Add({one}, {two})", self.wide[one])

    def join(self, *parts: str) -> str:
        return self.add(f"Concat<axis=1>({', '.join(parts)})", sum(self.wide[part] for part in parts))

    def half(self, x: str) -> str:
        return self.add(f"MaxPool<kernel_shape=[2,2], strides=[2,2]>({x})", self.wide[x])

    def finish(self, x: str) -> onnx.ModelProto:
        """Global average pooling, Flatten and a Gemm."""
        inputs = self.narrowed(self.wide[x])
        flat = self.add(f"Flatten({self.add(f'GlobalAveragePool({x})', self.wide[x])})", self.wide[x])
        weight = self.weight(self._rng.normal(0, inputs**-0.5, (CLASSES, inputs)))
        bias = self.weight(self._rng.uniform(-0.5, 0.5, CLASSES))
        self.lines.append(f"scores = Gemm<transB=1>({flat}, {weight}, {bias})")
        declared = ", ".join(
            f"{'int64' if values.dtype == np.int64 else 'float'}[{','.join(map(str, values.shape))}] {name}"
            for name, values in self.weights.items()
        )
        head = f"toy (float[N,3,16,16] image) => (float[N,{CLASSES}] scores) <{declared}>"
        return model(f"{head} {{ {' '.join(self.lines)} }}", **self.weights)

    def sizes(self, *channels: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array([self.narrowed(one) for one in channels], np.int64)
        return name

    def shape(self, *axes: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(axes, np.int64)
        return name


def resnet(share: float = 1.0, *, batchnorm: bool = False) -> onnx.ModelProto:
    """Three residual blocks on one stream of 32 channels."""
    net = Net(share, batchnorm=batchnorm)
    x = net.relu(net.conv("image", 32))
    for _ in range(3):
        inner = net.relu(net.conv(x, 32))
        x = net.relu(net.plus(x, net.conv(inner, 32)))
    return net.finish(x)


def resnet_batchnorm(share: float = 1.0) -> onnx.ModelProto:
    """The same with BatchNormalization nodes."""
    return resnet(share, batchnorm=True)


def densenet(share: float = 1.0) -> onnx.ModelProto:
    """Four layers that all read what all before them wrote, and a transition."""
    net = Net(share)
    x = net.relu(net.conv("image", 32))
    for _ in range(4):
        x = net.join(x, net.relu(net.conv(x, 16)))
    return net.finish(net.relu(net.conv(x, 48, 1)))


def yolo_c2f(share: float = 1.0) -> onnx.ModelProto:
    """YOLOv8's C2f: Split in halves, residual bottlenecks on the second, Concat of all."""
    net = Net(share)
    x = net.silu(net.conv("image", 32, stride=2))
    x = net.silu(net.conv(x, 64, 1))
    first = f"t{len(net.lines)}a"
    second = net.add(f"Split<axis=1>({x}, {net.sizes(32, 32)})", 32)
    net.lines[-1] = net.lines[-1].replace(f"{second} =", f"{first}, {second} =")
    net.wide[first] = 32
    parts = [first, second]
    for _ in range(2):
        parts.append(net.plus(parts[-1], net.silu(net.conv(net.silu(net.conv(parts[-1], 32)), 32))))
    return net.finish(net.silu(net.conv(net.join(*parts), 64, 1)))


def shufflenet_unit(share: float = 1.0) -> onnx.ModelProto:
    """ShuffleNet v1: grouped 1x1, channel shuffle, depthwise, grouped 1x1, shortcut."""
    net = Net(share)
    x = net.relu(net.conv("image", 48))
    for _ in range(3):
        inner = net.relu(net.conv(x, 48, 1, group=4))
        wide = net.add(f"Reshape({inner}, {net.shape(0, 4, net.narrowed(12), 16, 16)})", 48)
        mixed = net.add(f"Transpose<perm=[0,2,1,3,4]>({wide})", 48)
        inner = net.add(f"Reshape({mixed}, {net.shape(0, net.narrowed(48), 16, 16)})", 48)
        inner = net.conv(inner, 48, group=48)
        x = net.relu(net.plus(x, net.conv(inner, 48, 1, group=4)))
    return net.finish(x)


def mobilenetv2(share: float = 1.0) -> onnx.ModelProto:
    """Three inverted residuals, 48 channels expanded to 192."""
    net = Net(share)
    x = net.relu(net.conv("image", 48))
    for _ in range(3):
        inner = net.relu(net.conv(x, 192, 1))
        inner = net.relu(net.conv(inner, 192, group=192))
        x = net.plus(x, net.conv(inner, 48, 1))
    return net.finish(x)


def unet(share: float = 1.0) -> onnx.ModelProto:
    """Down, up again by interpolation, and a skip that is concatenated; SiLU as Sigmoid and Mul."""
    net = Net(share)
    skip = net.silu(net.conv("image", 8))
    deep = net.silu(net.conv(net.half(skip), 16))
    scales = net.weight(np.array([1, 1, 2, 2]))
    up = net.add(f'Resize<mode="nearest">({deep}, , {scales})', 16)
    return net.finish(net.silu(net.conv(net.join(skip, up), 8)))


TOYS: dict[str, tuple[Callable[..., onnx.ModelProto], float]] = {
    "ResNet-like, BatchNorm folded": (resnet, 0.26),
    "ResNet-like, BatchNorm nodes": (resnet_batchnorm, 0.26),
    "DenseNet-like": (densenet, 0.26),
    "YOLO C2f": (yolo_c2f, 0.26),
    "ShuffleNet unit": (shufflenet_unit, 0.5),
    "MobileNetV2": (mobilenetv2, 0.28),
    "U-Net with SiLU": (unet, 0.28),
}
"""Name -> builder and the share of parameters that is left when all coupled channels halve (ShuffleNet: at most)."""


def parameters(proto: onnx.ModelProto) -> int:
    """Elements of all floating-point initializers."""
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )


def ideal(build: Callable[..., onnx.ModelProto]) -> float:
    """Share of the parameters in the network of half the width."""
    return parameters(build(0.5)) / parameters(build())
