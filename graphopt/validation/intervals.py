"""95 % confidence intervals of a drop in accuracy, from paired scores of two models on the same samples.

- Both models' scores are 0 or 1 (``top1``): Bonett and Price 2012, 'Adjusted Wald Confidence Interval for a Difference
  of Binomial Proportions Based on Paired Data', J. Educ. Behav. Stat. 37(4), 479-488: one sample is added to either
  kind of disagreement.
- The baseline is 1 by definition and the scores are 0 or 1 (``agreement``): Wilson 1927 for the share of ones.
- Otherwise (``cosine``, custom): the mean of the differences with Student's t, after Abramowitz and Stegun 26.7.5.

None of them collapses to a point when the models agree on every sample: the first two give about 3/n ('rule of
three', Hanley and Lippman-Hand 1983), and for equal differences of the third kind that is what is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

Interval = tuple[float, float]

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def drop_interval(baseline: Sequence[float], candidate: Sequence[float], relative: bool) -> Interval:
    """Return the 95 % interval of mean(baseline - candidate), each score in 0..1.

    Args:
        baseline: score of the original on each sample.
        candidate: score of the candidate on the same samples.
        relative: the baseline is 1 by definition.
    """
    first, second = np.asarray(baseline, np.float64), np.asarray(candidate, np.float64)
    binary = np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all()
    if binary and relative:
        low, high = wilson(int(second.sum()), len(second))
        return 1.0 - high, 1.0 - low
    if binary:
        lost = int(((first == 1) & (second == 0)).sum())
        won = int(((first == 0) & (second == 1)).sum())
        return paired_shares(lost, won, len(first))
    return mean_interval((first - second).tolist())


def wilson(successes: int, count: int) -> Interval:
    """Return the 95 % interval of a share of successes."""
    share, square = successes / count, Z95 * Z95 / count
    middle = (share + square / 2) / (1 + square)
    half = Z95 / (1 + square) * sqrt(share * (1 - share) / count + square / (4 * count))
    # No share of successes is surely 0 or 1 while none or all succeeded: only rounding could move that bound.
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == count else middle + half


def paired_shares(lost: int, won: int, count: int) -> Interval:
    """Return the 95 % interval of (lost - won) / count, the difference of two paired shares.

    Args:
        lost: samples that only the baseline has right.
        won: samples that only the candidate has right.
        count: all samples.
    """
    down, up = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    half = Z95 * sqrt((down + up - (down - up) ** 2) / (count + 2))
    return max(-1.0, down - up - half), min(1.0, down - up + half)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean; of equal values within -1..1, about 3/n to either side of them."""
    count, mean = len(values), float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if count > 1 else 0.0
    half = student_t(count - 1) * spread / sqrt(count) if spread else 1.0 - 0.05 ** (1 / count)
    return max(-1.0, mean - half), min(1.0, mean + half)


def student_t(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 1 % from 3 degrees of freedom on; exact for 1 and 2."""
    exact = {1: 12.706204736, 2: 4.302652730}
    if freedom in exact:
        return exact[freedom]
    z, v = Z95, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3
