"""What is refitted and what is not, towards what, and what becomes of the rest of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import DataError
from graphopt.recovery import RefitOptions, record, refit, synthetic_feeds
from tests import support
from tests.recovery.test_refit import first_six, redundant, replaced, samples

EXACT = RefitOptions(ridges=(1e-9,))
CHAIN = """g (float[N,3,6,6] x) => (float[N,4,6,6] y)
  <float[8,3,1,1] w, float[8] b, float[8,8,1,1] v, float[4,8,1,1] u, float[4] c> {
  h = Conv(x, w, b)
  r = Relu(h)
  i = Conv(r, v)
  y = Conv(i, u, c)
}"""


def reasons(fits: Any) -> dict[str, str]:
    return {fit.layer: fit.reason for fit in fits}


def close(one: onnx.ModelProto, other: onnx.ModelProto, rtol: float = 1e-3) -> bool:
    fed = support.feeds(one, seed=1000)
    wanted, found = (support.outputs(each, fed)["y"] for each in (one, other))
    return bool(np.abs(wanted - found).max() < rtol * np.abs(wanted).max())


def test_an_unchanged_net_stays_byte_for_byte() -> None:
    original = support.model(CHAIN)
    result = refit(original, original, {}, samples(original))
    assert result.model.SerializeToString() == original.SerializeToString()
    assert set(reasons(result.fits).values()) == {"nothing up to it was changed"}


def test_layers_before_the_change_are_not_looked_at() -> None:
    original = support.model(CHAIN, v=redundant((8, 8, 1, 1)))
    changed = first_six(original, {"v": 0, "u": 1})
    result = refit(original, changed, {"i": {1: np.arange(6)}}, samples(original), options=EXACT)
    assert reasons(result.fits) == {
        "h": "nothing up to it was changed",
        "i": "nothing up to it was changed",
        "y": "",
    }
    assert close(original, result.model)


def test_each_layer_is_fed_by_the_refitted_net() -> None:
    """What one layer could not make good, the next does: fitted to the original's inputs it would not know of it."""
    original = support.model(CHAIN.replace("Conv(i, u, c)", "Conv(j, u, c)").replace("  y =", "  j = Relu(i)\n  y ="))
    changed = first_six(original, {"w": 0, "b": 0, "v": 1})
    kept = {name: {1: np.arange(6)} for name in ("h", "r")}
    both = refit(original, changed, kept, samples(original), options=EXACT)
    first = refit(original, changed, kept, samples(original), options=EXACT, layers=["i"])
    fed = support.feeds(original, seed=1000)
    wanted, one, two = (support.outputs(each, fed)["y"] for each in (original, first.model, both.model))
    assert [fit.layer for fit in first.fits if not fit.reason] == ["i"]
    assert np.square(two - wanted).sum() < np.square(one - wanted).sum()


def test_samples_that_say_nothing_new_change_nothing() -> None:
    """The held-out error must fall, or the layer stays: here the target is noise that the input does not explain."""
    original = support.model("g (float[N,9] x) => (float[N,1] y) <float[9,1] w, float[1] c> { y = Gemm(x, w, c) }")
    changed = support.model(
        "g (float[N,9] x) => (float[N,1] y) <float[9,1] w, float[1] c> { z = Sin(x) o = Cos(x) h = Sub(z, o)"
        " i = Mul(h, o) y = Gemm(i, w, c) }",
        w=np.zeros((9, 1)),
        c=np.zeros(1),
    )
    result = refit(original, changed, {}, samples(original, 10), options=RefitOptions(ridges=(1e-9,)))
    (fit,) = result.fits
    assert fit.before is not None
    assert fit.after is not None
    assert fit.after <= fit.before


SUM = """g (float[N,3,6,6] x) => (float[N,4,6,6] y)
  <float[4,3,1,1] w, float[4,3,1,1] v, float[4] s, float[4] b, float[4] mean, float[4] variance> {
  a = Conv(x, w)
  t = Tanh(a)
  z = Conv(x, v)
  n = BatchNormalization(z, s, b, mean, variance)
  y = Add(n, t)
}"""


@pytest.mark.parametrize("residual", [True, False])
def test_a_layer_makes_up_for_what_its_sum_lacks(residual: bool) -> None:
    """The other operand lost what is linear in the layer's own input: only a fit to the sum can bring it back."""
    original = support.model(SUM)
    changed = support.model(
        SUM.replace("t = Tanh(a)", "k = Tanh(a) t = Sub(k, a)"), w=support.initializer(original, "w")
    )
    options = RefitOptions(ridges=(1e-9,), residual=residual)
    result = refit(original, changed, {}, samples(original), options=options)
    assert close(original, result.model) == residual


