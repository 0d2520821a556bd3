"""Alternating fits: exact where the weights are of the form, never worse than their start, whatever the layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.separable import solvers
from graphopt.passes.separable.decompose import decompose
from graphopt.passes.separable.factors import Factors, Form, Geometry
from graphopt.passes.separable.fit import LowRank, fit, unrestricted
from graphopt.recovery import Normal, refit
from tests import support

Array = np.ndarray[Any, Any]
FORMS: tuple[Form, ...] = ("depthwise_first", "pointwise_first", "spatial")
GEOMETRIES = {
    "plain": Geometry(1, 6, 8, (3, 3)),
    "grouped": Geometry(3, 4, 5, (3, 3)),
    "1-D": Geometry(2, 5, 4, (3,)),
    "3-D": Geometry(1, 4, 5, (2, 3, 2)),
    "rectangular": Geometry(1, 5, 4, (3, 5)),
}


def moments(geometry: Geometry, matrix: Array, *, rows: int = 500, seed: int = 0, present: bool = True) -> Normal:
    """Of correlated inputs, and of what weights give for them."""
    unknowns = geometry.taps * geometry.channels
    mix = np.random.default_rng(7).normal(size=(unknowns, unknowns)) / np.sqrt(unknowns) + np.eye(unknowns)
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(geometry.groups, rows, unknowns)) @ mix
    gram = inputs.transpose(0, 2, 1) @ inputs / rows
    cross = gram @ matrix
    return Normal(gram, cross, float(np.vdot(matrix, cross)), matrix if present else None, rows)


def drawn(geometry: Geometry, seed: int = 1) -> Array:
    size = (geometry.groups, geometry.taps * geometry.channels, geometry.filters)
    return np.random.default_rng(seed).normal(size=size)


def of_the_form(geometry: Geometry, form: Form, rank: int) -> Array:
    return decompose(drawn(geometry), geometry, form, rank).matrix().astype(np.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_weights_of_the_form_are_found_exactly(geometry: str, form: Form) -> None:
    """Also from a start that is off, and with the present weights unknown."""
    sizes = GEOMETRIES[geometry]
    matrix = of_the_form(sizes, form, 2)
    wanted = moments(sizes, matrix, present=False)
    start = decompose(matrix + 0.03 * drawn(sizes, seed=2), sizes, form, 2)
    assert wanted.error(start.matrix()) > 1e-5
    assert wanted.error(fit(start, wanted, ridge=0, sweeps=30).matrix()) < 1e-6


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "conjugate gradients"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_sweep_is_better(geometry: str, form: Form, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(solvers, "MOST_EXACT", 1)
    sizes = GEOMETRIES[geometry]
    matrix = drawn(sizes)
    wanted = moments(sizes, matrix)
    found = decompose(matrix, sizes, form, 1)
    errors = [wanted.error(found.matrix())]
    for _ in range(4):
        found = fit(found, wanted, ridge=0, sweeps=1)
        errors.append(wanted.error(found.matrix()))
    assert all(later < earlier for earlier, later in pairwise(errors)), errors


@pytest.mark.parametrize("form", FORMS)
def test_conjugate_gradients_find_what_the_exact_solution_is(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = GEOMETRIES["plain"]
    matrix = drawn(sizes)
    wanted, start = moments(sizes, matrix), decompose(matrix, sizes, form, 2)
    exact = fit(start, wanted, ridge=1e-3, sweeps=2)
    monkeypatch.setattr(solvers, "MOST_EXACT", 1)
    monkeypatch.setattr(solvers, "MOST_STEPS", 200)
    monkeypatch.setattr(solvers, "CLOSE_ENOUGH", 1e-20)
    np.testing.assert_allclose(fit(start, wanted, ridge=1e-3, sweeps=2).matrix(), exact.matrix(), atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_at_full_rank_the_answer_is_that_of_free_weights(geometry: str, form: Form) -> None:
    sizes = GEOMETRIES[geometry]
    wanted = moments(sizes, drawn(sizes), present=False)
    found = LowRank(sizes, form, sizes.full_rank(form), ridges=(1e-6,)).fit(wanted, wanted)
    assert wanted.error(found.matrix()) < 1e-7
    np.testing.assert_allclose(found.matrix(), unrestricted(wanted, 1e-6), atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_samples_decide_where_weights_alone_would_not(form: Form) -> None:
    """The fit is to the data's moments: far better on other samples than the truncation that it starts from."""
    sizes = Geometry(1, 8, 8, (3, 3))
    matrix = drawn(sizes)
    fitting, held_out, others = (moments(sizes, matrix, rows=rows, seed=rows) for rows in (500, 120, 2000))
    found = LowRank(sizes, form, 2).fit(fitting, held_out)
    assert others.error(found.matrix()) < 0.85 * others.error(decompose(matrix, sizes, form, 2).matrix())


@pytest.mark.parametrize("form", FORMS)
def test_of_few_rows_the_present_weights_hold_the_rest(form: Form) -> None:
    """Fewer rows than unknowns leave directions open; there the layer stays as near to itself as the form allows."""
    sizes = Geometry(1, 6, 8, (3, 3))
    matrix = of_the_form(sizes, form, 2) + 0.02 * drawn(sizes, seed=3)
    few, held_out, others = (moments(sizes, matrix, rows=rows, seed=rows) for rows in (20, 10, 2000))
    found = LowRank(sizes, form, 2).fit(few, held_out)
    assert others.error(found.matrix()) < 1.2 * others.error(decompose(matrix, sizes, form, 2).matrix())


