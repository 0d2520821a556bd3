"""What numpy does of constant folding: the same bits that a runtime gives, and nothing where that is in doubt."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import runtime
from graphopt.graph import import_graph
from graphopt.passes.constants.moved_constants import moved


def _one_node(op: str, source: np.ndarray, second: list[int] | None = None, **attributes: object) -> onnx.ModelProto:
    inputs = [numpy_helper.from_array(source, "x")]
    if second is not None:
        inputs.append(numpy_helper.from_array(np.array(second, np.int64), "s"))
    node = helper.make_node(op, [tensor.name for tensor in inputs], ["y"], **attributes)
    result = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(source.dtype), None)
    graph = helper.make_graph([node], "one", [], [result], inputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _moved(model: onnx.ModelProto) -> np.ndarray | None:
    graph = import_graph(model).gs
    return moved(graph.nodes[0], {}, graph.opset)


def _assert_as_runtime(model: onnx.ModelProto) -> None:
    result = _moved(model)
    assert result is not None
    expected = runtime.run(runtime.session(model, optimize=False), {})["y"]
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert result.tobytes() == expected.tobytes()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.data())
def test_moves_as_the_runtime_does(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=4))
    dtype = data.draw(st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]))
    source = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    rank = len(shape)
    if rank:
        _assert_as_runtime(_one_node("Transpose", source, perm=data.draw(st.permutations(range(rank)))))
    _assert_as_runtime(_one_node("Transpose", source))
    axes = data.draw(st.lists(st.integers(-rank - 2, rank + 1), min_size=1, max_size=2))
    if len({axis % (rank + len(axes)) for axis in axes}) == len(axes) and all(
        -rank - len(axes) <= axis < rank + len(axes) for axis in axes
    ):
        _assert_as_runtime(_one_node("Unsqueeze", source, axes))
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    if ones:
        _assert_as_runtime(_one_node("Squeeze", source, ones))
    if source.size:
        _assert_as_runtime(_one_node("Reshape", source, [-1, *reversed(shape)]))


@pytest.mark.parametrize(
    "model",
    [
        _one_node("Reshape", np.zeros((2, 3)), [0, -1]),
        _one_node("Reshape", np.zeros((2, 3)), [-1, -1]),
        _one_node("Reshape", np.zeros((2, 3)), [-2, 3]),
        _one_node("Reshape", np.zeros((2, 3)), [5]),
        _one_node("Reshape", np.zeros((2, 0)), [-1]),
        _one_node("Squeeze", np.zeros((2, 1)), [0]),
        _one_node("Squeeze", np.zeros((2, 1))),
        _one_node("Unsqueeze", np.zeros((2, 1)), [1, 1]),
        _one_node("Unsqueeze", np.zeros((2, 1)), [4]),
        _one_node("Transpose", np.zeros((2, 1)), perm=[0, -1]),
        _one_node("Transpose", np.zeros((2, 1)), perm=[0, 0]),
        _one_node("Transpose", np.array(["a", "b"], dtype=object)),
        _one_node("Relu", np.zeros((2, 1))),
        _one_node("Transpose", np.zeros((2, 1)), domain="other"),
    ],
)
def test_leaves_the_rest_to_the_runtime(model: onnx.ModelProto) -> None:
    assert _moved(model) is None


def test_axes_before_they_were_inputs() -> None:
    model = _one_node("Unsqueeze", np.zeros((2, 1)), axes=[0])
    model.opset_import[0].version = 11
    result = _moved(model)
    assert result is not None
    assert result.shape == (1, 2, 1)
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE
