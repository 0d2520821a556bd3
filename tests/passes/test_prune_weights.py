"""Magnitude pruning: which elements become zero, which weights are left alone and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import context, feeds, initializer, model, outputs

from graphopt.errors import UsageError
from graphopt.graph import verify
from graphopt.passes.base import Candidate, Declined
from graphopt.passes.prune_weights import PruneWeights
from graphopt.passes.sparse_weights import kept_by_share

NET = """g (float[N,4,8,8] x) => (float[N,3] y)
  <float[6,4,3,3] u, float[6] a, float[6,6,3,3] v, float[6,3] w, float[3] b> {
  [first] c = Conv(x, u, a)  r = Relu(c)  [middle] d = Conv(r, v)  p = GlobalAveragePool(d)  f = Flatten(p)
  [last] y = Gemm(f, w, b) }"""


def pruned(proto: onnx.ModelProto, **options: Any) -> list[Candidate]:
    """All candidates; each is valid, and the model is untouched."""
    before = proto.SerializeToString(deterministic=True)
    found = list(PruneWeights(**options).candidates(proto, context()))
    for candidate in found:
        verify(candidate.model)
    assert proto.SerializeToString(deterministic=True) == before
    return found


def first(proto: onnx.ModelProto, **options: Any) -> Candidate:
    return pruned(proto, **options)[0]


def weight_of(proto: onnx.ModelProto, node: str, slot: int = 1) -> np.ndarray[Any, Any]:
    """The values that a node reads."""
    name = next(one.input[slot] for one in proto.graph.node if one.name == node)
    return initializer(proto, name)


def reasons(candidate: Candidate) -> dict[str, str]:
    return {skip.where: skip.reason for skip in candidate.report.skipped}


def test_the_smallest_elements_become_zero_and_the_rest_stay_as_they_are() -> None:
    proto = model(
        "g (float[N,4] x) => (float[N,2] y) <float[4,2] w> { [m] y = MatMul(x, w) }",
        w=[[0.3, -0.1], [0.7, 0.2], [-0.5, 0.4], [0.6, -0.8]],
    )
    candidate = first(proto, share=0.4, scope="global")
    wanted = np.array([[0, 0], [0.7, 0], [-0.5, 0.4], [0.6, -0.8]], dtype=np.float32)
    np.testing.assert_array_equal(weight_of(candidate.model, "m"), wanted)
    assert candidate.report.changes == 3
    assert candidate.report.details["zeros_by_layer"] == {"'m' (MatMul)": 0.375}
    assert candidate.label.startswith("37.5% of the weights zero")


def test_outputs_are_those_of_the_net_with_these_weights_and_biases_stay() -> None:
    proto = model(NET)
    candidate = first(proto)
    for node in ("first", "last"):
        np.testing.assert_array_equal(weight_of(candidate.model, node, 2), weight_of(proto, node, 2))
    rebuilt = model(NET, u=weight_of(candidate.model, "first"), v=weight_of(candidate.model, "middle"),
                    w=weight_of(candidate.model, "last"))  # fmt: skip
    fed = feeds(proto)
    np.testing.assert_array_equal(outputs(candidate.model, fed)["y"], outputs(rebuilt, fed)["y"])


def test_what_is_left_is_refitted_where_there_are_samples() -> None:
    """The zeros stay, and the outputs come closer to the original's."""
    proto = model(NET)
    rng = np.random.default_rng(0)
    given = [{"x": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(40)]
    one = PruneWeights(share=0.6)
    plain = next(one.candidates(proto, context()))
    refitted = next(one.candidates(proto, replace(context(), calibration=given)))
    assert plain.report.details["recovery"] == "none: there are no calibration samples"
    assert refitted.report.details["recovery"].endswith("layers refitted on 40 samples")
    assert refitted.report.details["zeros_by_layer"] == plain.report.details["zeros_by_layer"]
    for node in ("first", "middle", "last"):
        before, after = (weight_of(candidate.model, node) for candidate in (plain, refitted))
        np.testing.assert_array_equal(before == 0, after == 0)
    fed = feeds(proto, batch=32)
    wanted, before, after = (outputs(each, fed)["y"] for each in (proto, plain.model, refitted.model))
    assert np.square(after - wanted).sum() < 0.2 * np.square(before - wanted).sum()


def test_recovery_can_be_left_out_or_insisted_on() -> None:
    given = replace(context(), calibration=[feeds(model(NET), batch=1)])
    left_out = next(PruneWeights(recovery="none").candidates(model(NET), given))
    assert left_out.report.details["recovery"] == "none"
    with pytest.raises(Declined, match="no calibration samples"):
        pruned(model(NET), recovery="refit")


def test_a_candidate_need_not_be_faster() -> None:
    assert not first(model(NET)).faster


def test_later_candidates_are_gentler() -> None:
    found = pruned(model(NET), share=0.8)
    zeros = [candidate.report.details["zeros"] for candidate in found]
    np.testing.assert_allclose(zeros, [0.8, 0.6, 0.4, 0.2], atol=0.003)


def test_the_same_model_gives_the_same_bytes() -> None:
    ones, others = (pruned(model(NET)) for _ in range(2))
    assert [one.model for one in ones] == [other.model for other in others]


def test_compressed_size_falls_while_the_size_stays() -> None:
    proto = model("g (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }")
    candidate = first(proto, share=0.75)
    details, label = candidate.report.details, candidate.label
    assert details["weight_bytes"] == 4 * 64 * 64
    assert details["compressed_bytes"] < 0.5 * details["compressed_bytes_before"]
    assert "none is gained" in details["speed"]
    assert label.startswith("75.0% of the weights zero: ")
    assert label.endswith("no faster in ONNX Runtime")


SCALED = {"u": np.full((6, 4, 3, 3), 0.01), "v": np.full((6, 6, 3, 3), 1.0), "w": np.full((6, 3), 100.0)}


@pytest.mark.parametrize(("scope", "shares"), [("layer", [0.5, 0.5, 0.5]), ("global", [1.0, 0.1883, 0.0])])
def test_scope(scope: str, shares: list[float]) -> None:
    zeros = first(model(NET, **SCALED), scope=scope, share=0.5).report.details["zeros_by_layer"]
    np.testing.assert_allclose(list(zeros.values()), shares, atol=0.01)


def test_lamp_does_not_depend_on_the_scale_of_a_layer() -> None:
    scaled = {name: 50 * initializer(model(NET), name) for name in ("u",)}
    plain, other = (first(model(NET, **values)).report.details["zeros_by_layer"] for values in ({}, scaled))
    assert plain == other


def test_lamp_scores() -> None:
    """Scores of [1, 2] are 1/5 and 4/4, of [2, 2] 4/8 and 4/4 (the first of equal ones has the second before it)."""
    masks = kept_by_share([np.array([1.0, 2.0]), np.array([2.0, -2.0])], 0.5, "lamp")
    assert [mask.tolist() for mask in masks] == [[False, True], [False, True]]


def test_threshold() -> None:
    proto = model("g (float[N,2] x) => (float[N,2] y) <float[2,2] w> { [m] y = MatMul(x, w) }", w=[[1, -2], [3, 4]])
    found = pruned(proto, threshold=2.5)
    assert [weight_of(one.model, "m").tolist() for one in found] == [[[0, 0], [3, 4]], [[0, -2], [3, 4]]]


def test_a_shared_weight_is_pruned_once() -> None:
    proto = model(
        """g (float[N,4] x) => (float[N,4] y) <float[4,4] w> {
        i = Identity(w)  [one] a = MatMul(x, w)  [two] y = MatMul(a, i) }"""
    )
    candidate = first(proto)
    assert candidate.report.details["zeros_by_layer"] == {"'one' (MatMul)": 0.5}
    assert sum(bool((onnx.numpy_helper.to_array(one) == 0).any()) for one in candidate.model.graph.initializer) == 1


def test_recurrent_layers_and_constant_nodes() -> None:
    proto = model(
        """g (float[5,N,4] x) => (float[5,1,N,3] y) <float[1,12,4] w, float[1,12,3] r, float[1,24] b> {
        k = Constant<value = float[4,4] {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>()
        [m] z = MatMul(x, k)  [l] y = LSTM<hidden_size = 3>(z, w, r, b) }"""
    )
    candidate = first(proto, scope="layer")
    for node, slot in (("m", 1), ("l", 1), ("l", 2)):
        assert (weight_of(candidate.model, node, slot) == 0).mean() == 0.5
    assert (weight_of(candidate.model, "l", 3) != 0).all()


def test_weights_in_subgraphs() -> None:
    proto = model(
        """g (float[N,4] x, bool go) => (float[N,4] y) <float[4,4] w> {
        y = If (go) <then_branch = t () => (float[N,4] p) { [inner] p = MatMul(x, w) },
                     else_branch = e () => (float[N,4] q) { q = Identity(x) }> }"""
    )
    candidate = first(proto)
    assert candidate.report.details["zeros"] == 0.5
    fed = {"x": np.ones((1, 4), np.float32), "go": np.array(True)}
    assert not np.allclose(outputs(proto, fed)["y"], outputs(candidate.model, fed)["y"])


def test_first_and_last_layers_can_be_kept() -> None:
    candidate = first(model(NET), keep_first=True, keep_last=True)
    assert reasons(candidate) == {"'first' (Conv)": "it is a first layer", "'last' (Gemm)": "it is a last layer"}
    assert list(candidate.report.details["zeros_by_layer"]) == ["'middle' (Conv)"]


def test_layers_can_be_excluded_by_name() -> None:
    candidate = first(model(NET), exclude="middle")
    assert reasons(candidate) == {"'middle' (Conv)": "excluded by the option prune_weights.exclude"}
    with pytest.raises(UsageError, match="names no layer of the model: missing"):
        first(model(NET), exclude="middle missing")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            """g (float[N,4] x, int64[N] i) => (float[N,4] y, float[N,4] e) <float[4,4] w> {
            [m] y = MatMul(x, w)  e = Gather(w, i) }""",
            "its weights are read by 'e' (Gather) too",
            id="embedding",
        ),
        pytest.param(
            """g (float[N,4] x) => (float[N,4] y) <int32[4,4] w> {
            j = Cast<to = 6>(x)  [m] z = MatMul(j, w)  y = Cast<to = 1>(z) }""",
            "its weights are int32, not float",
            id="integers",
        ),
        pytest.param(
            """g (float[N,4] x) => (float[N,4] y, float[4,4] w) <float[4,4] w> { [m] y = MatMul(x, w) }""",
            "its weights are an output of the model",
            id="output",
        ),
    ],
)
def test_leaves_alone(text: str, reason: str) -> None:
    with pytest.raises(Declined, match="no weights that can be pruned") as declined:
        pruned(model(text))
    assert [(skip.where, skip.reason) for skip in declined.value.report.skipped] == [("'m' (MatMul)", reason)]


