"""int8 without Q/DQ: the graph stays in float, and a file beside it tells the scale of every tensor.

TensorRT before 8.0 reads no Q/DQ, and a deep learning accelerator none before TensorRT 10: they round by themselves
whatever has a scale ('implicit quantization'). What they answer is simulated by a twin with Q/DQ on every tensor,
except inside what is fused (a convolution and its activation).

A unit is kept in float by leaving its answer without a scale: 'Missing scale and zero-point for tensor ..., expect
fall back to non-int8 implementation for any layer consuming or producing given tensor' (a message of TensorRT's
builder). So the units that read it are in float too; their own answers may have scales again.

The file is a TensorRT calibration cache (README of TensorRT's sample sampleINT8, 'Calibration file'): a line with the
version and the algorithm, then one line for each tensor with the bits of its float32 scale, largest magnitude / 127, as
a hexadecimal number. ``trtexec --int8 --calib=FILE`` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx

from graphopt.calibration.observers import Range
from graphopt.errors import UsageError
from graphopt.passes.quantize_int8 import explicit, scales
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.sensitivity import NoiseGroup
from graphopt.passes.quantize_int8.symmetric import symmetric_parameters
from graphopt.passes.quantize_int8.units import Role, Unit, Units, find_units
from graphopt.targets.schema import Hardware, Int8Rules

# Takes the place of ``.onnx`` in the model's file name.
ENDING = ".calibration"


def implicit_units(model: onnx.ModelProto, dtypes: Mapping[str, int], rules: Int8Rules) -> Units:
    """Cut ``model`` into units; a ConvTranspose has an int8 form as well."""
    units = find_units(model, dtypes)
    return replace(units, all=tuple(explicit.as_transposed(unit, units, dtypes, rules) for unit in units.all))


def blinded(units: Units, unseen: Collection[str]) -> Units:
    """Return ``units`` in which those that touch a tensor whose values are not known are in float."""
    reason = "its tensors are not float32 at run time, or hold NaN or infinity"
    return replace(
        units,
        all=tuple(
            replace(unit, role=Role.FLOAT, inputs=(), reason=reason)
            if unit.role is not Role.FLOAT and not set(unseen).isdisjoint((*unit.inputs, *unit.outputs))
            else unit
            for unit in units.all
        ),
    )


def without_scale(units: Units, int8: Iterable[int]) -> tuple[frozenset[str], frozenset[int]]:
    """Return the tensors without a scale that keep all other units in float, and the units that are then in int8.

    What a unit in float answers has no scale, unless another tensor without one keeps it in float already and somebody
    wants its answer in int8.
    """
    wanted = {index for index in int8 if units.all[index].role is not Role.FLOAT}
    chosen = set(wanted)

    def asked(name: str) -> bool:
        return any(index in wanted for index in units.consumers.get(name, ()))

    missing = {name for name in units.graph_inputs if not asked(name)}
    for unit in units.all:
        fallen = not missing.isdisjoint(unit.inputs)
        if fallen:
            chosen.discard(unit.index)
        if unit.index not in chosen:
            free = fallen or unit.role is Role.FLOAT
            missing.update(name for name in unit.outputs if not (free and asked(name)))
    return frozenset(missing), frozenset(chosen)


def edges(units: Units, int8: Iterable[int], *, answers: bool) -> dict[str, tuple[int, ...]]:
    """Return the tensors that are rounded, in graph order, and the units that read them.

    Args:
        units: the graph.
        int8: units in int8.
        answers: whether the model's answers are rounded as well.
    """
    missing, _ = without_scale(units, int8)
    touched: dict[str, None] = {}
    for unit in units.all:
        if unit.role is not Role.FLOAT:
            touched.update(dict.fromkeys((*unit.inputs, *unit.outputs)))
    ordered = [*units.graph_inputs, *(name for unit in units.all for name in unit.outputs)]
    found = {}
    for name in dict.fromkeys(ordered):
        if name in touched and name not in missing:
            readers = units.consumers.get(name, ())
            if readers or (answers and name in units.graph_outputs):
                found[name] = readers
    return found


def place(
    units: Units, int8: frozenset[int], ranges: Mapping[str, Range], rules: Int8Rules, hardware: Hardware
) -> Placement:
    """Give every rounded tensor its scale."""
    names = list(edges(units, int8, answers=bool(hardware.accelerator)))
    joined = _joined(units, int8, names, rules, hardware)
    widest = scales.shared({name: ranges[name] for name in names}, joined)
    return Placement(int8, {name: symmetric_parameters(found) for name, found in widest.items()}, {}, {})


def clashes(
    units: Units, int8: frozenset[int], ranges: Mapping[str, Range], rules: Int8Rules, hardware: Hardware
) -> dict[int, float]:
    """Return the units whose answer must take a scale far too wide for it, with the share of levels left."""
    names = list(edges(units, int8, answers=bool(hardware.accelerator)))
    narrow = scales.narrow({name: ranges[name] for name in names}, _joined(units, int8, names, rules, hardware))
    makers = {units.producer[name]: share for name, share in narrow.items() if name in units.producer}
    return {index: share for index, share in makers.items() if index in int8}


def _joined(
    units: Units, int8: frozenset[int], names: list[str], rules: Int8Rules, hardware: Hardware
) -> scales.Groups:
    joined = scales.groups(units, names, concats=rules.shared_concat_scale)
    if hardware.accelerator:
        # 'int8 input ranges of the two operands must be equal' for a sum (NvInfer.h, restrictions of the DLA).
        for unit in units.all:
            if unit.node.op_type == "Add" and unit.index in int8:
                joined.join(unit.inputs)
    return joined


def noise_groups(units: Units) -> list[NoiseGroup]:
    """Return the rounded tensors; what a unit answers is spared if it is in float, anything else if its readers are."""
    able = frozenset(unit.index for unit in units.all if unit.role is not Role.FLOAT)
    groups = []
    for name, readers in edges(units, able, answers=False).items():
        maker = units.producer.get(name)
        touching = frozenset({maker}) if maker is not None and maker in able else able.intersection(readers)
        groups.append(NoiseGroup((name,), touching))
    return groups


def calibration_cache(units: Units, placed: Placement, names: Iterable[str], hardware: Hardware) -> bytes:
    """Return a TensorRT calibration cache.

    Args:
        units: the graph.
        placed: scales of tensors.
        names: tensors of the model that the cache goes with; others are left out.
        hardware: for the version of TensorRT, which must be the one that reads the cache.

    Raises:
        UsageError: the version is not known.
    """
    wanted = frozenset(names)
    lines = [f"TRT-{_version(hardware)}-EntropyCalibration2"]
    found = {name: np.float32(parameters.scale) for name, parameters in placed.parameters.items()}
    for unit in units.all:
        # What lies between a layer and its activation is not kept in memory, but a scale is looked for.
        found |= {name: found[unit.outputs[0]] for name in _inside(unit) if unit.outputs[0] in found}
    order = [*units.graph_inputs, *(name for unit in units.all for node in unit.nodes for name in node.output)]
    lines += [f"{name}: {_bits(found[name])}" for name in order if name in found and name in wanted]
    return ("\n".join(lines) + "\n").encode()


def _inside(unit: Unit) -> tuple[str, ...]:
    return (unit.node.output[0],) if unit.activation is not None else ()


def _bits(scale: np.float32) -> str:
    return np.array(scale, ">f4").tobytes().hex()


def _version(hardware: Hardware) -> int:
    """Return TensorRT's version as one number: 8502 for 8.5.2, 100300 for 10.3.0 (NvInferVersion.h)."""
    numbers = re.fullmatch(r"(\d+)\.(\d+)(?:\.(\d+))?(?:\..*)?", hardware.runtime_version)
    if numbers is None:
        raise UsageError(
            f"the target {hardware.name} takes int8 by a calibration cache, which names the version of TensorRT; "
            f"its profile's runtime_version is '{hardware.runtime_version}'"
        )
    major, minor, patch = (int(number or 0) for number in numbers.groups())
    return major * 10000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch
