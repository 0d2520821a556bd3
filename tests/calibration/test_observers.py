"""Observers: from statistics to ranges, on distributions whose answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.calibration.observers import LEVELS, OBSERVERS, entropy, minmax, moving_average, mse, percentile
from graphopt.calibration.statistics import TensorStatistics


def of(*samples: np.ndarray) -> TensorStatistics:
    statistics = TensorStatistics()
    for sample in samples:
        statistics.add(np.asarray(sample, np.float32))
    return statistics


def squared_error(values: np.ndarray, extent: tuple[float, float]) -> float:
    """Mean squared error of really quantizing ``values`` to 256 levels over ``extent``."""
    low, high = extent
    scale = (high - low) / LEVELS
    zero_point = np.rint(-low / scale)
    integers = np.clip(np.rint(values / scale) + zero_point, 0, LEVELS)
    return float(np.square((integers - zero_point) * scale - values).mean())


NORMAL = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
RELU = np.maximum(NORMAL, 0.0)
TAILS = np.random.default_rng(3).standard_t(3, size=20_000).astype(np.float32)
LONE = np.concatenate([*[NORMAL] * 5, np.float32([20.0])])
OUTLIERS = np.concatenate([NORMAL, np.float32([80.0, -60.0])])


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize(
    "values",
    [
        pytest.param(NORMAL, id="two-sided"),
        pytest.param(RELU, id="after Relu"),
        pytest.param(RELU + 5.0, id="far above zero"),
        pytest.param(-RELU - 5.0, id="far below zero"),
        pytest.param(np.full(100, 3.0), id="constant"),
        pytest.param(np.full(100, -2e-40), id="denormal"),
        pytest.param(np.float32([3e38, -3e38]), id="huge"),
        pytest.param(np.float32([7.0]), id="one value"),
    ],
)
def test_zero_is_inside_and_nothing_beyond_what_was_seen(name: str, values: np.ndarray) -> None:
    low, high = OBSERVERS[name](of(values))
    assert low <= 0.0 <= high
    assert min(float(np.float32(values.min())), 0.0) <= low
    assert high <= max(float(np.float32(values.max())), 0.0)
    assert low < high, "something was seen that is not zero"


@pytest.mark.parametrize("name", OBSERVERS)
def test_all_zero_and_nothing_at_all_give_the_empty_range(name: str) -> None:
    assert OBSERVERS[name](of(np.zeros(10))) == (0.0, 0.0)
    assert OBSERVERS[name](of(np.zeros((0, 4)))) == (0.0, 0.0)
    assert OBSERVERS[name](TensorStatistics()) == (0.0, 0.0)


@pytest.mark.parametrize("name", OBSERVERS)
@settings(max_examples=15, deadline=None)
@given(
    values=hnp.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    )
)
def test_any_values_give_a_range_with_zero_inside_the_extremes(name: str, values: np.ndarray) -> None:
    low, high = OBSERVERS[name](of(values))
    assert min(float(values.min()), 0.0) <= low <= 0.0 <= high <= max(float(values.max()), 0.0)


def test_minmax_is_exact_over_all_samples() -> None:
    assert minmax(of([-1.5, 2.0], [0.25, 7.125])) == (-1.5, 7.125)


def test_moving_average_by_hand() -> None:
    low, high = moving_average(of([-1.0, 2.0], [-2.0, 4.0], [-2.0, 4.0]))
    assert low == pytest.approx(-(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 2))
    assert high == pytest.approx(0.9 * (0.9 * 2 + 0.1 * 4) + 0.1 * 4)


@pytest.mark.parametrize("share", [90.0, 99.0, 99.9, 99.99])
@pytest.mark.parametrize("values", [NORMAL, RELU, OUTLIERS], ids=["normal", "relu", "outliers"])
def test_percentile_is_numpys_within_a_bin(values: np.ndarray, share: float) -> None:
    low, high = percentile(of(*np.array_split(values, 7)), share)
    outside = (100.0 - share) / 2
    assert high == pytest.approx(np.percentile(values, 100 - outside), rel=1 / 64)
    expected = min(float(np.percentile(values, outside)), 0.0)
    assert low == pytest.approx(expected, rel=1 / 64, abs=1e-12)


def test_percentile_100_is_minmax() -> None:
    assert percentile(of(OUTLIERS), 100.0) == pytest.approx(minmax(of(OUTLIERS)), rel=1 / 128)


def test_percentile_leaves_a_lone_outlier_out() -> None:
    low, high = percentile(of(np.concatenate([NORMAL] * 3 + [np.float32([80.0, -60.0])])), 99.999)
    assert high < 6.0
    assert low > -6.0


@pytest.mark.parametrize("values", [LONE, np.maximum(LONE, 0)], ids=["two-sided", "after Relu"])
def test_mse_beats_minmax_in_squared_error_where_there_are_outliers(values: np.ndarray) -> None:
    statistics = of(*np.array_split(values, 32))  # samples small enough that every value is counted
    assert squared_error(values, mse(statistics)) < 0.8 * squared_error(values, minmax(statistics))


def test_mse_is_near_the_best_range_that_a_grid_finds() -> None:
    shares = np.linspace(0.05, 1.0, 20)
    best = min(
        squared_error(TAILS, (float(TAILS.min() * low), float(TAILS.max() * high)))
        for low, high in itertools.product(shares, shares)
    )
    assert squared_error(TAILS, mse(of(TAILS))) <= 1.05 * best


def test_mse_keeps_a_uniform_distribution_whole() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, size=100_000)
    low, high = mse(of(values))
    assert low < -0.97
    assert high > 0.97


@pytest.mark.parametrize("values", [OUTLIERS, np.maximum(OUTLIERS, 0)], ids=["two-sided", "after Relu"])
def test_entropy_cuts_outliers_and_keeps_the_bulk(values: np.ndarray) -> None:
    low, high = entropy(of(values))
    assert 2.0 < high < 20.0
    assert low == 0.0 if values.min() == 0 else -20.0 < low < -2.0


def test_entropy_keeps_a_uniform_distribution_nearly_whole() -> None:
    values = np.random.default_rng(0).uniform(0, 1, size=200_000)
    assert entropy(of(values))[1] > 0.85


@pytest.mark.parametrize("name", OBSERVERS)
def test_ranges_follow_the_scale_of_the_values(name: str) -> None:
    """All observers but for bin borders: 1024 times the values give 1024 times the range."""
    one, other = OBSERVERS[name](of(NORMAL)), OBSERVERS[name](of(NORMAL * 1024))
    assert other == pytest.approx((one[0] * 1024, one[1] * 1024), rel=0.02)


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_same_statistics_give_the_same_range(name: str) -> None:
    assert OBSERVERS[name](of(OUTLIERS)) == OBSERVERS[name](of(OUTLIERS.copy()))
