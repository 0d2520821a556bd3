"""Refits: what a net lost that its other channels can say as well comes back whole, whatever kind of layer reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.recovery import RefitOptions, refit
from tests import support

RNG = np.random.default_rng(0)


def samples(proto: onnx.ModelProto, count: int = 24) -> list[dict[str, Any]]:
    return [support.feeds(proto, batch=1, seed=seed) for seed in range(count)]


def replaced(proto: onnx.ModelProto, **weights: Any) -> onnx.ModelProto:
    """The model with some initializers replaced."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
    return copy


def redundant(filters: Sequence[int]) -> Any:
    """Weights of eight filters, two of which are mixtures of the six others."""
    made = RNG.normal(size=filters).astype(np.float32)
    made[6] = made[0] - 0.5 * made[3]
    made[7] = 0.25 * made[1] + made[2]
    return made


def first_six(proto: onnx.ModelProto, cuts: Mapping[str, int]) -> onnx.ModelProto:
    """Cut the last two of eight channels out of initializers, along an axis each."""
    return replaced(
        proto, **{name: support.initializer(proto, name).take(range(6), axis) for name, axis in cuts.items()}
    )


def assert_recovers(original: onnx.ModelProto, changed: onnx.ModelProto, narrowed: Sequence[str], axis: int) -> None:
    """The refitted net answers like the original on other samples; the one that was only cut does not."""
    untouched = changed.SerializeToString(deterministic=True)
    kept = {name: {axis: np.arange(6)} for name in narrowed}
    result = refit(original, changed, kept, samples(original), options=RefitOptions(ridges=(1e-9,)))
    assert changed.SerializeToString(deterministic=True) == untouched
    onnx.checker.check_model(result.model)
    fed = support.feeds(original, seed=1000)
    wanted, cut, found = (support.outputs(each, fed)["y"] for each in (original, changed, result.model))
    scale = np.abs(wanted).max()
    assert np.abs(cut - wanted).max() > 0.05 * scale
    assert np.abs(found - wanted).max() < 1e-3 * scale
    (last,) = [fit for fit in result.fits if fit.layer == "y"]
    assert last.reason == ""
    assert last.before is not None
    assert last.after is not None
    assert last.after < 1e-5 < last.before


READERS = {
    "plain": ("float[5,8,3,3] v", "Conv(h, v)", 1),
    "strided and dilated": ("float[5,8,3,3] v", "Conv<strides=[2,1], dilations=[1,2], pads=[1,1,0,2]>(h, v, c)", 1),
    "transposed": ("float[8,5,3,3] v", "ConvTranspose<strides=[2,2]>(h, v, c)", 0),
}


@pytest.mark.parametrize("reader", READERS)
def test_convolutions(reader: str) -> None:
    declared, call, axis = READERS[reader]
    original = support.model(
        f"g (float[N,3,8,8] x) => (float[N,5,P,Q] y) <float[8,3,3,3] w, float[8] b, {declared}, float[5] c>"
        f" {{ h = Conv(x, w, b) y = {call} }}",
        w=redundant((8, 3, 3, 3)),
        b=np.zeros(8),  # what a mixture adds everywhere, taps in the padding would not see
    )
    assert_recovers(original, first_six(original, {"w": 0, "b": 0, "v": axis}), ["h"], 1)


@pytest.mark.parametrize("call", ["Gemm(h, v, c)", "Gemm<alpha=0.5, beta=2.0>(h, v, c)", "Gemm(h, v)", "MatMul(h, v)"])
def test_matrices(call: str) -> None:
    original = support.model(
        "g (float[N,6] x) => (float[N,5] y) <float[8,6] w, float[8] b, float[8,5] v, float[5] c>"
        f" {{ h = Gemm<transB=1>(x, w, b) y = {call} }}",
        w=redundant((8, 6)),
    )
    assert_recovers(original, first_six(original, {"w": 0, "b": 0, "v": 0}), ["h"], 1)


def test_matrix_product_with_a_bias_of_its_own() -> None:
    original = support.model(
        "g (float[N,4,6] x) => (float[N,4,5] y) <float[6,8] w, float[8,5] v, float[5] c>"
        " { h = MatMul(x, w) m = MatMul(h, v) y = Add(m, c) }",
        w=redundant((8, 6)).T,
    )
    assert_recovers(original, first_six(original, {"w": 1, "v": 0}), ["h"], 2)
