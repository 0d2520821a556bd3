"""GO344 to GO347: types of integers that the CPU provider multiplies slowly, or wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import TensorProto

from graphopt.rules.cpu import FAR, MOVED_ACROSS, SEEN, dequantizer_across, meant_for_int8
from graphopt.rules.quantizers import (
    DEQUANTIZE,
    QUANTIZE,
    holds_weights,
    quantized_type,
)
from graphopt.rules.rule import WARNING, Place, Rule
from graphopt.rules.view import Node, Tensor, View
from graphopt.targets.schema import Hardware

_SIGNED_OR_NOT = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "com.microsoft::QGemm"})


def _signed_activations(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.int8 is None or hardware.int8.activation_dtype != "uint8":
        return
    for node in view.nodes:
        if node.op not in QUANTIZE or holds_weights(view, node) or quantized_type(view, node) != TensorProto.INT8:
            continue
        tensor = node.output()
        pairs = [reader for reader in tensor.readers if reader.op in DEQUANTIZE] if tensor is not None else []
        ends = [end for pair in pairs if (end := pair.output()) is not None]
        readers = [reader for end in ends for reader in end.readers]
        several = len(readers) + sum(end.is_output for end in ends) > 1
        maker = _maker(node.input(0))
        if several and any(one is not None and one.op == "Conv" for one in (*readers, maker)):
            yield Place(
                node.name,
                "an activation in int8 with several readers; on x86 the convolutions around it run in float: quantize "
                "activations as uint8",
            )


def _maker(tensor: Tensor | None) -> Node | None:
    """The node that computes a tensor, a Relu or Clip behind it let through."""
    for _ in range(FAR):
        node = tensor.producer if tensor is not None else None
        if node is None or node.op not in ("Relu", "Clip", *MOVED_ACROSS):
            return node
        tensor = node.input(0)
    return None


def _signed_integers(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.int8 is None or hardware.int8.activation_dtype != "uint8":
        return
    for node in view.nodes:
        if node.op in _SIGNED_OR_NOT and view.dtype(node.input(0)) == TensorProto.INT8:
            yield Place(
                node.name,
                f"{node.op} of int8 with int8, on x86 a tenth of the speed of uint8 with int8: quantize activations as "
                "uint8",
            )


def _unsigned_weights(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in meant_for_int8(view):
        weights = dequantizer_across(node.input(1))
        if weights is None or not holds_weights(view, weights):
            continue
        if quantized_type(view, weights) == TensorProto.UINT8:
            yield Place(node.name, f"{node.op}: weights in uint8, whose products are slow: quantize them as int8")


def _saturating_weights(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.int8 is None or hardware.int8.weight_bits >= 8:
        return
    most = 2 ** (hardware.int8.weight_bits - 1)
    for node in meant_for_int8(view):
        weights = dequantizer_across(node.input(1))
        values = view.values(weights.input(0)) if weights is not None else None
        if values is None or values.dtype != np.int8 or not values.size:
            continue
        if (largest := int(np.abs(values.astype(np.int16)).max())) > most:
            yield Place(
                node.name,
                f"{node.op}: weights up to {largest} in size, where sums of two products saturate beyond {most}: "
                f"quantize them to {hardware.int8.weight_bits} bits (reduce_range)",
            )


CPU_TYPES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO344",
            name="cpu_signed_activations",
            summary="on x86, activations that several nodes read are uint8",
            explanation="ONNX Runtime turns int8 activations into uint8 where one node reads them. With several "
            "readers, as in any residual net, it does not, and the convolutions stay in float.",
            source=f"{SEEN}; a residual net: 1.5 ms with uint8, 6.4 ms with int8 activations",
            check=_signed_activations,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO345",
            name="cpu_signed_integers",
            summary="on x86, integer operators multiply uint8 by int8",
            explanation="The instructions multiply unsigned by signed bytes. ONNX Runtime's QOperator format leaves "
            "the types as they are, so int8 by int8 runs without them.",
            source="ONNX Runtime 1.31.1: MatMulInteger of 1024^3, 363 against 33 billion operations a second",
            check=_signed_integers,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO346",
            name="cpu_unsigned_weights",
            summary="weights are int8",
            explanation="Products of uint8 with uint8 run without the fast instructions.",
            source="ONNX Runtime 1.31.1: a residual net, 1.5 ms with int8 and 8.2 ms with uint8 weights",
            check=_unsigned_weights,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO347",
            name="cpu_saturating_weights",
            summary="without VNNI, weights have 7 bits",
            explanation="AVX2 and AVX512 without VNNI add two products of 8 bits in 16, which saturates: results are "
            "wrong, not just rough.",
            source="ONNX Runtime, 'Quantize ONNX models', 'When to use reduce-range and per-channel quantization'",
            check=_saturating_weights,
            fix=("quantize_int8",),
        ),
    )
}
