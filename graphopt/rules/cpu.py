"""GO341 to GO343, GO348 and GO349: int8 that the CPU provider would not run in integer kernels.

Every rule here is what ONNX Runtime 1.31.1 was seen to do on x86-64 (the graph after its optimizer; tests/rules looks
again). A convolution half in int8 runs in float with conversions around it, far slower than without any Q/DQ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto

from graphopt.rules.quantizers import (
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    dequantizer,
    quantized_type,
)
from graphopt.rules.rule import WARNING, Place, Rule
from graphopt.rules.view import Node, Tensor, View
from graphopt.targets.schema import Hardware

# What ONNX Runtime moves Q and DQ across by itself.
MOVED_ACROSS = frozenset({"Dropout", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_ACTIVATIONS = frozenset({"Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Sigmoid", "Tanh"})
FAR = 32
_LOWEST: Mapping[int, int] = {TensorProto.UINT8: 0, TensorProto.INT8: -128}


def dequantizer_across(tensor: Tensor | None) -> Node | None:
    """The DQ that a tensor comes from, across what ONNX Runtime moves it."""
    for _ in range(FAR):
        node = tensor.producer if tensor is not None else None
        if node is None or node.op in DEQUANTIZE or node.op not in MOVED_ACROSS:
            return node if node is not None and node.op in DEQUANTIZE else None
        tensor = node.input(0)
    return None


def _behind(tensor: Tensor | None) -> Node | None:
    """The only reader of a tensor, across what Q is moved; None where there are several, none, or a model's output."""
    for _ in range(FAR):
        if tensor is None or tensor.is_output or len(tensor.readers) != 1:
            return None
        reader = tensor.readers[0]
        if reader.op not in MOVED_ACROSS:
            return reader
        tensor = reader.output()
    return None


def meant_for_int8(view: View) -> Iterator[Node]:
    """Convolutions and matrix products whose inputs both come from a DQ."""
    for node in view.nodes:
        if node.op in WEIGHTED and dequantizer_across(node.input(0)) and dequantizer_across(node.input(1)):
            yield node


