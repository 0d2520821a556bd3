"""Refits within a family of weights: the family sees moments only, and the layers behind make up for what it lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import UsageError
from graphopt.recovery import Normal, RefitOptions, normals, record, refit
from tests import support

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Found:
    """Weights, as they are."""

    values: Array

    def matrix(self) -> Array:
        return self.values


@dataclass(frozen=True)
class Free:
    """The family of all weights; keeps what it was told."""

    told: list[tuple[Normal, Normal]] = field(default_factory=list)
    ridge: float = 1e-9

    def fit(self, fitting: Normal, held_out: Normal) -> Found:
        self.told.append((fitting, held_out))
        trace = np.trace(fitting.gram, axis1=1, axis2=2)[:, None, None] + 1e-9
        load = self.ridge * trace * np.eye(fitting.gram.shape[1])
        return Found(np.linalg.solve(fitting.gram + load, fitting.cross))


@dataclass(frozen=True)
class Fixed:
    """One choice of weights only."""

    values: Array

    def fit(self, fitting: Normal, held_out: Normal) -> Found:
        return Found(np.broadcast_to(self.values, fitting.cross.shape))


def samples(proto: onnx.ModelProto, count: int = 24) -> list[dict[str, Array]]:
    return [support.feeds(proto, batch=1, seed=seed) for seed in range(count)]


def replaced(proto: onnx.ModelProto, **weights: Array) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name].astype(np.float32), tensor.name))
    return copy


LAYERS = {
    "plain": "float[6,4,3,3] v; Conv<pads=[1,1,1,1]>(x, v, c)",
    "strided, dilated, uneven": "float[6,4,3,2] v; Conv<strides=[2,1], dilations=[1,2], pads=[1,1,0,2]>(x, v, c)",
    "grouped": "float[6,2,3,3] v; Conv<group=2>(x, v, c)",
    "transposed": "float[4,6,3,3] v; ConvTranspose<strides=[2,2]>(x, v, c)",
    "transposed, grouped": "float[4,3,3,3] v; ConvTranspose<group=2>(x, v, c)",
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_family_of_all_weights_finds_the_original(layer: str) -> None:
    """So moments and means are those of the layer, whatever its kind: weights and bias come back from nonsense."""
    declared, call = LAYERS[layer].split("; ")
    original = support.model(f"g (float[N,4,8,8] x) => (float[N,6,P,Q] y) <{declared}, float[6] c> {{ y = {call} }}")
    changed = replaced(original, v=support.initializer(original, "v") * -0.5, c=np.full(6, 9.0))
    result = refit(original, changed, {}, samples(original), restrictions={"y": Free()})
    fed = support.feeds(original, seed=1000)
    support.assert_same(support.outputs(original, fed), support.outputs(result.model, fed), rtol=1e-4)
    (fit,) = result.fits
    assert fit.before is not None
    assert fit.after is not None
    assert fit.after < 1e-6 < fit.before


CHAIN = """g (float[N,4,6,6] x) => (float[N,5,6,6] y) <float[6,4,3,3] w, float[6] b, float[5,6,1,1] v, float[5] c>
    { h = Conv<pads=[1,1,1,1]>(x, w, b) y = Conv(h, v, c) }"""


def test_an_unchanged_layer_is_refitted_where_it_is_restricted_and_those_behind_follow() -> None:
    """The model holds the family's weights and the bias that keeps the mean; the 1x1 makes up for the rest."""
    original = support.model(CHAIN)
    doubled = 2 * support.initializer(original, "w").reshape(6, 4, 9).transpose(2, 1, 0).reshape(1, 36, 6)
    options = RefitOptions(ridges=(1e-9,))
    result = refit(original, original, {}, samples(original), options=options, restrictions={"h": Fixed(doubled)})
    assert np.array_equal(result.restricted["h"].matrix(), doubled)
    np.testing.assert_allclose(
        support.initializer(result.model, "w_refit"), 2 * support.initializer(original, "w"), rtol=1e-6
    )
    first, second = result.fits
    assert (first.layer, second.layer) == ("h", "y")
    assert first.after == pytest.approx(1.0, rel=1e-3)  # as large as the output itself
    fed = support.feeds(original, seed=1000)
    support.assert_same(support.outputs(original, fed), support.outputs(result.model, fed), rtol=1e-4)
    means = [
        np.mean([inner(each, one) for one in samples(original)], axis=(0, 1, 3, 4)) for each in (original, result.model)
    ]
    np.testing.assert_allclose(*means, atol=1e-4)


def inner(proto: onnx.ModelProto, fed: dict[str, Array]) -> Array:
    """What the first layer gives."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    shown.graph.output.append(onnx.ValueInfoProto(name="h"))
    return np.asarray(support.outputs(shown, fed)["h"])


def test_others_may_be_left_alone() -> None:
    original = support.model(CHAIN)
    result = refit(original, original, {}, samples(original), layers=["nothing"], restrictions={"h": Fixed(np.ones(1))})
    assert [fit.layer for fit in result.fits] == ["h"]


def test_behind_the_restricted_layer_the_input_is_that_of_the_changed_net() -> None:
    """The second family is told of the first one's loss: its Gram matrix is of what the first now gives."""
    original = support.model(CHAIN)
    second = Free()
    refit(original, original, {}, samples(original), restrictions={"h": Fixed(np.zeros(1)), "y": second})
    ((fitting, held_out),) = second.told
    assert np.abs(fitting.gram).max() < 1e-9
    assert held_out.power > 1


