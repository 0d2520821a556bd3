"""How far the ratio of two estimates may be off: what errs for both alike cancels."""

from __future__ import annotations

from math import exp, log, sqrt
from typing import TYPE_CHECKING

from graphopt.latency.uncertainty import OTHER_PRECISION

if TYPE_CHECKING:
    from graphopt.latency.estimate import Estimate

# Of the logarithm of a ratio. Two nets of one family, measured: the median error of their ratio is 3 to 7 %, 90 % are
# within 10 to 18 %, on the TX1 at large batches 40 % (benchmarks/results/latency.md), at ratios of about 2.
OF_LOGARITHM = 0.2
# Judged: what two graphs that differ at all may differ by without the model's knowing.
LEAST = 0.01
_NORMAL_95 = 1.96


def ratio_interval(first: Estimate, second: Estimate) -> tuple[float, float]:
    """The 95 % interval of ``first.ms / second.ms``, of two models for one device and runtime.

    What the second computes in precisions that the first does not use adds
    the doubt about these, by the share of its time that it spends in them.
    """
    ratio = first.ms / second.ms
    known = {kernel.precision for kernel in first.kernels}
    total = sum(kernel.us for kernel in second.kernels)
    new = sum(kernel.us for kernel in second.kernels if kernel.precision not in known)
    share = new / total if total else 0.0
    width = _NORMAL_95 * sqrt(LEAST**2 + (OF_LOGARITHM * log(ratio)) ** 2 + (OTHER_PRECISION * share) ** 2)
    return ratio * exp(-width), ratio * exp(width)
