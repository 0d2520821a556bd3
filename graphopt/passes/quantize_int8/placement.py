"""Which tensors carry Q/DQ, and with what scale: follows from which units run in int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.calibration.observers import Range
from graphopt.passes.quantize_int8 import hard_swish
from graphopt.passes.quantize_int8.numbers import UNLIMITED, Parameters, QuantizedWeight, activation_parameters
from graphopt.passes.quantize_int8.units import Role, Unit, Units, clip_bounds
from graphopt.targets.schema import Int8Rules

# Ranges that meet in a Concat get one scale if the smallest then keeps this share of the levels (1/8: it loses 3 bits).
SHARED_RANGE = 0.125


@dataclass(frozen=True)
class Placement:
    """Which tensors carry Q/DQ, and how.

    Attributes:
        int8: indexes of the units that run in int8.
        parameters: quantization of every quantized tensor.
        weights: replacement weights by unit index, in place of rounding to nearest; absent for most.
        bias: replacement float bias by unit index (bias correction), [channels].
    """

    int8: frozenset[int]
    parameters: Mapping[str, Parameters]
    weights: Mapping[int, QuantizedWeight]
    bias: Mapping[int, npt.NDArray[np.float64]]


def quantized_tensors(units: Units, int8: Iterable[int]) -> list[str]:
    """Return the tensors that carry Q/DQ when ``int8`` units run in int8, in graph order."""
    chosen = frozenset(int8)
    wanted: dict[str, None] = {}
    for name in units.graph_inputs:
        if _read_in_int8(units, chosen, name):
            wanted[name] = None
    for unit in units.all:
        for name in unit.outputs:
            if _read_in_int8(units, chosen, name) or (unit.index in chosen and _needs_integer_output(unit)):
                wanted[name] = None
    return list(wanted)


def place(
    units: Units,
    int8: Iterable[int],
    ranges: Mapping[str, Range],
    rules: Int8Rules,
    *,
    weights: Mapping[int, QuantizedWeight] | None = None,
    bias: Mapping[int, npt.NDArray[np.float64]] | None = None,
) -> Placement:
    """Give every tensor to be quantized its scale and zero point.

    Data movement hands on the quantization of its input, and a Concat gives all its inputs one: ONNX Runtime then moves
    bytes and requantizes nothing.
    """
    chosen = frozenset(int8)
    shared, _ = shared_ranges(units, chosen, ranges)
    limits = _limits(units, chosen)
    parameters = {
        name: activation_parameters(found, rules.activation_dtype, limits.get(name, UNLIMITED))
        for name, found in shared.items()
    }
    return Placement(chosen, parameters, weights or {}, bias or {})


def shared_ranges(
    units: Units, int8: Iterable[int], ranges: Mapping[str, Range]
) -> tuple[dict[str, Range], dict[int, float]]:
    """Return the range of every quantized tensor, and the Concats in which ranges of very different size meet.

    One scale over boxes from 0 to 320 and scores from 0 to 1, as in the head of a detector, leaves the scores one
    level: such a Concat belongs in float.

    Returns:
        ranges by tensor; and by unit index, for each Concat that loses more than SHARED_RANGE allows, the share of the
        levels that its narrowest input would keep.
    """
    chosen = frozenset(int8)
    tensors = quantized_tensors(units, chosen)
    parent = {name: name for name in tensors}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    merged = {name: ranges[name] for name in tensors}
    limits = {name: found for name, found in _limits(units, chosen).items() if name in merged}
    clashes: dict[int, float] = {}
    for unit in units.all:
        if unit.index not in chosen:
            continue
        if unit.role is Role.MOVEMENT:
            for name in unit.outputs:
                if name in parent and unit.inputs[0] in parent:
                    parent[root(name)] = root(unit.inputs[0])
        elif unit.role is Role.CONCAT:
            roots = list(dict.fromkeys(root(name) for name in (*unit.inputs, *unit.outputs)))
            low = min(merged[name][0] for name in roots)
            high = max(merged[name][1] for name in roots)
            narrowest = min(ranges[name][1] - ranges[name][0] for name in unit.inputs)
            if narrowest < SHARED_RANGE * (high - low):
                clashes[unit.index] = narrowest / (high - low)
            output = root(unit.outputs[0])
            merged[output] = (low, high)
            for name in roots:
                # A range beyond what the Relu before it cuts to would bring the Relu back, and its layer to float: such
                # an input keeps a range of its own, and the Concat requantizes it.
                least, most = limits.get(name, UNLIMITED)
                if name != output and least <= low and high <= most:
                    parent[name] = output
                    if name in limits:
                        limits[output] = _both(limits[name], limits.get(output, UNLIMITED))
    shared = {name: merged[root(name)] for name in tensors}
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(root(name), []).append(name)
    return shared | _for_hard_swish(units, chosen, shared, groups.values(), limits), clashes


def _for_hard_swish(
    units: Units,
    int8: frozenset[int],
    shared: Mapping[str, Range],
    groups: Iterable[list[str]],
    limits: Mapping[str, Range],
) -> dict[str, Range]:
    """Return the ranges of what HardSwish in int8 reads and of the tensors that share theirs, widened to its grid."""
    swished = {unit.inputs[0] for unit in units.all if unit.index in int8 and unit.node.op_type == "HardSwish"}
    widened: dict[str, Range] = {}
    for group in groups:
        if swished.isdisjoint(group):
            continue
        low, high = shared[group[0]]
        if len(group) == 1 and hard_swish.reads_alone(units, group[0]):
            low = -hard_swish.KNEE
        grid = hard_swish.on_grid(low, high)
        # Beyond what the Relu before it cuts to, the Relu would come back (above): then HardSwish stays in float.
        if grid and all(_holds(limits.get(name, UNLIMITED), grid) for name in group):
            widened |= dict.fromkeys(group, grid)
    return widened


def _limits(units: Units, int8: frozenset[int]) -> dict[str, Range]:
    """Return the interval that the Relu or Clip of each unit in int8 cuts its output to."""
    return {
        name: clip_bounds(unit.activation, units.constants)
        for unit in units.all
        if unit.index in int8 and unit.activation is not None
        for name in unit.outputs
    }


def _holds(outer: Range, inner: Range) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _both(one: Range, other: Range) -> Range:
    return max(one[0], other[0]), min(one[1], other[1])


def _read_in_int8(units: Units, chosen: frozenset[int], name: str) -> bool:
    return any(index in chosen and name in units.all[index].inputs for index in units.consumers.get(name, ()))


def _needs_integer_output(unit: Unit) -> bool:
    """A matrix product may answer in float (QGemm, MatMulIntegerToFloat); every other int8 kernel answers in int8."""
    return unit.node.op_type not in ("Gemm", "MatMul")
