"""Whether the types and shapes of a model fit together, by ONNX's inference, without its weights."""

from __future__ import annotations

import onnx
import onnx.shape_inference

from graphopt.model.skeleton import SMALL, copy_model, external_reference
from graphopt.model.tensors import is_external, stored_bytes
from graphopt.model.walk import bodies
from graphopt.rules.building import declare_dense


def contradiction(model: onnx.ModelProto) -> str:
    """Why inference refuses the model, empty where it does not; the checker proper has run before.

    The declared shape of an intermediate tensor or of an output that contradicts inference is not held against the
    model, as in ``graphopt.graph.verify``: exporters get them wrong, and runtimes only warn.
    """
    skeleton = copy_model(model, _without_values)
    declare_dense(skeleton.graph)
    if not _refusal(skeleton):
        return ""
    for body in bodies(skeleton):
        if isinstance(body.proto, onnx.GraphProto):
            for info in (*body.proto.value_info, *body.proto.output):
                if info.type.HasField("tensor_type"):
                    info.type.tensor_type.ClearField("shape")
    return _refusal(skeleton)


def _refusal(model: onnx.ModelProto) -> str:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())
    return ""


def _without_values(tensor: onnx.TensorProto) -> onnx.TensorProto | None:
    small = not is_external(tensor) and stored_bytes(tensor) <= SMALL
    return None if small else external_reference(tensor)
