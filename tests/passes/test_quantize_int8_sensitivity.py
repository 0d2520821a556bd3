"""Sources of noise, each measured alone; and bias correction, which undoes a part of one of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
from int8_nets import U8, Ranges, count, feed_for, flow, net, own_cache, placement_of, units_of

from graphopt import runtime
from graphopt.calibration.collect import collect
from graphopt.passes.quality import REFERENCE_BYTES, decibel, make_probe, noise
from graphopt.passes.quantize_int8.bias import corrected_biases, mean_shift
from graphopt.passes.quantize_int8.numbers import activation_parameters, quantize_weight
from graphopt.passes.quantize_int8.sensitivity import (
    NoiseGroup,
    Sensitivity,
    measure,
    noise_groups,
    with_quantized_tensor,
    with_weights,
)
from graphopt.passes.quantize_int8.write import write

__all__ = ["own_cache"]

PADS = "<pads = [1,1,1,1]>"
NET = f"""g (float[1,8,8,8] x) => (float[1,8,4,4] y, float[1,8,8,8] e) <float[8,8,3,3] u, float[8,8,3,3] v> {{
    a = Conv{PADS}(x, u)  r = Relu(a)  e = Exp(r)
    m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)
    t = Transpose<perm = [0,1,3,2]>(m)  y = Conv{PADS}(t, v) }}"""


class TestGroups:
    def test_tensors_of_one_quantization_are_one_source(self) -> None:
        groups = {group.tensors: group.touched_by for group in noise_groups(units_of(net(NET)))}
        assert groups == {
            ("x",): frozenset({0}),
            ("r", "m", "t"): frozenset({0, 4}),
            ("y",): frozenset({4}),
        }

    def test_a_matrix_product_puts_no_noise_into_its_output(self) -> None:
        text = "g (float[2,4] x) => (float[2,6] y) <float[4,6] w> { y = MatMul(x, w) }"
        assert [group.tensors for group in noise_groups(units_of(net(text)))] == [("x",)]

    def test_noise_adds_up_over_what_an_assignment_touches(self) -> None:
        both, second = NoiseGroup(("r",), frozenset({0, 4})), NoiseGroup(("y",), frozenset({4}))
        sensitivity = Sensitivity(((both, 1.0), (second, 0.25)), {0: 0.5, 4: 0.125})
        assert sensitivity.predicted([]) == 0.0
        assert sensitivity.predicted([0]) == 1.5
        assert sensitivity.predicted([4]) == 1.375
        assert sensitivity.predicted([0, 4]) == 1.875, "what both touch counts once"


class TestProbes:
    @pytest.mark.parametrize(
        ("tensor", "expected"),
        [
            pytest.param("x", ["x -> Q -> DQ -> Conv"], id="graph input"),
            pytest.param("r", ["Relu -> Q -> DQ -> Exp", "Relu -> Q -> DQ -> MaxPool"], id="every reader"),
        ],
    )
    def test_only_one_tensor_is_quantized(self, tensor: str, expected: list[str]) -> None:
        model = net(NET)
        probe = with_quantized_tensor(model, tensor, activation_parameters((-8.0, 8.0)))
        onnx.checker.check_model(probe, full_check=True)
        assert [line for line in flow(probe) if "Q" in line] == expected
        assert (count(model, "QuantizeLinear"), count(probe, "QuantizeLinear")) == (0, 1)

    def test_only_one_weight_is_replaced(self) -> None:
        model = net(NET)
        probe = with_weights(model, "u", np.ones((8, 8, 3, 3)))
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in probe.graph.initializer}
        assert (values["u"] == 1).all()
        assert values["u"].dtype == np.float32
        np.testing.assert_array_equal(values["v"], onnx.numpy_helper.to_array(model.graph.initializer[1]))

    def test_every_source_is_measured_alone(self) -> None:
        model = net(NET)
        groups = noise_groups(units_of(model))
        seen: list[tuple[int, int]] = []
        found = measure(
            groups,
            {0: partial(net, NET), 4: partial(net, NET, v=np.zeros((8, 8, 3, 3)))},
            lambda name: onnx.ModelProto(producer_name=name),
            lambda made: {"x": 1.0, "r": 2.0, "y": 3.0}.get(made.producer_name, 4.0),
            lambda *at: seen.append(at),
        )
        assert [(group.tensors[0], value) for group, value in found.groups] == [("x", 1.0), ("r", 2.0), ("y", 3.0)]
        assert found.weights == {0: 4.0, 4: 4.0}
        assert seen == [(done, 5) for done in range(1, 6)]


class TestNoise:
    TEXT = "g (float[1,4] x) => (float[1,4] y, float[1,4] z) <float[4] k, float[4] m> { y = Mul(x, k)  z = Mul(x, m) }"

    def test_noise_power_over_signal_power_the_mean_of_the_outputs(self) -> None:
        """10 % off in one output of two: half of 0.01."""
        model = net(self.TEXT, k=np.ones(4), m=np.full(4, 100.0))
        probe = make_probe(model, [feed_for(model, seed=seed) for seed in range(3)], 8, 1)
        assert noise(model, probe, 1) == 0.0
        assert noise(net(self.TEXT, k=np.full(4, 1.1), m=np.full(4, 100.0)), probe, 1) == pytest.approx(0.005, rel=1e-4)
        assert noise(net(self.TEXT, k=np.ones(4), m=np.full(4, 90.0)), probe, 1) == pytest.approx(0.005, rel=1e-4)

    def test_outputs_that_are_not_finite_are_infinitely_noisy(self) -> None:
        model = net(self.TEXT, k=np.ones(4), m=np.ones(4))
        probe = make_probe(model, [feed_for(model)], 8, 1)
        assert noise(net(self.TEXT, k=np.full(4, np.nan), m=np.ones(4)), probe, 1) == np.inf

    def test_an_output_that_is_always_zero_must_stay_zero(self) -> None:
        model = net(self.TEXT, k=np.ones(4), m=np.zeros(4))
        probe = make_probe(model, [feed_for(model)], 8, 1)
        assert noise(model, probe, 1) == 0.0
        assert noise(net(self.TEXT, k=np.ones(4), m=np.full(4, 1e-9)), probe, 1) == pytest.approx(0.5)

    def test_a_probe_holds_no_more_samples_than_asked_for_nor_than_memory_allows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = net(self.TEXT)
        feeds = [feed_for(model, seed=seed) for seed in range(9)]
        assert len(make_probe(model, iter(feeds), 4, 1).feeds) == 4
        assert REFERENCE_BYTES > 1 << 20
        monkeypatch.setattr("graphopt.passes.quality.REFERENCE_BYTES", 100)
        assert len(make_probe(model, iter(feeds), 9, 1).feeds) == 3, "48 bytes a sample"

    def test_decibels(self) -> None:
        assert decibel(0.01) == pytest.approx(20.0)
        assert decibel(0.0) == 200.0
        assert decibel(np.inf) == -np.inf


class TestBiasCorrection:
    @pytest.mark.parametrize(
        ("text", "operator"),
        [
            pytest.param("<float[6,4,3,3] w, float[6] b> { y = Conv(x, w, b) }", "[2,6,6,6]", id="Conv"),
            pytest.param("<float[4,1,3,3] w> { y = Conv<group = 4>(x, w) }", "[2,4,6,6]", id="depthwise"),
            pytest.param("<float[6,2,3,3] w> { y = Conv<group = 2>(x, w) }", "[2,6,6,6]", id="grouped"),
        ],
    )
    def test_the_shift_is_that_of_the_outputs_mean(self, text: str, operator: str) -> None:
        """Inputs are taken as they are and only weights rounded, without padding: the formula is exact."""
        model = net(f"g (float[2,4,8,8] x) => (float{operator} y) {text}")
        units = units_of(model)
        feed = {"x": np.random.default_rng(0).uniform(0, 2, size=(2, 4, 8, 8)).astype(np.float32)}
        feed["x"] = np.broadcast_to(feed["x"].mean(axis=(0, 2, 3), keepdims=True), feed["x"].shape).copy()
        statistics = collect(model, ["x"], [feed]).tensors
        placement = placement_of(model, Ranges())
        weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
        coarse = quantize_weight(weight, 0, bits=3)
        shift = mean_shift(
            units.all[0], units, replace(placement, weights={0: coarse}), statistics["x"].channel_mean, U8
        )
        exact, rounded = (
            runtime.run(runtime.session(each), feed)["y"].mean(axis=(0, 2, 3))
            for each in (model, with_weights(model, "w", coarse.real))
        )
        np.testing.assert_allclose(shift, rounded - exact, atol=1e-5)

    def test_gemm(self) -> None:
        for shape, options in (("4,6", ""), ("6,4", "<transB = 1>")):
            model = net(f"g (float[2,4] x) => (float[2,6] y) <float[{shape}] w> {{ y = Gemm{options}(x, w) }}")
            units = units_of(model)
            feed = feed_for(model)
            statistics = collect(model, ["x"], [feed]).tensors
            weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
            coarse = quantize_weight(weight, 0 if options else 1, bits=3)
            placement = replace(placement_of(model, Ranges()), weights={0: coarse})
            shift = mean_shift(units.all[0], units, placement, statistics["x"].channel_mean, U8)
            exact, rounded = (
                runtime.run(runtime.session(each), feed)["y"].mean(axis=0)
                for each in (model, with_weights(model, "w", coarse.real))
            )
            np.testing.assert_allclose(shift, rounded - exact, atol=1e-5)

    def test_the_corrected_bias_takes_the_shift_back(self) -> None:
        model = net("g (float[2,4,8,8] x) => (float[2,6,6,6] y) <float[6,4,3,3] w, float[6] b> { y = Conv(x, w, b) }")
        units = units_of(model)
        feed = {"x": np.random.default_rng(0).uniform(0, 6, size=(2, 4, 8, 8)).astype(np.float32)}
        statistics = collect(model, ["x", "y"], [feed]).tensors
        placement = placement_of(model, Ranges(x=(0.0, 6.0), y=(-60.0, 60.0)))
        weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
        placement = replace(placement, weights={0: quantize_weight(weight, 0, bits=4)})
        corrected = replace(placement, bias=corrected_biases(units, placement, statistics, U8))
        exact, plain, mended = (
            runtime.run(runtime.session(each), feed)["y"].mean(axis=(0, 2, 3))
            for each in (model, write(model, units, placement, U8), write(model, units, corrected, U8))
        )
        assert np.abs(mended - exact).max() < 0.3 * np.abs(plain - exact).max()

    def test_what_was_not_observed_is_left_alone(self) -> None:
        model = net(NET)
        assert corrected_biases(units_of(model), placement_of(model, Ranges()), {}, U8) == {}
