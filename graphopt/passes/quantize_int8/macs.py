"""Multiply-adds of heavy units for the shapes seen in calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from graphopt.passes.quantize_int8.units import Role, Unit, Units


def macs(units: Units, shapes: Mapping[str, tuple[int, ...]], chosen: Iterable[int]) -> int:
    """Return the multiply-adds of the heavy units among ``chosen``."""
    return sum(_unit_macs(units.all[index], units, shapes) for index in chosen)


def _unit_macs(unit: Unit, units: Units, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if unit.role is not Role.HEAVY:
        return 0
    output = shapes.get(unit.node.output[0], shapes.get(unit.outputs[0], ()))
    weight = units.constants.get(unit.node.input[1])
    if unit.node.op_type == "Conv" and weight is not None:
        return int(np.prod(output)) * int(np.prod(weight.dims[1:]))
    depth = shapes.get(unit.node.input[0], (0,))[-1]
    return int(np.prod(output)) * int(depth)
