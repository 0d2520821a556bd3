"""What kind of work each operator is, in the terms of the tables that papers on small networks print."""

from __future__ import annotations

from math import prod

import onnx

from graphopt.graph.cost.shapes import STANDARD_DOMAINS, Scope

CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcFusedConv", "DeformConv"}
MATRIX_PRODUCTS = {
    "DynamicQuantizeMatMul", "FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "MatMulNBits", "QGemm", "QLinearMatMul",
}  # fmt: skip
RECURRENT = {"RNN", "GRU", "LSTM"}
CONTRIB_DOMAIN = "com.microsoft"

# Input index of the weight, where it is not 1.
WEIGHT_INPUT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}

_OTHER_KINDS = {
    "attention": "Attention GroupQueryAttention LinearAttention MultiHeadAttention",
    "constant": "Constant ConstantOfShape EyeLike Range RandomNormal RandomUniform RandomNormalLike RandomUniformLike",
    "depthwise": "CausalConvWithState",
    "normalization": "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LpNormalization "
    "LRN MeanVarianceNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization",
    "pooling": "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxRoiPool MaxUnpool RoiAlign "
    "QLinearAveragePool QLinearGlobalAveragePool",
    "quantization": "DequantizeLinear DynamicQuantizeLinear QuantizeLinear",
    "data_movement": "Cast CastLike CenterCropPad Col2Im Compress Concat ConcatFromSequence DepthToSpace Expand "
    "Flatten Gather GatherElements GatherND Identity NonZero OneHot Pad QLinearConcat Reshape ReverseSequence Scatter "
    "ScatterElements ScatterND SequenceAt SequenceConstruct SequenceInsert Shape Size Slice SpaceToDepth Split "
    "SplitToSequence Squeeze TensorScatter Tile Transpose Trilu Unique Unsqueeze",
    "resize": "AffineGrid GridSample Resize Upsample",
    "reduction": "ArgMax ArgMin CumSum CumProd Hardmax LogSoftmax QLinearSoftmax ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK",
    "control_flow": "If Loop Scan SequenceMap",
    "recurrent": "RNN GRU LSTM",
    "elementwise": "BiasGelu FastGelu QuickGelu QLinearAdd QLinearLeakyRelu QLinearMul QLinearSigmoid Gelu",
}
_KIND_OF = {operator: kind for kind, operators in _OTHER_KINDS.items() for operator in operators.split()}
_COUNTED_AS_NOTHING_ELSE = {"BlackmanWindow", "DFT", "Det", "HammingWindow", "HannWindow", "ImageDecoder",
    "MelWeightMatrix", "NegativeLogLikelihoodLoss", "NonMaxSuppression", "STFT", "SoftmaxCrossEntropyLoss",
    "StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"}  # fmt: skip


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of ``node``."""
    return next((a.i for a in node.attribute if a.name == name), default)


def weight_name(node: onnx.NodeProto) -> str:
    """Name of the tensor that holds the weight of a convolution or of a matrix product; empty if it has none."""
    index = WEIGHT_INPUT.get(node.op_type, 1)
    return node.input[index] if index < len(node.input) else ""


def known_operator(node: onnx.NodeProto) -> bool:
    """Whether it is known what the operator does, so that counting no multiply-adds for it is right."""
    if node.domain == "ai.onnx.ml":
        return True
    if node.domain in STANDARD_DOMAINS:
        return onnx.defs.has(node.op_type)
    return node.domain == CONTRIB_DOMAIN and (
        node.op_type in _KIND_OF or node.op_type in CONVOLUTIONS or node.op_type in MATRIX_PRODUCTS
    )


def kind(node: onnx.NodeProto, scope: Scope, weight: str | None) -> str:
    """The kind of work that ``node`` does.

    ``weight`` is the constant behind the weight input, or None where that input is computed. Convolutions are
    ``pointwise`` (every kernel axis 1, one group), ``depthwise`` (one input channel a group), ``grouped``,
    ``dense_kxk``; ``transposed`` whatever their groups. Matrix products are ``fully_connected`` with a constant weight
    and ``matmul`` without. Operators that are not known are ``unknown``.
    """
    operator = node.op_type
    if not known_operator(node):
        return "unknown"
    if operator in CONVOLUTIONS:
        return _convolution_kind(node, scope)
    if operator == "ConvTranspose":
        return "transposed"
    if operator in MATRIX_PRODUCTS or operator == "Einsum":
        return "matmul" if weight is None else "fully_connected"
    if node.domain == "ai.onnx.ml" or operator in _COUNTED_AS_NOTHING_ELSE:
        return "other"
    return _KIND_OF.get(operator, "elementwise")


def _convolution_kind(node: onnx.NodeProto, scope: Scope) -> str:
    shape = scope.shapes.get(weight_name(node), ())
    groups = attribute(node, "group", 1)
    kernel = next((tuple(a.ints) for a in node.attribute if a.name == "kernel_shape"), shape[2:])
    if groups > 1:
        return "depthwise" if len(shape) > 1 and shape[1] == 1 else "grouped"
    return "pointwise" if kernel and None not in kernel and prod(size or 0 for size in kernel) == 1 else "dense_kxk"
