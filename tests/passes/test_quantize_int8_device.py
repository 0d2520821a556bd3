"""The pass from end to end for a device that is not at hand: predicted times, refusals, rules kept, float fallback."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import onnx
import pytest
from explicit_nets import DEVICE, HARDWARE, RULES, cut, hardware
from int8_nets import count, flow, net, own_cache, sqnr

from graphopt.passes.base import Candidate, Context, Declined
from graphopt.passes.quantize_int8 import QuantizeInt8
from graphopt.passes.quantize_int8.prices import Predicted, float_precision
from graphopt.rules import check_model
from graphopt.targets import load_target
from graphopt.targets.schema import Hardware

__all__ = ["own_cache"]

PADS = "<pads = [1,1,1,1]>"
TEXT = f"""g (float[1,3,16,16] x) => (float[1,10] y)
    <float[16,3,3,3] stem, float[16,16,3,3] u, float[16] bu, float[16,16,3,3] v, float[16] bv, float[32,16,1,1] p,
     float[32,16,3,3] s, float[32,32,3,3] t, float[32,10] k, float[10] bk> {{
    i = Conv{PADS}(x, stem)  j = Relu(i)
    a = Conv{PADS}(j, u, bu)  b = Relu(a)  c = Conv{PADS}(b, v, bv)  d = Add(c, j)  e = Relu(d)
    q = Conv<strides = [2,2]>(e, p)  f = Conv<pads = [1,1,1,1], strides = [2,2]>(e, s)  g1 = Relu(f)
    h = Conv{PADS}(g1, t)  l = Add(h, q)  m = Relu(l)
    n = GlobalAveragePool(m)  o = Flatten(n)  y = Gemm(o, k, bk) }}"""


def samples(first: int, count_: int = 4) -> list[dict[str, Any]]:
    return [
        {"x": np.random.default_rng(seed).normal(size=(1, 3, 16, 16)).astype(np.float32)}
        for seed in range(first, first + count_)
    ]


def candidates(model: onnx.ModelProto, board: Hardware = HARDWARE, most: int = 1, **options: Any) -> list[Candidate]:
    before = model.SerializeToString(deterministic=True)
    found = list(islice(QuantizeInt8(**options).candidates(model, Context(board, samples(0), samples(10))), most))
    assert model.SerializeToString(deterministic=True) == before
    for candidate in found:
        onnx.checker.check_model(candidate.model, full_check=True)
    return found


def test_layers_run_in_int8_and_answers_stay_close() -> None:
    model = net(TEXT)
    (candidate,) = candidates(model, hardware(minimum_channels=16), placement="all")
    assert sqnr(model, candidate.model, samples(50)[0]) > 20
    assert [line for line in flow(candidate.model) if line.endswith(("-> Add", "-> Add2"))] == [
        "Conv3 -> Add",
        "Relu -> Q -> DQ -> Add",
        "Conv6 -> Add2",
        "Conv4 -> Q -> DQ -> Add2",
    ]
    reasons = {skip.where: skip.reason for skip in candidate.report.skipped}
    assert reasons["Conv(i)"].startswith("it has 3 channels on one side")
    assert candidate.simulation is None
    assert not candidate.files


def test_the_same_command_writes_the_same_bytes() -> None:
    first, second = (candidates(net(TEXT))[0].model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("target", ["jetson-orin-nano", "jetson-orin-nano@5.1", "gpu", "t4"])
def test_the_rules_of_the_target_find_nothing_new(target: str) -> None:
    board = load_target(target).hardware
    model = net(TEXT)
    (candidate,) = candidates(model, board, placement="all")
    assert count(candidate.model, "QuantizeLinear") > 5
    before = {(finding.code, finding.where) for finding in check_model(model, board)}
    found = [finding for finding in check_model(candidate.model, board) if (finding.code, finding.where) not in before]
    assert found == []


def test_each_later_candidate_leaves_more_in_float_and_is_nearer() -> None:
    model = net(TEXT)
    found = candidates(model, most=4, observer="minmax", bias_correction="off")
    layers = [candidate.report.details["int8_units"].get("Conv", 0) for candidate in found]
    noise = [candidate.report.details["sqnr_db"] for candidate in found]
    assert len(found) > 2
    assert layers == sorted(layers, reverse=True)
    assert noise[-1] > noise[0]
    left = [skip.reason for skip in found[-1].report.skipped if "for accuracy" in skip.reason]
    assert left


def test_a_target_without_int8_says_why() -> None:
    board = replace(HARDWARE, int8=None, int8_refusal="Maxwell has no 8-bit dot product")
    with pytest.raises(Declined, match="Maxwell has no 8-bit dot product"):
        candidates(net(TEXT), board)


def test_a_parser_too_old_for_scales_by_channel_is_told() -> None:
    with pytest.raises(Declined, match="reads operator sets up to 11; scales by channel begin with 13"):
        candidates(net(TEXT), replace(HARDWARE, opset=(7, 11)))


def test_a_device_that_gains_nothing_gets_nothing() -> None:
    slow = replace(HARDWARE, device=replace(DEVICE, peak_tops={"float32": 2.0, "float16": 16.0, "int8": 0.01}))
    with pytest.raises(Declined, match="by the latency model no convolution or matrix product gains from int8"):
        candidates(net(TEXT), slow)


def test_a_concat_of_ranges_of_very_different_size_sends_the_narrow_readers_to_float() -> None:
    text = f"""g (float[1,3,16,16] x) => (float[1,16,16,16] y, float[1,16,16,16] z)
        <float[16,3,3,3] u, float[16,3,3,3] v, float[16,32,3,3] w, float[16,16,3,3] n, float big> {{
        a = Conv{PADS}(x, u)  b = Conv{PADS}(x, v)  l = Mul(b, big)  c = Concat<axis = 1>(a, l)
        y = Conv{PADS}(c, w)  z = Conv{PADS}(a, n) }}"""
    (candidate,) = candidates(net(text, big=1000.0), placement="all")
    reasons = {skip.where: skip.reason for skip in candidate.report.skipped}
    assert reasons["Conv(z)"].startswith("ranges of very different size meet in it")
    assert "Conv(y)" not in reasons


class TestPredictedTimes:
    def prices(self, text: str, board: Hardware = HARDWARE) -> Predicted:
        _, units = cut(net(text), board)
        return Predicted(units, dict.fromkeys("xyz", (1, 64, 56, 56)), board)

    def test_int8_reads_half_the_bytes_and_multiplies_twice_as_fast(self) -> None:
        text = f"g (float[1,64,56,56] x) => (float[1,64,56,56] y) <float[64,64,3,3] w> {{ y = Conv{PADS}(x, w) }}"
        time = self.prices(text).units[0]
        macs = 64 * 64 * 9 * 56 * 56
        assert time.int8 is not None
        assert time.float32 >= 2 * macs / 16e6
        assert time.float32 / time.int8 == pytest.approx(2.0, rel=0.2)

    def test_what_runs_between_kernels_quantizes_on_the_way(self) -> None:
        text = f"""g (float[1,64,56,56] x) => (float[1,64,56,56] z) <float[64,64,3,3] w> {{
            y = Sigmoid(x)  z = Conv{PADS}(y, w) }}"""
        prices = self.prices(text)
        assert prices.boundary("y").to_int8 == 0
        assert prices.boundary("x").to_int8 > 3 * 64 * 56 * 56 / 100e3 * 0.9  # reads two bytes and writes one
        assert prices.boundary("z").to_float == 0

    def test_a_device_without_int8_units(self) -> None:
        board = replace(HARDWARE, device=replace(DEVICE, peak_tops={"float32": 2.0, "float16": 16.0}))
        text = f"g (float[1,64,56,56] x) => (float[1,64,56,56] y) <float[64,64,3,3] w> {{ y = Conv{PADS}(x, w) }}"
        assert self.prices(text, board).units[0].int8 is None

    def test_float_is_half_precision_where_a_later_pass_declares_it(self) -> None:
        typed = replace(
            HARDWARE, strongly_typed=True, runtimes=(replace(HARDWARE.runtimes[0], precision="float32"),), int8=RULES
        )
        assert float_precision(typed) == "float16"
        assert float_precision(replace(typed, precisions=("float32", "int8"))) == "float32"
        assert float_precision(HARDWARE) == "float16"
