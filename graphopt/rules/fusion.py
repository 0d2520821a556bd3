"""GO309, GO310, GO311 and GO316: Q and DQ must not part what TensorRT runs as one kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from graphopt.rules.explicit import explicit
from graphopt.rules.quantizers import (
    CONVOLUTIONS,
    DEQUANTIZE,
    QUANTIZE,
    WEIGHTED,
    before_pair,
    dequantizer,
    in_int8,
    source_of,
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
    inner: dict[Node, Node] = {}
    for node in view.nodes:
        if node.op != "Concat":
            continue
        output = node.output()
        behind = [reader for reader in output.readers if reader.op in QUANTIZE] if output is not None else []
        ends = [_integers_behind(tensor, inner) for tensor in node.inputs if not view.is_fixed(tensor)]
        if (first := next((end for end in ends if end is not None), None)) is not None:
            inner[node] = first
        known = [(end, values) for end in [*ends, *behind] if end and (values := view.values(end.input(1))) is not None]
        different = next((end for end, values in known if not _same(values, known[0][1])), None)
        if different is not None and any(ends):
            yield Place(
                node.name,
                f"Concat: '{known[0][0].name}' and '{different.name}' have different scales, so that a requantization "
                "runs for each input; give all inputs and the output one scale, the largest",
            )


def _integers_behind(tensor: Tensor | None, inner: Mapping[Node, Node]) -> Node | None:
    """The DQ that a tensor comes from; one of them for a Concat before it, whose own are compared with each other."""
    source = source_of(tensor)
    return source if source is None or source.op in DEQUANTIZE else inner.get(source)


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _unfolded_normalization(view: View, hardware: Hardware) -> Iterator[Place]:
    if explicit(hardware) is None:
        return
    for node in view.nodes:
        tensor = node.input(0) if node.op == "BatchNormalization" else None
        before = tensor.producer if tensor is not None else None
        if before is not None and before.op == "ConvTranspose" and in_int8(before):
            yield Place(
                node.name,
                f"BatchNormalization behind '{before.name}', a ConvTranspose in int8, which does not fuse: fold it "
                "before quantization",
            )


_GUIDE = "TensorRT Developer Guide, 'Q/DQ Layer-Placement Recommendations'"

FUSION: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
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