def test_a_sum_whose_other_operand_comes_later_is_no_target() -> None:
    text = SUM.replace("  a = Conv(x, w)\n  t = Tanh(a)\n", "").replace(
        "  y = Add", "  a = Conv(x, w)\n  t = Tanh(a)\n  y = Add"
    )
    original = support.model(text)
    changed = support.model(
        text.replace("t = Tanh(a)", "k = Tanh(a) t = Sub(k, a)"), w=support.initializer(original, "w")
    )
    result = refit(original, changed, {}, samples(original), options=EXACT)
    assert reasons(result.fits)["z"] == "nothing up to it was changed"


NORMALIZED = """g (float[N,3,6,6] x) => (float[N,5,6,6] y)
  <float[8,3,1,1] w, float[8] s, float[8] b, float[8] mean, float[8] variance, float[5,8,1,1] v> {
  h = Conv(x, w)
  PLACE
  r = Relu(n)
  y = Conv(r, v)
}"""


def test_a_normalization_right_behind_a_refitted_layer_stays() -> None:
    original = support.model(NORMALIZED.replace("PLACE", "n = BatchNormalization(h, s, b, mean, variance)"))
    changed = replaced(original, w=2 * support.initializer(original, "w"))
    result = refit(original, changed, {}, samples(original), options=EXACT)
    assert reasons(result.fits)["n"] == "the layer before it is refitted"
    assert close(original, result.model)


def test_other_normalizations_get_scale_and_shift_of_their_own() -> None:
    text = NORMALIZED.replace("h = Conv(x, w)", "h = Conv(x, w) t = Tanh(h)")
    original = support.model(text.replace("PLACE", "n = BatchNormalization(t, s, b, mean, variance)"))
    changed = support.model(
        text.replace(
            "PLACE",
            "two = Constant<value_float=2.0>() d = Mul(t, two) m = Add(d, two)"
            " n = BatchNormalization(m, s, b, mean, variance)",
        )
    )
    result = refit(original, changed, {}, samples(original), options=EXACT)
    assert reasons(result.fits)["n"] == ""
    assert close(original, result.model)
    assert not close(original, changed)


def test_positions_that_were_cut_too_are_left_out() -> None:
    """A token axis shrinks beside the channels, as in an MLP-Mixer: rows of the fit are the tokens that remain."""
    text = """g (float[N,5,6] x) => (float[N,T,4] y) <float[6,8] w, float[8,4] v, int64[T] rows> {
      g = Gather<axis=1>(x, rows)
      h = MatMul(g, w)
      y = MatMul(h, v)
    }"""
    whole = np.arange(5)
    original = support.model(text.replace("[T]", "[5]"), w=redundant((8, 6)).T, rows=whole)
    changed = first_six(original, {"w": 1, "v": 0})
    changed = replaced(changed, rows=np.array([0, 2, 3]))
    kept = {
        "g": {1: np.array([0, 2, 3])},
        "h": {1: np.array([0, 2, 3]), 2: np.arange(6)},
        "y": {1: np.array([0, 2, 3])},
    }
    result = refit(original, changed, kept, samples(original), options=EXACT)
    fed = support.feeds(original, seed=1000)
    wanted, found = support.outputs(original, fed)["y"], support.outputs(result.model, fed)["y"]
    np.testing.assert_allclose(found, wanted[:, [0, 2, 3]], atol=1e-3 * np.abs(wanted).max())


def test_a_layer_that_became_several_nodes_is_fitted_by_its_last() -> None:
    original = support.model("g (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[4,3,1,1] w> { y = Conv(x, w) }")
    changed = support.model(
        "g (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[3,1,1,1] d, float[4,3,1,1] p>"
        " { m = Conv<group=3>(x, d) y = Conv(m, p) }"
    )
    result = refit(original, changed, {}, samples(original), options=EXACT)
    assert reasons(result.fits) == {"m": "the original has no layer of this name", "y": ""}
    assert close(original, result.model)


def test_what_cannot_be_refitted_says_why() -> None:
    original = support.model(
        """g (float[N,4] x, float[4,4] free) => (float[N,4] y) <float[4,4] w> {
          t = Tanh(x)
          a = MatMul(t, w)
          b = MatMul(a, w)
          c = Gemm(b, free)
          y = Add(b, c)
        }"""
    )
    changed = support.model(
        """g (float[N,4] x, float[4,4] free) => (float[N,4] y) <float[4,4] w> {
          t = Sin(x)
          a = MatMul(t, w)
          b = MatMul(a, w)
          c = Gemm(b, free)
          y = Add(b, c)
        }"""
    )
    result = refit(original, changed, {}, samples(original))
    assert reasons(result.fits) == {
        "a": "its weights 'w' are those of 2 layers",
        "b": "its weights 'w' are those of 2 layers",
    }
    assert result.model.SerializeToString() == changed.SerializeToString()


def test_an_output_of_unknown_width_is_left_alone() -> None:
    original = support.model(CHAIN)
    changed = first_six(original, {"w": 0, "b": 0, "v": 1})
    result = refit(original, changed, {}, samples(original))
    assert "6 outputs" in reasons(result.fits)["h"]


