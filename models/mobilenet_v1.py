"""MobileNet v1 and the plain-convolution net of the same shape, with random weights: what to count and to time.

    python -m models.mobilenet_v1 [--plain] [--width 1.0] [--size 224] [--batchnorm] [--seed 0] OUT.onnx

The net is that of table 1 of Howard et al. 2017 (MobileNets, arXiv 1704.04861) and ``--plain`` the one that its table
4 compares it with, a 3x3 convolution in place of every depthwise separable block: 569 M multiply-adds and 4.2 M
parameters against 4,866 M and 29.3 M at width 1.0 and 224 x 224, 1000 classes. The last block has stride 1, as in
every published implementation: the stride of 2 that table 1 prints would leave less than its 7 x 7 output. Counted as
the paper counts, there is no bias and no normalization; ``--batchnorm`` adds what a trained net has of both.

Only NumPy and onnx are needed. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
STEM = 32
# Filters and stride of each block behind the first convolution.
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
# Where the weights of a structure would lie.
ABSENT = "absent.weights"


@dataclass(frozen=True)
class Net:
    """Which net.

    Attributes:
        plain: 3x3 convolutions in place of depthwise separable blocks.
        width: factor of all channel counts (the paper's alpha), rounded to multiples of 8.
        size: height and width of the input.
        classes: outputs.
        batchnorm: BatchNormalization behind each convolution, and a bias of the classifier.
    """

    plain: bool = False
    width: float = 1.0
    size: int = 224
    classes: int = 1000
    batchnorm: bool = False

    def channels(self, count: int) -> int:
        """A channel count of the paper at this width."""
        return max(8, int(count * self.width + 4) // 8 * 8)


def build(net: Net, seed: int | None = 0) -> onnx.ModelProto:
    """Return a net; with ``seed`` None its structure alone, weights declared as external data that do not exist."""
    builder = _Builder(net.batchnorm, seed)
    channels = net.channels(STEM)
    name = builder.convolution("image", "stem", channels, 3, stride=2)
    for index, (filters, stride) in enumerate(BLOCKS, 1):
        wanted = net.channels(filters)
        if net.plain:
            name = builder.convolution(name, f"block{index}", wanted, channels, stride=stride)
        else:
            name = builder.convolution(name, f"block{index}_depthwise", channels, 1, stride=stride, groups=channels)
            name = builder.convolution(name, f"block{index}_pointwise", wanted, channels, kernel=1)
        channels = wanted
    builder.add("GlobalAveragePool", [name], "pooled")
    builder.add("Flatten", ["pooled"], "features")
    weights = [builder.weight("classifier_weight", (net.classes, channels), channels)]
    if net.batchnorm:
        weights.append(builder.vector("classifier_bias", net.classes, 0.0))
    builder.add("Gemm", ["features", *weights], "logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, net.size, net.size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", net.classes])
    title = "plain" if net.plain else "mobilenet_v1"
    graph = helper.make_graph(builder.nodes, title, [image], [logits], builder.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class _Builder:
    """Collects nodes and weights."""

    def __init__(self, batchnorm: bool, seed: int | None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._batchnorm = batchnorm
        self._random = None if seed is None else np.random.default_rng(seed)

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def convolution(
        self, source: str, name: str, filters: int, channels: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> str:
        """A convolution (``channels``: of a group) with padding that keeps the size, and what stands behind it."""
        weight = self.weight(f"{name}_weight", (filters, channels, kernel, kernel), channels * kernel * kernel)
        padding = [kernel // 2] * 4
        found = self.add(
            "Conv", [source, weight], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=padding, group=groups
        )
        if self._batchnorm:
            starts = {"scale": 1.0, "shift": 0.0, "mean": 0.0, "variance": 1.0}
            vectors = [self.vector(f"{name}_{what}", filters, value) for what, value in starts.items()]
            found = self.add("BatchNormalization", [found, *vectors], f"{name}_normalized")
        return self.add("Relu", [found], f"{name}_relu")

    def weight(self, name: str, shape: tuple[int, ...], inputs: int) -> str:
        """Normal weights that keep the signal's power through a Relu (He et al. 2015, arXiv 1502.01852)."""
        if self._random is None:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=ABSENT)
            tensor.external_data.add(key="length", value=str(4 * int(np.prod(shape))))
        else:
            values = self._random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / inputs))
            tensor = numpy_helper.from_array(values, name)
        self.tensors.append(tensor)
        return name

    def vector(self, name: str, size: int, value: float) -> str:
        self.tensors.append(numpy_helper.from_array(np.full(size, value, np.float32), name))
        return name


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.mobilenet_v1", description="Write MobileNet v1, or the plain net of its shape."
    )
    parser.add_argument("output", type=Path, metavar="OUT.onnx")
    parser.add_argument("--plain", action="store_true", help="3x3 convolutions in place of separable blocks")
    parser.add_argument("--width", type=float, default=1.0, help="factor of all channel counts")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batchnorm", action="store_true", help="with BatchNormalization and a bias, as trained")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    net = Net(options.plain, options.width, options.size, options.classes, options.batchnorm)
    onnx.save(build(net, options.seed), options.output)


if __name__ == "__main__":
    main()
