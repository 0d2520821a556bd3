"""HardSwish in int8: a Clip of integers and a product, bit for bit what float between DQ and Q gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_nets import Ranges, count, feed_for, net, own_cache, quantized, quantizers, runs_as, units_of

from graphopt import runtime
from graphopt.calibration.observers import OBSERVERS
from graphopt.calibration.statistics import TensorStatistics
from graphopt.passes.quantize_int8.hard_swish import gate, is_written_out, merge, on_grid, reads_alone, without_tail
from graphopt.passes.quantize_int8.numbers import Parameters, activation_parameters
from graphopt.targets.schema import Int8Rules

__all__ = ["own_cache"]

NET = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) <float[16,16,1,1] u, float[16,16,1,1] v> {
    a = Conv(x, u)  h = HardSwish(a)  y = Conv(h, v) }"""
WRITTEN_OUT = """g (float[1,16,8,8] x) => (float[1,16,8,8] y) {
    s = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)  y = Mul(x, s) }"""


def answers(model: onnx.ModelProto, fed: dict[str, np.ndarray], *, optimize: bool = False) -> np.ndarray:
    (found,) = runtime.run(runtime.session(model, optimize=optimize), fed).values()
    return np.asarray(found)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("alpha = 0.16666667", "alpha = 0.2", id="another slope"),
        pytest.param("beta = 0.5", "beta = 0.4", id="another offset"),
        pytest.param("Mul(x, s)", "Mul(s, s)", id="gate of itself"),
        pytest.param("y = Mul(x, s)", "t = Mul(x, s)  y = Add(t, s)", id="gate read twice"),
        pytest.param("8] y)", "8] y, float[1,16,8,8] s)", id="gate is an output"),
        pytest.param("y = Mul(x, s)", "t = Relu(x)  y = Mul(t, s)", id="gate of another tensor"),
    ],
)
def test_what_is_no_hard_swish_is_left_alone(old: str, new: str) -> None:
    model = net(WRITTEN_OUT.replace(old, new))
    assert not is_written_out(model)
    assert merge(model) is model


@pytest.mark.parametrize("product", ["Mul(x, s)", "Mul(s, x)"])
def test_a_product_with_its_own_hard_sigmoid_is_a_hard_swish(product: str) -> None:
    model = net(WRITTEN_OUT.replace("Mul(x, s)", product))
    assert is_written_out(model)
    merged = merge(model)
    onnx.checker.check_model(merged, full_check=True)
    assert [node.op_type for node in merged.graph.node] == ["HardSwish"]
    fed = feed_for(model)
    np.testing.assert_allclose(answers(merged, fed), answers(model, fed), rtol=1e-6, atol=1e-6)


def test_it_runs_without_a_float_kernel() -> None:
    model = quantized(net(NET), Ranges(a=(-9.0, 5.0)))
    assert runs_as(model) == ["QLinearConv", "Clip", "QLinearMul", "QLinearConv"]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("high", [0.1, 1.0, 3.0, 5.0, 40.0])
def test_it_is_what_float_between_dequantize_and_quantize_gives(dtype: str, high: float) -> None:
    rules = Int8Rules(activation_dtype=dtype)
    model = quantized(net(NET), Ranges(a=(-9.0, high), h=(-0.5, max(high, 1.0))), rules=rules)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    (product,) = [node for node in plain.graph.node if node.op_type == "Mul"]
    product.op_type = "HardSwish"
    del product.input[1]
    fed = {name: 3 * values for name, values in feed_for(model).items()}
    # A tie between two levels may round either way.
    apart = np.abs(answers(model, fed) - answers(plain, fed))
    assert np.mean(apart > 1e-6) < 0.02


def test_values_below_the_knee_get_no_levels() -> None:
    scale, zero_point = quantizers(quantized(net(NET), Ranges(a=(-50.0, 3.0))))["a"]
    assert zero_point * scale == pytest.approx(3.0)
    assert (255 - zero_point) * scale == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("y = Conv(h, v)", "b = Sigmoid(a)  c = Mul(h, b)  y = Conv(c, v)", id="another reader"),
        pytest.param("8] y)", "8] y, float[1,16,8,8] a)", id="graph output"),
    ],
)
def test_values_below_the_knee_are_kept_for_others(old: str, new: str) -> None:
    model = net(NET.replace(old, new))
    assert not reads_alone(units_of(model), "a")
    found = quantized(model, Ranges(a=(-50.0, 3.0)))
    scale, zero_point = quantizers(found)["a"]
    assert zero_point * scale >= 50.0
    assert count(found, "Clip") == 1


def test_behind_a_relu_it_stays_in_float() -> None:
    """Levels below zero would bring the Relu back, and the convolution to float."""
    found = quantized(net(NET.replace("h = HardSwish(a)", "r = Relu(a)  h = HardSwish(r)")), Ranges(r=(0.0, 5.0)))
    assert count(found, "HardSwish") == 1
    assert quantizers(found)["r"][1] == 0


def test_moved_data_keep_the_scale_that_hard_swish_needs() -> None:
    model = net(NET.replace("h = HardSwish(a)", "t = Transpose<perm = [0,1,3,2]>(a)  h = HardSwish(t)"))
    found = quantized(model, Ranges(a=(-7.0, 5.0), t=(-7.0, 5.0)))
    assert quantizers(found)["a"] == quantizers(found)["t"]
    assert count(found, "Clip") == 1


def test_another_domain_only_shares_the_name() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "other" : 1]> ' + NET.replace("HardSwish", "other.HardSwish")
    assert not reads_alone(units_of(net(text)), "a")


@settings(derandomize=True, deadline=None, max_examples=50)
@given(low=st.floats(-200, 0), high=st.floats(0, 200), dtype=st.sampled_from(["uint8", "int8"]))
def test_the_grid_holds_the_range_and_tells_the_gate(low: float, high: float, dtype: str) -> None:
    found = on_grid(low, high)
    assert found is not None
    step = (found[1] - found[0]) / 255
    assert found[0] <= min(low, -3.0) + 1e-5 * step
    assert found[1] >= high - 1e-5 * step - 1e-6
    opened = gate(activation_parameters(found, dtype))
    assert opened is not None
    assert opened.low < opened.high


def test_steps_over_the_knee_tell_no_gate() -> None:
    assert on_grid(-3.0, 1e4) is None
    assert gate(Parameters(np.float32(7.0), 1)) is None
    assert gate(activation_parameters((0.0, 6.0))) is None


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_the_tail_below_the_knee_does_not_count(observer: str) -> None:
    values = np.random.default_rng(0).normal(size=(1, 4, 32, 32)).astype(np.float32)
    long, short = TensorStatistics(), TensorStatistics()
    long.add(np.where(values < -1, values * 20, values))
    short.add(np.where(values < -1, np.maximum(values * 20, -3), values))
    assert OBSERVERS[observer](without_tail(long)) == pytest.approx(OBSERVERS[observer](short), rel=0.02)
