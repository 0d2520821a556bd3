"""Scales, zero points and integers, held against the formulas of the ONNX operator spec written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_nets import net

from graphopt import runtime
from graphopt.passes.quantize_int8.numbers import (
    Parameters,
    activation_parameters,
    along,
    quantize_bias,
    quantize_weight,
    smallest_weight_scale,
)


def quantize(values: np.ndarray, parameters: Parameters) -> np.ndarray:
    """QuantizeLinear by its formula: saturate(round half to even(x / scale) + zero point)."""
    limits = np.iinfo(parameters.dtype)
    return np.clip(np.rint(values / parameters.scale) + parameters.zero_point, limits.min, limits.max)


def dequantize(integers: np.ndarray, parameters: Parameters) -> np.ndarray:
    return (integers.astype(np.float64) - parameters.zero_point) * float(parameters.scale)


finite = st.floats(-1e20, 1e20, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(low=finite, high=finite, dtype=st.sampled_from(["uint8", "int8"]))
def test_zero_is_exact_and_the_range_covered(low: float, high: float, dtype: str) -> None:
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    parameters = activation_parameters((low, high), dtype)
    limits = np.iinfo(dtype)
    assert limits.min <= parameters.zero_point <= limits.max
    assert dequantize(quantize(np.zeros(1), parameters), parameters)[0] == 0.0
    assert np.isfinite(parameters.scale)
    assert parameters.scale > 0
    bottom, top = dequantize(np.array([limits.min, limits.max]), parameters)
    half = float(parameters.scale) * (0.5 + 1e-3)
    assert bottom <= low + half
    assert top >= high - half


@pytest.mark.parametrize(
    ("extent", "dtype", "scale", "zero_point"),
    [
        pytest.param((0.0, 6.0), "uint8", 6 / 255, 0, id="after Relu: the lowest level"),
        pytest.param((0.0, 6.0), "int8", 6 / 255, -128, id="after Relu, signed"),
        pytest.param((-2.0, 0.0), "uint8", 2 / 255, 255, id="nothing above zero"),
        pytest.param((-1.0, 3.0), "uint8", 4 / 255, 64, id="a quarter below zero"),
        pytest.param((2.0, 6.0), "uint8", 6 / 255, 0, id="a range without zero is widened"),
        pytest.param((-6.0, -2.0), "uint8", 6 / 255, 255, id="the same below"),
        pytest.param((0.0, 0.0), "uint8", 1.0, 0, id="nothing but zero"),
        pytest.param((0.0, 0.0), "int8", 1.0, -128, id="nothing but zero, signed"),
        pytest.param((0.0, 1e-40), "uint8", 1e-30, 0, id="too small for a float32 scale"),
    ],
)
def test_activation_parameters(extent: tuple[float, float], dtype: str, scale: float, zero_point: int) -> None:
    parameters = activation_parameters(extent, dtype)
    assert parameters.scale == np.float32(scale)
    assert parameters.zero_point == zero_point
    assert parameters.zero_point_array.dtype == np.dtype(dtype)
    assert parameters.zero_point_array.shape == ()


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("extent", [(-3.0, 5.0), (0.0, 6.0), (-1e-3, 1e4), (-128.0, 127.0)])
def test_onnx_runtime_quantizes_by_the_formula(extent: tuple[float, float], dtype: str) -> None:
    """Also beyond the range and half-way between two levels (rounded to even)."""
    parameters = activation_parameters(extent, dtype)
    model = net(
        f"""g (float[N] x) => ({dtype}[N] q, float[N] y) <float scale, {dtype} zero_point>
        {{ q = QuantizeLinear(x, scale, zero_point)  y = DequantizeLinear(q, scale, zero_point) }}""",
        scale=parameters.scale,
        zero_point=parameters.zero_point,
    )
    levels = np.arange(-300, 301) * parameters.scale.astype(np.float32)
    values = np.concatenate([levels, levels + parameters.scale / 2, [0.0, -1e9, 1e9]]).astype(np.float32)
    found = runtime.run(runtime.session(model, optimize=False), {"x": values})
    np.testing.assert_array_equal(found["q"], quantize(values, parameters))
    np.testing.assert_allclose(found["y"], dequantize(found["q"], parameters), rtol=1e-6)


def test_rounding_error_is_at_most_half_a_step_inside_the_range() -> None:
    parameters = activation_parameters((-2.0, 3.0))
    values = np.linspace(-2.0, 3.0, 9999)
    error = dequantize(quantize(values, parameters), parameters) - values
    assert np.abs(error).max() <= 0.5 * float(parameters.scale) * (1 + 1e-5) + float(parameters.scale) * 0.5
    assert np.abs(error[np.abs(values) < 1.9]).max() <= 0.5 * float(parameters.scale) * (1 + 1e-5)


WEIGHT = np.random.default_rng(0).normal(size=(6, 4, 3, 3)) * np.geomspace(0.01, 10, 6).reshape(6, 1, 1, 1)


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 63)])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_symmetric_with_a_scale_for_each_output_channel(bits: int, largest: int, axis: int) -> None:
    found = quantize_weight(WEIGHT, axis, bits=bits)
    others = tuple(index for index in range(4) if index != axis)
    np.testing.assert_allclose(found.scale, np.abs(WEIGHT).max(axis=others) / largest, rtol=1e-6)
    assert found.scale.dtype == np.float32
    assert found.integers.dtype == np.int8
    np.testing.assert_array_equal(np.abs(found.integers).max(axis=others), largest)
    step = along(found.scale.astype(np.float64), 4, axis)
    assert np.all(np.abs(found.real - WEIGHT) <= step * (0.5 + 1e-4))


def test_one_scale_for_all_where_the_target_wants_it() -> None:
    found = quantize_weight(WEIGHT, 0, per_channel=False)
    assert found.scale.shape == ()
    assert float(found.scale) == pytest.approx(np.abs(WEIGHT).max() / 127)
    assert np.all(np.abs(found.real - WEIGHT) <= float(found.scale) * (0.5 + 1e-4))


def test_a_channel_of_zeros_stays_zero_with_a_harmless_scale() -> None:
    weight = WEIGHT.copy()
    weight[2] = 0.0
    found = quantize_weight(weight, 0)
    assert found.scale[2] == 1.0
    assert not found.integers[2].any()


def test_the_bias_is_int32_with_the_scale_of_the_products() -> None:
    """Spec of QLinearConv: scale of the bias = scale of x * scale of w, zero point 0."""
    bias, weight_scale = np.array([0.5, -1.25, 3.0]), np.float32([0.01, 0.02, 0.005])
    integers, scale = quantize_bias(bias, np.float32(0.05), weight_scale)
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(scale, np.float32(0.05) * weight_scale)
    np.testing.assert_array_equal(integers, np.rint(bias / scale.astype(np.float64)))


def test_a_large_bias_on_tiny_weights_widens_the_weights_scale_instead_of_overflowing() -> None:
    """1e6 / (0.02 * 1e-8) is far beyond int32: the scale of that channel is raised until the bias fits."""
    weight = np.full((2, 1, 1, 1), 1.0)
    weight[0] = 1e-6
    bias, input_scale = np.array([1e6, 1.0]), np.float32(0.02)
    floor = smallest_weight_scale(bias, input_scale)
    found = quantize_weight(weight, 0, smallest_scale=floor)
    integers, scale = quantize_bias(bias, input_scale, found.scale)
    np.testing.assert_allclose(integers * scale.astype(np.float64), bias, rtol=1e-6)
    assert np.abs(integers.astype(np.int64)).max() <= 2**29 + 64  # two bits left for the sum of the products
    assert found.scale[1] == np.float32(1 / 127), "the other channel keeps its own"


def test_without_bias_there_is_no_floor() -> None:
    assert smallest_weight_scale(None, np.float32(0.1)) == 0.0


def test_a_bias_too_large_for_int32_saturates_rather_than_wraps() -> None:
    integers, _ = quantize_bias(np.array([1e30, -1e30]), np.float32(1.0), np.float32([1.0, 1.0]))
    assert integers.tolist() == [2**31 - 1, -(2**31)]


def test_per_channel_values_broadcast_along_their_axis() -> None:
    assert along(np.ones(5), 4, 1).shape == (1, 5, 1, 1)
    assert along(np.float64(3.0), 4, 1).shape == ()
