"""Histogram of a stream of float32 values in one pass and fixed memory, without knowing the range beforehand.

A value's bin is the upper half of its IEEE 754 binary32 pattern (sign, exponent, upper 7 bits of the fraction), that is
the value truncated to bfloat16. Bins are therefore 1/128 of an octave wide at every magnitude, need no range, and the
histograms of two shards add up bin by bin.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 1 << 16
_SIGN = 1 << 15
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


def _centres() -> npt.NDArray[np.float64]:
    """Middle value of every bin, shape [65536]; NaN and infinity bins hold non-finite values."""
    with np.errstate(all="ignore"):
        lower = (np.arange(BINS, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
        upper = ((np.arange(BINS, dtype=np.uint32) << np.uint32(16)) + np.uint32(0xFFFF)).view(np.float32)
        centres = (lower + upper.astype(np.float64)) / 2
    centres[0] = 0.0
    centres[_SIGN] = 0.0
    return centres


@dataclass
class Histogram:
    """Counts of values by bin; grows only to the largest magnitude seen (at most 65,536 counters).

    Attributes:
        minimum: exact smallest value seen; +inf while empty.
        maximum: exact largest value seen; -inf while empty.
        count: how many values were seen.
        non_finite: how many of them were NaN or infinite.
    """

    minimum: float = float("inf")
    maximum: float = float("-inf")
    count: int = 0
    non_finite: int = 0
    _positive: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    _negative: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count every element of ``values`` (any shape; computed as float32)."""
        if values.size == 0:
            return
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        counts = np.bincount(flat.view(np.uint16)[_UPPER_HALF::2])
        self._positive = _sum_of(self._positive, counts[:_SIGN])
        self._negative = _sum_of(self._negative, counts[_SIGN:])
        self.count += flat.size
        low, high = float(flat.min()), float(flat.max())
        if np.isfinite(low) and np.isfinite(high):
            self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
            return
        finite = flat[np.isfinite(flat)]
        self.non_finite += flat.size - finite.size
        if finite.size:
            self.minimum = min(self.minimum, float(finite.min()))
            self.maximum = max(self.maximum, float(finite.max()))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another shard."""
        self._positive = _sum_of(self._positive, other._positive)
        self._negative = _sum_of(self._negative, other._negative)
        self.count += other.count
        self.non_finite += other.non_finite
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def distribution(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the occupied bins in ascending order: values [n] and counts [n]; non-finite values left out."""
        centres = _centres()
        finite = 0x7F80
        negative = self._negative[:finite]
        positive = self._positive[:finite]
        values = np.concatenate([centres[_SIGN : _SIGN + negative.size][::-1], centres[: positive.size]])
        counts = np.concatenate([negative[::-1], positive]).astype(np.float64)
        occupied = counts > 0
        return np.clip(values[occupied], self.minimum, self.maximum), counts[occupied]


def _sum_of(total: npt.NDArray[np.int64], part: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if part.size > total.size:
        total = np.concatenate([total, np.zeros(part.size - total.size, np.int64)])
    total[: part.size] += part
    return total
