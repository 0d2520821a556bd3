"""Residual additions that run inside the convolution before them, and which of their inputs is the skip.

::

    r ──────────────> Q -> DQ ──┐          the skip: quantized
    r -> Conv -> Relu -> Conv ─> Add       the main branch: nothing between Conv and Add, so that the two fuse

A runtime that adds while it writes a convolution's answer reads the other operand as it lies in memory, and answers in
that operand's precision (TensorRT repository v10.3.0, pytorch-quantization's documentation of ResNet-50, and
NVIDIA/TensorRT#1992): the skip carries Q/DQ, the convolution's answer none.

Where both operands come from convolutions, the skip is the one on the shorter path from where the two branches part.
Both paths begin at the same tensor, so that the longest paths from the model's inputs tell the same, in one sweep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphopt.graph import Shape
from graphopt.passes.quantize_int8.units import FLOAT_DOMAINS, Role, Unit, Units


@dataclass(frozen=True)
class Residual:
    """An addition that runs inside a convolution.

    Attributes:
        add: index of the addition's unit.
        convolution: index of the convolution's.
        skip: the tensor that is added to the convolution's answer.
    """

    add: int
    convolution: int
    skip: str


def residuals(units: Units) -> Mapping[int, Residual]:
    """Return, by index, every residual addition that can run inside a convolution with an int8 form."""
    depth: list[int] = []
    for unit in units.all:
        before = (units.producer.get(name) for node in unit.nodes for name in node.input)
        depth.append(1 + max((depth[index] for index in before if index is not None and index < unit.index), default=0))
    found: dict[int, Residual] = {}
    for unit in units.all:
        if unit.node.op_type != "Add" or unit.node.domain not in FLOAT_DOMAINS:
            continue
        first, second = unit.node.input[0], unit.node.input[1]
        if first == second or {first, second} & units.constants.keys():
            continue
        branches = [
            (depth[units.producer[name]], units.producer[name], convolution, other)
            for name, other in ((first, second), (second, first))
            if (convolution := _fusable(units, name)) is not None
        ]
        if branches:
            _, _, convolution, skip = max(branches)
            found[unit.index] = Residual(unit.index, convolution, skip)
    return found


def spreads(units: Units, addition: Residual, shapes: Mapping[str, Shape]) -> bool:
    """Whether one operand is surely smaller than the other and spread over it: no kernel of a convolution adds so."""
    convolved = shapes.get(units.all[addition.convolution].outputs[0])
    skip = shapes.get(addition.skip)
    if convolved is None or skip is None:
        return False
    return len(convolved) != len(skip) or any(
        one != other
        for one, other in zip(convolved, skip, strict=True)
        if isinstance(one, int) and isinstance(other, int)
    )


def _fusable(units: Units, name: str) -> int | None:
    """Return the convolution with an int8 form whose answer, at most normalized, is ``name`` and read only once."""
    maker = _sole_maker(units, name)
    if maker is not None and maker.node.op_type == "BatchNormalization":
        maker = _sole_maker(units, maker.node.input[0])
    if maker is None or maker.node.op_type != "Conv" or maker.role is not Role.HEAVY or maker.activation is not None:
        return None
    return maker.index


def _sole_maker(units: Units, name: str) -> Unit | None:
    index = units.producer.get(name)
    if index is None or len(units.consumers.get(name, ())) != 1 or name in units.graph_outputs:
        return None
    return units.all[index]
