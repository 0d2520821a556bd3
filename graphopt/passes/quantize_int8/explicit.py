"""Which operators run in int8, and which edges carry Q/DQ, where a runtime reads precisions off Q/DQ nodes and fuses.

::

    x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> Conv ──────> Add -> Relu -> y
                                └────> Q -> DQ (the same) ──┘
    weights -> Q -> DQ ──┘  bias in float

Q/DQ stand on what integer kernels read, never on what they write: what follows a convolution (normalization,
activation, residual addition) runs inside its kernel, and a quantizer between would part the two. TensorRT documents
the placement (TensorRT repository v10.3.0, tools/tensorflow-quantization, basics.md: 'NVIDIA recipe').

A tensor has one pair of Q and DQ, whoever reads it; readers in float read the tensor itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx

from graphopt.calibration.observers import Range
from graphopt.graph import infer_types
from graphopt.passes.quantize_int8 import scales
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.residual import Residual, residuals, spreads
from graphopt.passes.quantize_int8.sensitivity import NoiseGroup
from graphopt.passes.quantize_int8.symmetric import symmetric_parameters
from graphopt.passes.quantize_int8.units import FLOAT_DOMAINS, QUANTIZED_ALREADY, Role, Unit, Units, find_units
from graphopt.targets.schema import Int8Rules

POOLS = ("AveragePool", "GlobalAveragePool")


def explicit_units(model: onnx.ModelProto, dtypes: Mapping[str, int], rules: Int8Rules) -> Units:
    """Cut ``model`` into units, with an int8 form for what ``rules`` name.

    Residual additions that can run inside a convolution are elementwise units that read the skip; all other elementwise
    operators are float units, for they run inside other kernels or between two anyway.
    """
    units = find_units(model, dtypes)
    units = replace(units, all=tuple(_as_ruled(unit, units, dtypes, rules) for unit in units.all))
    additions = residuals(units)
    if additions:
        shapes = {name: found.shape for name, found in infer_types(model).items() if found.shape is not None}
        additions = {index: each for index, each in additions.items() if not spreads(units, each, shapes)}
    return replace(units, all=tuple(_joined(unit, additions.get(unit.index), rules) for unit in units.all))


def _as_ruled(unit: Unit, units: Units, dtypes: Mapping[str, int], rules: Int8Rules) -> Unit:
    operator = unit.node.op_type
    if operator == "ConvTranspose":
        return as_transposed(unit, units, dtypes, rules)
    if unit.role is Role.ELEMENTWISE and operator != "Add" and not (operator in POOLS and _named(operator, rules)):
        return replace(unit, role=Role.FLOAT, inputs=())
    return unit


def _named(operator: str, rules: Int8Rules) -> bool:
    return not rules.quantized_operators or operator in rules.quantized_operators


def _joined(unit: Unit, addition: Residual | None, rules: Int8Rules) -> Unit:
    if unit.role is not Role.ELEMENTWISE or unit.node.op_type != "Add":
        return unit
    if addition is None:
        return replace(unit, role=Role.FLOAT, inputs=())
    return replace(unit, inputs=(addition.skip,) if rules.residual_inputs == "skip" else unit.inputs)


def as_transposed(unit: Unit, units: Units, dtypes: Mapping[str, int], rules: Int8Rules) -> Unit:
    """Return a ConvTranspose of constant weights with an int8 form, if the rules name it; other units as they are."""
    node = unit.node
    if node.op_type != "ConvTranspose" or node.domain not in FLOAT_DOMAINS or not _named(node.op_type, rules):
        return unit
    weight = units.constants.get(node.input[1])
    makers = (units.producer.get(name) for name in node.input)
    if any(index is not None and units.all[index].node.op_type == "DequantizeLinear" for index in makers):
        reason = QUANTIZED_ALREADY
    elif node.input[0] in units.constants:
        reason = "its input is constant"
    elif weight is None:
        reason = "its weights are computed at run time"
    elif weight.data_type != onnx.TensorProto.FLOAT or dtypes.get(node.input[0], weight.data_type) != weight.data_type:
        reason = "its weights are not float32"
    else:
        return replace(unit, role=Role.HEAVY, inputs=(node.input[0],), reason="")
    return replace(unit, reason=reason)


def refused(units: Units, rules: Int8Rules) -> dict[int, str]:
    """Return the layers that the rules leave in float, and why."""
    heavy = [unit for unit in units.all if unit.role is Role.HEAVY]
    reasons = {unit.index: _why_not(unit, units, rules) for unit in heavy}
    return {index: reason for index, reason in reasons.items() if reason}


def _why_not(unit: Unit, units: Units, rules: Int8Rules) -> str:
    """Say why the rules leave a layer in float; empty where they do not."""
    if not _named(unit.node.op_type, rules):
        return f"{unit.node.op_type} does not run in int8 on the target"
    if unit.node.op_type not in ("Conv", "ConvTranspose"):
        return ""
    read, written, groups = channels(unit, units)
    least = min(read, written)
    if least < rules.minimum_channels:
        return f"it has {least} channels on one side; fewer than {rules.minimum_channels} gain nothing in int8 there"
    multiple = rules.group_multiple
    if groups > 1 and (read // groups % multiple or written // groups % multiple):
        return (
            f"its groups of {read // groups} and {written // groups} channels are no multiples of {multiple}, which "
            "grouped int8 kernels need"
        )
    return ""


def channels(unit: Unit, units: Units) -> tuple[int, int, int]:
    """Return input channels, output channels and groups of a Conv or ConvTranspose with constant weights."""
    first, second = units.constants[unit.node.input[1]].dims[:2]
    groups = next((int(found.i) for found in unit.node.attribute if found.name == "group"), 1)
    if unit.node.op_type == "Conv":
        return int(second) * groups, int(first), groups
    return int(first), int(second) * groups, groups


def settled(units: Units, int8: Iterable[int]) -> frozenset[int]:
    """Return ``int8`` with the residual additions that follow: those inside a convolution in int8, and no others."""
    chosen = frozenset(int8)
    additions = residuals(units)
    follow = {
        index
        for index, addition in additions.items()
        if addition.convolution in chosen and units.all[index].role is Role.ELEMENTWISE
    }
    return frozenset(index for index in chosen if units.all[index].node.op_type != "Add") | follow


def deciding(units: Units, indexes: Iterable[int]) -> frozenset[int]:
    """Return ``indexes``, residual additions replaced by the convolutions that they run in."""
    additions = residuals(units)
    return frozenset(additions[index].convolution if index in additions else index for index in indexes)


def edges(units: Units, int8: Iterable[int]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that carry Q/DQ, in graph order, and the units that read them quantized."""
    readers: dict[str, list[int]] = {}
    for index in sorted(int8):
        unit = units.all[index]
        if unit.role in (Role.HEAVY, Role.ELEMENTWISE):
            for name in dict.fromkeys(unit.inputs):
                readers.setdefault(name, []).append(index)
    ordered = [*units.graph_inputs, *(name for unit in units.all for name in unit.outputs)]
    return {name: tuple(readers[name]) for name in dict.fromkeys(ordered) if name in readers}


