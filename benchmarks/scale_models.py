"""Graphs of any size for `benchmarks.scale`, each with what an ideal simplifier leaves of it."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8


@dataclass
class _Builder:
    """Collects nodes and weights; every node writes a tensor of its own."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        index = len(self.nodes)
        self.nodes.append(helper.make_node(op, list(inputs), [f"t{index}"], f"n{index}", **attributes))
        return f"t{index}"

    def weight(self, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def model(self, output: str, shape: list[int | str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "scale",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convbn(nodes: int) -> tuple[onnx.ModelProto, int]:
    """Residual blocks of two Conv-BatchNormalization-Relu and an Add: the BatchNormalizations fold."""
    build, rng = _Builder(), np.random.default_rng(0)
    x = "x"

    def drawn(*shape: int, low: float = -0.5, high: float = 0.5) -> str:
        return build.weight(rng.uniform(low, high, shape).astype(np.float32))

    while len(build.nodes) < nodes:
        skip = x
        for _ in range(2):
            # Small, or the sums of thousands of blocks would overflow.
            weight = drawn(CHANNELS, CHANNELS, 3, 3, low=-0.02, high=0.02)
            x = build.node("Conv", x, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            statistics = (drawn(CHANNELS), drawn(CHANNELS), drawn(CHANNELS), drawn(CHANNELS, low=0.5, high=1.5))
            x = build.node("Relu", build.node("BatchNormalization", x, *statistics))
        x = build.node("Add", x, skip)
    return build.model(x, ["N", CHANNELS, 4, 4]), len(build.nodes) * 5 // 7


def shape(nodes: int) -> tuple[onnx.ModelProto, int]:
    """Activations with a flattening between them whose shape is computed: all but the activations go."""
    build = _Builder()
    zero, axes, rest = (build.weight(np.asarray(values, np.int64)) for values in (0, [0], [-1]))
    x = "x"
    while len(build.nodes) < nodes:
        x = build.node("Sigmoid", x)
        batch = build.node("Unsqueeze", build.node("Gather", build.node("Shape", x), zero), axes)
        x = build.node("Reshape", x, build.node("Concat", batch, rest, axis=0))
    return build.model(x, [2, 16]), len(build.nodes) // 6


def nop(nodes: int) -> tuple[onnx.ModelProto, int]:
    """Identity and Reshape in turns, none of which does anything, behind one Relu."""
    build = _Builder()
    same = build.weight(np.asarray([2, 16], np.int64))
    x = build.node("Relu", "x")
    while len(build.nodes) < nodes:
        x = build.node("Reshape", build.node("Identity", x), same)
    return build.model(x, [2, 16]), 1


def fan(nodes: int) -> tuple[onnx.ModelProto, int]:
    """One tensor that a quarter of all nodes read, as many through an Identity; all is summed up."""
    build, rng = _Builder(), np.random.default_rng(0)
    x = build.node("Relu", "x")
    total = x
    while len(build.nodes) < nodes:
        factor = build.weight(rng.standard_normal((1, 16)).astype(np.float32))
        total = build.node("Add", total, build.node("Mul", x, factor))
        total = build.node("Add", total, build.node("Identity", x))
    return build.model(total, [2, 16]), len(build.nodes) - len(build.nodes) // 4


def deep(nodes: int) -> tuple[onnx.ModelProto, int]:
    """A chain of activations with nothing to simplify."""
    build = _Builder()
    x = "x"
    while len(build.nodes) < nodes:
        x = build.node("Tanh", build.node("Sigmoid", x))
    return build.model(x, ["N", 16]), len(build.nodes)


GRAPHS = {"convbn": convbn, "shape": shape, "nop": nop, "fan": fan, "deep": deep}
