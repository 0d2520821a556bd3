"""Raise the opset of a model with onnx's version converter, and keep what the converter would lose.

The converter works on a skeleton (no large tensors), so that any size goes through. From its answer are taken the
nodes, the new constants and the opset; the header, functions, metadata, documentation, value information and weights
are those of the original.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx
from onnx import helper

from graphopt.errors import ModelError, UnsupportedModelError
from graphopt.model.carry import take_over
from graphopt.model.names import shield, unshield
from graphopt.model.skeleton import SMALL, copy_model, external_reference
from graphopt.model.structure import check
from graphopt.model.tensors import is_external, stored_bytes
from graphopt.model.versions import raise_ir_version
from graphopt.model.walk import bodies, label

_TOKEN = "graphopt:"


def upgrade_opset(model: onnx.ModelProto, minimum: int) -> tuple[onnx.ModelProto, str | None]:
    """Model at opset ``minimum`` or above, and a sentence saying what was done; the model itself and None if it is.

    ``model`` is not changed. The IR version rises as the opset needs; inputs that IR 3 lists for initializers are then
    dropped, so that the initializers stay constants.

    Raises:
        UnsupportedModelError: the converter cannot convert an operator, or its result is not valid.
    """
    current = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), None)
    if current is None or current >= minimum:
        return model, None
    set_aside: list[onnx.TensorProto] = []
    result = copy_model(model, lambda tensor: _placeholder(tensor, set_aside))
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(result)
    shield(skeleton)
    converted = _convert(skeleton, current, minimum)
    unshield(converted, minimum)
    take_over(converted.graph, result.graph)
    _put_back(result, set_aside)
    for opset in result.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = minimum
    raise_ir_version(result, helper.find_min_ir_version_for(result.opset_import, ignore_unknown=True))
    try:
        check(result)
    except ModelError as error:
        raise UnsupportedModelError(
            f"converting from opset {current} to {minimum} gives an invalid model: {error}{_hint(model)}"
        ) from error
    return result, f"raised the opset from {current} to {minimum} with onnx's version converter"


def _convert(skeleton: onnx.ModelProto, current: int, minimum: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(skeleton, minimum)
    except Exception as error:  # C++: asserts, conversion and inference errors arrive under many types
        culprit = _first_failing(skeleton, minimum)
        place = f" at node {culprit}" if culprit else ""
        reason = re.sub(r"^/\S+: ", "", " ".join(str(error).split()))  # without the place in onnx's source
        raise UnsupportedModelError(
            f"the model has opset {current} and needs {minimum}, but cannot be converted{place}: "
            f"{reason}{_hint(skeleton)}"
        ) from error


def _first_failing(skeleton: onnx.ModelProto, minimum: int) -> str | None:
    """The node that the converter fails on, by bisection over how many nodes it is given; None if all of them pass."""
    nodes = skeleton.graph.node
    passes, fails = 0, len(nodes)
    while fails - passes > 1:
        middle = (passes + fails) // 2
        if _converts(skeleton, middle, minimum):
            passes = middle
        else:
            fails = middle
    return None if _converts(skeleton, fails, minimum) else label(nodes[fails - 1])


def _converts(skeleton: onnx.ModelProto, count: int, minimum: int) -> bool:
    """Whether the first ``count`` nodes alone can be converted."""
    part = onnx.ModelProto()
    part.CopyFrom(skeleton)
    del part.graph.node[count:]
    del part.graph.output[:]
    part.graph.output.add(name=next(name for name in part.graph.node[-1].output if name))
    try:
        onnx.version_converter.convert_version(part, minimum)
    except Exception:  # as in _convert
        return False
    return True


def _hint(model: onnx.ModelProto) -> str:
    if model.functions:
        return ". The model has local functions; inline them first with onnx.inliner.inline_local_functions"
    return ". Export the model with a newer opset"


def _placeholder(tensor: onnx.TensorProto, set_aside: list[onnx.TensorProto]) -> onnx.TensorProto | None:
    """An external reference that stands for a large tensor; the converter carries it through untouched."""
    if stored_bytes(tensor) <= SMALL and not is_external(tensor):
        return None
    set_aside.append(tensor)
    return external_reference(tensor, location=f"{_TOKEN}{len(set_aside) - 1}")


def _put_back(model: onnx.ModelProto, set_aside: list[onnx.TensorProto]) -> None:
    for body in bodies(model):
        if isinstance(body.proto, onnx.GraphProto):
            _fill(body.proto.initializer, set_aside)
        for node in body.proto.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _fill([attribute.t], set_aside)


def _fill(placeholders: Iterable[onnx.TensorProto], set_aside: list[onnx.TensorProto]) -> None:
    for tensor in placeholders:
        if is_external(tensor) and tensor.external_data[0].value.startswith(_TOKEN):
            tensor.CopyFrom(set_aside[int(tensor.external_data[0].value.removeprefix(_TOKEN))])
