"""Bias correction: make up for the shift that rounded weights put into the mean of a channel.

Rounding the weights W to Wq shifts the mean of output channel o by sum_i (Wq - W)[o, i] * E[x_i], E[x_i] being the
mean of input channel i, seen in calibration (M. Nagel et al., 'Data-Free Quantization Through Weight Equalization and
Bias Correction', arXiv 1906.04721, section 4.2). The correction is local to the layer, so that corrections do not
count the same shift twice; at padded borders, where some inputs are zero, it is an approximation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from graphopt.calibration.statistics import TensorStatistics
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.units import Role, Unit, Units
from graphopt.passes.quantize_int8.weights import output_axis, quantized_weight, unit_bias
from graphopt.targets.schema import Int8Rules


def corrected_biases(
    units: Units,
    placement: Placement,
    statistics: Mapping[str, TensorStatistics],
    rules: Int8Rules,
) -> dict[int, npt.NDArray[np.float64]]:
    """Return the corrected bias, float64 [output channels], of every Conv and Gemm in int8 whose input was observed."""
    corrected = {}
    for index in sorted(placement.int8):
        unit = units.all[index]
        if unit.role is not Role.HEAVY or unit.node.op_type not in ("Conv", "Gemm"):
            continue
        observed = statistics.get(unit.inputs[0])
        mean = observed.channel_mean if observed is not None else None
        shift = mean_shift(unit, units, placement, mean, rules) if mean is not None else None
        if shift is None:
            continue
        bias = unit_bias(unit, units)
        corrected[index] = (np.zeros_like(shift) if bias is None else bias) - shift
    return corrected


def mean_shift(
    unit: Unit,
    units: Units,
    placement: Placement,
    mean: npt.NDArray[np.float64],
    rules: Int8Rules,
) -> npt.NDArray[np.float64] | None:
    """Return the shift of each output channel's mean, [output channels]; None where the channels do not fit."""
    weight = numpy_helper.to_array(units.constants[unit.node.input[1]]).astype(np.float64)
    scale = placement.parameters[unit.inputs[0]].scale
    rounded = placement.weights.get(unit.index) or quantized_weight(unit, units, rules, scale, unit_bias(unit, units))
    difference = rounded.real - weight
    if unit.node.op_type == "Gemm":
        difference = difference if output_axis(unit) == 0 else difference.T
        return np.asarray(difference @ mean) if difference.shape[1] == mean.size else None
    by_channel = difference.reshape(difference.shape[0], difference.shape[1], -1).sum(axis=2)
    groups = next((int(found.i) for found in unit.node.attribute if found.name == "group"), 1)
    if by_channel.shape[1] * groups != mean.size:
        return None
    grouped = by_channel.reshape(groups, -1, by_channel.shape[1])
    return np.asarray(np.einsum("goi,gi->go", grouped, mean.reshape(groups, -1)).reshape(-1))