def test_computed_weights_are_no_weights() -> None:
    quantized = """g (float[N,4] x, float[4,4] v) => (float[N,4] y) <int8[4,4] q, float s> {
      w = DequantizeLinear(q, s)  a = MatMul(x, w)  y = MatMul(a, v) }"""
    with pytest.raises(Declined, match="no weights that can be pruned"):
        pruned(model(quantized))


def test_infinite_weights_are_left_alone() -> None:
    proto = model("g (float[N,1] x) => (float[N,1] y) <float[1,1] w> { [m] y = MatMul(x, w) }", w=[[np.inf]])
    with pytest.raises(Declined) as declined:
        pruned(proto)
    assert declined.value.report.skipped[0].reason == "its weights hold NaN or infinity"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"share": 0.1}, "75.0% of the weights are zero already"), ({"threshold": 1.0}, "no weight is smaller than 1")],
)
def test_nothing_to_do(options: dict[str, float], message: str) -> None:
    proto = model("g (float[N,2] x) => (float[N,2] y) <float[2,2] w> { y = MatMul(x, w) }", w=[[0, 0], [0, 4]])
    with pytest.raises(Declined, match=message):
        pruned(proto, **options)


@pytest.mark.parametrize(
    "options",
    [{"share": 0.0}, {"share": 1.0}, {"threshold": -1.0}, {"scope": "all"}, {"recovery": "?"}, {"samples": 0}],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"prune_weights.{next(iter(options))}"):
        PruneWeights(**options)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    values=st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=20), min_size=1, max_size=4),
    share=st.floats(0.01, 0.99),
    scope=st.sampled_from(["global", "lamp", "layer"]),
)
def test_the_share_is_never_exceeded_and_smaller_elements_go_first(
    values: list[list[int]], share: float, scope: str
) -> None:
    weights = [np.array(each, dtype=np.float32) for each in values]
    masks = kept_by_share(weights, share, scope)
    gone = sum(int((~mask).sum()) for mask in masks)
    total = sum(weight.size for weight in weights)
    assert gone <= share * total
    assert gone == int(share * total) or scope == "layer"
    for weight, mask in zip(weights, masks, strict=True):
        if mask.any() and not mask.all():
            assert np.abs(weight[~mask]).max() <= np.abs(weight[mask]).min()
