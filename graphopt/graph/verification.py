"""Whether a model is valid ONNX, said in words that name the node."""

from __future__ import annotations

import math

import onnx
import onnx.checker
import onnx.shape_inference

from graphopt.errors import ModelError
from graphopt.graph.exporting import LARGE_BYTES, without_weights
from graphopt.graph.importing import import_graph
from graphopt.graph.values import numpy_dtype

_WHOLE_BYTES = 10_000_000


def verify(model: onnx.ModelProto) -> None:
    """Check a model with onnx's full checker (structure, operator schemas, types and shapes).

    Models with more than 10 MB of large weights are checked without these, which the checker would only copy. The
    declared shape of an intermediate tensor or of an output that contradicts inference is not held against the model:
    exporters get them wrong, and runtimes only warn. Neither is a missing one, without which the checker takes no
    inputs and outputs.

    Raises:
        ModelError: the model is not valid; the message names the offending node where onnx tells.
    """
    checked = model if _large_bytes(model) <= _WHOLE_BYTES else without_weights(import_graph(model))
    unranked = [info for info in (*model.graph.input, *model.graph.output) if _is_unranked(info)]
    try:
        onnx.checker.check_model(_ranked(checked) if unranked else checked, full_check=not unranked)
        if unranked:
            onnx.shape_inference.infer_shapes(checked, check_type=True, strict_mode=True, data_prop=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the model is not valid ONNX: {_reason(str(error))}{_offender(checked)}") from error
    except onnx.shape_inference.InferenceError as error:
        try:
            # The checker proper is content by now; only inference is left to repeat.
            bare = _without_shapes(checked)
            onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError:
            raise ModelError(f"the model is not valid ONNX: {_reason(str(error))}") from error


def _is_unranked(info: onnx.ValueInfoProto) -> bool:
    return info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape")


def _ranked(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which inputs and outputs of unknown rank are declared as scalars: for all but shapes they will do."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for info in (*copy.graph.input, *copy.graph.output):
        if _is_unranked(info):
            info.type.tensor_type.shape.SetInParent()
    return copy


def _large_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the constants that ``without_weights`` leaves out; ``ByteSize`` would write all of them to tell."""
    tensors = list(model.graph.initializer)
    tensors += [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    sizes = (math.prod(tensor.dims) * numpy_dtype(tensor.data_type, tensor.name).itemsize for tensor in tensors)
    return sum(size for size in sizes if size > LARGE_BYTES)


def _without_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the declared shapes of all tensors but the inputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pending = [copy.graph]
    while pending:
        graph = pending.pop()
        for info in (*graph.value_info, *graph.output):
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.ClearField("shape")
        pending.extend(attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return copy


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
