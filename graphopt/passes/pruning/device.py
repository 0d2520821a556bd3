"""Nanoseconds of kernels on a device that is not at hand, by the latency model (docs/latency.md).

What a runtime that fuses runs inside other kernels costs nothing here. Each kernel takes the better of its times in
float, in the type that the target computes float in, and in int8 where that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.latency import KernelWork, kernel_us
from graphopt.latency.roofline import runtime_of
from graphopt.latency.work import BYTES, convolution_kind
from graphopt.latency.work import movement as movement_work
from graphopt.passes.pruning.kernels import Convolution
from graphopt.passes.pruning.sizes import Counts, Sizes
from graphopt.passes.quantize_int8.prices import float_precision
from graphopt.targets.schema import Hardware

Floats: TypeAlias = npt.NDArray[np.float64]

_NANOSECONDS = 1e3
# Operators that a runtime which fuses runs inside the kernel before them.
_FUSED = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sum", "HardSigmoid", "HardSwish", "Gelu", "Elu", "PRelu", "Max", "Min"}
)


def convolution_time(work: Convolution, read: Counts, transposed: bool, hardware: Hardware, int8: bool) -> Floats:
    """Time of a convolution; ``read``: elements of its input."""
    written = np.asarray(work.pixels * work.outside, dtype=np.float64)
    if work.depthwise:
        kind = "depthwise"
    elif transposed:
        kind = "transposed"
    else:
        kind = convolution_kind(work.inside, work.blocks, work.taps)
    groups = np.asarray(work.inside if work.depthwise else work.blocks, dtype=np.float64)
    weights = np.asarray(work.taps * work.inside * work.outside / groups, dtype=np.float64)
    one = KernelWork(
        kind=kind,
        macs=work.macs,
        outputs=written,
        in_channels=np.asarray(work.inside, dtype=np.float64),
        out_channels=np.asarray(work.outside, dtype=np.float64),
        groups=groups,
        window=float(work.taps),
        stride=np.maximum(np.round(read / np.maximum(work.inside * work.pixels, 1)), 1.0),
    )
    return _better(one, read + written, weights, hardware, int8 and not transposed and not work.depthwise)


def product_time(
    summed: Counts, elements: Counts, wide: Counts, constant: bool, hardware: Hardware, int8: bool
) -> Floats:
    """Time of a matrix product.

    Args:
        summed: length of the axis that is summed over.
        elements: of the result.
        wide: length of its last axis.
        constant: whether one of the matrices is.
        hardware: the target.
        int8: whether it may run in int8.
    """
    rows = elements / np.maximum(wide, 1)
    one = KernelWork(
        kind="fully_connected" if constant else "matmul",
        macs=np.asarray(elements * summed, dtype=np.float64),
        outputs=np.asarray(elements, dtype=np.float64),
        in_channels=np.asarray(summed, dtype=np.float64),
        out_channels=np.asarray(wide, dtype=np.float64),
    )
    moved = np.asarray(rows * summed + elements, dtype=np.float64)
    weights = np.asarray(summed * wide, dtype=np.float64)
    return _better(one, moved, weights, hardware, int8 and constant)


def movement_time(moved: Sequence[Sizes], operator: str, hardware: Hardware) -> Callable[[Sequence[Counts]], Floats]:
    """Time of an operator that moves data, for the channels removed."""
    runtime = runtime_of(hardware)
    precision = float_precision(hardware)

    def time(removed: Sequence[Counts]) -> Floats:
        if runtime.fused and operator in _FUSED:
            return np.zeros(())
        elements = [np.asarray(each.elements(removed), dtype=np.float64) for each in moved]
        written = elements[-1]
        read = np.asarray(sum(elements[:-1], np.zeros(())))
        return np.asarray(_NANOSECONDS * kernel_us(movement_work(read, written, precision=precision), hardware))

    return time


def _better(one: KernelWork, elements: Floats, weights: Floats, hardware: Hardware, int8: bool) -> Floats:
    """The better of the times in float and in int8."""
    found = _in_precision(one, float_precision(hardware), elements, weights, hardware)
    rules = hardware.int8
    if not int8 or rules is None or hardware.device is None or "int8" not in hardware.device.peak_tops:
        return found
    narrow = np.minimum(one.in_channels, one.out_channels) < rules.minimum_channels
    return np.asarray(
        np.where(narrow, found, np.minimum(found, _in_precision(one, "int8", elements, weights, hardware)))
    )


def _in_precision(one: KernelWork, precision: str, elements: Floats, weights: Floats, hardware: Hardware) -> Floats:
    size = BYTES[precision]
    sized = replace(one, precision=precision, activation_bytes=elements * size, weight_bytes=weights * size)
    return np.asarray(_NANOSECONDS * kernel_us(sized, hardware), dtype=np.float64)
