"""Operators that work element by element: labels pass, those of several operands are coupled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.labels import Field
from graphopt.channels.rules.joining import Joint, Operand, joined, operand
from graphopt.channels.tracer import Tracer, named

# Operators of one operand for which f(0) = 0, and those for which it is not; further inputs are scalars.
KEEPS_ZERO = (
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Dropout", "Elu", "Erf", "Floor", "Gelu",
    "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sign", "Sin", "Sinh",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "QuickGelu",
)  # fmt: skip
LOSES_ZERO = (
    "Acos", "Acosh", "BitwiseNot", "Cos", "Cosh", "Exp", "HardSigmoid", "IsInf", "IsNaN", "Log", "Not", "Reciprocal",
    "Sigmoid", "Softplus",
)  # fmt: skip
ADDS = ("Add", "Sub", "Sum", "Mean", "Max", "Min")
MULTIPLIES = ("Mul", "And", "BitwiseAnd")
# The first operand alone decides whether the result is zero.
DIVIDES = ("Div", "Pow", "PRelu", "BitShift", "Mod")
MIXES = (
    "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "BitwiseOr", "BitwiseXor",
)  # fmt: skip


def unary(tracer: Tracer, node: gs.Node) -> None:
    """One operand; labels pass to the first output."""
    source = node.inputs[0]
    if node.op == "Dropout" and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        training = tracer.value(node.inputs[2])
        if training is None or training.any():
            tracer.pin_inputs(node, f"{named(node)} is in training mode")
            return
    zero = tracer.is_zero(source) and node.op in KEEPS_ZERO
    for target in node.outputs[: 2 if node.op == "Dropout" else 1]:
        tracer.put(target, tracer.fields(source), zero=zero and target is node.outputs[0])


def clip(tracer: Tracer, node: gs.Node) -> None:
    """Clip: bounds are attributes, or scalars among the inputs."""
    low, high = node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)
    bounds = [low, high]
    for slot in (1, 2):
        if len(node.inputs) > slot and not node.inputs[slot].is_empty():
            value = tracer.value(node.inputs[slot])
            bounds[slot - 1] = np.nan if value is None else value.reshape(-1)[0]
    inside = bool(bounds[0] <= 0 <= bounds[1])
    tracer.put(node.outputs[0], tracer.fields(node.inputs[0]), zero=tracer.is_zero(node.inputs[0]) and inside)


def several(tracer: Tracer, node: gs.Node) -> None:
    """Several operands, broadcast against each other."""
    operands = operands_of(tracer, node, range(len(node.inputs)))
    if operands is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    joints = joined(tracer, node, operands)
    if node.op in ADDS:
        zero = all_zero(tracer, node, operands, joints)
    elif node.op in MULTIPLIES:
        zero = all(any(is_zero(one, at, joint) for at, one in enumerate(operands)) for joint in joints)
    elif node.op in DIVIDES:
        zero = all(is_zero(operands[0], 0, joint) for joint in joints)
    elif node.op == "Where":
        zero = all_zero(tracer, node, operands, joints, range(1, 3))
    else:
        zero = False
    tracer.put(node.outputs[0], [joint.labels for joint in joints], zero=zero)


def operands_of(tracer: Tracer, node: gs.Node, slots: Sequence[int]) -> list[Operand] | None:
    """The inputs of a node as operands of one rank; None where a shape is not known."""
    shapes = [tracer.shape(node.inputs[slot]) for slot in slots]
    rank = max((len(shape) for shape in shapes if shape is not None), default=0)
    found = [operand(tracer, node, slot, rank) for slot in slots]
    known = [one for one in found if one is not None]
    return known if len(known) == len(found) else None


def is_zero(one: Operand, position: int, joint: Joint) -> bool:
    """Whether an operand is zero where a channel of the joint is cut."""
    return position in joint.following or (position in joint.labelled and one.zero)


def all_zero(
    tracer: Tracer, node: gs.Node, operands: Sequence[Operand], joints: Sequence[Joint], which: Sequence[int] = ()
) -> bool:
    """Whether all operands (or those at positions ``which``) are zero wherever a channel of any joint is cut."""
    for position in which or range(len(operands)):
        one = operands[position]
        if all(is_zero(one, position, joint) for joint in joints):
            continue
        value = None if one.slot < 0 else tracer.value(node.inputs[one.slot])
        if value is None or value.size > LARGEST_CHECKED or np.any(value):
            return False
    return True


# Constants are searched for anything but zeros up to this many elements.
LARGEST_CHECKED = 4096


def add_fixed(
    tracer: Tracer, node: gs.Node, slot: int, fields: Sequence[Field], zero: bool, shape: tuple[int, ...]
) -> tuple[list[Field], bool]:
    """Add an input, such as Gemm's third, to a result with the given labels and shape."""
    added = operand(tracer, node, slot, len(shape), "writes")
    if added is None:
        for each in fields:
            tracer.trace.labels.pin(each, f"the shapes of {named(node)} are not known")
        return [], False
    operands = [Operand(-1, shape, tuple(fields), zero), added]
    joints = joined(tracer, node, operands)
    return [joint.labels for joint in joints], all_zero(tracer, node, operands, joints)
