"""Which operators have a simpler form, and which nodes need one although their operator is taken."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, is_op
from graphopt.passes.accepted import exists
from graphopt.passes.writing_out import activations, normalizations, shaping
from graphopt.passes.writing_out.draft import Form
from graphopt.passes.writing_out.einsum import einsum

FORMS: Mapping[str, Form] = {
    "CastLike": shaping.cast_like,
    "Celu": activations.celu,
    "DepthToSpace": shaping.depth_to_space,
    "Einsum": einsum,
    "Elu": activations.elu,
    "Gelu": activations.gelu,
    "GlobalAveragePool": shaping.global_average_pool,
    "GreaterOrEqual": shaping.at_least,
    "GroupNormalization": normalizations.group_normalization,
    "HardSigmoid": activations.hard_sigmoid,
    "HardSwish": activations.hard_swish,
    "Hardmax": shaping.hardmax,
    "LayerNormalization": normalizations.layer_normalization,
    "LessOrEqual": shaping.at_most,
    "LogSoftmax": shaping.softmax,
    "LpNormalization": normalizations.lp_normalization,
    "MeanVarianceNormalization": normalizations.mean_variance_normalization,
    "Mish": activations.mish,
    "OneHot": shaping.one_hot,
    "RMSNormalization": normalizations.rms_normalization,
    "ReduceMean": shaping.reduce_mean,
    "Shape": shaping.shape_of_some,
    "Sign": shaping.sign,
    "Softmax": shaping.softmax,
    "SpaceToDepth": shaping.space_to_depth,
    "Swish": activations.swish,
    "Trilu": shaping.trilu,
    "Xor": shaping.exclusive_or,
}
# Forms that hold for a version of the operator only: they write the operator itself, in a way that older versions know.
_ITSELF = frozenset({"LogSoftmax", "Shape", "Softmax"})


def is_unwanted(
    node: gs.Node, opset: int, highest: int, unwanted: frozenset[str], types: Mapping[str, TensorType]
) -> bool:
    """Whether the target does not take a node: its operator is on the list, or came after the highest opset it takes.

    Args:
        node: the node.
        opset: the operator set in force.
        highest: the highest that the target takes.
        unwanted: operators on the target's list.
        types: inferred types by tensor name.
    """
    if not is_op(node, node.op):
        return f"{node.domain}::{node.op}" in unwanted
    if node.op in unwanted and node.op not in _ITSELF:
        return True
    if opset <= highest:
        return False
    if node.op == "Shape":
        return highest < 15 and bool({"start", "end"} & set(node.attrs))
    if node.op in {"Softmax", "LogSoftmax"}:
        return highest < 13 <= opset and _runs_over_more(node, types)
    if node.op == "GroupNormalization":
        return highest < 21
    return not exists(node.op, highest) and exists(node.op, opset)


def _runs_over_more(node: gs.Node, types: Mapping[str, TensorType]) -> bool:
    """Whether axes that are not of size 1 follow the one that a Softmax runs along."""
    found = types.get(node.inputs[0].name)
    shape = None if found is None else found.shape
    axis = int(node.attrs.get("axis", -1))
    return axis != -1 and shape is not None and any(size != 1 for size in shape[axis % len(shape) + 1 :])
