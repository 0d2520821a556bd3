"""Confidence intervals, against published values and by simulation."""

import numpy as np
import pytest

from graphopt.validation.intervals import drop_interval, mean_interval, paired_shares, student_t, wilson


def test_wilson_as_published():
    # Newcombe 1998, 'Two-sided confidence intervals for the single proportion', table I, method 3: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1


def test_paired_shares_by_hand():
    # (9 + 1) / 102 and (3 + 1) / 102; the variance of their difference over 102.
    down, up = 10 / 102, 4 / 102
    half = 1.959964 * ((down + up - (down - up) ** 2) / 102) ** 0.5
    assert paired_shares(9, 3, 100) == pytest.approx((6 / 102 - half, 6 / 102 + half))


def test_no_difference_is_not_certainty():
    ones = [1.0] * 1000
    low, high = drop_interval(ones, ones, relative=False)
    assert -0.004 < low < 0 < high < 0.004
    low, high = drop_interval(ones, ones, relative=True)
    assert (low, high) == (0, pytest.approx(0.00383, abs=1e-5))
    assert mean_interval([0.25] * 1000) == pytest.approx((0.247, 0.253), abs=1e-4)


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)],
)
def test_student_t(freedom, value):
    assert student_t(freedom) == pytest.approx(value, rel=0.01)


def test_one_sample_says_nothing():
    assert mean_interval([0.0]) == pytest.approx((-0.95, 0.95))


@pytest.mark.parametrize("relative", [False, True])
def test_95_of_100_intervals_hold_the_truth(relative):
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        draw = generator.random(300)
        baseline = np.ones(300) if relative else (draw < 0.92).astype(float)
        candidate = ((draw < 0.90) | (draw > 0.99)).astype(float)
        truth = 0.09 if relative else 0.01  # of the mean of 1, or 0.92, over 0.91
        low, high = drop_interval(baseline, candidate, relative)
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 0.985


def test_mean_interval_holds_the_truth():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        low, high = drop_interval(np.ones(40), 1 - generator.exponential(0.01, 40), relative=True)
        held += low <= 0.01 <= high
    assert 0.90 <= held / 1000 <= 0.97
