"""How much of a model ONNX Runtime really computes in int8: read from the graph it writes after optimizing.

MACs of every heavy operator come from the shape of its output on one sample and its weights, so that blocked layouts
and fused operators of ONNX Runtime's own domains count the same as standard ones.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from benchmarks.measure import Feed, session

# Operator -> (position of the left operand, position of the weights). Int8 kernels, then float ones.
INT8 = {
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "ConvInteger": (0, 1),
}
FLOAT = dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"), (0, 1))


@dataclass(frozen=True)
class Share:
    """MACs in int8 of all MACs, and the float operators that carry the rest (name, MACs), heaviest first."""

    int8: float
    macs: int
    int8_nodes: int
    float_nodes: tuple[tuple[str, int], ...]


def optimized_graph(model: Path, folder: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime runs at its highest optimization level on this CPU."""
    path = folder / "optimized.onnx"
    session(model, optimized=path)
    return onnx.load(str(path))


def _shapes(model: onnx.ModelProto, names: list[str], feed: Feed, folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors of an already optimized graph on one sample."""
    known = {output.name for output in model.graph.output} | {entry.name for entry in model.graph.input}
    wanted = [name for name in dict.fromkeys(names) if name not in known]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    path = folder / "probe.onnx"
    onnx.save(probe, str(path))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    runner = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    order = [output.name for output in runner.get_outputs()]
    shapes = {name: tuple(np.shape(value)) for name, value in zip(order, runner.run(order, feed), strict=True)}
    return shapes | {name: tuple(np.shape(value)) for name, value in feed.items()}


def _inner(node: onnx.NodeProto, weights: tuple[int, ...] | None, left: tuple[int, ...]) -> int:
    """Multiplications for each output element (for ConvTranspose: for each input element)."""
    if "Conv" in node.op_type and weights is not None:
        return int(np.prod(weights[1:]))
    flags = {entry.name: entry.i for entry in node.attribute}
    return left[-2] if flags.get("transA") else left[-1]


def int8_share(model: Path, feed: Feed) -> Share:
    """Measure `model` on one sample `feed`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph_model = optimized_graph(model, folder)
        graph = graph_model.graph
        weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        weights |= {
            node.output[0]: tuple(numpy_helper.to_array(node.attribute[0].t).shape)
            for node in graph.node
            if node.op_type == "Constant" and node.attribute[0].name == "value"
        }
        heavy = [node for node in graph.node if node.op_type in INT8 or node.op_type in FLOAT]
        names = [name for node in heavy for name in (node.input[0], node.output[0]) if name not in weights]
        shapes = weights | _shapes(graph_model, names, feed, folder)
    in_int8, in_float = 0, []
    int8_nodes = 0
    for node in heavy:
        left, right = (INT8 | FLOAT)[node.op_type]
        elements = shapes[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]]
        macs = int(np.prod(elements)) * _inner(node, weights.get(node.input[right]), shapes[node.input[left]])
        if node.op_type in INT8:
            in_int8 += macs
            int8_nodes += 1
        else:
            in_float.append((f"{node.op_type} {node.name or node.output[0]}", macs))
    total = in_int8 + sum(macs for _, macs in in_float)
    in_float.sort(key=lambda entry: -entry[1])
    return Share(in_int8 / total if total else 0.0, total, int8_nodes, tuple(in_float))
