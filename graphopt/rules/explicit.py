"""GO301 to GO307: the numbers of explicit quantization, as TensorRT wants them in each Q and DQ.

Where these may stand is in ``placement.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto

from graphopt.rules.quantizers import (
    CONVOLUTIONS,
    DEQUANTIZE,
    WEIGHTED,
    dequantizer,
    holds_weights,
    quantized_type,
    quantizers,
    scales,
    type_name,
    weight_shape,
)
from graphopt.rules.rule import Place, Rule
from graphopt.rules.view import Node, Tensor, View
from graphopt.targets.schema import Hardware, Int8Rules

_NAMES: Mapping[int, str] = {
    TensorProto.FLOAT8E4M3FN: "float8",
    TensorProto.INT4: "int4",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
}


def explicit(hardware: Hardware) -> Int8Rules | None:
    """How the target wants Q/DQ written; None where it takes none, which GO321 and GO322 tell."""
    return hardware.int8 if hardware.int8 is not None and not hardware.int8.implicit else None


def _zero_point_not_zero(view: View, hardware: Hardware) -> Iterator[Place]:
    if (rules := explicit(hardware)) is None or not rules.symmetric:
        return
    for node in quantizers(view):
        values = view.values(node.input(2))
        if values is not None and values.size and np.any(values.astype(np.float64)):
            found = float(values.astype(np.float64).flat[np.argmax(values.astype(np.float64) != 0)])
            yield Place(node.name, f"{node.op}: zero point {found:g}; it must be 0 (symmetric quantization)")


def _parameters_not_constant(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in quantizers(view):
        for index, name in ((1, "scale"), (2, "zero point")):
            if (tensor := node.input(index)) is not None and not view.is_constant(tensor):
                yield Place(node.name, f"{node.op}: the {name} '{tensor.name}' is computed; it must be a constant")


def _scale_not_positive(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in quantizers(view):
        values = view.values(node.input(1))
        if values is None or values.dtype.kind != "f" or not values.size:
            continue
        wrong = ~((values > 0) & np.isfinite(values))
        if wrong.any():
            yield Place(node.name, f"{node.op}: scale {float(values[wrong].flat[0]):g}; it must be above 0 and finite")


def _quantized_type(view: View, hardware: Hardware) -> Iterator[Place]:
    if (rules := explicit(hardware)) is None:
        return
    allowed = {rules.activation_dtype, "int8", *hardware.precisions}
    for node in quantizers(view):
        found = quantized_type(view, node)
        # A bias in 32 bits is the next rule's.
        if not found or found == TensorProto.INT32 or _NAMES.get(found) in allowed:
            continue
        name = type_name(found)
        absent = ", as ONNX means it where no zero point is given" if node.input(2) is None else ""
        yield Place(node.name, f"{node.op}: {name}{absent}; it must be int8, with a zero point of type int8 that is 0")


def _quantized_bias(view: View, hardware: Hardware) -> Iterator[Place]:
    if (rules := explicit(hardware)) is None or rules.quantize_bias:
        return
    told: set[Node] = set()
    for node in view.nodes:
        bias = dequantizer(node.input(2)) if node.op in CONVOLUTIONS or node.op == "Gemm" else None
        if bias is not None:
            told.add(bias)
            yield Place(node.name, f"{node.op}: its bias comes from {bias.name} (DequantizeLinear); it must be float")
    for node in quantizers(view):
        if node.op in DEQUANTIZE and node not in told and quantized_type(view, node) == TensorProto.INT32:
            yield Place(node.name, f"{node.op} of an int32 tensor; only 8-bit tensors are dequantized: keep it float")


def _activation_per_channel(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in quantizers(view):
        if (count := scales(view, node)) is not None and count > 1 and not holds_weights(view, node):
            yield Place(node.name, f"{node.op} of an activation with {count} scales; only weights may have several")


def _weight_axis(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in view.nodes:
        if node.op not in WEIGHTED:
            continue
        shape = weight_shape(view, node)
        tensor, moved = _behind_transpose(node.input(1), len(shape) if shape else 0)
        dequantize = dequantizer(tensor)
        if dequantize is None or not holds_weights(view, dequantize) or (scales(view, dequantize) or 0) <= 1:
            continue
        rank = len(shape) if shape else len(moved) if moved else 0
        wanted = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if node.integer("transB", 0) else 1}.get(node.op, rank - 1)
        found = dequantize.integer("axis", 1)
        if not rank:
            continue
        found += rank if found < 0 else 0
        if moved:
            wanted = moved[wanted] if wanted < len(moved) else wanted
        if found != wanted:
            yield Place(
                node.name,
                f"{node.op}: the scales of its weights run along axis {found}; they must run along the output "
                f"channels, axis {wanted}",
            )


def _behind_transpose(tensor: Tensor | None, rank: int) -> tuple[Tensor | None, tuple[int, ...]]:
    """The tensor before a Transpose of weights of so many axes, and its order of axes; empty where there is none."""
    node = tensor.producer if tensor is not None else None
    if node is None or node.op != "Transpose":
        return tensor, ()
    return node.input(0), node.integers("perm") or tuple(reversed(range(rank)))


_QUANTIZE_LAYER = "TensorRT, NvInfer.h, IQuantizeLayer"

EXPLICIT: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO301",
            name="zero_point_not_zero",
            summary="quantization is symmetric: zero points are 0",
            explanation="TensorRT's integers have no offset. ONNX Runtime's quantize_static is asymmetric unless it "
            "is told otherwise (ActivationSymmetric), and its result is refused.",
            source=f"{_QUANTIZE_LAYER}: 'only symmetric quantization is supported'; onnx/onnx-tensorrt, "
            "docs/operators.md ('y_zero_point must be 0')",
            check=_zero_point_not_zero,
            fix=("quantize_int8",),
        ),
        Rule(
            code="GO302",
            name="parameters_not_constant",
            summary="scales and zero points are constants",
            explanation="The builder reads scales when it builds the engine: they must be constants, at most with a "
            "Cast between. Dynamic quantization, which computes them from each input, cannot be built.",
            source=f"{_QUANTIZE_LAYER}: 'the subgraph which terminates with the scale tensor must be a build-time "
            "constant', allowed are Constant and Constant, Cast",
            check=_parameters_not_constant,
            fix=("fold_constants",),
        ),
        Rule(
            code="GO303",
            name="scale_not_positive",
            summary="scales are above 0",
            explanation="A scale of 0 (a channel of zeros, or a tensor that calibration never saw move) is refused. "
            "Give it any small positive scale.",
            source=f"{_QUANTIZE_LAYER}: 'all scale coefficients must have strictly positive values'",
            check=_scale_not_positive,
            fix=("quantize_int8",),
        ),
        Rule(
            code="GO304",
            name="quantized_type",
            summary="quantized tensors are int8, and say so",
            explanation="uint8 is refused as input of a DequantizeLinear; a uint8 zero point is read as if it were "
            "int8. A QuantizeLinear without zero point means uint8, so the zero point must be written, as an int8 0.",
            source="onnx/onnx-tensorrt 10.1, QuantDequantLinearHelper (UINT8 is an error); onnx, QuantizeLinear, "
            "default of y_zero_point",
            check=_quantized_type,
            fix=("quantize_int8",),
        ),
        Rule(
            code="GO305",
            name="activation_per_channel",
            summary="activations have one scale; only weights have one for each channel",
            explanation="Integer products are summed over the input channels, which scales of their own would forbid.",
            source=f"{_QUANTIZE_LAYER}: 'activations: per-tensor only'; TensorRT Developer Guide, 'Quantization "
            "Granularities'",
            check=_activation_per_channel,
            fix=("quantize_int8",),
        ),
        Rule(
            code="GO306",
            name="weight_axis",
            summary="scales of weights run along the output channels",
            explanation="Axis 0 of a Conv's weights, axis 1 of a ConvTranspose's, the output columns of Gemm and "
            "MatMul. Along another axis the sums cannot be scaled back.",
            source="TensorRT Developer Guide, 'Quantization Granularities' (axis K); for ConvTranspose and MatMul: "
            "unverified, from the layout of the weights",
            check=_weight_axis,
            fix=("quantize_int8",),
        ),
        Rule(
            code="GO307",
            name="quantized_bias",
            summary="biases stay float",
            explanation="An int32 bias behind a DequantizeLinear, as ONNX Runtime's CPU kernels want it, fails with "
            "'only activation types allowed as input to this layer'. The engine quantizes biases by itself.",
            source="microsoft/onnxruntime#14229, #17738",
            check=_quantized_bias,
            fix=("quantize_int8",),
        ),
    )
}