def test_the_target_in_a_residual_sum_is_what_the_other_branch_leaves() -> None:
    """What the branch lost is told to the layer that is added to it."""
    original = support.model("""g (float[N,4,6,6] x) => (float[N,5,6,6] y)
        <float[5,4,3,3] w, float[5,4,3,3] v> { h = Conv<pads=[1,1,1,1]>(x, w) z = Conv<pads=[1,1,1,1]>(x, v)
        y = Add(h, z) }""")
    changed = replaced(original, w=support.initializer(original, "w") * 0.25)
    result = refit(original, changed, {}, samples(original), layers=["z"], restrictions={"z": Free()})
    fed = support.feeds(original, seed=1000)
    support.assert_same(support.outputs(original, fed), support.outputs(result.model, fed), rtol=1e-4)


def test_moments_of_the_original() -> None:
    """Every layer of the original gives what it gives: its own weights have no error, and zero loses all."""
    original = support.model(CHAIN)
    recorded = record(original, samples(original))
    found = {name: (fitting, held_out) for name, fitting, held_out in normals(recorded)}
    assert list(found) == ["h", "y"]
    for fitting, held_out in found.values():
        for moments in (fitting, held_out):
            assert moments.weights is not None
            assert moments.error(moments.weights) < 1e-9
            assert moments.error(np.zeros_like(moments.weights)) == pytest.approx(1.0)
            np.testing.assert_allclose(moments.cross, moments.gram @ moments.weights, atol=1e-4)
    assert sum(each.count for each in found["h"]) == 24 * 36
    assert [name for name, *_ in normals(recorded, ["y"])] == ["y"]


def test_moments_are_about_the_mean_and_come_from_the_layers_own_input() -> None:
    original = support.model("g (float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = MatMul(x, w) }")
    fed = [{"x": each["x"] + 5} for each in samples(original, 40)]
    ((_, fitting, held_out),) = normals(record(original, fed))
    values = np.concatenate([each["x"] for each in fed])
    held = np.arange(40) % 5 == 4
    for moments, rows in ((fitting, values[~held]), (held_out, values[held])):
        np.testing.assert_allclose(moments.gram[0], np.cov(rows.T, bias=True), atol=1e-5)
        assert moments.count == len(rows)
    joined = fitting.joined(held_out)
    np.testing.assert_allclose(joined.gram, 0.8 * fitting.gram + 0.2 * held_out.gram)
    assert joined.power == pytest.approx(0.8 * fitting.power + 0.2 * held_out.power)


def test_a_single_sample_says_why() -> None:
    """One row cannot both be fitted to and be held out."""
    original = support.model("g (float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = MatMul(x, w) }")
    result = refit(original, original, {}, samples(original, 1), restrictions={"y": Free()})
    assert "too few samples" in result.fits[0].reason
    assert not result.restricted


def test_fewer_rows_than_unknowns_will_do() -> None:
    original = support.model(CHAIN)
    told = Free(ridge=1e-3)
    one = record(original, samples(original, 1), options=RefitOptions(least_rows=20, rows_per_unknown=0))
    result = refit(original, original, {}, [], recorded=one, restrictions={"h": told})
    ((fitting, held_out),) = told.told
    assert fitting.count + held_out.count == 20 < fitting.gram.shape[1]
    assert "h" in result.restricted


@pytest.mark.filterwarnings("ignore:invalid value")
def test_weights_that_are_not_finite_are_not_written() -> None:
    original = support.model(CHAIN)
    result = refit(original, original, {}, samples(original), restrictions={"h": Fixed(np.full(1, np.nan))})
    assert "not finite" in result.fits[0].reason
    assert not result.restricted
    fed = support.feeds(original)
    support.assert_same(support.outputs(original, fed), support.outputs(result.model, fed))


def test_a_layer_that_is_not_there() -> None:
    original = support.model(CHAIN)
    with pytest.raises(UsageError, match="'elsewhere'"):
        refit(original, original, {}, samples(original), restrictions={"elsewhere": Free()})


def test_a_layer_that_cannot_be_refitted_says_why() -> None:
    original = support.model("""g (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,3,3] w>
        { h = Conv<pads=[1,1,1,1]>(x, w) y = Conv<pads=[1,1,1,1]>(h, w) }""")
    result = refit(original, original, {}, samples(original), restrictions={"h": Free()})
    assert {fit.layer: fit.reason for fit in result.fits}["h"] == "its weights 'w' are those of 2 layers"
    assert not result.restricted


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_inputs_whose_squares_are_beyond_float32_say_why() -> None:
    original = support.model("g (float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = MatMul(x, w) }")
    large = [{"x": each["x"] * np.float32(1e25)} for each in samples(original)]
    result = refit(original, original, {}, large, restrictions={"y": Free()})
    assert "NaN or infinite" in result.fits[0].reason
    assert not list(normals(record(original, large)))