def _result_not_quantized(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in meant_for_int8(view):
        if node.op not in ("Conv", "Gemm"):
            continue
        reader = _behind(node.output())
        if reader is not None and (reader.op in QUANTIZE or reader.op in _ACTIVATIONS):
            continue
        if reader is not None and reader.op in ("Relu", "Clip"):
            after = _behind(reader.output())
            if after is not None and after.op in QUANTIZE:
                continue
        if node.op == "Gemm" and _answers_in_float(view, node):
            continue
        yield Place(
            node.name,
            f"{node.op} between integers whose result is not quantized, or not for all who read it: it runs in float. "
            "Quantize its result once, behind its activation, or leave it in float",
        )


def _answers_in_float(view: View, node: Node) -> bool:
    """Whether an integer Gemm may return float: with an int32 bias, or without any."""
    bias = node.input(2)
    found = dequantizer(bias)
    return bias is None or (found is not None and quantized_type(view, found) == TensorProto.INT32)


def _activation_kept(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in meant_for_int8(view):
        activation = _behind(node.output())
        if node.op not in ("Conv", "Gemm") or activation is None:
            continue
        if activation.op in _ACTIVATIONS:
            yield Place(
                node.name,
                f"{node.op} with {activation.op} directly behind runs in float: quantize between them, or leave both "
                "in float",
            )
        elif activation.op in ("Relu", "Clip"):
            quantize = _behind(activation.output())
            if quantize is not None and quantize.op in QUANTIZE and not _absorbed(view, activation, quantize):
                yield Place(
                    node.name,
                    f"{node.op}: the range of '{quantize.name}' reaches beyond what the {activation.op} before it cuts "
                    "to, so that both stay in float: take the range behind the activation, zero point at its least "
                    "value",
                )


def _absorbed(view: View, activation: Node, quantize: Node) -> bool:
    """Whether the range of a Q cuts at least as tightly as the Relu or Clip before it; also where it is not known."""
    kind = quantized_type(view, quantize)
    scale, zero = view.values(quantize.input(1)), view.values(quantize.input(2))
    if kind not in _LOWEST or scale is None or scale.size != 1:
        return True
    lowest, offset = _LOWEST[kind], float(zero.astype(np.float64).flat[0]) if zero is not None and zero.size else 0.0
    if activation.op == "Relu":
        return offset == lowest
    step = float(scale.flat[0])
    low, high = (lowest - offset) * step, (lowest + 255 - offset) * step
    return _bound(view, activation, 1, "min", -np.inf) <= low + 1e-6 and high - 1e-6 <= _bound(
        view, activation, 2, "max", np.inf
    )


def _bound(view: View, clip: Node, index: int, name: str, default: float) -> float:
    if clip.input(index) is None:
        return clip.number(name, default)
    values = view.values(clip.input(index))
    return default if values is None or values.size != 1 else float(values.flat[0])


def _weights_only(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in view.nodes:
        if node.op not in ("Conv", "Gemm", "ConvTranspose") or dequantizer_across(node.input(0)) is not None:
            continue
        if dequantizer_across(node.input(1)) is not None:
            yield Place(
                node.name,
                f"{node.op}: its weights quantized, its input not; it runs in float, and unpacks the weights in each "
                "run: quantize both, or leave the weights in float",
            )


def _computed_bias(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in meant_for_int8(view):
        bias = node.input(2) if node.op in ("Conv", "Gemm") else None
        if bias is not None and dequantizer(bias) is None and not view.is_fixed(bias):
            yield Place(
                node.name, f"{node.op}: its bias is computed, in float, and so it runs in float: make it constant"
            )


def _no_integer_kernel(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in meant_for_int8(view):
        if node.op == "ConvTranspose":
            yield Place(node.name, "ConvTranspose has no integer kernel: leave it in float, without Q/DQ on its inputs")


SEEN = "ONNX Runtime 1.31.1, optimized graph on x86-64"

CPU_INT8: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO341",
            name="cpu_result_not_quantized",
            summary="what an int8 convolution returns is quantized, once, for all who read it",
            explanation="ONNX Runtime forms QLinearConv from DQ, Conv and Q. Without the Q, with two of them, or with "
            "a reader in float, the convolution stays in float. Matrix products may return float: MatMul always, Gemm "
            "without bias or with an int32 one.",
            source=SEEN,
            check=_result_not_quantized,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO342",
            name="cpu_activation_kept",
            summary="the activation behind an int8 convolution is one that its quantizer implies",
            explanation="Relu and Clip vanish if the quantized range ends where they cut: calibrate behind them. "
            "Other activations never do: they want Q/DQ on both sides.",
            source=f"{SEEN}; a 3x3 convolution of 128 channels: 3.8 times as fast with, 0.8 times without",
            check=_activation_kept,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO343",
            name="cpu_weights_only",
            summary="a convolution whose weights are quantized has its input quantized too",
            explanation="With its weights alone in int8 it runs in float and unpacks them in each run, away from the "
            "blocked kernels: a depthwise convolution up to 11 times slower than plain float. The other way round, "
            "float weights behind a dequantized input, is how a layer between integers stays in float.",
            source=SEEN,
            check=_weights_only,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO348",
            name="cpu_computed_bias",
            summary="the bias of an int8 convolution or Gemm is a constant",
            explanation="A constant float bias is turned into integers when the model is loaded. A computed one "
            "cannot be, and the layer stays in float.",
            source=SEEN,
            check=_computed_bias,
            level=WARNING,
        ),
        Rule(
            code="GO349",
            name="cpu_no_integer_kernel",
            summary="no Q/DQ around what has no integer kernel",
            explanation="ConvTranspose runs in float on the CPU; Q/DQ on its inputs only cost.",
            source=SEEN,
            check=_no_integer_kernel,
            fix=("quantize_int8",),
            level=WARNING,
        ),
    )
}
