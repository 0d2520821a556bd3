"""Scales, zero points and the integers of weights and biases.

Formulas: ONNX operator spec, QuantizeLinear: q = saturate(round(x / scale) + zero_point), round half to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.calibration.observers import Range

# Below this a scale is a denormal in float32 and x / scale overflows.
SMALLEST_SCALE = 1e-30
UNLIMITED: Range = (float("-inf"), float("inf"))


@dataclass(frozen=True)
class Parameters:
    """Per-tensor quantization: real = scale * (integer - zero_point)."""

    scale: np.float32
    zero_point: int
    dtype: str = "uint8"

    @property
    def zero_point_array(self) -> npt.NDArray[Any]:
        """The zero point as ONNX wants it: a scalar of the integer type."""
        return np.array(self.zero_point, dtype=self.dtype)


@dataclass(frozen=True)
class QuantizedWeight:
    """Symmetric integers of a weight tensor, and the scale for each output channel (or one for all).

    Attributes:
        integers: int8, the shape of the weights.
        scale: float32 [channels], or scalar.
        axis: the output-channel axis; meaningless for a scalar scale.
    """

    integers: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    axis: int

    @property
    def real(self) -> npt.NDArray[np.float64]:
        """The weights that the integers stand for, float64."""
        scale = along(self.scale.astype(np.float64), self.integers.ndim, self.axis)
        return np.asarray(self.integers.astype(np.float64) * scale)


def activation_parameters(observed: Range, dtype: str = "uint8", limits: Range = UNLIMITED) -> Parameters:
    """Map ``observed`` (which contains 0) onto the 256 levels of ``dtype``; zero is exact.

    A range that starts at 0 gets the lowest level as zero point. No level lies outside ``limits``, the interval that a
    Relu or Clip before the quantizer cuts to: ONNX Runtime then drops the Relu or Clip.
    """
    low, high = min(observed[0], 0.0), max(observed[1], 0.0)
    scale = np.float32(max((high - low) / 255.0, SMALLEST_SCALE))
    if high == low:
        scale = np.float32(1.0)
    lowest = 0 if dtype == "uint8" else -128
    below = int(np.clip(np.rint(-low / float(scale)), 0, 255))
    for levels, limit in ((below, -limits[0]), (255 - below, limits[1])):
        while levels and levels * scale > np.float32(limit):
            scale = min(np.float32(limit / levels), np.nextafter(scale, np.float32(0)))
    return Parameters(scale, below + lowest, dtype)


def quantize_weight(
    weight: npt.NDArray[Any], axis: int, *, bits: int = 8, per_channel: bool = True, smallest_scale: Any = 0.0
) -> QuantizedWeight:
    """Quantize weights symmetrically to ``bits`` bits.

    Args:
        weight: float weights of any rank.
        axis: output-channel axis.
        bits: 8, or 7 where the CPU would saturate sums of u8*s8 products.
        per_channel: one scale a channel; else one for all.
        smallest_scale: lower bound of the scale, scalar or [channels] (keeps an int32 bias from overflowing).
    """
    largest = (1 << (bits - 1)) - 1
    others = tuple(index for index in range(weight.ndim) if index != axis) if per_channel else None
    peak = np.abs(weight).max(axis=others) if weight.size else np.zeros(weight.shape[axis])
    scale = np.maximum(np.asarray(peak, np.float64) / largest, smallest_scale)
    scale = np.where(scale < SMALLEST_SCALE, 1.0, scale).astype(np.float32)
    integers = np.clip(np.rint(weight / along(scale, weight.ndim, axis)), -largest, largest).astype(np.int8)
    return QuantizedWeight(integers, scale, axis)


def quantize_bias(
    bias: npt.NDArray[Any], input_scale: np.float32, weight_scale: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return int32 bias [channels] and its scale, input scale * weight scale (ONNX operator spec, QLinearConv)."""
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(bias.astype(np.float64) / scale.astype(np.float64)), limits.min, limits.max)
    return integers.astype(np.int32), scale


def smallest_weight_scale(bias: npt.NDArray[Any] | None, input_scale: np.float32) -> npt.NDArray[np.float64] | float:
    """Smallest weight scale for which the bias fits int32 with a margin of two bits."""
    if bias is None:
        return 0.0
    return np.abs(bias.astype(np.float64)) / (float(input_scale) * 2.0**29)


def along(values: npt.NDArray[Any], rank: int, axis: int) -> npt.NDArray[Any]:
    """Reshape per-channel ``values`` so that they broadcast along ``axis`` of a tensor of ``rank``."""
    if values.ndim == 0:
        return values
    shape = [1] * rank
    shape[axis] = values.size
    return values.reshape(shape)
