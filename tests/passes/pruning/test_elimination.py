"""Giving up channels one by one loses exactly what the best fit with the rest loses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.pruning.elimination import Factor, eliminate, loss_without


def layer(seed: int, channels: int, rows: int = 1, outputs: int = 5) -> tuple[Factor, np.ndarray, np.ndarray]:
    """A layer's factor with the covariance and weights that it came from."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(channels * rows, channels * rows + 3))
    gram = mixed @ mixed.T + 0.1 * np.eye(channels * rows)
    weight = rng.normal(size=(channels * rows, outputs))
    inverse = np.linalg.inv(gram).reshape(channels, rows, channels, rows)
    return Factor(np.arange(channels), inverse, weight.reshape(channels, rows, outputs)), gram, weight


def best_fit_loss(gram: np.ndarray, weight: np.ndarray, gone: np.ndarray) -> float:
    """tr(W'HW) of what the remaining rows cannot say, by least squares."""
    left = np.setdiff1d(np.arange(len(gram)), gone)
    fitted = np.linalg.solve(gram[np.ix_(left, left)], gram[left] @ weight)
    error = weight.copy()
    error[left] -= fitted
    return float(np.sum(error * (gram @ error)))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), channels=st.integers(2, 9), rows=st.integers(1, 4))
def test_losses_are_those_of_the_best_fit_with_the_rest(seed: int, channels: int, rows: int) -> None:
    factor, gram, weight = layer(seed, channels, rows)
    found = eliminate(channels, [factor])
    for count in range(1, channels):
        gone = (found.order[:count, None] * rows + np.arange(rows)).reshape(-1)
        assert found.loss[count] == pytest.approx(best_fit_loss(gram, weight, gone), rel=1e-6)
        assert loss_without([factor], found.order[:count]) == pytest.approx(found.loss[count], rel=1e-6)


def test_each_step_gives_up_the_cheapest() -> None:
    factor, gram, weight = layer(0, 6)
    found = eliminate(6, [factor])
    for count in range(5):
        before = found.order[:count]
        left = [channel for channel in range(6) if channel not in before]
        losses = {channel: best_fit_loss(gram, weight, np.append(before, channel)) for channel in left}
        assert found.order[count] == min(losses, key=lambda channel: losses[channel])


def test_one_of_two_equal_channels_is_free_and_the_other_is_not() -> None:
    signal = np.random.default_rng(0).normal(size=(500, 3))
    rows = signal[:, [0, 1, 1, 2]]
    gram = rows.T @ rows / 500 + 1e-9 * np.eye(4)
    factor = Factor(np.arange(4), np.linalg.inv(gram).reshape(4, 1, 4, 1), np.ones((4, 1, 1)))
    found = eliminate(4, [factor])
    assert found.order[0] in {1, 2}
    assert found.loss[1] < 1e-6 < 0.5 < found.loss[2]


def test_readers_add_up_and_channels_that_none_reads_go_first() -> None:
    one, *_ = layer(1, 3)
    other, *_ = layer(2, 3)
    first = Factor(np.array([0, 1, 2]), one.inverse, one.weights, 2.0)
    second = Factor(np.array([0, 2, 3]), other.inverse, other.weights, 0.5)
    found = eliminate(5, [first, second])
    assert found.order[0] == 4
    assert found.loss[1] == 0
    gone = found.order[:3]
    assert found.loss[3] == pytest.approx(loss_without([first, second], gone))


def test_wide_groups_go_in_lots_and_lose_little_by_it() -> None:
    factor, *_ = layer(3, 150)
    found = eliminate(150, [factor], least=10)
    assert len(set(found.order.tolist())) == 140
    assert found.loss[140] == pytest.approx(loss_without([factor], found.order), rel=1e-6)
    assert (np.diff(found.loss) >= 0).all()


def test_a_given_order_is_kept() -> None:
    factor, *_ = layer(4, 6)
    found = eliminate(6, [factor], order=[5, 3, 1])
    assert found.order.tolist() == [5, 3, 1]
    assert found.loss[3] == pytest.approx(loss_without([factor], np.array([1, 3, 5])), rel=1e-6)
