"""GO308 to GO317: where Q and DQ stand, so that TensorRT fuses the layers around them into integer kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from graphopt.rules.explicit import explicit
from graphopt.rules.quantizers import (
    CONVOLUTIONS,
    DEQUANTIZE,
    MOVEMENT,
    QUANTIZE,
    WEIGHTED,
    before_pair,
    channels,
    comes_quantized,
    dequantizer,
    holds_weights,
    quantizer_before,
)
from graphopt.rules.rule import WARNING, Place, Rule
from graphopt.rules.view import Array, Node, Tensor, View
from graphopt.targets.schema import Hardware

# What runs inside the convolution before it.
_FUSED = frozenset(
    {
        "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu",
        "Selu", "Sigmoid", "Softplus", "Tanh",
    }
)  # fmt: skip


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


def _quantizer_in_fusion(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in view.nodes:
        if node.op not in _FUSED:
            continue
        maker = _kernel_of(view, before_pair(node.input(0)))
        if maker is not None:
            pair = dequantizer(node.input(0))
            yield Place(
                pair.name if pair is not None else node.name,
                f"Q/DQ between {maker.op} '{maker.name}' and {node.op} '{node.name}', which would otherwise run as one "
                f"kernel: quantize behind the {node.op}",
            )


def _kernel_of(view: View, tensor: Tensor | None) -> Node | None:
    """The convolution or product in whose kernel a tensor is made: bias, normalization or addition run inside it."""
    for _ in range(3):
        node = tensor.producer if tensor is not None else None
        if node is None or node.op in WEIGHTED:
            return node
        if node.op == "BatchNormalization":
            tensor = node.input(0)
        elif node.op == "Add" and any(view.is_fixed(each) for each in node.inputs):
            tensor = next((each for each in node.inputs if not view.is_fixed(each)), None)
        elif node.op == "Add":
            tensor = next((each for each in node.inputs if _is_convolved(each)), None)
        else:
            return None
    return None


def _residual_quantizer(view: View, hardware: Hardware) -> Iterator[Place]:
    rules = explicit(hardware)
    if rules is None or rules.residual_inputs != "skip":
        return
    for node in view.nodes:
        if node.op not in ("Add", "Sum") or len(node.inputs) != 2:
            continue
        pairs = [(before_pair(tensor), tensor) for tensor in node.inputs]
        quantized = [_is_convolved(before) for before, _ in pairs if before is not None]
        if not any(quantized):
            continue
        plain = any(before is None and _is_convolved(tensor) for before, tensor in pairs)
        if len(quantized) == 2 or not plain:
            yield Place(
                node.name,
                f"{node.op}: Q/DQ between a convolution and the addition that would run in its kernel; quantize only "
                "the other input, the skip connection",
            )


def _is_convolved(tensor: Tensor | None) -> bool:
    """Whether a tensor comes from a convolution, a BatchNormalization between at most."""
    node = tensor.producer if tensor is not None else None
    if node is not None and node.op == "BatchNormalization":
        tensor = node.input(0)
        node = tensor.producer if tensor is not None else None
    return node is not None and node.op in CONVOLUTIONS and tensor is not None and len(tensor.readers) == 1


def _concat_scales(view: View, hardware: Hardware) -> Iterator[Place]:
    rules = explicit(hardware)
    if rules is None or not rules.shared_concat_scale:
        return
    for node in view.nodes:
        if node.op != "Concat":
            continue
        output = node.output()
        behind = [reader for reader in output.readers if reader.op in QUANTIZE] if output is not None else []
        ends = [comes_quantized(tensor, MOVEMENT) for tensor in node.inputs if not view.is_fixed(tensor)]
        known = [(end, values) for end in [*ends, *behind] if end and (values := view.values(end.input(1))) is not None]
        different = next((end for end, values in known if not _same(values, known[0][1])), None)
        if different is not None and any(ends):
            yield Place(
                node.name,
                f"Concat: '{known[0][0].name}' and '{different.name}' have different scales, so that a requantization "
                "runs for each input; give all inputs and the output one scale, the largest",
            )


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool((one == other).all())


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


def _in_int8(node: Node) -> bool:
    return comes_quantized(node.input(0)) is not None and comes_quantized(node.input(1)) is not None


def _few_channels(view: View, hardware: Hardware) -> Iterator[Place]:
    rules = explicit(hardware)
    if rules is None or not rules.minimum_channels:
        return
    for node in view.nodes:
        if node.op not in CONVOLUTIONS or not _in_int8(node) or (found := channels(view, node)) is None:
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
        if node.op not in CONVOLUTIONS or group <= 1 or not _in_int8(node) or (found := channels(view, node)) is None:
            continue
        sizes = (found[0] // group, found[1] // group)
        if any(size % rules.group_multiple for size in sizes):
            yield Place(
                node.name,
                f"{node.op} in int8 with {group} groups of {sizes[0]} input and {sizes[1]} output channels; both must "
                f"be multiples of {rules.group_multiple}: leave it in float",
            )


def _unfolded_normalization(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in view.nodes:
        tensor = node.input(0) if node.op == "BatchNormalization" else None
        before = tensor.producer if tensor is not None else None
        if before is not None and before.op == "ConvTranspose" and _in_int8(before):
            yield Place(
                node.name,
                f"BatchNormalization behind '{before.name}', a ConvTranspose in int8, which does not fuse: fold it "
                "before quantization",
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
            code="GO309",
            name="quantizer_in_fusion",
            summary="nothing stands between a convolution and its normalization or activation",
            explanation="Convolution, BatchNormalization and activation run as one kernel whose result is quantized "
            "once. Q/DQ between them splits it.",
            source=f"{_GUIDE}, figures 4 and 5",
            check=_quantizer_in_fusion,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO310",
            name="residual_quantizer",
            summary="of the two inputs of a residual addition only the skip connection is quantized",
            explanation="The addition runs in the kernel of the convolution before it if nothing stands between; its "
            "result then has the precision of the skip input.",
            source="NVIDIA/TensorRT v10.3.0, tools/pytorch-quantization, quant_resnet50.rst; "
            "tools/tensorflow-quantization, add_custom_qdq_cases.md; NVIDIA/TensorRT#1992",
            check=_residual_quantizer,
            fix=("quantize_int8",),
            level=WARNING,
        ),
        Rule(
            code="GO311",
            name="concat_scales",
            summary="the inputs of a Concat and what quantizes its result have one scale",
            explanation="The quantizer is moved before the Concat. With one scale the inputs are written in place; "
            "with several each is requantized. Where the ranges differ much, one scale costs accuracy: then leave the "
            "Concat in float.",
            source="NVIDIA/Model-Optimizer, get_concat_eliminated_tensors",
            check=_concat_scales,
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
        Rule(
            code="GO316",
            name="unfolded_normalization",
            summary="no BatchNormalization behind a ConvTranspose in int8",
            explanation="Q/DQ, ConvTranspose and activation fuse, with a BatchNormalization between they do not.",
            source="NVIDIA/TensorRT#3412",
            check=_unfolded_normalization,
            fix=("fold_batchnorm",),
            level=WARNING,
        ),
    )
}
