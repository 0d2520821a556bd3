"""Predicted time of a model on a device that is not at hand: a roofline for each kernel (docs/latency.md)."""

from __future__ import annotations

from graphopt.latency.estimate import Estimate, KernelEstimate, estimate

__all__ = ["Estimate", "KernelEstimate", "estimate"]
