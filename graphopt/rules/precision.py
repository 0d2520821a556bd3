"""GO321 to GO324: precisions that a target does not compute in, or that the model forgets to ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import TensorProto

from graphopt.rules.operators import is_integer_operator
from graphopt.rules.quantizers import WEIGHTED, comes_quantized, is_quantizer
from graphopt.rules.rule import WARNING, Place, Rule
from graphopt.rules.view import Node, View
from graphopt.targets.schema import Hardware


def _quantized_nodes(view: View) -> list[Node]:
    return [node for node in view.nodes if is_quantizer(node) or is_integer_operator(node.op)]


def _int8_refused(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.int8 is None and (found := _quantized_nodes(view)):
        reason = hardware.int8_refusal or "the device has no integer kernels"
        yield Place(found[0].name, f"a quantized model ({len(found)} such nodes), but int8 is refused: {reason}")


def _implicit_int8(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.int8 is not None and hardware.int8.implicit and (found := _quantized_nodes(view)):
        yield Place(
            found[0].name,
            f"{len(found)} quantizing nodes in the graph, where a float model with a calibration cache beside it is "
            "wanted: quantize the float model for this target",
        )


def _float32_only(view: View, hardware: Hardware) -> Iterator[Place]:
    if not hardware.strongly_typed or "float16" not in hardware.precisions:
        return
    heavy = [node for node in view.nodes if node.op in WEIGHTED]
    types = [view.dtype(node.input(0)) for node in heavy]
    single = [node for node, dtype in zip(heavy, types, strict=True) if dtype == TensorProto.FLOAT]
    # A few layers may stay float32 on purpose, and so may those in int8, whose type is that of their scales.
    in_float = [node for node in single if comes_quantized(node.input(0)) is None]
    if in_float and len(single) == len(heavy):
        yield Place(
            in_float[0].name,
            f"all {len(in_float)} convolutions and matrix products that are not int8 are float32, and this runtime "
            "computes in the types of the graph: run the pass convert_float16",
        )


def _foreign_precision(view: View, hardware: Hardware) -> Iterator[Place]:
    for dtype, name in ((TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16")):
        if hardware.computes_in(name):
            continue
        found = [node for node in view.nodes if node.op in WEIGHTED and view.dtype(node.input(0)) == dtype]
        if found:
            yield Place(
                found[0].name,
                f"{len(found)} convolutions and matrix products in {name}, which {hardware.name} does not compute in: "
                "they are converted to float32 and back",
            )


PRECISION: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO321",
            name="int8_refused",
            summary="no quantized model for a device without int8",
            explanation="Maxwell and Pascal modules (Nano, TX1, TX2) have no integer products worth using: the engine "
            "is not built, or runs in float with conversions on top. Use float16 there.",
            source="TensorRT Support Matrix, 'Hardware and Precision' (compute capabilities 5.3 and 6.2: no INT8)",
            check=_int8_refused,
        ),
        Rule(
            code="GO322",
            name="implicit_int8",
            summary="no Q/DQ where scales are handed over in a calibration cache",
            explanation="The deep learning accelerator, through TensorRT 8.5 and 8.6, takes scales, not Q/DQ nodes: "
            "each one sends its layer to the GPU.",
            source="NVIDIA-AI-IOT/Deep-Learning-Accelerator-SW, operators/README ('Q and DQ need reconstruction'), "
            "tool qdq-translator",
            check=_implicit_int8,
            fix=("quantize_int8",),
        ),
        Rule(
            code="GO323",
            name="float32_only",
            summary="a model for a strongly typed runtime says where it computes in float16",
            explanation="Weakly typed builders choose float16 by themselves (--fp16). A strongly typed one computes "
            "in the types of the graph: what says float32 runs in float32, at half the speed or less.",
            source="TensorRT 11 documentation, 'Strongly Typed Networks' (the only kind since 11.0)",
            check=_float32_only,
            fix=("convert_float16",),
            level=WARNING,
        ),
        Rule(
            code="GO324",
            name="foreign_precision",
            summary="half precision only where the device computes in it",
            explanation="Elsewhere each operator is wrapped in conversions: right, but slower than float32.",
            source="ONNX Runtime, InsertCastTransformer (CPU); TensorRT Support Matrix, 'Hardware and Precision'",
            check=_foreign_precision,
            level=WARNING,
        ),
    )
}
