"""GO201 to GO207 and GO209: operators and operator sets that a runtime does not take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import TensorProto

from graphopt.rules.rule import WARNING, Place, Rule
from graphopt.rules.view import Node, View
from graphopt.targets.schema import Hardware

# Operators that compute on integers by themselves, without Q/DQ around a float operator.
INTEGER_OPERATORS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_INTEGER_PREFIXES = ("com.microsoft::QLinear", "com.microsoft::QGemm", "com.microsoft::MatMulInteger",
                     "com.microsoft::DynamicQuantize", "com.microsoft::QAttention", "com.microsoft::QEmbed",
                     "com.microsoft::QMoE", "com.microsoft::QOrdered", "com.microsoft::MatMulNBits")  # fmt: skip
_QUANTIZERS = ("com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear")

# Types that no TensorRT parser up to 10.15 takes for a tensor that is computed with.
_FOREIGN_TYPES = frozenset(
    {
        TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.INT16, TensorProto.UINT16,
        TensorProto.UINT32, TensorProto.UINT64,
    }
)  # fmt: skip


def is_integer_operator(op: str) -> bool:
    """Whether an operator computes on integers by itself (ONNX Runtime's QOperator format, dynamic quantization)."""
    return op in INTEGER_OPERATORS or op.startswith(_INTEGER_PREFIXES)


def _opset(view: View, hardware: Hardware) -> Iterator[Place]:
    low, high = hardware.opset
    release = f"{hardware.runtime} {hardware.runtime_version}".strip()
    if not low <= view.opset <= high:
        pass_name, way = ("raise_opset", "raise it") if view.opset < low else ("lower_opset", "lower it")
        yield Place("", f"operator set {view.opset}; {release} takes {low} to {high}: {way} with the pass {pass_name}")


def _refused_operator(view: View, hardware: Hardware) -> Iterator[Place]:
    refused = frozenset(hardware.refused_operators) - INTEGER_OPERATORS
    release = f"{hardware.runtime} {hardware.runtime_version}".strip()
    for node in view.nodes:
        if node.op in refused:
            yield Place(
                node.name, f"{node.op}: {release} does not import it; write it out or leave it out of the model"
            )


def _written_out_operator(view: View, hardware: Hardware) -> Iterator[Place]:
    release = f"{hardware.runtime} {hardware.runtime_version}".strip()
    for node in view.nodes:
        if to_be_written_out(node, view, hardware):
            yield Place(node.name, f"{node.op}: {release} wants it as simpler operators; run the pass write_out")


def to_be_written_out(node: Node, view: View, hardware: Hardware) -> bool:
    """Whether a node is on the profile's list, in a form that can be written as simpler operators.

    A mean over other axes than those of an image has none: parsers import it, an accelerator leaves it to the GPU.
    """
    if node.op not in hardware.written_out:
        return False
    return node.op != "ReduceMean" or _is_over_image(node, view)


def _is_over_image(node: Node, view: View) -> bool:
    rank = len(view.shape(node.input(0)) or ())
    given = view.values(node.input(1))
    axes = node.integers("axes") if given is None else given.reshape(-1).tolist()
    return rank > 2 and sorted(int(axis) % rank for axis in axes or ()) == list(range(2, rank))


def _foreign_operator(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in view.nodes:
        if "::" in node.op and not is_integer_operator(node.op) and node.op not in _QUANTIZERS:
            yield Place(node.name, f"{node.op}: not an ONNX operator; {hardware.runtime} needs a plugin of this name")


def _integer_operator(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in view.nodes:
        if is_integer_operator(node.op):
            yield Place(
                node.name,
                f"{node.op} is not imported; {hardware.runtime} takes int8 as QuantizeLinear and DequantizeLinear "
                "around float operators: quantize the float model for this target",
            )


def _foreign_type(view: View, hardware: Hardware) -> Iterator[Place]:
    for tensor in view.tensors:
        if (dtype := view.dtype(tensor)) in _FOREIGN_TYPES:
            name = TensorProto.DataType.Name(dtype).lower()
            yield Place(tensor.name, f"a tensor of type {name}, which {hardware.runtime} does not have")


def _double_precision(view: View, hardware: Hardware) -> Iterator[Place]:
    for tensor in view.tensors:
        if view.dtype(tensor) == TensorProto.DOUBLE and not view.is_fixed(tensor):
            yield Place(
                tensor.name, f"a float64 tensor, which {hardware.runtime} cuts down to float32: cast it yourself"
            )


def _padded_output(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in view.nodes:
        if node.op == "NonMaxSuppression":
            yield Place(
                node.name,
                f"NonMaxSuppression: {hardware.runtime} pads its output to max_output_boxes_per_class rows; whoever "
                "reads it must not take the padding for boxes",
            )


_PARSER = "onnx/onnx-tensorrt, docs/operators.md"

OPERATORS: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO201",
            name="opset",
            summary="the operator set version is one that the runtime imports",
            explanation="A runtime knows the operators of the versions it was built with. Of a later version it "
            "refuses the model or, worse, reads it by older rules.",
            source=f"{_PARSER} of each release (8.0 to 8.2: 13; 8.4 to 8.6: 17; 10.0 and 10.1: 9 to 20; 10.15: 9 to "
            "24); onnxruntime.ai/docs/reference/compatibility.html",
            check=_opset,
            fix=("raise_opset", "lower_opset"),
        ),
        Rule(
            code="GO202",
            name="refused_operator",
            summary="every operator is one that the runtime imports",
            explanation="One operator without an importer, and no engine is built. Some can be written as simpler "
            "ones (pass write_out); others belong into the code around the model.",
            source=f"{_PARSER}, rows marked N, by release",
            check=_refused_operator,
            fix=("write_out",),
        ),
        Rule(
            code="GO203",
            name="written_out_operator",
            summary="operators that the runtime lacks, but not their parts, are written out",
            explanation="HardSwish at operator set 13 and below must be HardSigmoid and Mul, for example. The pass "
            "write_out does it without a change in results.",
            source=f"{_PARSER} (HardSwish, LayerNormalization: N in 8.4); BatchNormalization and activations that the "
            "release lacks, as the target's profile states",
            check=_written_out_operator,
            fix=("write_out",),
        ),
        Rule(
            code="GO204",
            name="foreign_operator",
            summary="no operators outside ONNX's own domain",
            explanation="com.microsoft operators are what ONNX Runtime's own optimizer leaves behind, others belong "
            "to somebody's library. The parser looks for a plugin of that name and fails. Export the model without "
            "runtime-specific optimization.",
            source="onnx/onnx-tensorrt, docs/faq.md and README ('no importer registered for op')",
            check=_foreign_operator,
            fix=("inline",),
        ),
        Rule(
            code="GO205",
            name="integer_operator",
            summary="int8 is written as Q/DQ, not as integer operators",
            explanation="QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger and DynamicQuantizeLinear have no "
            "importer in any TensorRT up to 10.15: ONNX Runtime's QOperator format and its dynamic quantization serve "
            "its CPU provider alone.",
            source=f"{_PARSER}, 8.0 to 10.15",
            check=_integer_operator,
            fix=("quantize_int8",),
        ),
        Rule(
            code="GO206",
            name="foreign_type",
            summary="every tensor has a type that the runtime has",
            explanation="Strings, complex numbers, 16-bit integers and unsigned integers of more than 8 bits have no "
            "counterpart in the engine.",
            source=f"{_PARSER} of 8.4 and 10.15, list of ONNX data types",
            check=_foreign_type,
        ),
        Rule(
            code="GO207",
            name="double_precision",
            summary="no float64",
            explanation="The parser casts float64 to float32 and cuts off what is out of range; results differ from "
            "those that the model was validated with.",
            source=f"{_PARSER} ('TensorRT will attempt to cast DOUBLE down to FLOAT')",
            check=_double_precision,
            level=WARNING,
        ),
        Rule(
            code="GO209",
            name="padded_output",
            summary="NonMaxSuppression returns as many rows as there are boxes",
            explanation="TensorRT gives its output the largest size it can have and pads it. Code behind the model "
            "that counts rows gets boxes that are none.",
            source=f"{_PARSER} (NonMaxSuppression: 'Output has fixed shape and is padded')",
            check=_padded_output,
            level=WARNING,
        ),
    )
}
