"""Statistics of one tensor: what is kept beside the histogram, computed here by hand."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.calibration.statistics import MOMENTUM, TensorStatistics, channel_axis


def of(*samples: np.ndarray) -> TensorStatistics:
    statistics = TensorStatistics()
    for sample in samples:
        statistics.add(np.asarray(sample, np.float32))
    return statistics


def test_the_moving_average_starts_at_the_first_sample_and_follows_slowly() -> None:
    statistics = of([-1.0, 4.0], [-3.0, 2.0], [-1.0, 12.0])
    low = high = 0.0
    for step, (smallest, largest) in enumerate([(-1.0, 4.0), (-3.0, 2.0), (-1.0, 12.0)]):
        low = smallest if step == 0 else MOMENTUM * low + (1 - MOMENTUM) * smallest
        high = largest if step == 0 else MOMENTUM * high + (1 - MOMENTUM) * largest
    assert statistics.average_minimum == pytest.approx(low)
    assert statistics.average_maximum == pytest.approx(high)
    assert (statistics.histogram.minimum, statistics.histogram.maximum) == (-3.0, 12.0)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((2, 3, 4, 5), 1), ((2, 3, 2, 2, 2), 1), ((4, 3), 1), ((2, 5, 3), 2)],
    ids=["image", "volume", "matrix", "sequence"],
)
def test_channels_are_the_axis_that_a_layer_reads_as_features(shape: tuple[int, ...], axis: int) -> None:
    samples = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    statistics = of(*samples)
    others = tuple(index + 1 for index in range(len(shape)) if index != axis)
    assert channel_axis(len(shape)) == axis
    np.testing.assert_allclose(statistics.channel_mean, samples.mean(axis=(0, *others), dtype=np.float64), atol=1e-6)
    np.testing.assert_array_equal(statistics.channel_maximum, np.abs(samples).max(axis=(0, *others)))


def test_the_mean_weighs_every_value_alike_where_samples_differ_in_size() -> None:
    statistics = of(np.ones((1, 2, 1, 1)), 4 * np.ones((2, 2, 1, 1)))
    np.testing.assert_allclose(statistics.channel_mean, [3.0, 3.0])


def test_a_channel_count_that_varies_keeps_the_first() -> None:
    statistics = of(np.ones((1, 2)), np.ones((1, 3)))
    assert statistics.channel_mean is not None
    assert statistics.channel_mean.shape == (2,)
    assert statistics.histogram.count == 5
    assert statistics.shape == (1, 3)


def test_vectors_and_scalars_have_no_channels() -> None:
    assert of(np.ones(4)).channel_mean is None
    assert of(np.float32(3.0)).channel_mean is None
    assert of(np.float32(3.0)).histogram.maximum == 3.0


def test_an_empty_tensor_is_a_sample_without_values() -> None:
    statistics = of(np.ones((0, 3)))
    assert (statistics.samples, statistics.histogram.count, statistics.shape) == (1, 0, (0, 3))
    assert statistics.channel_mean is None


def test_an_empty_first_sample_does_not_pull_the_moving_average_to_zero() -> None:
    statistics = of(np.ones((0, 3)), np.full((1, 3), 5.0))
    assert (statistics.average_minimum, statistics.average_maximum) == (5.0, 5.0)


def test_of_a_large_tensor_a_share_is_counted_and_the_extremes_are_those_of_all_values() -> None:
    values = np.random.default_rng(0).standard_normal((1, 8, 200, 200), dtype=np.float32)
    values[0, 3, 7, 11], values[0, 5, 13, 17] = 90.0, -70.0
    statistics = of(values)
    assert (statistics.histogram.minimum, statistics.histogram.maximum) == (-70.0, 90.0)
    assert values.size // 8 < statistics.histogram.count < values.size
