"""The time of one kernel: the longer of computing and moving data, on units that small layers leave idle.

The roofline is that of Williams, Waterman and Patterson (CACM 52(4), 2009); what it is multiplied with says how far
kernels of a kind stay below it (``constants``).
"""

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

_MEMORY = {"normalization": "normalization", "reduction": "normalization", "broadcast": "broadcast",
           "data_movement": "movement", "resize": "movement"}  # fmt: skip
_MATRIX_PRODUCTS = ("fully_connected", "matmul", "recurrent", "attention")
_FILLED_ROWS = 16  # long sums of 2 rows, which no kernel of that time was made for, are slow; to here it gets better
_LONG_SUM = 16384  # AlexNet's products, of 9216 and 4096, do not slow down from 2 rows on; VGG's, of 25088, do
_MANY_ROWS = 32  # from here on a matrix product is cut into tiles as a 1x1 convolution is
_GRADUAL = 0.75  # from idle to busy: the last tiles of large layers leave units idle, too (0.5 to 1.5 were tried)
_MATRIX_UNITS = 4.5  # packed float16 doubles the rate of float32 and dp4a takes it times four; more is tensor cores
_LARGE_WINDOW = 16  # elements; pooling windows above are whole planes
DEFAULT = RuntimeModel(name="datasheet", fused=True, precision="float32", constants=DATASHEET_SET)


@dataclass(frozen=True)
class KernelTime:
    """Microseconds of a kernel.

    Attributes:
        us: on the device; the launch is left out.
        compute_us: what its multiply-adds take.
        memory_us: what its traffic takes.
        launch_us: on the processor, to launch it.
    """

    us: Array
    compute_us: Array
    memory_us: Array
    launch_us: Array


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
    device_of(hardware)
    if name is None:
        return hardware.runtimes[0] if hardware.runtimes else DEFAULT
    found = next((model for model in hardware.runtimes if model.name == name), None)
    if found is None:
        names = ", ".join(model.name for model in hardware.runtimes)
        raise UsageError(f"target '{hardware.name}' has no runtime '{name}'; it has {names or 'none'}")
    return found


def device_of(hardware: Hardware) -> Device:
    """The device's figures; raises UsageError where the target has none."""
    if hardware.device is None:
        raise UsageError(f"target '{hardware.name}' has no device figures: its times are measured, not estimated")
    return hardware.device


def kernel_time(work: KernelWork, hardware: Hardware, fitted: Constants) -> KernelTime:
    """The time of one kernel, or of arrays of candidates of one kind; see ``kernel_us``."""
    device = device_of(hardware)
    launch = _launch_us(work, device, fitted)
    if work.kind == "view":
        return KernelTime(np.zeros_like(launch), np.zeros_like(launch), np.zeros_like(launch), launch)
    if work.kind in PRODUCTS:
        compute, memory = _compute_us(work, hardware, device, fitted), _product_memory_us(work, device, fitted)
    else:
        memory = _moving_us(work, device, fitted)
        compute = np.zeros_like(memory)
    return KernelTime(np.maximum(compute, memory) + fitted["kernel.us"], compute, memory, launch)


def _compute_us(work: KernelWork, hardware: Hardware, device: Device, fitted: Constants) -> Array:
    multiple = _multiple(work, hardware)
    inside, outside = _padding(work, work.in_channels, multiple), _padding(work, work.out_channels, multiple)
    operations = 2 * np.asarray(work.macs, dtype=np.float64) * inside * outside
    if work.kind in _MATRIX_PRODUCTS:
        at_peak = operations / (_peak(work, hardware, device, fitted) * 1e6)
        return _matrix_us(work, at_peak, np.multiply(work.outputs, outside), device, fitted)
    idle = _idle(work, np.multiply(work.outputs, outside), device, fitted)
    narrower = np.minimum(_width(work.in_channels, work) * inside, _width(work.out_channels, work) * outside)
    share = _share(work, fitted, narrower)
    return np.asarray(operations * idle / (_peak(work, hardware, device, fitted) * 1e6 * share))


def _matrix_us(work: KernelWork, at_peak: Array, outputs: Number, device: Device, fitted: Constants) -> Array:
    """The faster of a kernel for few rows and one that cuts the result into tiles, each of which holds many rows."""
    rows = np.maximum(_rows(work), 1)
    filled = np.maximum(rows, _MANY_ROWS + 1) / rows
    tiles = at_peak * filled * _idle(work, outputs * filled, device, fitted) / fitted["compute.pointwise"]
    few = at_peak / fitted["compute.fully_connected"]
    return np.asarray(np.where(rows > _MANY_ROWS, tiles, np.minimum(few, tiles)))


def _multiple(work: KernelWork, hardware: Hardware) -> int:
    """What kernels take channels in multiples of."""
    multiple = hardware.channel_multiple.get(work.precision, 1)
    rules = hardware.int8
    if work.kind != "grouped" or work.precision != "int8" or rules is None or hardware.accelerator:
        return multiple
    return min(multiple, rules.group_multiple) if rules.group_multiple > 1 else multiple