def test_a_layer_that_is_infinite_on_some_sample_is_left_alone() -> None:
    original = support.model(
        "g (float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] v>"
        " { h = MatMul(x, w) l = Log(h) y = MatMul(l, v) }"
    )
    changed = replaced(original, w=2 * support.initializer(original, "w"))
    result = refit(original, changed, {}, samples(original))
    assert reasons(result.fits) == {"h": "", "y": "there are too few samples, or they make it NaN or infinite"}


def test_no_sample_is_an_error() -> None:
    original = support.model(CHAIN)
    with pytest.raises(DataError, match="no sample"):
        refit(original, first_six(original, {"w": 0, "b": 0, "v": 1}), {}, [])


def test_the_same_twice_and_from_one_recording() -> None:
    original = support.model(CHAIN, w=redundant((8, 3, 1, 1)))
    changed = first_six(original, {"w": 0, "b": 0, "v": 1})
    kept = {name: {1: np.arange(6)} for name in ("h", "r")}
    once = refit(original, changed, kept, samples(original)).model.SerializeToString()
    recorded = record(original, samples(original))
    for _ in range(2):
        assert refit(original, changed, kept, [], recorded=recorded).model.SerializeToString() == once


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_memory_and_batches_do_not_change_the_result(memory: int) -> None:
    original = support.model(CHAIN)
    changed = first_six(original, {"w": 0, "b": 0, "v": 1})
    kept = {name: {1: np.arange(6)} for name in ("h", "r")}
    found = [
        refit(
            original, changed, kept, samples(original), options=RefitOptions(memory=memory, run_memory=run, batch=batch)
        )
        for run, batch in ((1 << 28, 24), (1, 24), (1 << 28, 5))
    ]
    fed = support.feeds(original, seed=1000)
    first, *others = (support.outputs(each.model, fed) for each in found)
    for other in others:
        support.assert_same(first, other, rtol=1e-4)


def test_a_fixed_batch_and_samples_of_several_sizes() -> None:
    fixed = support.model(CHAIN.replace("[N,", "[2,"), w=redundant((8, 3, 1, 1)))
    kept = {name: {1: np.arange(6)} for name in ("h", "r")}
    changed = first_six(fixed, {"w": 0, "b": 0, "v": 1})
    assert close(fixed, refit(fixed, changed, kept, samples(fixed), options=EXACT).model) is False  # Relu lies between
    open_ = support.model(CHAIN.replace("6,6", "H,W"))
    rng = np.random.default_rng(0)
    sizes = [{"x": rng.normal(size=(1, 3, 4 + k % 3, 7)).astype(np.float32)} for k in range(12)]
    changed = first_six(open_, {"w": 0, "b": 0, "v": 1})
    result = refit(open_, changed, kept, sizes)
    assert reasons(result.fits)["i"] == ""


def test_half_precision_stays_half() -> None:
    text = (
        "g (float16[N,6] x) => (float16[N,5] y) <float16[6,8] w, float16[8,5] v> { h = MatMul(x, w) y = MatMul(h, v) }"
    )
    original = support.model(text, w=redundant((8, 6)).T)
    result = refit(original, first_six(original, {"w": 1, "v": 0}), {"h": {1: np.arange(6)}}, samples(original))
    onnx.checker.check_model(result.model, full_check=True)
    assert close(original, result.model, rtol=0.05)


def test_fewer_rows_than_unknowns() -> None:
    """A wide layer on few samples: the solution comes from the rows, and stays near the weights it had."""
    original = support.model(
        "g (float[N,90] x) => (float[N,3] y) <float[90,100] w, float[100,3] v>"
        " { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    )
    changed = replaced(
        original, w=support.initializer(original, "w")[:, :80], v=support.initializer(original, "v")[:80]
    )
    kept = {name: {1: np.arange(80)} for name in ("h", "r")}
    result = refit(original, changed, kept, samples(original, 60))
    fed = {"x": np.random.default_rng(5).normal(size=(200, 90)).astype(np.float32)}
    wanted, cut, found = (support.outputs(each, fed)["y"] for each in (original, changed, result.model))
    assert np.square(found - wanted).sum() < 0.8 * np.square(cut - wanted).sum()


def test_noise_for_nets_without_data_is_smooth_and_the_same_each_time() -> None:
    proto = support.model("g (float[N,3,16,16] x, int64[N] k) => (float[N,3,16,16] y) { y = Relu(x) }")
    one, two = list(synthetic_feeds(proto, 2)), list(synthetic_feeds(proto, 2))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first["x"], second["x"])
        assert first["x"].shape == (1, 3, 16, 16)
        assert first["x"].dtype == np.float32
        assert first["k"].dtype == np.int64
        step = np.diff(first["x"], axis=-1).std()
        assert step < 1.2 * first["x"].std()
    assert not np.array_equal(one[0]["x"], one[1]["x"])
