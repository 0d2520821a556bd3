"""What ONNX Runtime merges in float: pairs of units whose time together is less than the sum of their times apart.

::

    Conv -> HardSwish, LeakyRelu, Sigmoid           one convolution with an activation
    Conv -> Add (residual)                          one convolution that adds
    x -> Sigmoid -> Mul(x)                          QuickGelu

Each unit is timed alone. Where the second of a pair would be done on the way, its own time would make float look slower
than it is, and int8 be chosen where it does not pay. What a pair saves is measured, and lost where the two run in
different precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graphopt.passes.quantize_int8.units import Role, Unit, Units

ACTIVATIONS = ("HardSwish", "LeakyRelu", "Sigmoid")


@dataclass(frozen=True)
class Pair:
    """Two units and the microseconds that float saves where both run in it."""

    first: int
    second: int
    saved: float


def measured_pairs(units: Units, saved: Callable[[Unit, Unit], float]) -> tuple[Pair, ...]:
    """Return every pair that saves anything."""
    found = []
    for first, second in pairs(units):
        gain = saved(first, second)
        if gain > 0:
            found.append(Pair(first.index, second.index, gain))
    return tuple(found)


def pairs(units: Units) -> Iterator[tuple[Unit, Unit]]:
    """Yield the pairs of units in graph order that ONNX Runtime may merge in float; no unit is second in two."""
    for second in units.all:
        if second.role is not Role.ELEMENTWISE:
            continue
        operator = second.node.op_type
        makers = [_only_reader(units, name, second) for name in second.inputs]
        first = None
        if operator in ACTIVATIONS or operator == "Add":
            convolutions = [made for made in makers if made is not None and _is_plain_convolution(made)]
            first = max(convolutions, key=lambda made: made.index, default=None)
        elif operator == "Mul":
            for made, other in zip(makers, reversed(second.inputs), strict=True):
                if made is not None and made.node.op_type == "Sigmoid" and made.inputs == (other,):
                    first = made
        if first is not None:
            yield first, second


def _only_reader(units: Units, name: str, reader: Unit) -> Unit | None:
    """Return the unit that makes ``name`` for ``reader`` alone, if it has an int8 form."""
    maker = units.producer.get(name)
    if maker is None or units.consumers[name] != (reader.index,) or name in units.graph_outputs:
        return None
    return units.all[maker] if units.all[maker].role is not Role.FLOAT else None


def _is_plain_convolution(unit: Unit) -> bool:
    return unit.node.op_type == "Conv" and unit.activation is None
