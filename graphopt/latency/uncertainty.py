"""How far an estimate may be off: the standard deviation of log(measured / estimated).

What was measured is quoted from ``benchmarks/results/latency.md``; what nobody could measure here is a judgement, and
said to be one. Independent causes add up in squares.
"""

from __future__ import annotations

from collections.abc import Collection
from math import sqrt

from graphopt.latency.constants import Constants
from graphopt.targets.schema import Device, Hardware, RuntimeModel

# Measured: nets of families that the constants were not fitted on, same device and runtime.
FITTED = 0.16
# Measured: the same constants on the other device, with its data sheet and the launch cost of its processor.
OTHER_DEVICE = 0.30
# Judged: an engine that fuses picks other kernels than the 2018 runtime that the constants come from.
OTHER_RUNTIME = 0.35
# Judged: kernels of a precision that no measurement covers.
OTHER_PRECISION = 0.25
# Judged: a figure of the device whose source could not be opened.
UNVERIFIED = 0.15

_MATTERS = ("bandwidth_gb_s", "multiprocessors")


def spread(device: Device, runtime: RuntimeModel, fitted: Constants, precisions: Collection[str]) -> float:
    """Standard deviation of log(measured / estimated) for a net whose kernels compute in ``precisions``."""
    if fitted["uncertainty"] > 0:
        return fitted["uncertainty"]
    if runtime.fitted:
        return FITTED
    parts = [FITTED, OTHER_DEVICE]
    if runtime.fused:
        parts.append(OTHER_RUNTIME)
    if any(precision != "float32" for precision in precisions):
        parts.append(OTHER_PRECISION)
    peaks = {f"peak_tops.{precision}" for precision in precisions} | {"peak_tops"}
    parts += [UNVERIFIED] * len({*_MATTERS, *peaks}.intersection(device.unverified))
    return sqrt(sum(part**2 for part in parts))


def source_of(hardware: Hardware, runtime: RuntimeModel) -> str:
    """Where the constants come from, for the reader."""
    if runtime.latency:
        return f"estimated with constants refitted on {hardware.name}"
    if runtime.fitted:
        return f"estimated with constants fitted to published measurements on {hardware.name} (arXiv 1810.00736)"
    unverified = ", ".join(hardware.device.unverified) if hardware.device else ""
    doubts = f"; not verified: {unverified}" if unverified else ""
    return (
        f"estimated from data sheets with constants transferred from Titan Xp and Jetson TX1 in eager PyTorch, not"
        f" validated on this device and runtime{doubts}"
    )
