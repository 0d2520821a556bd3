"""What each operator does to labels: a table from its name to a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_graphsurgeon as gs

from graphopt.channels.rules import (
    elementwise,
    linear,
    movement,
    normalization,
    pieces,
    pooling,
    quantized,
    recurrent,
    sizes,
)
from graphopt.channels.tracer import Tracer

Rule: TypeAlias = Callable[[Tracer, gs.Node], None]

_UNARY = (*elementwise.KEEPS_ZERO, *elementwise.LOSES_ZERO)
_SEVERAL = (*elementwise.ADDS, *elementwise.MULTIPLIES, *elementwise.DIVIDES, *elementwise.MIXES, "Where")
_REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, elementwise.unary),
    **dict.fromkeys(_SEVERAL, elementwise.several),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), pooling.spatial),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), pooling.spatial),
    **dict.fromkeys(("Resize", "Upsample"), pooling.resize),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "CumSum", "TopK"), pooling.one_axis),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), normalization.batch_normalization),
    **dict.fromkeys(_REDUCTIONS, pooling.reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), movement.reshape),
    "Clip": elementwise.clip,
    "Concat": movement.concatenate,
    "Conv": linear.convolution,
    "ConvInteger": linear.integer_convolution,
    "ConvTranspose": linear.transposed_convolution,
    "DepthToSpace": movement.depth_to_space,
    "Expand": movement.expand,
    "FusedConv": linear.fused_convolution,
    "Gather": pieces.gather,
    "Gemm": linear.gemm,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), normalization.layer_normalization),
    "GroupNormalization": normalization.group_normalization,
    "LpNormalization": normalization.lp_normalization,
    "MatMul": linear.matmul,
    "MeanVarianceNormalization": normalization.mean_variance_normalization,
    "Pad": pieces.pad,
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), quantized.scaled),
    "QLinearConv": linear.quantized_convolution,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent.recurrent),
    "DynamicQuantizeLinear": quantized.dynamic,
    **dict.fromkeys(("Shape", "Size"), sizes.shape_of),
    "Slice": pieces.slices,
    "SpaceToDepth": movement.space_to_depth,
    "Split": pieces.split,
    "Tile": movement.tile,
    "Transpose": movement.transpose,
}

# Operators whose rules treat all inputs alike. Of any other, labels of all inputs but the first are pinned.
JOINS = frozenset({*_SEVERAL, "Concat", "Gemm", "MatMul"})
