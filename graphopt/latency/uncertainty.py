"""How far an estimate may be off: the standard deviation of log(measured / estimated).

What was measured is quoted from ``benchmarks/results/latency.md``; what nobody could measure here is a judgement, and
said to be one. Independent causes add up in squares.
"""

from __future__ import annotations

from collections.abc import Collection
from math import sqrt

from graphopt.latency.constants import Constants
from graphopt.latency.roofline import device_of
from graphopt.targets.schema import Hardware, RuntimeModel

# Measured: nets of families that the constants were not fitted on, same device and runtime (root mean square 0.12).
FITTED = 0.13
# Measured: the constants of one device with the data sheet of the other, and the launch cost of its processor.
OTHER_DEVICE = 0.45
# Measured: TensorRT on devices that the constants were not fitted on, in all precisions (0.35); a little more, since
# none of them is younger than Ampere.
ENGINE = 0.40
# Judged: a precision that a runtime was not measured in.
OTHER_PRECISION = 0.25
# Judged: an accelerator that no measurement covers.
ACCELERATOR = 0.30
# Judged: a figure of the device whose source could not be opened.
UNVERIFIED = 0.15


def spread(hardware: Hardware, runtime: RuntimeModel, fitted: Constants, precisions: Collection[str]) -> float:
    """Standard deviation of log(measured / estimated) for a net whose kernels compute in ``precisions``."""
    if fitted["uncertainty"] > 0:
        return fitted["uncertainty"]
    parts = [FITTED if runtime.fitted else ENGINE if runtime.fused else OTHER_DEVICE]
    if not runtime.fused and any(precision != runtime.precision for precision in precisions):
        parts.append(OTHER_PRECISION)
    if hardware.accelerator:
        parts.append(ACCELERATOR)
    if not runtime.fitted:
        peaks = {"peak_tops", *(f"peak_tops.{precision}" for precision in precisions)}
        parts += [UNVERIFIED] * len({"bandwidth_gb_s", *peaks}.intersection(device_of(hardware).unverified))
    return sqrt(sum(part**2 for part in parts))


def source_of(hardware: Hardware, runtime: RuntimeModel) -> str:
    """Where the constants come from, for the reader."""
    if runtime.latency:
        return f"estimated with constants refitted on {hardware.name}"
    if runtime.fitted:
        return f"estimated with constants fitted to published measurements on {hardware.name} (arXiv 1810.00736)"
    unverified = ", ".join(hardware.device.unverified) if hardware.device else ""
    doubts = f"; not verified: {unverified}" if unverified else ""
    learnt = "TensorRT on six other devices" if runtime.fused else "Titan Xp and Jetson TX1 in eager PyTorch"
    return (
        f"estimated from data sheets with constants that published measurements of {learnt} taught, not validated on"
        f" this device and runtime{doubts}"
    )
