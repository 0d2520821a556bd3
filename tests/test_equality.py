"""Whether two models answer alike to float rounding: what is told apart, and what is not."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.equality import _is_rounding, why_different
from graphopt.errors import UnsupportedModelError

FEED = {"x": np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)}


def model(body: str, output: str = "float[2,4] y") -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => ({output}) {{ {body} }}'
    return onnx.parser.parse_model(text)


TWICE = model("two = Constant<value = float {2.0}>()  y = Mul(x, two)")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(model("y = Add(x, x)"), id="other operators"),
        pytest.param(model("two = Constant<value = float {2.00002}>()  y = Mul(x, two)"), id="rounding"),
    ],
)
def test_equal_to_rounding(other: onnx.ModelProto) -> None:
    assert why_different(TWICE, other, [FEED]) is None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        pytest.param(
            model("two = Constant<value = float {2.01}>()  y = Mul(x, two)"),
            "output 'y' is off by 0.02 where its largest value is 4",
            id="other values",
        ),
        pytest.param(model("z = Log(x) y = Identity(z)"), "output 'y' has infinite or undefined values", id="NaN"),
        pytest.param(
            model("a = Constant<value = int64[1] {0}>()  z = Unsqueeze(x, a)  y = Add(z, z)", "float[1,2,4] y"),
            r"output 'y' has the shape \(1, 2, 4\) instead of \(2, 4\)",
            id="other shape",
        ),
        pytest.param(
            model("z = Add(x, x)  y = Cast<to = 11>(z)", "double[2,4] y"),
            "output 'y' has the type float64 instead of float32",
            id="other type",
        ),
        pytest.param(model("z = Add(x, x)", "float[2,4] z"), r"the outputs are \['z'\] instead of \['y'\]", id="names"),
    ],
)
def test_different(other: onnx.ModelProto, reason: str) -> None:
    found = why_different(TWICE, other, [FEED])
    assert found is not None
    assert re.search(reason, found), found


def test_equal_infinities_and_undefined_values_are_equal() -> None:
    logs = model("y = Log(x)")
    assert why_different(logs, model("z = Identity(x)  y = Log(z)"), [FEED]) is None


def test_whole_numbers_must_agree_but_for_a_rare_tie() -> None:
    best = model("y = ArgMax<axis = 1, keepdims = 0>(x)", "int64[2] y")
    assert why_different(best, best, [FEED]) is None
    least = model("y = ArgMin<axis = 1, keepdims = 0>(x)", "int64[2] y")
    assert why_different(best, least, [FEED]) == "output 'y' differs in 100.00% of its values"


def test_a_model_that_draws_random_numbers_is_not_held_against_the_pass() -> None:
    noise = model("n = RandomNormalLike(x)  y = Add(x, n)")
    assert why_different(noise, noise, [FEED]) is None


def test_sequences_are_compared_element_by_element() -> None:
    before = model("y = SequenceConstruct(x, x)", "seq(float[2,4]) y")
    assert why_different(before, before, [FEED]) is None
    other = model("z = Add(x, x)  y = SequenceConstruct(x, z)", "seq(float[2,4]) y")
    assert why_different(before, other, [FEED]) is not None
    shorter = model("y = SequenceConstruct(x)", "seq(float[2,4]) y")
    assert why_different(before, shorter, [FEED]) == "output 'y' has 1 elements instead of 2"


def test_a_model_that_the_runtime_refuses_is_an_error_even_without_data() -> None:
    refused = model("y = Nothing(x)")
    with pytest.raises(UnsupportedModelError, match="cannot load the model"):
        why_different(TWICE, refused, [])


@pytest.mark.parametrize(
    ("found", "accepted"),
    [
        pytest.param([1e-5, 2.04e-5], True, id="as far off as the runtime's own optimizations"),
        pytest.param([1e-5, 2.5e-5], False, id="further off"),
        pytest.param([1e-5, np.nan], False, id="undefined"),
    ],
)
def test_an_output_that_is_tiny_beside_what_it_is_computed_from(found: list[float], accepted: bool) -> None:
    """A sigmoid of -12 after sums in another order is far off beside its own size, and nobody is at fault."""
    expected, rounded = np.array([1e-5, 2e-5], np.float32), np.array([1e-5, 2.01e-5], np.float32)
    assert _is_rounding(expected, np.array(found, np.float32), rounded) is accepted
