"""The promises that a result must hold, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.validation.accuracy import Accuracy
from graphopt.validation.latency import Latency


@dataclass(frozen=True)
class Gates:
    """What the user asks of the result.

    Attributes:
        max_drop: the most that the metric may fall, absolute.
        min_speedup: least ratio of the original's median latency to the result's.
        max_size: most bytes of the model with its data; None does not limit.
        max_macs: most multiply-accumulates, as a share of the original's; None does not limit.
    """

    max_drop: float = 0.01
    min_speedup: float = 1.0
    max_size: int | None = None
    max_macs: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether every gate held, and a sentence with figures for each that did not."""

    passed: bool
    failures: tuple[str, ...] = ()


def verdict(
    gates: Gates,
    *,
    accuracy: Accuracy | None = None,
    latency: Latency | None = None,
    size: int | None = None,
    macs: int | None = None,
    baseline_macs: int | None = None,
) -> Verdict:
    """Hold a result against the gates; a figure that is None was not measured and fails only a gate that needs it.

    Args:
        gates: the promises.
        accuracy: of the result on samples that nothing was chosen on.
        latency: of the result against the original.
        size: bytes of the result.
        macs: multiply-accumulates of the result.
        baseline_macs: those of the original.
    """
    failures = []
    if accuracy is not None and not accuracy.passed:
        failures.append(accuracy.reason)
    elif accuracy is not None and accuracy.drop > gates.max_drop:
        failures.append(f"{accuracy.metric} falls by {accuracy.drop:.4f}, allowed is {gates.max_drop:g}")
    if latency is not None and latency.ci95[1] < gates.min_speedup:
        failures.append(
            f"speed {latency.speedup:.2f}x (95 % interval {latency.ci95[0]:.2f} to {latency.ci95[1]:.2f}) "
            f"is below {gates.min_speedup:g}x"
        )
    if gates.max_size is not None:
        if size is None:
            failures.append(f"the size is not known, allowed are {gates.max_size} bytes")
        elif size > gates.max_size:
            failures.append(f"{size} bytes, allowed are {gates.max_size}")
    if gates.max_macs is not None:
        if macs is None or not baseline_macs:
            failures.append("the multiply-accumulates are not known (dynamic shapes? give --input-shape)")
        elif macs > gates.max_macs * baseline_macs:
            share = macs / baseline_macs
            failures.append(f"{share:.1%} of the original's multiply-accumulates, allowed are {gates.max_macs:.1%}")
    return Verdict(not failures, tuple(failures))
