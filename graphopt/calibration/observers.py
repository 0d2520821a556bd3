"""Observers: from the statistics of a tensor to the range that int8 should cover.

Every observer returns (low, high) with low <= 0 <= high, so that zero is exact: padding and Relu depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.calibration.statistics import TensorStatistics

Range: TypeAlias = tuple[float, float]
LEVELS = 255
_Floats: TypeAlias = npt.NDArray[np.float64]


def minmax(statistics: TensorStatistics) -> Range:
    """Cover everything that was seen."""
    return _with_zero(statistics.histogram.minimum, statistics.histogram.maximum)


def moving_average(statistics: TensorStatistics) -> Range:
    """Cover the exponential moving average (momentum 0.9) of each sample's extremes (arXiv 1712.05877, section 3.1)."""
    return _with_zero(statistics.average_minimum, statistics.average_maximum)


def percentile(statistics: TensorStatistics, share: float = 99.999) -> Range:
    """Leave out the same share of values at either end: (100 - ``share``) / 2 percent of all values."""
    values, counts = statistics.histogram.distribution()
    if values.size == 0:
        return 0.0, 0.0
    outside = statistics.histogram.count * (100.0 - share) / 200.0
    cumulative = np.cumsum(counts)
    if share >= 100:
        return minmax(statistics)
    low = values[np.searchsorted(cumulative, outside, side="right").clip(max=values.size - 1)]
    high = values[np.searchsorted(cumulative, cumulative[-1] - outside, side="left").clip(max=values.size - 1)]
    return _with_zero(float(low), float(high))


def mse(statistics: TensorStatistics) -> Range:
    """Minimise the expected squared error of rounding plus clipping.

    Rounding inside the range costs step²/12 a value (uniform noise model), clipping the squared distance to the border.
    Both borders are searched in turn on a grid of shares of the extreme; two sweeps suffice, the error being convex.
    """
    values, counts = statistics.histogram.distribution()
    low, high = minmax(statistics)
    if values.size == 0 or high <= low:
        return low, high
    error = _clipping_error(values, counts)
    shares = np.linspace(0.02, 1.0, 197)
    for _ in range(2):
        if high > 0:
            top = minmax(statistics)[1]
            high = min((error(low, top * share), float(top * share)) for share in shares)[1]
        if low < 0:
            bottom = minmax(statistics)[0]
            low = min((error(bottom * share, high), float(bottom * share)) for share in shares)[1]
    return _with_zero(low, high)


def entropy(statistics: TensorStatistics, bins: int = 4096) -> Range:
    """Minimise the Kullback-Leibler divergence between the values and their quantized form.

    The scheme of S. Migacz, '8-bit Inference with TensorRT', GTC 2017: the clipped distribution, its outliers moved
    into the border bins, against the same merged into 128 levels (one-sided) or 255 levels (two-sided).
    """
    values, counts = statistics.histogram.distribution()
    low, high = minmax(statistics)
    if values.size == 0 or high <= low:
        return low, high
    one_sided = low == 0.0 or high == 0.0
    extent = max(-low, high)
    magnitudes = np.abs(values)
    density = _spread(magnitudes, counts, extent, bins)
    levels = LEVELS if one_sided else LEVELS // 2
    best = (float("inf"), bins)
    for kept in range(levels, bins + 1, max(1, bins // 256)):
        best = min(best, (_divergence(density, kept, levels), kept))
    threshold = extent * best[1] / bins
    return _with_zero(max(low, -threshold), min(high, threshold))


OBSERVERS: dict[str, Callable[[TensorStatistics], Range]] = {
    "entropy": entropy,
    "minmax": minmax,
    "moving_average": moving_average,
    "mse": mse,
    "percentile": percentile,
}


def _with_zero(low: float, high: float) -> Range:
    if not (np.isfinite(low) and np.isfinite(high)):
        return 0.0, 0.0
    return min(low, 0.0), max(high, 0.0)


def clipping_error(statistics: TensorStatistics) -> Callable[[float, float], float] | None:
    """Return the squared error, over all values seen, of 256 levels between (low, high); None where none was seen."""
    values, counts = statistics.histogram.distribution()
    return _clipping_error(values, counts) if values.size else None


def _clipping_error(values: _Floats, counts: _Floats) -> Callable[[float, float], float]:
    """Return error(low, high) = sum of squared errors, each call O(log n) on prefix sums."""
    zeroth = np.concatenate([[0.0], np.cumsum(counts)])
    first = np.concatenate([[0.0], np.cumsum(counts * values)])
    second = np.concatenate([[0.0], np.cumsum(counts * values * values)])

    def moment(start: int, stop: int, border: float) -> float:
        return float(
            second[stop] - second[start] - 2 * border * (first[stop] - first[start])
            + border * border * (zeroth[stop] - zeroth[start])
        )  # fmt: skip

    zeros = float(counts[values == 0.0].sum())

    def error(low: float, high: float) -> float:
        start = int(np.searchsorted(values, low))
        stop = int(np.searchsorted(values, high, side="right"))
        step = (high - low) / LEVELS
        inside = zeroth[stop] - zeroth[start] - zeros  # zero is a level: it rounds without error
        return float(moment(0, start, low) + moment(stop, values.size, high) + inside * step * step / 12)

    return error


def _spread(magnitudes: _Floats, counts: _Floats, extent: float, bins: int) -> _Floats:
    """Histogram of |value| on ``bins`` equal bins; zeros are left out, as they quantize without error."""
    kept = magnitudes > 0
    density, _ = np.histogram(magnitudes[kept], bins=bins, range=(0.0, extent), weights=counts[kept])
    # A logarithmic bin near the extreme spans many equal bins: smooth so that empty ones in between are not artefacts.
    width = max(1, bins // 128)
    kernel = np.ones(width) / width
    return np.asarray(np.convolve(density.astype(np.float64), kernel, mode="same"))


def _divergence(density: _Floats, kept: int, levels: int) -> float:
    reference = density[:kept].copy()
    reference[-1] += density[kept:].sum()
    edges = np.linspace(0, kept, levels + 1).astype(np.int64)
    sums = np.add.reduceat(density[:kept], edges[:-1])
    occupied = density[:kept] > 0
    sizes = np.add.reduceat(occupied.astype(np.int64), edges[:-1])
    level = np.repeat(np.arange(levels), np.diff(edges))
    merged = np.where(occupied, sums[level] / np.maximum(sizes[level], 1), 0.0)
    if reference.sum() == 0 or merged.sum() == 0:
        return float("inf")
    p = reference / reference.sum()
    q = merged / merged.sum()
    present = p > 0
    return float(np.sum(p[present] * np.log(p[present] / np.maximum(q[present], 1e-12))))
