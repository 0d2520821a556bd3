"""Interleaved timing. Ratios are known here: one model does the other's work several times."""

import numpy as np
import pytest
from small_nets import build

from graphopt.errors import UnsupportedModelError, UsageError
from graphopt.validation import bench, measure, measure_rounds
from graphopt.validation.latency import ratio_interval

WEIGHT = np.random.default_rng(0).standard_normal((256, 256)) / 16
FEED = {"x": np.random.default_rng(1).standard_normal((32, 256)).astype(np.float32)}


def work(times):
    """The same matrix product, ``times`` over."""
    body = " ".join(f"h{i + 1} = MatMul(h{i}, w)" for i in range(times))
    return build(f"g (float[N,256] h0) => (float[N,256] h{times}) {{ {body} }}", w=WEIGHT)


def measured(first, second, **options):
    feed = {"h0": FEED["x"]}
    return measure(work(first), work(second), feed, seconds=0.8, **options)


def test_a_model_of_a_quarter_of_the_work_is_four_times_as_fast():
    found = measured(8, 2)
    assert found.speedup == pytest.approx(4, rel=0.25)
    assert found.ci95[0] <= found.speedup <= found.ci95[1]
    assert found.baseline_ms > found.optimized_ms
    assert (found.source, found.provider, found.threads) == ("measured", "CPUExecutionProvider", 1)
    assert found.baseline.clock == "cpu"
    assert found.baseline.p10_ms <= found.baseline.median_ms <= found.baseline.p90_ms


def test_the_gate_fails_only_when_the_whole_interval_lies_below_it():
    assert not measured(2, 8).passed
    assert measured(2, 8, min_speedup=0.1).passed
    assert not measured(8, 2, min_speedup=8.0).passed


def test_the_same_model_holds_the_default_gate():
    found = measured(4, 4)
    assert found.speedup == pytest.approx(1, abs=0.15)


def test_json_has_the_fields_of_the_contract():
    found = measured(1, 1).to_json()
    times = ["baseline_ms", "optimized_ms", "speedup", "ci95"]
    assert list(found)[:9] == ["source", "provider", "threads", *times, "min_speedup", "passed"]
    assert isinstance(found["ci95"], list)
    assert found["optimized_p90_ms"] >= found["optimized_p10_ms"]


def test_two_threads_use_the_wall_clock():
    assert bench(work(1), {"h0": FEED["x"]}, threads=2, seconds=0.2).clock == "wall"


def test_bench_agrees_with_measure():
    found = bench(work(4), {"h0": FEED["x"]}, seconds=1)
    assert found.median_ms == pytest.approx(measured(4, 4).baseline_ms, rel=0.5)
    assert found.timings >= 7


def test_short_calls_are_repeated_within_a_timing():
    tiny = build("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    found = bench(tiny, {"x": np.zeros(1, np.float32)}, seconds=0.3)
    assert found.calls > 20
    assert found.median_ms < 0.5


def test_several_models_at_once():
    rounds = measure_rounds({"a": work(6), "b": work(2), "c": work(6)}, {"h0": FEED["x"]}, seconds=1.5)
    assert {len(times) for times in rounds.nanoseconds.values()} == {len(rounds.nanoseconds["a"])}
    assert rounds.speedup("a", "b")[0] > 2 > rounds.speedup("a", "c")[0]


def test_ratio_interval_of_known_times():
    generator = np.random.default_rng(0)
    times = generator.normal(100, 5, 500)
    ratio, low, high = ratio_interval(times, times / 2, seed=0)
    assert (ratio, low, high) == pytest.approx((2, 2, 2))  # noise that both share cancels
    ratio, low, high = ratio_interval(times, generator.normal(50, 2.5, 500), seed=0)
    assert 1.95 < low < 2 < high < 2.05
    assert ratio_interval(times, times[::-1], 1) == ratio_interval(times, times[::-1], 1)


def test_a_model_that_cannot_run():
    broken = build("g (float[N,256] h0) => (float[3] y) <int64[1] s = {3}> { y = Reshape(h0, s) }")
    with pytest.raises(UnsupportedModelError, match="cannot run"):
        bench(broken, {"h0": FEED["x"]})


def test_other_inputs():
    with pytest.raises(UnsupportedModelError, match="inputs h0, the data is for x"):
        bench(work(1), FEED)


def test_unknown_provider():
    with pytest.raises(UsageError, match="NoSuchProvider"):
        bench(work(1), {"h0": FEED["x"]}, providers=["NoSuchProvider"])
