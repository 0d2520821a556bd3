"""Bring a float model into the form that quantizes best, without changing what it computes.

::

    before   x [rows, depth] -> MatMul(w) -> Add(b)         after   x -> Gemm(w, b)

ONNX Runtime merges a matrix product of rank 2 and the bias after it into one Gemm before it looks for Q/DQ, and then
finds a bias in float, for which it has no int8 kernel. Merged beforehand, the bias is quantized with the product.

Preconditions: both operands of rank 2, the second constant and float32; the product read by the Add alone and no graph
output; the other operand of the Add a constant of one value per column.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.passes.quantize_int8.units import FLOAT_DOMAINS, find_units


def merge_biases(model: onnx.ModelProto, ranks: Mapping[str, int]) -> onnx.ModelProto:
    """Return ``model`` with every MatMul and Add of the form above merged; the same object where there is none.

    Args:
        model: opset 13 or later.
        ranks: tensor name -> rank, where known.
    """
    units = find_units(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    merged: dict[str, tuple[onnx.NodeProto, str]] = {}  # output of the Add -> its MatMul and its bias
    for node in model.graph.node:
        if node.op_type != "Add" or node.domain not in FLOAT_DOMAINS:
            continue
        for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
            matmul = made_by.get(product)
            if (
                matmul is not None
                and matmul.op_type == "MatMul"
                and matmul.domain in FLOAT_DOMAINS
                and ranks.get(matmul.input[0]) == 2
                and len(units.consumers.get(product, ())) == 1
                and product not in units.graph_outputs
                and _is_bias(units.constants.get(bias), units.constants.get(matmul.input[1]))
            ):
                merged[node.output[0]] = (matmul, bias)
    if not merged:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    products = {matmul.output[0] for matmul, _ in merged.values()}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.output[0] in products:
            continue
        if node.op_type == "Add" and node.output[0] in merged:
            matmul, bias = merged[node.output[0]]
            flat = numpy_helper.to_array(units.constants[bias]).reshape(-1)
            name = f"{bias}_of_{node.output[0]}"
            result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(flat), name))
            inputs = [*matmul.input, name]
            result.graph.node.append(onnx.helper.make_node("Gemm", inputs, list(node.output), name=matmul.name))
        else:
            result.graph.node.append(node)
    return result


def _is_bias(bias: onnx.TensorProto | None, weight: onnx.TensorProto | None) -> bool:
    if bias is None or weight is None or len(weight.dims) != 2:
        return False
    float32 = onnx.TensorProto.FLOAT
    fits = len(bias.dims) in (1, 2) and bias.dims[-1] == weight.dims[1] and int(np.prod(bias.dims)) == weight.dims[1]
    return fits and bias.data_type == float32 and weight.data_type == float32
