"""Which nodes compute the same thing whatever the model is fed: the same at every run, and safe to run at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, is_op, subgraphs_of, values_of
from graphopt.graph.values import numpy_dtype

DOMAINS = frozenset({None, "", "ai.onnx", "ai.onnx.ml"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# A loop is run to its end before anything is known of it, so only a short one is run at all.
_MAX_TRIPS = 1000


def why_not_evaluable(node: gs.Node, types: Mapping[str, TensorType], opset: int) -> str | None:
    """Why a node that reads constants only is not to be run, as far as its kind goes; None if it may be."""
    reason = _why_not(node, types, opset)
    for subgraph in subgraphs_of(node) if reason is None and node.attrs else ():
        for child in subgraph.nodes:
            reason = reason or _why_not(child, types, opset)
    return reason


def _why_not(node: gs.Node, types: Mapping[str, TensorType], opset: int) -> str | None:
    if node.domain not in DOMAINS:
        return "its operator is not a standard one"
    if node.op in _RANDOM:
        return "its result is random"
    if node.op == "Dropout" and not _is_inference_dropout(node, opset):
        return "its result is random"
    if node.op in {"Div", "Mod"} and not _divides_safely(node, types):
        return "it may divide by zero"
    if node.op == "Loop" and not _is_short(node):
        return "how often it loops is not known to be little"
    return None


def _is_inference_dropout(node: gs.Node, opset: int) -> bool:
    if opset < 7:
        return bool(node.attrs.get("is_test", 0))
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    training = values_of(node.inputs[2])
    return training is not None and not training.any()


def _divides_safely(node: gs.Node, types: Mapping[str, TensorType]) -> bool:
    """Some versions of ONNX Runtime die of an integer division by zero, or of the least integer by -1."""
    for tensor in (*node.inputs, *node.outputs):
        found = types.get(tensor.name)
        if found is not None and found.dtype:
            if numpy_dtype(found.dtype, tensor.name).kind not in "iu":
                return True
            break
    divisor = values_of(node.inputs[1])
    if divisor is None:
        return False
    if divisor.dtype.kind not in "iu":
        return True
    if divisor.dtype.kind == "i" and bool((divisor == -1).any()):
        dividend = values_of(node.inputs[0])
        if dividend is None or bool((dividend == np.iinfo(divisor.dtype).min).any()):
            return False
    return bool(divisor.all())


def _is_short(node: gs.Node) -> bool:
    if not is_op(node, "Loop") or not node.inputs or node.inputs[0].is_empty():
        return False
    trips = values_of(node.inputs[0])
    return trips is not None and trips.size == 1 and int(trips.ravel()[0]) <= _MAX_TRIPS
