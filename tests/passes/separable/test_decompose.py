"""Factors by truncated singular value decomposition: sizes, exactness at full rank, what is least where it is not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt.passes.separable.decompose import decompose, geometry_of
from graphopt.passes.separable.factors import Array, Form, Geometry

FORMS: tuple[Form, ...] = ("depthwise_first", "pointwise_first", "spatial")
GEOMETRIES = (
    Geometry(groups=1, channels=5, filters=16, kernel=(3, 3)),
    Geometry(groups=1, channels=16, filters=5, kernel=(3, 3)),
    Geometry(groups=2, channels=4, filters=6, kernel=(2, 5)),
    Geometry(groups=3, channels=12, filters=2, kernel=(7,)),
    Geometry(groups=1, channels=3, filters=4, kernel=(2, 3, 2)),
    Geometry(groups=1, channels=1, filters=8, kernel=(5, 1)),
)


def conv(operator: str = "Conv", **attributes: int) -> onnx.NodeProto:
    return helper.make_node(operator, ["x", "w"], ["y"], **attributes)


def weights_of(geometry: Geometry, seed: int = 0) -> Array:
    shape = geometry.groups, geometry.taps * geometry.channels, geometry.filters
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def moments_of(geometry: Geometry, seed: int = 0) -> Array:
    """Second moments of correlated inputs."""
    size = geometry.taps * geometry.channels
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(geometry.groups, 4 * size, size)) @ rng.normal(size=(geometry.groups, size, size))
    moments: Array = seen.swapaxes(1, 2) @ seen / (4 * size)
    return moments


def loss(weights: Array, found: Array, gram: Array) -> float:
    wrong = found.astype(np.float64) - weights
    return float(np.einsum("guf,guv,gvf->", wrong, gram, wrong))


@pytest.mark.parametrize(
    ("node", "shape", "expected"),
    [
        (conv(), (8, 4, 3, 3), Geometry(groups=1, channels=4, filters=8, kernel=(3, 3))),
        (conv(group=2), (8, 4, 3, 5), Geometry(groups=2, channels=4, filters=4, kernel=(3, 5))),
        (conv(), (8, 1, 3, 3), Geometry(groups=1, channels=1, filters=8, kernel=(3, 3))),
        (conv(), (8, 4, 3), Geometry(groups=1, channels=4, filters=8, kernel=(3,))),
        (conv("ConvTranspose", group=2), (8, 5, 2, 2), Geometry(groups=2, channels=4, filters=5, kernel=(2, 2))),
        (conv(), None, "its weights are computed"),
        (conv(), (8, 4, 1, 1), "it is pointwise already"),
        (conv(group=8), (8, 1, 3, 3), "it is depthwise already"),
        (conv(group=8), (16, 1, 3, 3), "it is depthwise already"),
        (conv("ConvTranspose", group=8), (8, 1, 3, 3), "it is depthwise already"),
        (conv(), (0, 4, 3, 3), "its weights are empty"),
        (conv(), (8, 4), "its weights have no kernel"),
        (conv(group=3), (8, 4, 3, 3), "its 8 channels do not split into 3 groups"),
        (conv("ConvInteger"), (8, 4, 3, 3), "ConvInteger is no float convolution"),
        (conv("QLinearConv"), (8, 4, 3, 3), "QLinearConv is no float convolution"),
        (helper.make_node("Conv", ["x", "w"], ["y"], domain="mine"), (8, 4, 3, 3), "Conv is no float convolution"),
    ],
)
def test_which_nodes_can_be_separated(
    node: onnx.NodeProto, shape: tuple[int, ...] | None, expected: Geometry | str
) -> None:
    assert geometry_of(node, shape) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_full_rank_is_exact(geometry: Geometry, form: Form) -> None:
    weights = weights_of(geometry)
    found = decompose(weights, geometry, form, geometry.full_rank(form))
    np.testing.assert_allclose(found.matrix(), weights, atol=3e-6)
    assert (found.first.dtype, found.second.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_full_rank_is_exact_whatever_the_data(geometry: Geometry, form: Form) -> None:
    weights, full = weights_of(geometry), geometry.full_rank(form)
    found = decompose(weights, geometry, form, full, moments_of(geometry))
    np.testing.assert_allclose(found.matrix(), weights, atol=3e-6)


@pytest.mark.parametrize("rank", [1, 2])
def test_what_is_cut_off_is_what_singular_values_say(rank: int) -> None:
    geometry = Geometry(groups=1, channels=4, filters=6, kernel=(3, 3))
    weights = weights_of(geometry)
    apart = weights.astype(np.float64).reshape(3, 3, 4, 6)
    unfolded = {
        "depthwise_first": apart.reshape(9, 4, 6).transpose(1, 0, 2),
        "pointwise_first": apart.reshape(9, 4, 6).transpose(2, 1, 0),
        "spatial": apart.transpose(0, 2, 1, 3).reshape(1, 12, 18),
    }
    for form in FORMS:
        found = decompose(weights, geometry, form, rank)
        assert found.rank == rank
        rest = np.linalg.svd(unfolded[form], compute_uv=False)[:, rank:]
        assert np.square(found.matrix() - weights).sum() == pytest.approx(np.square(rest).sum(), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_more_terms_are_nearer(geometry: Geometry, form: Form) -> None:
    weights = weights_of(geometry)
    full = geometry.full_rank(form)
    errors = [
        np.square(decompose(weights, geometry, form, rank).matrix() - weights).sum() for rank in range(1, full + 1)
    ]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(errors))


def test_depthwise_first_is_the_best_on_data_where_channels_are_uncorrelated() -> None:
    geometry = Geometry(groups=1, channels=4, filters=6, kernel=(3, 3))
    weights, gram = weights_of(geometry), moments_of(geometry)
    apart = gram.reshape(1, 9, 4, 9, 4)
    gram = np.einsum("gtcuc,cd->gtcud", apart, np.eye(4)).reshape(gram.shape)
    expected = 0.0
    for channel in range(4):
        root = np.linalg.cholesky(apart[0, :, channel, :, channel]).T
        values = np.linalg.svd(root @ weights.reshape(9, 4, 6)[:, channel].astype(np.float64), compute_uv=False)
        expected += np.square(values[2:]).sum()
    found = decompose(weights, geometry, "depthwise_first", 2, gram)
    assert loss(weights, found.matrix(), gram) == pytest.approx(expected, rel=1e-3)
    assert loss(weights, decompose(weights, geometry, "depthwise_first", 2).matrix(), gram) > 1.05 * expected


@pytest.mark.parametrize("form", ["pointwise_first", "spatial"])
def test_the_other_forms_are_the_better_on_data_whose_taps_and_channels_are_independent(form: Form) -> None:
    geometry = Geometry(groups=2, channels=4, filters=6, kernel=(3, 3))
    taps = np.exp(-0.3 * np.abs(np.arange(3)[:, None] - np.arange(3)))
    channels = moments_of(Geometry(2, 4, 1, (1,)))
    gram = np.stack([np.kron(np.kron(taps, taps), each) for each in channels])
    weights = weights_of(geometry)
    plain, weighed = (decompose(weights, geometry, form, 2, given).matrix() for given in (None, gram))
    assert loss(weights, weighed, gram) < 0.95 * loss(weights, plain, gram)


@pytest.mark.parametrize("form", FORMS)
def test_channels_that_the_data_never_uses_do_not_matter(form: Form) -> None:
    geometry = Geometry(groups=1, channels=3, filters=6, kernel=(3, 3))
    gram = moments_of(geometry).reshape(1, 9, 3, 9, 3)
    gram[:, :, 1] = gram[:, :, :, :, 1] = 0
    found = decompose(weights_of(geometry), geometry, form, 2, gram.reshape(1, 27, 27))
    assert np.isfinite(found.first).all()
    assert np.isfinite(found.second).all()


def test_weights_of_zeros_have_factors_of_zeros() -> None:
    geometry = GEOMETRIES[0]
    found = decompose(np.zeros_like(weights_of(geometry)), geometry, "depthwise_first", 2)
    assert not found.first.any()
    assert not found.second.any()


def test_both_factors_have_the_same_norm() -> None:
    found = decompose(1e6 * weights_of(GEOMETRIES[0]), GEOMETRIES[0], "depthwise_first", 3)
    first, second = np.linalg.norm(found.first, axis=3), np.linalg.norm(found.second, axis=3)
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 10])
def test_a_rank_that_no_form_has_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} is not between 1 and 9"):
        decompose(weights_of(GEOMETRIES[0]), GEOMETRIES[0], "depthwise_first", rank)


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = weights_of(GEOMETRIES[0])
    weights[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        decompose(weights, GEOMETRIES[0], "depthwise_first", 1)