@pytest.mark.parametrize("form", FORMS)
def test_inputs_that_never_vary_change_nothing(form: Form) -> None:
    sizes = Geometry(2, 3, 4, (3, 3))
    matrix = drawn(sizes)
    nothing = moments(sizes, matrix)
    nothing.gram[1], nothing.cross[1] = 0, 0
    found = LowRank(sizes, form, 2).fit(nothing, nothing)
    assert np.isfinite(found.matrix()).all()
    assert nothing.error(found.matrix()) < 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_factors_share_their_scale(form: Form, scale: float) -> None:
    """However large inputs and weights are, neither factor leaves the range of float32."""
    sizes = Geometry(1, 4, 5, (3, 3))
    wanted = moments(sizes, scale * drawn(sizes))
    found = LowRank(sizes, form, 2).fit(wanted, wanted)
    sizes_of_factors = np.abs(found.first).max(), np.abs(found.second).max()
    assert 0.01 < sizes_of_factors[0] / sizes_of_factors[1] < 100
    plain = LowRank(sizes, form, 2).fit(*[moments(sizes, drawn(sizes))] * 2)
    np.testing.assert_allclose(found.matrix() / scale, plain.matrix(), atol=1e-3)


@given(
    form=st.sampled_from(FORMS),
    groups=st.integers(1, 3),
    channels=st.integers(1, 4),
    filters=st.integers(1, 4),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda sizes: np.prod(sizes) > 1),
    share=st.floats(0, 1),
    rows=st.integers(2, 60),
    seed=st.integers(0, 99),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_never_worse_than_the_start(
    form: Form, groups: int, channels: int, filters: int, kernel: list[int], share: float, rows: int, seed: int
) -> None:
    """Whatever the sizes, the rank and the number of rows: the penalised error does not grow."""
    sizes = Geometry(groups, channels, filters, tuple(kernel))
    rank = 1 + int(share * (sizes.full_rank(form) - 1))
    matrix = drawn(sizes, seed)
    wanted = moments(sizes, matrix, rows=rows, seed=seed)
    start = decompose(matrix + drawn(sizes, seed + 100), sizes, form, rank)
    found = fit(start, wanted, ridge=1e-2, sweeps=2)
    assert penalised(wanted, found, 1e-2) <= penalised(wanted, start, 1e-2) * (1 + 1e-4) + 1e-9


def penalised(normal: Normal, found: Factors, ridge: float) -> float:
    """Squared error plus ridge, of all groups together."""
    assert normal.weights is not None
    away = found.matrix() - normal.weights
    load = ridge * np.trace(normal.gram, axis1=1, axis2=2) / normal.gram.shape[1]
    return float(np.vdot(away, normal.gram @ away) + (load * np.square(away).sum(axis=(1, 2))).sum())


def test_zero_sweeps_leave_the_start() -> None:
    sizes = GEOMETRIES["plain"]
    start = decompose(drawn(sizes), sizes, "depthwise_first", 1)
    assert fit(start, moments(sizes, drawn(sizes)), ridge=0, sweeps=0) is start


NETS = {
    "convolution": ("float[6,4,3,3] w", "Conv<pads=[1,1,1,1], strides=[2,1]>(x, w)", Geometry(1, 4, 6, (3, 3))),
    "grouped": ("float[6,2,3,3] w", "Conv<group=2, dilations=[1,2]>(x, w)", Geometry(2, 2, 3, (3, 3))),
    "transposed": ("float[4,6,3,3] w", "ConvTranspose<strides=[2,2]>(x, w)", Geometry(1, 4, 6, (3, 3))),
    "transposed, grouped": ("float[4,3,3,3] w", "ConvTranspose<group=2>(x, w)", Geometry(2, 2, 3, (3, 3))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("net", NETS)
def test_in_a_net_the_layer_gets_the_factors_product(net: str, form: Form) -> None:
    """A layer whose weights are of the form is met exactly, and the order of taps, channels and filters is right."""
    declared, call, sizes = NETS[net]
    matrix = of_the_form(sizes, form, 1).astype(np.float32)
    split = matrix.reshape(sizes.groups, 9, sizes.channels, sizes.filters)
    ordered = split.transpose((0, 2, 3, 1) if "transposed" in net else (0, 3, 2, 1))
    weights = ordered.reshape(4, -1, 3, 3) if "transposed" in net else ordered.reshape(6, -1, 3, 3)
    text = f"g (float[N,4,8,8] x) => (float[N,6,P,Q] y) <{declared}> {{ y = {call} }}"
    original = support.model(text, w=weights)
    fed = [support.feeds(original, batch=1, seed=seed) for seed in range(24)]
    result = refit(original, original, {}, fed, restrictions={"y": LowRank(sizes, form, 1)})
    other = support.feeds(original, seed=1000)
    support.assert_same(support.outputs(original, other), support.outputs(result.model, other), rtol=1e-3)
