"""A fit in which some weights are fixed at zero: for each filter the least squares over its free weights alone."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.recovery.least_squares import Rows, fit


@pytest.mark.parametrize("primal", [True, False])
def test_each_filter_is_solved_for_its_free_weights(primal: bool) -> None:
    rng = np.random.default_rng(0)
    groups, count, unknowns, filters, ridge = 2, 200, 12, 5, 1e-2
    inputs = (rng.normal(size=(groups, count, unknowns)) @ rng.normal(size=(unknowns, unknowns))).astype(np.float32)
    residual = (inputs @ rng.normal(size=(groups, unknowns, filters)) + 3).astype(np.float32)
    free = rng.random((groups, unknowns, filters)) < 0.4
    power = float(np.square(residual).sum())
    shown = Rows(inputs[:, :160], residual[:, :160], power, held_out=False)
    held = Rows(inputs[:, 160:], residual[:, 160:], power, held_out=True)
    outcome = fit([shown, held], [ridge], primal=primal, free=free)
    assert outcome is not None
    assert outcome.change is not None
    assert not outcome.change.matrix[~free].any()
    for group in range(groups):
        seen = inputs[group].astype(np.float64)
        seen -= seen.mean(axis=0)
        wanted = residual[group] - residual[group].mean(axis=0)
        gram = seen.T @ seen / count
        load = ridge * np.trace(gram) / unknowns
        for number in range(filters):
            chosen = np.flatnonzero(free[group, :, number])
            system = gram[np.ix_(chosen, chosen)] + load * np.eye(len(chosen))
            expected = np.linalg.solve(system, seen[:, chosen].T @ wanted[:, number] / count)
            np.testing.assert_allclose(outcome.change.matrix[group, chosen, number], expected, rtol=1e-3, atol=1e-3)
