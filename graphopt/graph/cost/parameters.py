"""Which stored tensors are parameters, and which node each belongs to.

A parameter is a number that training set: an element of a floating initializer or Constant that a node computes with,
or of an integer one that holds a quantized weight or bias. These are not parameters: shapes, axes and indices; scales
and zero points; limits, exponents and other scalars; running means and variances of BatchNormalization, which are
statistics (so that the totals equal the published ones); tensors that no node uses. A tensor that several nodes share
counts once, for the first of them. A weight that a ConstantOfShape with constant shape fills is a parameter too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx

from graphopt.graph.cost.kinds import attribute
from graphopt.graph.cost.shapes import Constant, Scope

FLOATING = frozenset(
    number
    for name, number in onnx.TensorProto.DataType.items()
    if name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16") or name.startswith(("FLOAT8", "FLOAT4", "FLOAT6"))
)
_SMALL_INTEGERS = frozenset(
    number for name, number in onnx.TensorProto.DataType.items() if name in ("INT8", "UINT8", "INT4", "UINT4", "INT2")
)

# Operators that hand their first input's numbers on: the weight behind them belongs to whoever consumes the result.
_PASSES_ON = {
    "Cast", "CastLike", "DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip

# Operators whose weights are integers, with the inputs that hold them; their other inputs are scales and zero points.
_INTEGER_WEIGHTS = {
    "ConvInteger": (1,), "DynamicQuantizeMatMul": (1, 4), "MatMulInteger": (0, 1), "MatMulIntegerToFloat": (0, 1, 6),
    "MatMulNBits": (1,), "QGemm": (0, 3, 6), "QLinearAdd": (0, 3), "QLinearConv": (3, 8), "QLinearMatMul": (0, 3),
    "QLinearMul": (0, 3),
}  # fmt: skip

# Operators with floating inputs that are settings, statistics or states.
_NOT_WEIGHTS = {
    "BatchNormalization": (3, 4), "Clip": (1, 2), "Dropout": (1, 2), "DynamicQuantizeLinear": (0,), "GRU": (5,),
    "LSTM": (5, 6), "NonMaxSuppression": (2, 3, 4), "OneHot": (2,), "Pad": (2,), "RNN": (5,), "Range": (0, 1, 2),
    "Resize": (1, 2), "Upsample": (1,),
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The stored tensor behind an operand, and whether DequantizeLinear stands between."""

    name: str
    dequantized: bool


def source(name: str, scope: Scope) -> Source | None:
    """The stored tensor whose numbers ``name`` carries, seen through Cast, Transpose, DequantizeLinear and the like.

    None where ``name`` is computed from the model's inputs.
    """
    dequantized = False
    while name not in scope.constants:
        node = scope.producers.get(name)
        if node is None:
            return None
        if node.op_type == "ConstantOfShape" and node.input[0] in scope.constants:
            return Source(name, dequantized)
        if node.op_type not in _PASSES_ON or not node.input:
            return None
        dequantized |= node.op_type == "DequantizeLinear"
        name = node.input[0]
    return Source(name, dequantized)


def parameters_of(node: onnx.NodeProto, scope: Scope) -> dict[str, int]:
    """Name and number of elements of each parameter tensor that ``node`` computes with."""
    if node.op_type in _PASSES_ON and node.domain in ("", "ai.onnx", "com.microsoft"):
        return {}
    result: dict[str, int] = {}
    for index, name in enumerate(node.input):
        stored = source(name, scope) if name else None
        if stored is None:
            continue
        constant = scope.constants.get(stored.name) or _filled(stored.name, scope)
        if constant is None or not _is_weight(node, index, constant, stored.dequantized):
            continue
        result[stored.name] = constant.stored
        if node.op_type == "MatMulNBits":  # several weights share a byte
            result[stored.name] = attribute(node, "K", 0) * attribute(node, "N", 0)
    return result


def _is_weight(node: onnx.NodeProto, index: int, constant: Constant, dequantized: bool) -> bool:
    if node.op_type in _INTEGER_WEIGHTS:
        return index in _INTEGER_WEIGHTS[node.op_type]
    if not constant.shape or index in _NOT_WEIGHTS.get(node.op_type, ()):
        return False
    if constant.dtype in FLOATING:
        return True
    # Gather reads rows of a quantized embedding before they are dequantized.
    return dequantized or (node.op_type == "Gather" and index == 0 and constant.dtype in _SMALL_INTEGERS)


def _filled(name: str, scope: Scope) -> Constant | None:
    """The tensor that a ConstantOfShape fills, where its size is known and its type floating."""
    node, shape = scope.producers[name], scope.shapes.get(name)
    dtype = next((a.t.data_type for a in node.attribute if a.name == "value"), onnx.TensorProto.FLOAT)
    if shape is None or None in shape or dtype not in FLOATING:
        return None
    known = tuple(size for size in shape if size is not None)
    return Constant(known, dtype, prod(known))
