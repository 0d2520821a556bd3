"""Rules for arithmetic, logic and casts that change nothing.

Adding -0.0 or 0.0 counts as nothing: the results compare equal. Bounds of a Clip count as none only where they are
infinite or the ends of an integer type: without bounds, ONNX clips infinity to the largest finite number.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, onnx_dtype, sole_producer, values_of
from graphopt.passes.no_ops.knowledge import Knowledge, Rule, has_input, holds_only, input_values


def _identity(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    return node.inputs[0]


def _single(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _alike(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Max, Min, And and Or of one tensor with itself."""
    first = node.inputs[0]
    return first if all(tensor is first for tensor in node.inputs) else None


def _either(first: Rule, second: Rule) -> Rule:
    def rule(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
        source = first(node, known)
        return second(node, known) if source is None else source

    return rule


def _dropout(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    if known.opset < 7:
        return node.inputs[0] if node.attrs.get("is_test", 0) else None
    if known.opset < 12 or not has_input(node, 2):
        return node.inputs[0]
    training = values_of(node.inputs[2])
    off = training is not None and not training.any()
    return node.inputs[0] if off or (has_input(node, 1) and holds_only(node.inputs[1], 0)) else None


def _cast(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    target = node.attrs.get("to")
    # Below opset 6 the target is a name.
    if not isinstance(target, int) and not isinstance(target, (type, np.dtype)):
        return None
    return node.inputs[0] if known.dtype(node.inputs[0]) == onnx_dtype(target) != 0 else None


def _cast_like(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    dtype = known.dtype(node.inputs[0])
    return node.inputs[0] if dtype != 0 and len(node.inputs) == 2 and dtype == known.dtype(node.inputs[1]) else None


def _neutral(value: float, *slots: int) -> Rule:
    """Arithmetic with a constant operand, at one of ``slots``, that changes nothing, nor widens the shape."""

    def rule(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
        # Below opset 7 broadcasting is spelled out in attributes.
        if known.opset < 7 or len(node.inputs) != 2:
            return None
        for slot in slots:
            kept, operand = node.inputs[1 - slot], node.inputs[slot]
            if holds_only(operand, value) and _keeps_shape(kept, operand, known):
                return kept
        return None

    return rule


def _keeps_shape(kept: gs.Tensor, operand: gs.Tensor, known: Knowledge) -> bool:
    """Whether broadcasting with a constant leaves the other operand's shape as it is."""
    values = values_of(operand)
    if values is None or not values.shape:
        return values is not None
    shape = known.shape(kept)
    if shape is None or values.ndim > len(shape):
        return False
    aligned = shape[len(shape) - values.ndim :]
    return all(size in {1, wanted} for size, wanted in zip(values.shape, aligned, strict=True))


def _twice(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Operators that undo themselves."""
    before = sole_producer(node.inputs[0])
    return before.inputs[0] if before is not None and is_op(before, node.op) and not before.domain else None


def _again(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Operators that change nothing the second time."""
    return node.inputs[0] if is_op(sole_producer(node.inputs[0]), node.op) else None


def _where(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    if len(node.inputs) != 3:
        return None
    condition, chosen, other = node.inputs
    if chosen is not other:
        values = values_of(condition)
        if values is None or not values.size or values.all() != values.any():
            return None
        if not values.any():
            chosen = other
    return chosen if known.same_shape(chosen, node.outputs[0]) else None


def _clip(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    if known.opset < 11:
        bounds = (node.attrs.get("min", 0), node.attrs.get("max", 0))
        return node.inputs[0] if bounds == (-np.inf, np.inf) else None
    dtype = known.dtype(node.inputs[0])
    if not dtype:
        return None
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    for slot, is_low in ((1, True), (2, False)):
        free = -np.inf if is_low else np.inf
        if kind.kind in "iu":
            free = np.iinfo(kind).min if is_low else np.iinfo(kind).max
        if has_input(node, slot):
            bound = input_values(node, slot)
            if bound is None or bound.size != 1 or bound.item() != free:
                return None
        elif kind.kind not in "iu":
            return None
    return node.inputs[0]


def _leaky(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    return node.inputs[0] if node.attrs.get("alpha", 0.01) == 1 else None


ARITHMETIC: Mapping[str, Rule] = {
    "Abs": _again,
    "Add": _neutral(0, 1, 0),
    "And": _either(_alike, _neutral(True, 1, 0)),
    "BitwiseNot": _twice,
    "BitwiseOr": _neutral(0, 1, 0),
    "BitwiseXor": _neutral(0, 1, 0),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _again,
    "Clip": _clip,
    "Div": _neutral(1, 1),
    "Dropout": _dropout,
    "Floor": _again,
    "Identity": _identity,
    "LeakyRelu": _leaky,
    "Max": _alike,
    "Mean": _single,
    "Min": _alike,
    "Mul": _neutral(1, 1, 0),
    "Neg": _twice,
    "Not": _twice,
    "Or": _either(_alike, _neutral(False, 1, 0)),
    "Pow": _neutral(1, 1),
    "Round": _again,
    "Sign": _again,
    "Sub": _neutral(0, 1),
    "Sum": _single,
    "Where": _where,
    "Xor": _neutral(False, 1, 0),
}
