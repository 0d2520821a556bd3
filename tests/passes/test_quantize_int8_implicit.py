"""int8 without Q/DQ: the calibration cache, and the twin that answers as the target will."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from explicit_nets import HARDWARE, RULES, accelerator, cut, written
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_nets import Ranges, count, flow, net, own_cache, quantizers

from graphopt.errors import UsageError
from graphopt.passes.base import Candidate, Context
from graphopt.passes.quantize_int8 import QuantizeInt8
from graphopt.passes.quantize_int8.implicit import calibration_cache, without_scale
from graphopt.passes.quantize_int8.units import Role
from graphopt.targets.schema import Hardware

__all__ = ["own_cache"]

PADS = "<pads = [1,1,1,1]>"
TEXT = f"""g (float[1,4,8,8] x) => (float[1,8,8,8] y)
    <float[8,4,3,3] u, float[8] b, float[8,8,3,3] v, float[8,8,3,3] w> {{
    c = Conv{PADS}(x, u, b)  r = Relu(c)  d = Conv{PADS}(r, v)  a = Add(d, r)  y = Conv{PADS}(a, w) }}"""
GPU = replace(HARDWARE, runtime_version="7.1.3", opset=(7, 11), int8=replace(RULES, implicit=True))


def samples(first: int, count: int = 3) -> list[dict[str, Any]]:
    return [
        {"x": np.random.default_rng(seed).normal(size=(1, 4, 8, 8)).astype(np.float32)}
        for seed in range(first, first + count)
    ]


def proposed(model: onnx.ModelProto, board: Hardware, **options: Any) -> Candidate:
    before = model.SerializeToString(deterministic=True)
    one = QuantizeInt8(observer="minmax", **options)
    candidate = next(one.candidates(model, Context(board, samples(0), samples(10))))
    assert model.SerializeToString(deterministic=True) == before
    return candidate


class TestCache:
    def lines(self, board: Hardware = GPU, **options: Any) -> list[str]:
        return proposed(net(TEXT), board, **options).files[".calibration"].decode().splitlines()

    def test_the_model_stays_as_it_is_and_the_cache_names_every_tensor(self) -> None:
        candidate = proposed(net(TEXT, opset=11), GPU)
        assert candidate.model == net(TEXT, opset=11)
        header, *lines = candidate.files[".calibration"].decode().splitlines()
        assert header == "TRT-7103-EntropyCalibration2"
        assert [line.split(": ")[0] for line in lines] == ["x", "c", "r", "d", "a"]

    def test_scales_are_the_largest_magnitude_over_127_as_big_endian_bits(self) -> None:
        extent = max(float(np.abs(feed["x"]).max()) for feed in samples(0))
        written_scale = dict(line.split(": ") for line in self.lines()[1:])["x"]
        assert struct.unpack(">f", bytes.fromhex(written_scale))[0] == pytest.approx(extent / 127, rel=1e-6)

    def test_what_lies_inside_a_fused_pair_has_the_scale_of_its_end(self) -> None:
        scales = dict(line.split(": ") for line in self.lines()[1:])
        assert scales["c"] == scales["r"]

    def test_a_layer_in_float_is_one_whose_answer_has_no_scale(self) -> None:
        scales = dict(line.split(": ") for line in self.lines(exclude="Conv(d)")[1:])
        assert "d" not in scales
        assert {"x", "r", "a"} <= scales.keys()

    def test_an_accelerator_rounds_the_answers_and_adds_in_one_scale(self) -> None:
        scales = dict(line.split(": ") for line in self.lines(accelerator())[1:])
        assert "y" in scales
        assert scales["d"] == scales["r"]
        on_gpu = dict(line.split(": ") for line in self.lines()[1:])
        assert "y" not in on_gpu
        assert on_gpu["d"] != on_gpu["r"]

    @pytest.mark.parametrize(
        ("version", "number"), [("8.5.2", 8502), ("8.2", 8200), ("7.1.3.4", 7103), ("10.3.0", 100300)]
    )
    def test_the_version(self, version: str, number: int) -> None:
        assert self.lines(replace(GPU, runtime_version=version))[0] == f"TRT-{number}-EntropyCalibration2"

    def test_a_target_without_a_version_is_named(self) -> None:
        with pytest.raises(UsageError, match="names the version of TensorRT; its profile's runtime_version is ''"):
            self.lines(replace(GPU, runtime_version=""))

    def test_the_same_input_gives_the_same_bytes(self) -> None:
        assert self.lines() == self.lines()

    def test_tensors_that_the_model_itself_does_not_have_are_left_out(self) -> None:
        model = net(TEXT)
        scheme, units = cut(model, GPU)
        chosen = scheme.settled(units, [unit.index for unit in units.all])
        placed = scheme.place(units, chosen, Ranges())
        assert calibration_cache(units, placed, ["x"], GPU).decode().splitlines()[1:] == ["x: 3d810204"]


class TestTwin:
    def test_every_tensor_is_rounded_for_every_reader_except_inside_what_is_fused(self) -> None:
        assert flow(written(net(TEXT), board=GPU)) == [
            "x -> Q -> DQ -> Conv",
            "Conv -> Relu",
            "Relu -> Q -> DQ -> Conv2",
            "Conv2 -> Q -> DQ -> Add",
            "Relu -> Q -> DQ -> Add",
            "Add -> Q -> DQ -> Conv3",
            "Conv3 -> y",
        ]

    def test_an_accelerator_answers_in_int8(self) -> None:
        assert flow(written(net(TEXT), board=accelerator()))[-1] == "Conv3 -> Q -> DQ -> y"

    def test_float_operators_read_what_is_rounded(self) -> None:
        text = f"""g (float[1,4,8,8] x) => (float[1,8,8,8] y, float[1,8,8,8] z) <float[8,4,3,3] u, float[8,8,3,3] v> {{
            c = Conv{PADS}(x, u)  y = Softmax(c)  z = Conv{PADS}(c, v) }}"""
        assert "Conv -> Q -> DQ -> Softmax" in flow(written(net(text), board=GPU))

    def test_accuracy_is_judged_on_the_twin(self) -> None:
        candidate = proposed(net(TEXT), accelerator())
        assert candidate.simulation is not None
        onnx.checker.check_model(candidate.simulation, full_check=True)
        assert count(candidate.simulation, "QuantizeLinear") > 3
        assert count(candidate.model, "QuantizeLinear") == 0

    def test_biases_are_left_alone(self) -> None:
        candidate = proposed(net(TEXT), GPU, bias_correction="on")
        assert candidate.report.details["bias_correction"] is False

    def test_one_scale_for_the_operands_of_a_sum_on_an_accelerator(self) -> None:
        ranges = Ranges(r=(0.0, 8.0), d=(-2.0, 2.0))
        assert quantizers(written(net(TEXT), ranges, board=accelerator()))["d"][0] == float(np.float32(8 / 127))
        assert quantizers(written(net(TEXT), ranges, board=GPU))["d"][0] == float(np.float32(2 / 127))

    def test_tensors_that_are_not_finite_leave_their_units_in_float(self) -> None:
        text = f"""g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] u, float[8,8,3,3] v, float zero> {{
            c = Conv{PADS}(x, u)  i = Div(c, zero)  s = Sigmoid(i)  y = Conv{PADS}(s, v) }}"""
        candidate = proposed(net(text, zero=0.0), GPU)
        names = [line.split(": ")[0] for line in candidate.files[".calibration"].decode().splitlines()[1:]]
        assert "i" not in names
        assert "s" in names


@given(wanted=st.sets(st.integers(0, 3)))
@settings(derandomize=True, deadline=None, max_examples=16)
def test_units_in_int8_touch_scales_only_and_all_others_a_tensor_without(wanted: set[int]) -> None:
    """Whatever is asked for, the outcome is stable and the cache says exactly it."""
    _, units = cut(net(TEXT), GPU)
    missing, chosen = without_scale(units, wanted)
    assert chosen <= wanted
    assert without_scale(units, chosen)[1] == chosen
    for unit in units.all:
        touched = missing.intersection((*unit.inputs, *unit.outputs))
        if unit.index in chosen:
            assert not touched
        elif unit.role is not Role.FLOAT:
            assert touched
