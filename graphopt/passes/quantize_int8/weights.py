"""Weights and biases of heavy units, and how they round."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from graphopt.passes.quantize_int8.numbers import QuantizedWeight, quantize_weight, smallest_weight_scale
from graphopt.passes.quantize_int8.units import Unit, Units
from graphopt.targets.schema import Int8Rules


def unit_bias(unit: Unit, units: Units) -> npt.NDArray[np.float64] | None:
    """Return the bias of a Conv or Gemm as float64 [channels], or None."""
    if unit.node.op_type not in ("Conv", "Gemm") or len(unit.node.input) < 3 or not unit.node.input[2]:
        return None
    return numpy_helper.to_array(units.constants[unit.node.input[2]]).astype(np.float64).reshape(-1)


def output_axis(unit: Unit) -> int:
    """Return the axis of the weights of a heavy unit that counts output channels."""
    if unit.node.op_type == "Conv":
        return 0
    if unit.node.op_type == "Gemm":
        return 0 if any(found.name == "transB" and found.i for found in unit.node.attribute) else 1
    return 1


def quantized_weight(
    unit: Unit,
    units: Units,
    rules: Int8Rules,
    input_scale: np.float32,
    bias: npt.NDArray[np.float64] | None,
) -> QuantizedWeight:
    """Round the weights of a heavy unit to nearest.

    A ConvTranspose has one scale for all its weights: TensorRT takes scales by input channel there, other runtimes by
    output channel (NVIDIA/TensorRT#2380: 'We don't support per-output-channel quant for ConvTranspose').
    """
    values = numpy_helper.to_array(units.constants[unit.node.input[1]])
    floor = smallest_weight_scale(bias, input_scale) if rules.quantize_bias else 0.0
    per_channel = rules.per_channel and unit.node.op_type != "ConvTranspose"
    return quantize_weight(
        values,
        output_axis(unit),
        bits=rules.weight_bits,
        per_channel=per_channel,
        smallest_scale=floor if per_channel else np.max(floor),
    )
