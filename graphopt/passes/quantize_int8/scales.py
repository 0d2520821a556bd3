"""Which tensors must have one scale: those that a Concat or a change of layout joins.

::

    a -> Concat -> y -> Q -> DQ -> Conv            before Q moves up
    a -> Q -> Concat -> DQ -> Conv                 after: a, b and y are integers of one scale
    b -> Q ──┘

A runtime moves Q before a Concat and before what only moves data, so that these move bytes. With another scale on the
other side it requantizes. Only what an int8 reader asks for, through Concats and movement, is joined: a Concat that
float reads stays in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from graphopt.calibration.observers import Range
from graphopt.passes.quantize_int8.placement import SHARED_RANGE
from graphopt.passes.quantize_int8.units import Role, Units

# Movement after which the values are about the same set as before: a scale of their own would gain nothing.
_KEEPS_VALUES = ("DepthToSpace", "Flatten", "MaxPool", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze")


class Groups:
    """A partition of tensors, made by joining them two by two."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        """The tensor that stands for the group of ``name``."""
        parent = self._parent
        top = name
        while parent.get(top, top) != top:
            top = parent[top]
        while parent.get(name, name) != top:
            parent[name], name = top, parent[name]
        return top

    def join(self, names: Iterable[str]) -> None:
        """Put all of ``names`` into one group."""
        roots = sorted({self.root(name) for name in names})
        for root in roots[1:]:
            self._parent[root] = roots[0]


def groups(units: Units, quantized: Collection[str], *, concats: bool) -> Groups:
    """Return which tensors have one scale.

    Args:
        units: the graph.
        quantized: the tensors that carry Q/DQ.
        concats: whether a Concat whose answer is quantized joins its inputs with it.
    """
    asked = set(quantized)
    found = Groups()
    for unit in reversed(units.all):
        joins = unit.node.op_type in _KEEPS_VALUES if unit.role is Role.MOVEMENT else concats
        if unit.role not in (Role.MOVEMENT, Role.CONCAT) or not joins or asked.isdisjoint(unit.outputs):
            continue
        asked.update(unit.inputs)
        found.join((*unit.inputs, *unit.outputs))
    return found


def shared(ranges: Mapping[str, Range], joined: Groups) -> dict[str, Range]:
    """Return the range of every tensor: the widest of its group."""
    widest: dict[str, Range] = {}
    for name, (low, high) in ranges.items():
        root = joined.root(name)
        known = widest.get(root, (0.0, 0.0))
        widest[root] = (min(low, known[0]), max(high, known[1]))
    return {name: widest[joined.root(name)] for name in ranges}


def narrow(ranges: Mapping[str, Range], joined: Groups) -> dict[str, float]:
    """Return the tensors that would keep less than SHARED_RANGE of the levels, with the share that they would keep."""
    found: dict[str, float] = {}
    for name, (low, high) in shared(ranges, joined).items():
        own, whole = ranges[name][1] - ranges[name][0], high - low
        if own < SHARED_RANGE * whole:
            found[name] = own / whole
    return found
