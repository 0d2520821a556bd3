"""The time of one kernel: the longer of computing and moving data, on units that small layers leave idle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import UsageError
from graphopt.latency.constants import DATASHEET_SET, Constants, constants
from graphopt.latency.work import PRODUCTS, KernelWork, Number
from graphopt.targets.schema import Device, Hardware, RuntimeModel

Array = npt.NDArray[np.float64]

_COMPUTE = {"transposed": "dense_kxk", "matmul": "fully_connected", "recurrent": "fully_connected",
            "attention": "fully_connected"}  # fmt: skip
_MEMORY = {"normalization": "normalization", "broadcast": "broadcast", "pooling": "pooling",
           "data_movement": "movement", "resize": "movement", "reduction": "normalization"}  # fmt: skip
DEFAULT = RuntimeModel(name="datasheet", fused=True, precision="float32", constants=DATASHEET_SET)


@dataclass(frozen=True)
class KernelTime:
    """Microseconds on the device, the launch left out.

    Attributes:
        us: the whole, the larger of the two others.
        compute_us: what its multiply-adds take.
        memory_us: what its traffic takes.
    """

    us: Array
    compute_us: Array
    memory_us: Array


def kernel_us(work: KernelWork, hardware: Hardware, runtime: RuntimeModel | str | None = None) -> Any:
    """Microseconds that a kernel takes on the device, the launch left out.

    Args:
        work: one kernel, or arrays of candidates.
        hardware: facts about the target; needs a ``device``.
        runtime: one of ``hardware.runtimes`` or its name; by default the first.

    Returns:
        A float, or an array of the shape that the figures of ``work`` broadcast to.

    Raises:
        UsageError: the target has no device figures or no such runtime, or does not compute in that precision.
    """
    model = runtime if isinstance(runtime, RuntimeModel) else runtime_of(hardware, runtime)
    us = kernel_time(work, hardware, constants(model.constants, model.latency)).us
    return us if us.ndim else float(us)


def runtime_of(hardware: Hardware, name: str | None = None) -> RuntimeModel:
    """The runtime of that name, or the first; raises UsageError where the target has none."""
    if hardware.device is None:
        raise UsageError(f"target '{hardware.name}' has no device figures: its times are measured, not estimated")
    if name is None:
        return hardware.runtimes[0] if hardware.runtimes else DEFAULT
    found = next((model for model in hardware.runtimes if model.name == name), None)
    if found is None:
        names = ", ".join(model.name for model in hardware.runtimes)
        raise UsageError(f"target '{hardware.name}' has no runtime '{name}'; it has {names or 'none'}")
    return found


def kernel_time(work: KernelWork, hardware: Hardware, fitted: Constants) -> KernelTime:
    """The time of one kernel, or of arrays of candidates of one kind; see ``kernel_us``."""
    device = _device(hardware)
    traffic = np.asarray(work.activation_bytes, dtype=np.float64)
    weights = np.asarray(work.weight_bytes, dtype=np.float64)
    gigabytes = device.bandwidth_gb_s * 1e3  # bytes a microsecond
    if work.kind in PRODUCTS:
        memory = traffic / (gigabytes * fitted["memory.product"]) + weights / (gigabytes * fitted["memory.weights"])
        compute = _compute_us(work, hardware, device, fitted)
    else:
        share = fitted[f"memory.{_MEMORY.get(work.kind, 'elementwise')}"]
        memory = (traffic + weights) / (gigabytes * share)
        compute = np.zeros_like(memory)
    return KernelTime(np.maximum(compute, memory), compute, memory)


def _compute_us(work: KernelWork, hardware: Hardware, device: Device, fitted: Constants) -> Array:
    if work.precision not in device.peak_tops:
        known = ", ".join(device.peak_tops)
        raise UsageError(f"target '{hardware.name}' does not compute in {work.precision}; it does in {known}")
    multiple = hardware.channel_multiple.get(work.precision, 1)
    padded = _padding(work, multiple)
    kind = _COMPUTE.get(work.kind, work.kind)
    share: Number = fitted[f"compute.{kind}"]
    if work.kind == "dense_kxk":
        winograd = np.equal(work.window, 9) & np.equal(work.stride, 1)
        share = np.where(winograd, fitted["compute.dense_3x3"], fitted["compute.dense_kxk"])
    busy = np.asarray(work.outputs, dtype=np.float64) / device.multiprocessors
    idle = 1 + fitted["small.outputs"] / np.maximum(busy, 1e-9)
    return np.asarray(2 * work.macs * padded * idle / (device.peak_tops[work.precision] * 1e6 * share))


def _padding(work: KernelWork, multiple: int) -> Number:
    """Multiply-adds done over those asked for, where kernels take channels in multiples; depthwise ones do not."""
    if multiple <= 1 or work.kind == "depthwise":
        return 1.0
    inside = np.maximum(np.divide(work.in_channels, work.groups), 1)
    outside = np.maximum(np.divide(work.out_channels, work.groups), 1)
    return np.asarray(np.ceil(inside / multiple) * np.ceil(outside / multiple) * multiple**2 / (inside * outside))


def _device(hardware: Hardware) -> Device:
    if hardware.device is None:
        raise UsageError(f"target '{hardware.name}' has no device figures: its times are measured, not estimated")
    return hardware.device
