"""Operands that meet element by element: their labels are coupled, and constants among them follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx_graphsurgeon as gs

from graphopt.channels.fields import axes_of, widened, with_rank
from graphopt.channels.groups import Role
from graphopt.channels.labels import Field
from graphopt.channels.tracer import Tracer, named


@dataclass(frozen=True)
class Operand:
    """One input of an operator that works element by element.

    Attributes:
        slot: which input of the node it is; -1: none, it only stands for what was computed so far.
        shape: its shape, with axes in front up to the rank of the result.
        fields: its label arrays, of the same rank.
        zero: whether it is zero wherever a channel is cut.
        role: what it is to the channels, should it be a constant.
    """

    slot: int
    shape: tuple[int, ...]
    fields: tuple[Field, ...]
    zero: bool = False
    role: Role = "follows"


@dataclass
class Joint:
    """Labels of the result, and which operands have them (``labelled``) or follow them, by position."""

    labels: Field
    labelled: set[int] = field(default_factory=set)
    following: set[int] = field(default_factory=set)


def operand(tracer: Tracer, node: gs.Node, slot: int, rank: int, role: Role = "follows") -> Operand | None:
    """An input of a node as an operand; None where its shape is not known."""
    tensor = node.inputs[slot]
    shape = tracer.shape(tensor)
    if shape is None:
        return None
    fields = () if tracer.is_fixed(tensor) else tracer.fields(tensor)
    return Operand(
        slot,
        (1,) * (rank - len(shape)) + shape,
        tuple(with_rank(each, rank) for each in fields),
        tracer.is_zero(tensor),
        role,
    )


def joined(tracer: Tracer, node: gs.Node, operands: Sequence[Operand]) -> list[Joint]:
    """Couple the labels of operands that are broadcast against each other; return the fields of the result."""
    joints = []
    for parts in _overlapping(operands):
        joint = _couple(tracer, node, parts)
        for position, one in enumerate(operands):
            if position not in joint.labelled:
                _follow(tracer, node, one, position, joint)
        joints.append(joint)
    return joints


def _overlapping(operands: Sequence[Operand]) -> list[list[tuple[int, Field]]]:
    """All fields with the position of their operand, those together that differ along a common axis."""
    found: list[tuple[frozenset[int], list[tuple[int, Field]]]] = []
    for position, one in enumerate(operands):
        for each in one.fields:
            axes, together = axes_of(each), [(position, each)]
            apart = []
            for others, parts in found:
                if others & axes:
                    axes, together = axes | others, [*parts, *together]
                else:
                    apart.append((others, parts))
            found = [*apart, (axes, together)]
    return [parts for _, parts in found]


def _couple(tracer: Tracer, node: gs.Node, parts: list[tuple[int, Field]]) -> Joint:
    first = parts[0][1]
    result = first
    for _, each in parts[1:]:
        tracer.couple(first, each, f"{named(node)} joins them with channels that cannot be cut")
        for axis, size in enumerate(each.shape):
            result = widened(result, axis, max(size, result.shape[axis]))
    return Joint(result, {position for position, _ in parts})


def _follow(tracer: Tracer, node: gs.Node, one: Operand, position: int, joint: Joint) -> None:
    """Let a constant follow the labels along the axes that it has; what is computed and has no labels stays whole."""
    axes = axes_of(joint.labels)
    own = {axis for axis in axes if one.shape[axis] > 1}
    if not own:
        return
    name = "what it computed" if one.slot < 0 else f"'{node.inputs[one.slot].name}'"
    why = f"{named(node)} joins them with {name}, whose channels cannot be cut"
    rest = axes - own
    fixed = one.slot >= 0 and tracer.is_fixed(node.inputs[one.slot])
    if rest and (not fixed or _count(joint.labels, rest) >= _count(joint.labels, own)):
        joint.labels = tracer.even(joint.labels, sorted(own), why)
        return
    each = tracer.even(joint.labels, sorted(rest), f"a constant of {named(node)} is the same for them")
    if fixed:
        shape = tracer.shape(node.inputs[one.slot])
        rank = each.ndim if shape is None else len(shape)
        if tracer.assign(node, one.slot, each.reshape(each.shape[each.ndim - rank :]), one.role):
            joint.following.add(position)
            return
    tracer.trace.labels.pin(joint.labels, why)


def _count(each: Field, axes: Iterable[int]) -> int:
    return prod(each.shape[axis] for axis in axes)
