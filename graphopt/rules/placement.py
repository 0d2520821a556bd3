"""GO308 and GO312 to GO315: which tensors carry Q and DQ, so that TensorRT finds integer kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from graphopt.rules.explicit import explicit
from graphopt.rules.quantizers import (
    CONVOLUTIONS,
    DEQUANTIZE,
    MOVEMENT,
    QUANTIZE,
    WEIGHTED,
    channels,
    comes_quantized,
    dequantizer,
    holds_weights,
    in_int8,
    quantizer_before,
)
from graphopt.rules.rule import WARNING, Place, Rule
from graphopt.rules.view import Tensor, View
from graphopt.targets.schema import Hardware


def _useless_quantizer(view: View, hardware: Hardware) -> Iterator[Place]:
    rules = explicit(hardware)
    if rules is None or not rules.quantized_operators:
        return
    integers = {*rules.quantized_operators} | ({"Add"} if rules.residual_inputs == "skip" else set())
    read = _read_by(view, integers)
    for node in view.nodes:
        tensor = node.output()
        if node.op in DEQUANTIZE and tensor is not None and tensor not in read and not holds_weights(view, node):
            readers = ", ".join(sorted({reader.op for reader in tensor.readers})) or "the output of the model"
            yield Place(
                node.name,
                f"{node.op}: read by {readers} only, which gains nothing from int8: leave this Q/DQ out (they belong "
                f"on the inputs of {', '.join(rules.quantized_operators)})",
            )


def _read_by(view: View, operators: set[str]) -> set[Tensor]:
    """Tensors that one of ``operators`` reads, data movement and further Q/DQ on the way let through."""
    through = MOVEMENT | QUANTIZE | DEQUANTIZE
    found = [tensor for node in view.nodes if node.op in operators for tensor in node.inputs if tensor is not None]
    seen = set(found)
    while found:
        node = found.pop().producer
        if node is None or node.op not in through:
            continue
        fresh = [tensor for tensor in node.inputs if tensor is not None and tensor not in seen]
        seen.update(fresh)
        found += fresh
    return seen


def _weight_form(view: View, hardware: Hardware) -> Iterator[Place]:
    rules = explicit(hardware)
    if rules is None or not rules.weight_nodes:
        return
    for node in view.nodes:
        if node.op in WEIGHTED:
            dequantize = dequantizer(node.input(1))
            if (
                dequantize is not None
                and quantizer_before(dequantize) is None
                and view.is_constant(dequantize.input(0))
            ):
                yield Place(
                    node.name,
                    f"{node.op}: weights stored as integers; keep them float with QuantizeLinear and DequantizeLinear "
                    f"behind, the form that every version of {hardware.runtime} takes",
                )


def _half_quantized(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in view.nodes:
        if node.op not in WEIGHTED:
            continue
        data, weights = comes_quantized(node.input(0)), comes_quantized(node.input(1))
        if (data is None) == (weights is None):
            continue
        quantized, plain = ("its input", "its weights") if data is not None else ("its weights", "its input")
        if not view.is_fixed(node.input(1)):
            quantized, plain = ("one input", "the other")
        yield Place(
            node.name, f"{node.op}: {quantized} quantized, {plain} not, so that it runs in float: quantize both"
        )


def _few_channels(view: View, hardware: Hardware) -> Iterator[Place]:
    rules = explicit(hardware)
    if rules is None or not rules.minimum_channels:
        return
    for node in view.nodes:
        if node.op not in CONVOLUTIONS or not in_int8(node) or (found := channels(view, node)) is None:
            continue
        if min(found) < rules.minimum_channels:
            yield Place(
                node.name,
                f"{node.op} in int8 with {found[0]} input and {found[1]} output channels; with fewer than "
                f"{rules.minimum_channels} the integer kernels lose: leave it in float",
            )


def _group_channels(view: View, hardware: Hardware) -> Iterator[Place]:
    rules = explicit(hardware)
    if rules is None or rules.group_multiple <= 1:
        return
    for node in view.nodes:
        group = node.integer("group", 1)
        if node.op not in CONVOLUTIONS or group <= 1 or not in_int8(node) or (found := channels(view, node)) is None:
            continue
        sizes = (found[0] // group, found[1] // group)
        if any(size % rules.group_multiple for size in sizes):
            yield Place(
                node.name,
                f"{node.op} in int8 with {group} groups of {sizes[0]} input and {sizes[1]} output channels; both must "
                f"be multiples of {rules.group_multiple}: leave it in float",
            )


_GUIDE = "TensorRT Developer Guide, 'Q/DQ Layer-Placement Recommendations'"

PLACEMENT: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO308",
            name="useless_quantizer",
            summary="Q/DQ stand on the inputs of operators that have integer kernels, nowhere else",
            explanation="Quantizing a tensor that a float operator reads costs accuracy and a pass over the tensor, "
            "and gains nothing. ONNX Runtime's quantize_static quantizes outputs, those of the model too.",
            source=f"{_GUIDE}; NVIDIA/TensorRT v10.3.0, tools/tensorflow-quantization, basics.md (NVIDIA's recipe: "
            "inputs and weights)",
            check=_useless_quantizer,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO312",
            name="weight_form",
            summary="weights are float constants with Q and DQ behind",
            explanation="TensorRT 11 also takes integers with a DQ behind; for TensorRT 8 this is unverified. The "
            "float form is the one that all versions take.",
            source="microsoft/onnxruntime#14229 (AddQDQPairToWeight); TensorRT 11, 'Explicit Quantization'",
            check=_weight_form,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO313",
            name="half_quantized",
            summary="a convolution or matrix product has both its input and its weights quantized, or neither",
            explanation="Integer kernels take integers on both sides. Half of it costs accuracy and conversions, and "
            "the layer runs in float.",
            source=f"{_GUIDE}: 'quantize all inputs of weighted operations'",
            check=_half_quantized,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO314",
            name="few_channels",
            summary="convolutions with few channels stay in float",
            explanation="Integer kernels work on 16 channels or more at a time; padding to that takes longer than "
            "float.",
            source="NVIDIA/Model-Optimizer 0.47, graph_utils.find_nodes_from_convs_to_exclude",
            check=_few_channels,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO315",
            name="group_channels",
            summary="groups of an int8 convolution have the multiple of channels that its kernels take",
            explanation="TensorRT wants a multiple of 4 on both sides of each group, else the layer runs in float.",
            source="TensorRT, NvInfer.h, IConvolutionLayer::setNbGroups",
            check=_group_channels,
            fix=("quantize_int8",),
            level=WARNING,
        ),
    )
}
