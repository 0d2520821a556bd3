"""What calibration keeps of a tensor: fixed memory, whatever the number of samples. Activations are never kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.calibration.histogram import Histogram

MOMENTUM = 0.9
# Values of one sample's tensor that are counted in the histogram: of larger tensors, every n-th. Neighbours in an image
# are alike, so little is lost; the extremes are always those of all values.
COUNTED = 1 << 16


@dataclass
class TensorStatistics:
    """Statistics of one tensor over the calibration samples.

    Attributes:
        histogram: counts of values, of large tensors a share of them; the extremes are those of all values.
        average_minimum: exponential moving average of each sample's smallest value.
        average_maximum: the same of the largest.
        shape: shape in the last sample.
        channel_sum: sum over batch and space for each channel (axis 1; the last axis for rank 2 and 3), float64.
        channel_count: values summed in each channel.
        channel_maximum: largest magnitude for each channel.
    """

    histogram: Histogram = field(default_factory=Histogram)
    average_minimum: float = 0.0
    average_maximum: float = 0.0
    shape: tuple[int, ...] = ()
    channel_sum: npt.NDArray[np.float64] | None = None
    channel_count: int = 0
    channel_maximum: npt.NDArray[np.float32] | None = None
    samples: int = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take in one sample's tensor."""
        self.shape = values.shape
        self.samples += 1
        if values.size == 0:
            return
        first = self.histogram.count == 0
        low, high = float(values.min()), float(values.max())
        if values.size > COUNTED and np.isfinite(low) and np.isfinite(high):
            self._count_some(values, low, high)
        else:
            self.histogram.add(values)
        if first:
            self.average_minimum, self.average_maximum = low, high
        else:
            self.average_minimum += (1 - MOMENTUM) * (low - self.average_minimum)
            self.average_maximum += (1 - MOMENTUM) * (high - self.average_maximum)
        if np.isfinite(low) and np.isfinite(high):
            self._add_channels(values)

    @property
    def channel_mean(self) -> npt.NDArray[np.float64] | None:
        """Mean of each channel, float64 [channels]; None where the channel count varied or nothing was seen."""
        return None if self.channel_sum is None or not self.channel_count else self.channel_sum / self.channel_count

    def _count_some(self, values: npt.NDArray[Any], low: float, high: float) -> None:
        """Count every n-th value, n odd so that it runs through all columns, from another start each time."""
        step = (values.size // COUNTED) | 1
        self.histogram.add(np.ascontiguousarray(values).reshape(-1)[self.samples % step :: step])
        self.histogram.minimum = min(self.histogram.minimum, low)
        self.histogram.maximum = max(self.histogram.maximum, high)

    def _add_channels(self, values: npt.NDArray[Any]) -> None:
        if values.ndim < 2:
            return
        axis = channel_axis(values.ndim)
        others = tuple(index for index in range(values.ndim) if index != axis)
        total = values.sum(axis=others, dtype=np.float64) if axis == values.ndim - 1 else _sum_by_channel(values)
        peak = np.maximum(values.max(axis=others), -values.min(axis=others)).astype(np.float32)
        if self.channel_sum is None or self.channel_maximum is None:
            self.channel_sum, self.channel_maximum = total, peak
            self.channel_count = values.size // values.shape[axis]
        elif self.channel_sum.shape == total.shape:
            self.channel_sum += total
            self.channel_maximum = np.maximum(self.channel_maximum, peak)
            self.channel_count += values.size // values.shape[axis]


def channel_axis(rank: int) -> int:
    """Axis of the channels: 1 for images and volumes (rank 4 and up), the last for matrices and sequences."""
    return 1 if rank >= 4 else rank - 1


def _sum_by_channel(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    by_channel = values.reshape(values.shape[0], values.shape[1], -1)
    return np.asarray(by_channel.sum(axis=2).sum(axis=0, dtype=np.float64))
