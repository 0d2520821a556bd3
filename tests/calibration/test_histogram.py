"""The histogram: bins are bfloat16 values, so that counts can be held against numpy bit by bit."""

from __future__ import annotations

import tracemalloc
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.calibration.histogram import BINS, Histogram


def of(*shards: np.ndarray) -> Histogram:
    histogram = Histogram()
    for shard in shards:
        histogram.add(shard)
    return histogram


def truncated(values: np.ndarray) -> np.ndarray:
    """The values cut to bfloat16: the lower half of their bits cleared."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def assert_equal(one: Histogram, other: Histogram) -> None:
    assert (one.minimum, one.maximum, one.count, one.non_finite) == (
        other.minimum,
        other.maximum,
        other.count,
        other.non_finite,
    )
    for left, right in zip(one.distribution(), other.distribution(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.random.default_rng(0).normal(size=20_000), id="normal"),
        pytest.param(np.random.default_rng(1).exponential(size=20_000), id="one-sided"),
        pytest.param(-np.random.default_rng(2).exponential(size=20_000), id="all negative"),
        pytest.param(10.0 ** np.random.default_rng(3).uniform(-40, 38, size=20_000), id="denormal to huge"),
        pytest.param(np.random.default_rng(4).integers(-3, 4, size=20_000), id="few values, zero among them"),
    ],
)
def test_counts_are_those_of_the_values_cut_to_bfloat16(values: np.ndarray) -> None:
    values = values.astype(np.float32)
    centres, counts = of(values).distribution()
    expected = Counter(truncated(values).tolist())  # -0.0 and 0.0 are one key, and two bins
    assert counts.sum() == values.size
    found: Counter[float] = Counter()
    for centre, count in zip(truncated(centres).tolist(), counts.tolist(), strict=True):
        found[centre] += int(count)
    assert found == expected


def test_a_bin_is_at_most_a_128th_of_its_value_wide() -> None:
    """The centre of a value's bin is off by at most half of that; without the clipping to the extremes."""
    values = np.sort(np.random.default_rng(0).lognormal(0, 8, size=20_000).astype(np.float32))
    centres, counts = of(values).distribution()
    spread = np.repeat(centres, counts.astype(int))
    assert np.all(np.abs(spread - values) <= values.astype(np.float64) / 256)


def test_bins_come_in_ascending_order_and_within_the_extremes() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    centres, _ = of(values).distribution()
    assert np.all(np.diff(centres) > 0)
    assert values.min() <= centres[0]
    assert centres[-1] <= values.max()


def test_extremes_are_exact() -> None:
    """Not those of a bin: 1.23456789 and its neighbours share one."""
    histogram = of(np.float32([1.2345678, -7.6543218]), np.float32([0.5]))
    assert histogram.minimum == float(np.float32(-7.6543218))
    assert histogram.maximum == float(np.float32(1.2345678))


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.integers(0, 200),
)
def test_shards_merge_to_the_whole(values: np.ndarray, cut: int) -> None:
    whole = of(values)
    merged = of(values[:cut])
    merged.merge(of(values[cut:]))
    assert_equal(merged, whole)
    assert_equal(of(values[:cut], values[cut:]), whole)


def test_layout_and_dtype_do_not_matter() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float16)
    assert_equal(of(values), of(values.astype(np.float64)))
    assert_equal(of(values), of(np.asfortranarray(values.astype(np.float32))))
    assert_equal(of(values), of(values[:, :, ::-1]))


def test_the_smallest_numbers_are_told_from_zero_and_their_signs_apart() -> None:
    tiny = np.float32(2e-39)
    histogram = of(np.array([tiny, -tiny, 0.0, -0.0], np.float32))
    values, counts = histogram.distribution()
    assert counts.sum() == 4
    assert (histogram.minimum, histogram.maximum) == (-float(tiny), float(tiny))
    assert values[0] < 0 < values[-1]
    assert counts[values == 0.0].sum() == 2


def test_an_empty_histogram_holds_nothing() -> None:
    histogram = of(np.zeros((0, 3), np.float32))
    values, counts = histogram.distribution()
    assert (histogram.count, values.size, counts.size) == (0, 0, 0)
    assert (histogram.minimum, histogram.maximum) == (np.inf, -np.inf)


def test_merging_an_empty_shard_changes_nothing() -> None:
    values = np.float32([1, -2, 3])
    merged = of(values)
    merged.merge(Histogram())
    assert_equal(merged, of(values))


def test_nan_and_infinity_are_counted_and_kept_out() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 2.0, -1.0], np.float32)
    histogram = of(values)
    assert (histogram.count, histogram.non_finite) == (5, 3)
    assert (histogram.minimum, histogram.maximum) == (-1.0, 2.0)
    centres, counts = histogram.distribution()
    assert centres.size == 2
    assert counts.sum() == 2


def test_only_nan_leaves_the_extremes_empty() -> None:
    histogram = of(np.full(3, np.nan, np.float32))
    assert (histogram.non_finite, histogram.minimum, histogram.maximum) == (3, np.inf, -np.inf)
    assert histogram.distribution()[0].size == 0


def test_a_double_beyond_float32_counts_as_infinite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's 'overflow encountered in cast'
        histogram = of(np.array([1e300, 1.0]))
    assert (histogram.non_finite, histogram.maximum) == (1, 1.0)


def test_memory_stays_the_same_however_much_is_counted() -> None:
    generator = np.random.default_rng(0)
    histogram = of(*(10.0 ** generator.uniform(-30, 38, size=20_000).astype(np.float32) for _ in range(2)))
    sample = (10.0 ** generator.uniform(-30, 38, size=20_000)).astype(np.float32)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(40):
        histogram.add(sample)
        histogram.add(-sample)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 8 * BINS  # the counters themselves, 64 bits each, and no more
    assert histogram.count == (2 + 40 + 40) * 20_000
