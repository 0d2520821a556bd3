"""Symmetric quantization of activations: zero point 0, one step on both sides of zero.

TensorRT takes nothing else (NvInfer.h, IQuantizeLayer: zero points are zero). Its scale is the largest magnitude over
127 (README of its sample sampleINT8: 'ABS(max_dynamic_range) / 127.0f'); the level -128 is there, but stands for
nothing that was seen.
"""

from __future__ import annotations

import numpy as np

from graphopt.calibration.observers import OBSERVERS, Range, clipping_error, minmax
from graphopt.calibration.statistics import TensorStatistics
from graphopt.passes.quantize_int8.numbers import SMALLEST_SCALE, Parameters

LARGEST = 127


def symmetric_parameters(observed: Range) -> Parameters:
    """Map ``observed`` onto the levels -127 to 127."""
    extent = max(-observed[0], observed[1])
    scale = max(extent / LARGEST, SMALLEST_SCALE) if extent > 0 else 1.0
    return Parameters(np.float32(scale), 0, "int8")


def symmetric_range(observer: str, seen: TensorStatistics) -> Range:
    """Return the range (-t, t) that ``observer`` chooses for a symmetric quantizer."""
    if observer == "mse":
        extent = _least_error(seen)
    else:
        low, high = OBSERVERS[observer](seen)
        extent = max(-low, high)
    return -extent, extent


def _least_error(seen: TensorStatistics) -> float:
    """Return the t for which rounding inside (-t, t) and clipping outside cost the least squared error together."""
    low, high = minmax(seen)
    extent = max(-low, high)
    error = clipping_error(seen)
    if error is None or extent == 0.0:
        return extent
    tried = [float(extent * share) for share in np.linspace(0.02, 1.0, 197)]
    return min((error(-each, each), each) for each in tried)[1]
