"""Whether a model is valid ONNX, said in words that name the node."""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.shape_inference

from graphopt.errors import ModelError
from graphopt.graph.exporting import skeleton
from graphopt.graph.importing import import_graph

_WHOLE_BYTES = 100_000_000


def verify(model: onnx.ModelProto) -> None:
    """Check a model with onnx's full checker (structure, operator schemas, types and shapes).

    Models above 100 MB are checked without their weights, which the checker would only copy.

    Raises:
        ModelError: the model is not valid; the message names the offending node where onnx tells.
    """
    whole = model.ByteSize() <= _WHOLE_BYTES
    checked = model if whole else skeleton(import_graph(model).gs)
    try:
        onnx.checker.check_model(checked, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the model is not valid ONNX: {_reason(str(error))}{_offender(checked)}") from error


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:600]


def _offender(model: onnx.ModelProto) -> str:
    """Where a single node is at fault and has no name, say which by its outputs."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError:
            return f" (node '{node.name}' of type {node.op_type} that writes {', '.join(node.output)})"
    return ""
