"""What a kernel has to do: the numbers that its time on a device is computed from.

Made from a graph by ``graphopt.latency.kernels``, or by hand where a pass asks what a layer would cost if it had other
channels. All figures may be NumPy arrays that broadcast together: thousands of candidates are priced in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Number: TypeAlias = float | npt.NDArray[np.float64] | npt.NDArray[np.int64]

BYTES = {"float64": 8, "float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}

# Kinds of work of ``graph.cost.kinds`` that multiply matrices; all others only move data.
PRODUCTS = (
    "dense_kxk", "pointwise", "grouped", "depthwise", "transposed", "fully_connected", "matmul", "recurrent",
    "attention",
)  # fmt: skip


@dataclass(frozen=True)
class KernelWork:
    """The work of one kernel, for the whole batch.

    Attributes:
        kind: kind of work, as ``graph.cost.kinds`` names it, or ``broadcast`` for an elementwise operator that
            stretches an operand.
        precision: data type that it computes in: a key of ``Device.peak_tops``.
        macs: multiply-adds.
        outputs: elements written.
        activation_bytes: bytes of computed tensors, read and written.
        weight_bytes: bytes of constants read.
        in_channels: channels read, of all groups.
        out_channels: channels written, of all groups.
        groups: groups of channels.
        window: elements of the kernel's window (9 for 3x3).
        stride: product of the strides.
        winograd: 0 where Winograd's trick does not help a window of 9 elements: dilated ones, 1x9, transposed.
        launches: kernels that the runtime launches for it.
    """

    kind: str
    precision: str = "float32"
    macs: Number = 0.0
    outputs: Number = 0.0
    activation_bytes: Number = 0.0
    weight_bytes: Number = 0.0
    in_channels: Number = 1.0
    out_channels: Number = 1.0
    groups: Number = 1.0
    window: Number = 1.0
    stride: Number = 1.0
    winograd: Number = 1.0
    launches: Number = 1.0


def convolution(
    in_channels: Number,
    out_channels: Number,
    *,
    kernel: tuple[int, ...] = (3, 3),
    strides: tuple[int, ...] = (1, 1),
    groups: Number = 1,
    out_size: tuple[int, ...],
    batch: int = 1,
    precision: str = "float32",
    out_precision: str | None = None,
) -> KernelWork:
    """The work of a convolution with its bias, activation included where the runtime fuses it.

    Args:
        in_channels: input channels of all groups.
        out_channels: output channels of all groups.
        kernel: window, an integer for each spatial axis.
        strides: step for each spatial axis.
        groups: groups; equal to ``in_channels`` for a depthwise convolution.
        out_size: spatial size of the output.
        batch: samples.
        precision: data type of inputs and weights.
        out_precision: data type of the output; by default ``precision``, but int8 layers write float16.
    """
    window, stride, pixels = int(np.prod(kernel)), int(np.prod(strides)), int(np.prod(out_size))
    written = out_precision or ("float16" if precision == "int8" else precision)
    out_elements = np.asarray(out_channels, dtype=np.float64) * (batch * pixels)
    in_elements = np.asarray(in_channels, dtype=np.float64) * (batch * pixels * stride)
    weights = np.asarray(in_channels, dtype=np.float64) / groups * out_channels * window
    return KernelWork(
        kind=convolution_kind(in_channels, groups, window),
        precision=precision,
        macs=weights * (batch * pixels),
        outputs=out_elements,
        activation_bytes=in_elements * BYTES[precision] + out_elements * BYTES[written],
        weight_bytes=weights * BYTES[precision],
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
        window=window,
        stride=stride,
        winograd=float(tuple(kernel) == (3, 3)),
    )


def convolution_kind(in_channels: Number, groups: Number, window: int) -> str:
    """Kind of a convolution, as ``graph.cost.kinds``; one for all candidates."""
    if np.all(np.equal(groups, 1)):
        return "pointwise" if window == 1 else "dense_kxk"
    return "depthwise" if np.all(np.equal(groups, in_channels)) else "grouped"


def fully_connected(
    in_features: Number,
    out_features: Number,
    *,
    rows: int = 1,
    precision: str = "float32",
    out_precision: str | None = None,
) -> KernelWork:
    """The work of a product with a constant matrix; ``rows`` is the batch (times the length of sequences)."""
    written = out_precision or ("float16" if precision == "int8" else precision)
    weights = np.asarray(in_features, dtype=np.float64) * out_features
    read = np.asarray(in_features, dtype=np.float64) * rows
    outputs = np.asarray(out_features, dtype=np.float64) * rows
    return KernelWork(
        kind="fully_connected",
        precision=precision,
        macs=weights * rows,
        outputs=outputs,
        activation_bytes=read * BYTES[precision] + outputs * BYTES[written],
        weight_bytes=weights * BYTES[precision],
        in_channels=in_features,
        out_channels=out_features,
    )


def movement(read: Number, written: Number, *, kind: str = "elementwise", precision: str = "float32") -> KernelWork:
    """The work of an operator that only moves data: elements read and elements written."""
    traffic = (np.asarray(read, dtype=np.float64) + written) * BYTES[precision]
    return KernelWork(kind=kind, precision=precision, outputs=written, activation_bytes=traffic)
