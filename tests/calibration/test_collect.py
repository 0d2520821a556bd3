"""Collecting statistics: the same whatever is run together, from a stream, in memory that does not grow."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.parser
import pytest
from support import model

from graphopt import runtime
from graphopt.calibration import collect as module
from graphopt.calibration.collect import collect, observing, shapes
from graphopt.errors import DataError

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,4] y) <float two = {2.0}> {
  doubled = Mul(x, two)
  positive = Relu(doubled)
  square = Mul(positive, positive)
  size = Shape(square)
  y = Add(square, x)
}"""
TENSORS = ["x", "doubled", "positive", "square", "y"]


def net() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def feeds(count: int = 5, batch: int = 3) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.normal(size=(batch, 4)).astype(np.float32)} for _ in range(count)]


def test_each_tensor_has_the_statistics_of_its_values() -> None:
    values = np.concatenate([feed["x"] for feed in feeds()])
    found = collect(net(), TENSORS, feeds())
    assert found.samples == 5
    assert list(found.tensors) == TENSORS
    for name, expected in {
        "x": values,
        "doubled": 2 * values,
        "positive": np.maximum(2 * values, 0),
        "square": np.maximum(2 * values, 0) ** 2,
        "y": np.maximum(2 * values, 0) ** 2 + values,
    }.items():
        histogram = found.tensors[name].histogram
        assert histogram.count == expected.size
        assert histogram.minimum == pytest.approx(expected.min(), rel=1e-6)
        assert histogram.maximum == pytest.approx(expected.max(), rel=1e-6)
        np.testing.assert_allclose(found.tensors[name].channel_mean, expected.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("run_bytes", [1, 100, 10**9], ids=["one tensor a run", "two tensors a run", "all in one run"])
def test_it_does_not_matter_which_tensors_are_run_together(monkeypatch: pytest.MonkeyPatch, run_bytes: int) -> None:
    expected = collect(net(), TENSORS, feeds())
    opened: list[list[str]] = []
    session = runtime.session

    def counted(model: onnx.ModelProto, **options: object) -> object:
        opened.append([value.name for value in model.graph.output])
        return session(model, **options)

    monkeypatch.setattr(runtime, "session", counted)
    monkeypatch.setattr(module, "RUN_BYTES", run_bytes)
    found = collect(net(), TENSORS, feeds())
    groups = [names for names in opened if not names[0].startswith("graphopt_shape")]
    assert len(groups) == {1: 4, 100: 2, 10**9: 1}[run_bytes]
    assert [name for group in groups for name in group] == TENSORS[1:]
    for name in TENSORS:
        for left, right in zip(
            found.tensors[name].histogram.distribution(), expected.tensors[name].histogram.distribution(), strict=True
        ):
            np.testing.assert_array_equal(left, right)
        assert found.tensors[name].average_maximum == expected.tensors[name].average_maximum
        np.testing.assert_array_equal(found.tensors[name].channel_sum, expected.tensors[name].channel_sum)


def test_tensors_that_hold_no_floats_are_left_out() -> None:
    assert list(collect(net(), ["size", "y"], feeds()).tensors) == ["y"]


def test_graph_inputs_need_no_run() -> None:
    assert list(collect(net(), ["x"], feeds()).tensors) == ["x"]


def test_any_iterable_will_do_and_is_read_once() -> None:
    stream = iter(feeds())
    assert collect(net(), ["y"], stream).samples == 5
    assert next(stream, None) is None


def test_the_batch_may_differ_from_sample_to_sample() -> None:
    found = collect(net(), ["y"], [*feeds(2, batch=1), *feeds(1, batch=7)])
    assert found.tensors["y"].histogram.count == (1 + 1 + 7) * 4


def test_progress_counts_samples() -> None:
    seen: list[int] = []
    collect(net(), ["y"], feeds(3), progress=seen.append)
    assert seen == [1, 2, 3]


def test_no_sample_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample"):
        collect(net(), TENSORS, [])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_holds_nan_is_named(value: float) -> None:
    given = feeds()
    given[2]["x"][0, 0] = value
    with pytest.raises(DataError, match=r"sample 2 makes tensor 'x' NaN or infinite"):
        collect(net(), TENSORS, given)


def test_a_tensor_that_overflows_is_left_out_with_the_sample_that_did_it() -> None:
    given = feeds()
    given[3]["x"][0, 0] = 3e30
    found = collect(net(), TENSORS, given)
    assert found.infinite == {"square": 3, "y": 3}
    assert "square" not in found.tensors
    assert "x" in found.tensors


def test_shapes_are_those_at_run_time() -> None:
    assert shapes(net(), ["x", "y", "size", "y"], feeds(batch=3)[0]) == {"x": (3, 4), "y": (3, 4), "size": (2,)}


def test_the_model_is_left_as_it_is() -> None:
    model = net()
    before = model.SerializeToString()
    collect(model, TENSORS, feeds())
    shapes(model, TENSORS, feeds()[0])
    assert model.SerializeToString() == before


def test_memory_does_not_grow_with_samples() -> None:
    """What stays after many samples is what stays after few; activations of 2 MB a sample are not kept."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,65536] x) => (float[N,65536] y) { a = Relu(x)  b = Neg(a)  y = Add(a, b) }"""
    model = onnx.parser.parse_model(text)
    sample = np.random.default_rng(0).normal(size=(2, 65536)).astype(np.float32)

    def stream(count: int) -> Iterator[dict[str, np.ndarray]]:
        for _ in range(count):
            yield {"x": sample.copy()}

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        collect(model, ["x", "a", "b", "y"], stream(count))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(2)  # imports and caches
    assert peak(24) <= 1.1 * peak(4)


def test_a_convolution_inside_the_addition_behind_it_is_observed(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime runs the two as one, and then misses the convolution's answer; without its optimizations not."""
    text = """g (float[1,32,4,4] x) => (float[1,32,4,4] sum) <float[32,4,1,1] w, float[32] b, float[32,8,1,1] v> {
      left = Conv<group = 8>(x, w, b)  right = Conv<group = 4>(x, v)  sum = Add(left, right) }"""
    proto = model(text)
    fed = {"x": np.ones((1, 32, 4, 4), np.float32)}
    exact = runtime.run(runtime.session(proto, optimize=False), fed, ["sum"])
    found = runtime.run(observing(proto, ["left", "sum"]), fed, ["left", "sum"])
    np.testing.assert_allclose(found["sum"], exact["sum"], rtol=1e-4, atol=1e-5)
    assert found["left"].shape == (1, 32, 4, 4)
    assert capfd.readouterr().out == "", "standard output belongs to results"
