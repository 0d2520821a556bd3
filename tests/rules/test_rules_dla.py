"""The accelerator's limits in every form that an operator can be written in: old operator sets, defaults, types."""

from __future__ import annotations

import pytest

from graphopt.rules import check_model
from tests.rules.rule_examples import ACCELERATOR, TENSORRT
from tests.support import model

BATCH = "a slice of the batch"


def found(text: str, opset: int) -> list[tuple[str, str]]:
    net = f"agraph (float[2,4,8,8] x) => {text}"
    return [(place.rule, place.message) for place in check_model(model(net, opset=opset), ACCELERATOR, ["dla"])]


@pytest.mark.parametrize(
    ("text", "opset", "word"),
    [
        pytest.param("(float[1,4,8,8] y) { y = Slice<starts = [1], ends = [2], axes = [0]>(x) }", 9, BATCH, id="old"),
        pytest.param("(float[n,c,h,w] y) <int64[2] a = {1, 0}, int64[2] b = {2, 4}> { y = Slice(x, a, b) }", 17, BATCH,
                     id="no axes: from the first"),
        pytest.param("(float[n,c,h,w] y) <int64[1] a = {1}, int64[1] b = {2}, int64[1] ax = {-4}> "
                     "{ y = Slice(x, a, b, ax) }", 17, BATCH, id="from the end"),
        pytest.param("(float[1,4,8,8] y, float[1,4,8,8] z) { y, z = Split<axis = -4>(x) }", 13, "split of the batch",
                     id="split from the end"),
        pytest.param("(float[8,8,4,2] y) { y = Transpose(x) }", 17, "batch axis", id="axes in reverse"),
        pytest.param("(float[n,c,h,w] y) <float[4] f = {1, 1, 33, 33}> { y = Upsample(x, f) }", 9, "factor 33",
                     id="upsample"),
    ],
)  # fmt: skip
def test_a_layer_beyond_the_limits_is_told_however_it_is_written(text: str, opset: int, word: str) -> None:
    ((rule, message),) = found(text, opset)
    assert rule == "dla_layer"
    assert word in message


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        pytest.param("(float[2,2,8,8] y) { y = Slice<starts = [0], ends = [2], axes = [1]>(x) }", 9, id="channels"),
        pytest.param("(float[2,2,8,8] y) <int64[2] a = {0, 0}, int64[2] b = {2, 2}> { y = Slice(x, a, b) }", 17,
                     id="the whole batch"),
        pytest.param("(float[n,c,h,w] y) <float[4] f = {1, 1, 2, 2}> { y = Upsample(x, f) }", 9, id="upsample"),
        pytest.param("(bool[2,4,8,8] y) <float k> { y = Greater(x, k) }", 17, id="a comparison"),
        pytest.param("(int64[4] y) { y = Shape(x) }", 17, id="sizes"),
    ],
)  # fmt: skip
def test_a_layer_within_the_limits_is_not(text: str, opset: int) -> None:
    assert found(text, opset) == []


def test_all_axes_of_an_old_softmax_are_one() -> None:
    wide = "agraph (float[2,4,16,17] x) => (float[2,4,16,17] y) { y = Softmax<axis = 1>(x) }"
    assert [place.message for place in check_model(model(wide, opset=11), ACCELERATOR, ["dla"])] == [
        "Softmax: 1088 values, more than 1024; the GPU runs it instead of the accelerator"
    ]
    assert check_model(model(wide, opset=13), ACCELERATOR, ["dla"]) == []


@pytest.mark.parametrize("node", ["ArgMax<axis = 1>(x)", "Cast<to = 7>(x)", "IsNaN(x)"])
def test_what_makes_integers_of_images_is_a_layer_too(node: str) -> None:
    kind = "bool" if "IsNaN" in node else "int64"
    ((rule, message),) = found(f"({kind}[n,c,h,w] y) {{ y = {node} }}", 17)
    assert rule == "dla_operator"
    assert "the accelerator has no such layer" in message


def test_the_batch_is_the_product_of_all_axes_but_the_last_three() -> None:
    net = model("agraph (float[100,100,1,1,1] x) => (float[100,100,1,1,1] y) { y = Relu(x) }")
    assert [place.rule for place in check_model(net, ACCELERATOR, ["dla"])] == ["dla_sizes"]


def test_scales_are_compared_through_a_concat_of_concats() -> None:
    net = model(
        """agraph (float[1,16,8,8] x, float[1,16,8,8] p) => (float[1,32,8,8] y)
        <float s = {0.02}, float other = {0.05}, int8 z = {0}>
        { xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
          [inner] i = Concat<axis = 1>(p, xd) [outer] o = Concat<axis = 1>(p, i)
          q = QuantizeLinear(o, other, z) y = DequantizeLinear(q, other, z) }"""
    )
    (place,) = check_model(net, TENSORRT, ["concat_scales"])
    assert place.where == "outer"