def _width(channels: Number, work: KernelWork) -> Number:
    """Channels of a group."""
    return np.maximum(np.divide(channels, work.groups), 1)


def _peak(work: KernelWork, hardware: Hardware, device: Device, fitted: Constants) -> float:
    """10^12 operations a second that the precision allows; depthwise kernels have no use for tensor cores."""
    precision = work.precision
    if precision == "bfloat16" and hardware.computes_in(precision) and "float16" in device.peak_tops:
        precision = "float16"  # the same units take both
    if precision not in device.peak_tops and precision in ("float16", "bfloat16", "tf32", "float64"):
        precision = "float32"  # computed in float32, stored in the smaller type
    if precision not in device.peak_tops:
        known = ", ".join(device.peak_tops)
        raise UsageError(f"target '{hardware.name}' does not compute in {precision}; it does in {known}")
    if work.kind == "depthwise":
        return min(device.peak_tops.get("float32", device.peak_tops[precision]), device.peak_tops[precision])
    peak = device.peak_tops[precision]
    matrix_units = peak > _MATRIX_UNITS * device.peak_tops.get("float32", peak)
    return peak * fitted["matrix.int8" if precision == "int8" else "matrix.float16"] if matrix_units else peak


def _share(work: KernelWork, fitted: Constants, width: Number) -> Number:
    """Share of the peak that kernels of the kind reach when they are large; ``width`` of groups, with padding."""
    if work.kind == "depthwise":
        return fitted["compute.depthwise"] * np.divide(work.window, np.add(work.window, fitted["small.window"]))
    if work.kind == "grouped":
        return fitted["compute.grouped"] * np.divide(width, np.add(width, fitted["small.group"]))
    if work.kind == "pointwise":
        return fitted["compute.pointwise"]
    square = np.equal(work.window, 9) & np.greater(work.winograd, 0) & np.equal(work.stride, 1)
    saves = square & (work.precision == "float32") & (work.kind == "dense_kxk")
    return np.where(saves, fitted["compute.winograd"], fitted["compute.dense_kxk"])


def _idle(work: KernelWork, outputs: Number, device: Device, fitted: Constants) -> Number:
    """How much longer work takes that is too small to keep every multiprocessor busy; ``outputs`` with padding."""
    small = fitted["small.depthwise" if work.kind == "depthwise" else "small.product"]
    return (1 + (small * device.multiprocessors / np.maximum(outputs, 1.0)) ** _GRADUAL) ** (1 / _GRADUAL)


def _padding(work: KernelWork, channels: Number, multiple: int) -> Number:
    """Channels computed over those asked for, where kernels take them in multiples; depthwise ones do not."""
    if multiple <= 1 or work.kind == "depthwise":
        return 1.0
    width = _width(channels, work)
    return np.asarray(np.ceil(width / multiple) * multiple / width)


def _rows(work: KernelWork) -> Array:
    return np.asarray(np.divide(work.outputs, np.maximum(work.out_channels, 1)), dtype=np.float64)


def _bandwidth(device: Device) -> float:
    """Bytes a microsecond."""
    return device.bandwidth_gb_s * 1e3


def _product_memory_us(work: KernelWork, device: Device, fitted: Constants) -> Array:
    share: Number = fitted["memory.product"]
    if work.kind in _MATRIX_PRODUCTS:
        rows, few, enough = _rows(work), fitted["memory.few_rows"], fitted["memory.fully_connected"]
        filled = np.clip(np.log(np.maximum(rows, 1) / 2) / np.log(_FILLED_ROWS / 2), 0, 1)
        slow = (rows > 1) & np.greater(work.in_channels, _LONG_SUM)
        share = np.where(slow, few * (enough / few) ** filled, enough)
    return np.asarray(np.add(work.activation_bytes, work.weight_bytes) / (_bandwidth(device) * share))


def _moving_us(work: KernelWork, device: Device, fitted: Constants) -> Array:
    traffic = np.asarray(np.add(work.activation_bytes, work.weight_bytes), dtype=np.float64)
    bandwidth = _bandwidth(device)
    if work.kind == "pooling":
        plane = np.greater(work.window, _LARGE_WINDOW)
        share = np.where(plane, fitted["memory.plane_pooling"], fitted["memory.pooling"])
        reads = np.where(plane, 0.0, np.multiply(work.outputs, work.window) * 4 / (bandwidth * fitted["cache.pooling"]))
        return np.asarray(traffic / (bandwidth * share) + reads)
    return traffic / (bandwidth * fitted[f"memory.{_MEMORY.get(work.kind, 'elementwise')}"])


def _launch_us(work: KernelWork, device: Device, fitted: Constants) -> Array:
    product = fitted["launch.product_us"] or device.launch_us
    name = work.kind if work.kind in ("normalization", "bias", "view") else "other"
    share: Number = 1.0 if work.kind in PRODUCTS else fitted[f"launch.{name}"]
    groups = np.multiply(work.groups, fitted["launch.group"]) if work.kind == "grouped" else 0.0
    return np.asarray(product * np.multiply(np.add(share, groups), work.launches), dtype=np.float64)