def place(
    units: Units,
    int8: Iterable[int],
    ranges: Mapping[str, Range],
    rules: Int8Rules,
) -> Placement:
    """Give every tensor that carries Q/DQ its scale."""
    chosen = frozenset(int8)
    names = list(edges(units, chosen))
    joined = scales.groups(units, names, concats=rules.shared_concat_scale)
    widest = scales.shared({name: ranges[name] for name in names}, joined)
    parameters = {name: symmetric_parameters(found) for name, found in widest.items()}
    return Placement(chosen, parameters, {}, {})


def clashes(units: Units, int8: Iterable[int], ranges: Mapping[str, Range], rules: Int8Rules) -> dict[int, float]:
    """Return the units that would read a tensor in a scale far too wide for it, with the share of levels left."""
    quantized = edges(units, int8)
    joined = scales.groups(units, quantized, concats=rules.shared_concat_scale)
    narrow = scales.narrow({name: ranges[name] for name in quantized}, joined)
    return {index: share for name, share in narrow.items() for index in deciding(units, quantized[name])}


def noise_groups(units: Units) -> list[NoiseGroup]:
    """Return the tensors that units with an int8 form read."""
    able = [unit.index for unit in units.all if unit.role in (Role.HEAVY, Role.ELEMENTWISE)]
    return [NoiseGroup((name,), deciding(units, readers)) for name, readers in edges(units, able).items()]
