"""Which nodes hand their first input on unchanged, proven by operator semantics and inferred types alone.

Shapes come from inference over inputs and weights, never from what the file declares for tensors in between; two open
dimensions are equal only where they carry the same symbol (``types_of(..., distinct=True)``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Shape, TensorType, is_op, onnx_dtype, values_of

# ONNX lets a slice end at "as far as it goes" with any large number; exporters write these.
_FAR = 2**31 - 1


@dataclass(frozen=True)
class Knowledge:
    """What the rules may use: the opset and the inferred types by tensor name."""

    opset: int
    types: Mapping[str, TensorType]

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """Inferred shape, None where the rank is unknown."""
        found = self.types.get(tensor.name)
        return None if found is None else found.shape

    def same_shape(self, first: gs.Tensor, second: gs.Tensor) -> bool:
        """Whether both shapes are known and equal, axis by axis."""
        shape = self.shape(first)
        return shape is not None and None not in shape and shape == self.shape(second)


def is_no_op(node: gs.Node, known: Knowledge) -> bool:
    """Whether output 0 of ``node`` always equals its input 0, value by value, in dtype and in shape."""
    if node.domain or not node.inputs or not node.outputs or node.inputs[0].is_empty():
        return False
    rule = RULES.get(node.op)
    return rule is not None and rule(node, known)


def _identity(node: gs.Node, known: Knowledge) -> bool:
    return True


def _dropout(node: gs.Node, known: Knowledge) -> bool:
    if known.opset < 7:
        return bool(node.attrs.get("is_test", 0))
    if known.opset < 12 or len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    training = values_of(node.inputs[2])
    return training is not None and not training.any()


def _cast(node: gs.Node, known: Knowledge) -> bool:
    found = known.types.get(node.inputs[0].name)
    target = node.attrs.get("to")
    # Below opset 6 the target is a name.
    return found is not None and isinstance(target, int) and found.dtype == onnx_dtype(target) != 0


def _same_elements(node: gs.Node, known: Knowledge) -> bool:
    """Reshape and its kin keep the order of elements: equal shapes make them no-ops."""
    return known.same_shape(node.inputs[0], node.outputs[0])


def _reshape(node: gs.Node, known: Knowledge) -> bool:
    if _same_elements(node, known):
        return True
    shape, target = known.shape(node.inputs[0]), _constants(node, known, 1, "shape", since=5)
    if shape is None or target is None or target.size != len(shape):
        return False
    # ONNX allows a single -1, and with all other sizes equal it comes out as the one that is left.
    unchanged = {-1} if node.attrs.get("allowzero", 0) else {-1, 0}
    return all(wanted in unchanged or wanted == size for size, wanted in zip(shape, target.tolist(), strict=True))


def _transpose(node: gs.Node, known: Knowledge) -> bool:
    order = node.attrs.get("perm")
    if order is None:
        shape = known.shape(node.inputs[0])
        return shape is not None and len(shape) < 2
    return list(order) == list(range(len(order)))


def _pad(node: gs.Node, known: Knowledge) -> bool:
    name = "pads" if known.opset >= 2 else "paddings"
    pads = _constants(node, known, 1, name, since=11)
    return pads is not None and not pads.any()


def _slice(node: gs.Node, known: Knowledge) -> bool:
    starts = _constants(node, known, 1, "starts", since=10)
    ends = _constants(node, known, 2, "ends", since=10)
    if starts is None or ends is None:
        return False
    steps = np.ones_like(starts)
    if len(node.inputs) > 4 and not node.inputs[4].is_empty():
        given = values_of(node.inputs[4])
        if given is None:
            return False
        steps = given
    if (steps >= 1).all() and known.same_shape(node.inputs[0], node.outputs[0]):
        return True
    return bool((starts == 0).all() and (ends >= _FAR).all() and (steps == 1).all())


def _tile(node: gs.Node, known: Knowledge) -> bool:
    repeats = values_of(node.inputs[1]) if len(node.inputs) == 2 and known.opset >= 6 else None
    return repeats is not None and bool((repeats == 1).all())


def _single(node: gs.Node, known: Knowledge) -> bool:
    return len(node.inputs) == 1


def _split(node: gs.Node, known: Knowledge) -> bool:
    return len(node.outputs) == 1 and known.same_shape(node.inputs[0], node.outputs[0])


def _neutral(value: float) -> Callable[[gs.Node, Knowledge], bool]:
    """Arithmetic with a constant second operand that changes nothing, nor widens the shape."""

    def rule(node: gs.Node, known: Knowledge) -> bool:
        # Below opset 7 broadcasting is spelled out in attributes.
        if known.opset < 7 or len(node.inputs) != 2:
            return False
        operand, shape = values_of(node.inputs[1]), known.shape(node.inputs[0])
        if operand is None or operand.dtype == object or not operand.size or not (operand == value).all():
            return False
        if known.same_shape(node.inputs[0], node.outputs[0]):
            return True
        return shape is not None and operand.size == 1 and operand.ndim <= len(shape)

    return rule


def _constants(node: gs.Node, known: Knowledge, slot: int, name: str, since: int) -> np.ndarray[Any, Any] | None:
    """What an attribute said before opset ``since`` and an input says from there on."""
    if known.opset >= since:
        return values_of(node.inputs[slot]) if slot < len(node.inputs) else None
    given: Sequence[int] | None = node.attrs.get(name)
    return None if given is None else np.asarray(given, dtype=np.int64)


RULES: Mapping[str, Callable[[gs.Node, Knowledge], bool]] = {
    "Add": _neutral(0),
    "Cast": _cast,
    "Concat": _single,
    "Div": _neutral(1),
    "Dropout": _dropout,
    "Expand": _same_elements,
    "Flatten": _same_elements,
    "Identity": _identity,
    "Max": _single,
    "Mean": _single,
    "Min": _single,
    "Mul": _neutral(1),
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _same_elements,
    "Sub": _neutral(0),
    "Sum": _single,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _same_elements,
}

# These can be judged without any type; for all others inference has to run.
UNTYPED = frozenset({"Identity", "Dropout", "Concat", "Max", "Mean", "Min", "Sum"})


def needs_types(node: gs.Node) -> bool:
    """Whether the rule for this node looks at inferred types."""
    return node.op in RULES and is_op(node, node.op) and node.op not in UNTYPED
