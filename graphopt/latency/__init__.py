"""Predicted time of a model on a device that is not at hand: a roofline for each kernel (docs/latency.md)."""

from __future__ import annotations

from graphopt.latency.estimate import Estimate, KernelEstimate, estimate
from graphopt.latency.implicit import as_placed_by_runtime
from graphopt.latency.ratio import ratio_interval
from graphopt.latency.roofline import kernel_us
from graphopt.latency.work import KernelWork, convolution, fully_connected, movement

__all__ = [
    "Estimate",
    "KernelEstimate",
    "KernelWork",
    "as_placed_by_runtime",
    "convolution",
    "estimate",
    "fully_connected",
    "kernel_us",
    "movement",
    "ratio_interval",
]
