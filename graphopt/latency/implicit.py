"""A model whose every tensor is quantized, as a runtime sees it that places integers itself (implicit quantization)."""

from __future__ import annotations

import onnx

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def as_placed_by_runtime(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave Q/DQ only before what multiplies matrices, so that what runs inside its kernel is found there.

    Such a runtime fuses the graph first, and rounds what passes between kernels; in a graph where every tensor goes
    through Q and DQ nothing would be next to anything.

    Args:
        model: with Q/DQ on every tensor; not edited.
    """
    placed = onnx.ModelProto()
    placed.CopyFrom(model)
    nodes = placed.graph.node
    quantized = {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    before = {
        node.output[0]: quantized[node.input[0]]
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }
    for node in nodes:
        if node.op_type in _PRODUCTS or node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        for place, name in enumerate(node.input):
            node.input[place] = before.get(name, name)
    return placed
