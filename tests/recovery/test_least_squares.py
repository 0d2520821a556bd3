"""The solver alone: both forms of the equations give one solution, and held-out rows choose the ridge."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.recovery.least_squares import Rows, fit

RNG = np.random.default_rng(0)


def rows(count: int, noise: float, unknowns: int = 12, blocks: int = 4) -> list[Rows]:
    """Two groups of three filters, a constant on top, every other block held out."""
    truth = RNG.normal(size=(2, unknowns, 3))
    made = []
    for number in range(blocks):
        inputs = RNG.normal(size=(2, count, unknowns)) + 5
        residual = inputs @ truth + 2 + noise * RNG.normal(size=(2, count, 3))
        power = float(np.square(residual).sum())
        made.append(Rows(inputs.astype(np.float32), residual.astype(np.float32), power, number % 2 == 1))
    return made


@pytest.mark.parametrize("count", [2, 5, 40])
def test_both_forms_of_the_equations_give_one_solution(count: int) -> None:
    blocks = rows(count, 0.1)
    one, two = (fit(blocks, [1e-2], primal=primal) for primal in (True, False))
    assert one is not None
    assert two is not None
    assert one.after == pytest.approx(two.after, rel=1e-3)
    assert one.change is not None
    assert two.change is not None
    np.testing.assert_allclose(one.change.matrix, two.change.matrix, atol=1e-4)
    np.testing.assert_allclose(one.change.bias, two.change.bias, atol=1e-3)


def test_much_noise_asks_for_more_ridge() -> None:
    ridges = (1e-6, 1e-2, 1.0, 100.0)
    quiet, loud = fit(rows(10, 0.01), ridges, primal=True), fit(rows(10, 30.0), ridges, primal=True)
    assert quiet is not None
    assert quiet.change is not None
    assert loud is not None
    assert quiet.change.ridge == 1e-6
    assert loud.change is None or loud.change.ridge >= 1.0


def test_only_an_offset_needs_no_weights() -> None:
    blocks = [Rows(each.inputs, np.full_like(each.residual, 3.0), 1.0, each.held_out) for each in rows(20, 0.0)]
    outcome = fit(blocks, (1e-2,), primal=True)
    assert outcome is not None
    assert outcome.change is not None
    assert np.isinf(outcome.change.ridge)
    assert not outcome.change.matrix.any()
    np.testing.assert_allclose(outcome.change.bias, 3.0, rtol=1e-6)


def test_inputs_that_never_vary_keep_their_weights() -> None:
    blocks = [Rows(np.ones_like(each.inputs), each.residual, 1.0, each.held_out) for each in rows(20, 0.0)]
    outcome = fit(blocks, (1e-2,), primal=True)
    assert outcome is not None
    assert outcome.change is None or not outcome.change.matrix.any()


@pytest.mark.parametrize("held_out", [True, False])
def test_nothing_to_choose_by_or_nothing_to_fit_to(held_out: bool) -> None:
    assert fit([each for each in rows(20, 0.0) if each.held_out == held_out], (1e-2,), primal=True) is None
