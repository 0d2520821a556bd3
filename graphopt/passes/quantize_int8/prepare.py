"""Bring a float model into the form that quantizes best, without changing what it computes.

::

    before   x [rows, depth] -> MatMul(w) -> Add(b)         after   x -> Gemm(w, b)
    before   x [2, 17, depth] -> MatMul(w) -> Add(b)        after   x -> Reshape [34, depth] -> Gemm(w, b) -> Reshape
    before   x [depth, rows] -> Gemm<transA>(w, b)          after   x -> Transpose -> Gemm(w, b)

ONNX Runtime merges a matrix product and the bias after it into one Gemm before it looks for Q/DQ (MatMulAddFusion: rank
2, or any rank with a static shape), and then finds a bias in float, for which it has no int8 kernel. Merged beforehand,
the bias is quantized with the product.

Preconditions: the second operand a constant matrix in float32; the first of rank 2, or of a rank above with all sizes
known; the product read by the Add alone and no graph output; the other operand of the Add a constant of one value per
column.

A Sum of two is an Add, which is what runtimes have integer and fused kernels for (residual nets from Caffe2 have Sums).

A Gemm that transposes its input has no int8 kernel; apart, the Transpose moves bytes. In float ONNX Runtime brings the
two together again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphopt.graph import Shape
from graphopt.passes.quantize_int8.units import FLOAT_DOMAINS, find_units


def sums_as_additions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with every Sum of two as an Add; the same object where there is none."""

    def is_sum_of_two(node: onnx.NodeProto) -> bool:
        return node.op_type == "Sum" and node.domain in FLOAT_DOMAINS and len(node.input) == 2

    if not any(map(is_sum_of_two, model.graph.node)):
        return model
    written = onnx.ModelProto()
    written.CopyFrom(model)
    for node in filter(is_sum_of_two, written.graph.node):
        node.op_type = "Add"
    return written


def merge_biases(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """Return ``model`` with every MatMul and Add of the form above merged; the same object where there is none.

    Args:
        model: opset 13 or later.
        shapes: tensor name -> shape, where the rank is known; a size that is not is no int.
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
                and _is_plain(shapes.get(matmul.input[0], ()))
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
            _emit_gemm(result.graph, matmul, node.output[0], flat, shapes[matmul.input[0]])
        else:
            result.graph.node.append(node)
    return result


def split_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with a Transpose before each Gemm of constant float32 weights that transposes its input itself.

    The same object where there is none.
    """
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    if not any(_transposes(node, weights) for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        if _transposes(node, weights):
            turned = f"{node.output[0]}_graphopt_turned"
            transpose = onnx.helper.make_node("Transpose", [node.input[0]], [turned], name=f"{turned}_Transpose")
            transpose.attribute.append(onnx.helper.make_attribute("perm", [1, 0]))
            result.graph.node.append(transpose)
            apart = result.graph.node.add()
            apart.CopyFrom(node)
            apart.input[0] = turned
            kept = [attribute for attribute in node.attribute if attribute.name != "transA"]
            del apart.attribute[:]
            apart.attribute.extend(kept)
        else:
            result.graph.node.append(node)
    return result


def _transposes(node: onnx.NodeProto, weights: set[str]) -> bool:
    return (
        node.op_type == "Gemm"
        and node.domain in FLOAT_DOMAINS
        and node.input[0] not in weights
        and node.input[1] in weights
        and any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    )


def _emit_gemm(
    graph: onnx.GraphProto, matmul: onnx.NodeProto, output: str, bias: npt.NDArray[np.float32], shape: Shape
) -> None:
    """Write Gemm(x, w, b), between two Reshapes where x has more than two axes."""

    def constant(suffix: str, values: npt.NDArray[np.generic]) -> str:
        name = f"{output}_graphopt_{suffix}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    read, made = matmul.input[0], output
    if len(shape) > 2:
        flat = constant("flat", np.array([-1, shape[-1]], np.int64))
        read, made = f"{output}_graphopt_rows", f"{output}_graphopt_product"
        graph.node.append(onnx.helper.make_node("Reshape", [matmul.input[0], flat], [read], name=f"{read}_Reshape"))
    inputs = [read, matmul.input[1], constant("bias", bias)]
    graph.node.append(onnx.helper.make_node("Gemm", inputs, [made], name=matmul.name or f"{output}_Gemm"))
    if len(shape) > 2:
        whole = constant("shape", np.array([*shape[:-1], bias.size], np.int64))
        graph.node.append(onnx.helper.make_node("Reshape", [made, whole], [output], name=f"{output}_Reshape"))


def _is_plain(shape: Shape) -> bool:
    return len(shape) == 2 or (len(shape) > 2 and all(isinstance(size, int) for size in shape))


def _is_bias(bias: onnx.TensorProto | None, weight: onnx.TensorProto | None) -> bool:
    if bias is None or weight is None or len(weight.dims) != 2:
        return False
    float32 = onnx.TensorProto.FLOAT
    fits = len(bias.dims) in (1, 2) and bias.dims[-1] == weight.dims[1] and int(np.prod(bias.dims)) == weight.dims[1]
    return fits and bias.data_type == float32 and weight.data_type == float32
