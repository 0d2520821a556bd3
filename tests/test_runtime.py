"""The one door to ONNX Runtime: sessions, runs, the optimized graph and kernel times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from support import model as parse

from graphopt import runtime
from graphopt.errors import UnsupportedModelError, UsageError

TEXT = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { a = Neg(x)  y = Relu(a)  z = Exp(a) }"
FEED = {"x": np.array([[1, -2, 3, -4]], np.float32)}


def with_weights(text: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The graph of ``text`` with a random initializer ``w``."""
    model = parse(text)
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return model


def test_a_model_opens_as_proto_bytes_and_path(tmp_path: Path) -> None:
    model = parse(TEXT)
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path))
    for source in (model, model.SerializeToString(), str(path), path):
        assert runtime.run(runtime.session(source), FEED)["y"].tolist() == [[0, 2, 0, 4]]


def test_outputs_come_by_name_in_the_order_asked_for() -> None:
    opened = runtime.session(parse(TEXT))
    assert list(runtime.run(opened, FEED)) == ["y", "z"]
    assert list(runtime.run(opened, FEED, ["z"])) == ["z"]


def test_a_model_above_the_size_of_a_message_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_weights("g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", (64, 64))
    before = model.SerializeToString()
    feed = {"x": np.ones((1, 64), np.float32)}
    expected = runtime.run(runtime.session(model), feed)["y"]
    monkeypatch.setattr(runtime, "LARGEST_MESSAGE", 1000)
    np.testing.assert_array_equal(runtime.run(runtime.session(model), feed)["y"], expected)
    assert model.SerializeToString() == before, "the weights are still in the caller's model"


def test_a_model_that_cannot_be_loaded_says_why_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match=r"ONNX Runtime cannot load the model: .*Nonsense") as caught:
        runtime.session(parse("g (float[2] x) => (float[2] y) { y = Nonsense(x) }"))
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_model() -> None:
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        runtime.session(b"not a model")


def test_a_run_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match="ONNX Runtime cannot run the model") as caught:
        runtime.run(runtime.session(parse(TEXT)), {"x": np.zeros((1, 5), np.float32)})
    assert "\n" not in str(caught.value)


def test_a_provider_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"NonsenseProvider is not available here; available: .*CPUExecutionProvider"):
        runtime.session(parse(TEXT), providers=["NonsenseProvider"])


def test_input_specs_leave_out_initializers_that_are_listed_as_inputs() -> None:
    model = parse(TEXT)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "w"))
    (spec,) = runtime.input_specs(model)
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.dtype(np.float32), ("N", 4))
    assert [output.name for output in runtime.output_specs(model)] == ["y", "z"]


def test_specs_of_unknown_rank_and_of_what_is_no_tensor() -> None:
    unknown = onnx.ValueInfoProto(name="u")
    unknown.type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert runtime.tensor_spec(unknown) == runtime.TensorSpec("u", np.dtype(np.int64), None)
    sequence = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
    assert runtime.tensor_spec(sequence) == runtime.TensorSpec("s", np.dtype(object), None)


def test_the_optimized_graph_is_the_one_that_is_executed() -> None:
    text = "g (float[1,8,16,16] x) => (float[1,8,16,16] y) { c = Conv<pads = [1,1,1,1]>(x, w)  y = Relu(c) }"
    model = with_weights(text, (8, 8, 3, 3))
    operators = [node.op_type for node in runtime.optimized_graph(model).graph.node]
    assert "Relu" not in operators
    assert any("Conv" in operator for operator in operators)


def test_the_profile_names_every_kernel_with_its_time_and_shapes() -> None:
    times = runtime.profile(parse(TEXT), FEED, runs=3, warmup=1)
    assert {time.operator for time in times} == {"Neg", "Relu", "Exp"}
    for time in times:
        assert 0 <= time.quickest <= time.microseconds
        assert time.input_shapes == ((1, 4),)


def test_profiling_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runtime.profile(parse(TEXT), FEED, runs=1, warmup=0)
    runtime.optimized_graph(parse(TEXT))
    assert list(tmp_path.iterdir()) == []


def test_sessions_are_sequential_and_have_the_threads_asked_for() -> None:
    options = runtime.session_options(threads=3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    import onnxruntime as ort

    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    off = runtime.session_options(optimize=False)
    assert off.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
