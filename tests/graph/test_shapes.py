"""Inferred shapes and dtypes, and the verdict whether a model is valid."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from support import model

from graphopt.errors import ModelError
from graphopt.graph import import_graph, infer_shapes, infer_types, skeleton, types_of, verify

NET = """g (float[N,3,8,8] x) => (float[N,K] y) <float[4,3,3,3] w, int64[2] s = {0, -1}>
  { c = Conv(x, w)  r = Relu(c)  y = Reshape(r, s) }"""


def test_shapes_with_open_dimensions() -> None:
    shapes = infer_shapes(model(NET))
    assert shapes["c"] == shapes["r"] == ("N", 4, 6, 6)
    assert shapes["w"] == (4, 3, 3, 3)
    assert shapes["y"][0] == "N"


def test_computed_target_shapes_are_seen_through() -> None:
    shapes = infer_shapes(
        model("""g (float[N,6] x) => (float[A,B,C] y) <int64[1] zero = {0}, int64[2] tail = {2, 3}>
          { s = Shape(x)  n = Gather(s, zero)  t = Concat<axis = 0>(n, tail)  y = Reshape(x, t) }""")
    )
    assert shapes["y"] == ("N", 2, 3)


def test_dtypes() -> None:
    types = infer_types(model("g (float[4] x) => (bool[4] y) <float[4] w> { y = Greater(x, w) }"))
    assert (types["x"].dtype, types["y"].dtype) == (TensorProto.FLOAT, TensorProto.BOOL)


def test_wrong_declarations_between_inputs_and_outputs_are_not_trusted() -> None:
    proto = model(NET)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 9, 9, 9]))
    assert infer_shapes(proto)["c"] == ("N", 4, 6, 6)


def test_inference_goes_on_past_an_unknown_operator() -> None:
    shapes = infer_shapes(
        model("""<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> g (float[4] x) => (float[4] y)
          { a = custom.Thing(x)  b = Relu(x)  y = Add(a, b) }""")
    )
    assert shapes["b"] == (4,)
    assert "a" not in shapes


@pytest.mark.parametrize("name", ["DynamicQuantizeLSTM", "Unknown"])
def test_operators_of_onnx_runtime_that_are_shaped_like_standard_ones(name: str) -> None:
    shapes = infer_shapes(
        model(f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
          g (float[S,N,3] x, int8[1,3,8] w, int8[1,2,8] r, float[1] s, int8[1] z) => (float[A,B,C,D] y) {{
            y, h = com.microsoft.{name}<hidden_size = 2>(x, w, r, , , , , , s, z, s, z) }}""")
    )
    known = name != "Unknown"
    assert (shapes.get("y"), shapes.get("h")) == ((("S", 1, "N", 2), (1, "N", 2)) if known else (None, None))


def test_inside_of_subgraphs() -> None:
    shapes = infer_shapes(
        model("""g (bool b, float[4,2] x) => (float[2,4] y) {
          y = If (b) < then_branch = t () => (p) { p = Transpose(x) },
                       else_branch = e () => (q) { k = Neg(x)  q = Transpose(k) } > }""")
    )
    assert (shapes["p"], shapes["k"], shapes["y"]) == ((2, 4), (4, 2), (2, 4))


def test_names_that_sibling_subgraphs_share_are_left_out() -> None:
    proto = model("""g (bool b, float[4,2] x) => (float[4,N] y, float[4,2] z) { z = Neg(x)
      y = If (b) < then_branch = t () => (p) <float[2,1000] w> { v = MatMul(x, w)  p = Exp(v) },
                   else_branch = e () => (q) <float[2,900] w, float[900] m> { v = MatMul(x, w)  q = Add(v, m) } > }""")
    shapes = infer_shapes(proto)
    assert {"w", "v"}.isdisjoint(shapes)
    assert (shapes["p"], shapes["q"], shapes["m"], shapes["z"]) == ((4, 1000), (4, 900), (900,), (4, 2))
    assert skeleton(import_graph(proto).gs).ByteSize() < 5000


def test_large_weights_never_reach_the_inference() -> None:
    proto = model("g (float[N,1000] x) => (float[N,1000] y) <float[1000,1000] w> { y = MatMul(x, w) }")
    assert skeleton(import_graph(proto).gs).ByteSize() < 1000
    assert infer_shapes(proto)["y"] == ("N", 1000)


def test_distinct_symbols_do_not_trust_names_shared_by_inputs() -> None:
    graph = import_graph(model("g (float[N] a, float[N] b) => (float[N] y) { y = Add(a, b) }")).gs
    assert types_of(graph, distinct=False)["y"].shape == ("N",)
    shapes = {name: found.shape for name, found in types_of(graph, distinct=True).items()}
    assert (shapes["a"], shapes["b"]) == (("a@0",), ("b@0",))
    assert shapes["y"] not in {("a@0",), ("b@0",)}


def test_a_valid_model_passes() -> None:
    verify(model(NET))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("g (float[4] x) => (float[4] y) { y = Relu(x, x) }", "Relu", id="too many inputs"),
        pytest.param("g (float[4] x) => (float[4] y) { [odd] y = Relluu(x) }", "odd|Relluu", id="no such operator"),
        pytest.param("g (float[4] x) => (float[4] y) { y = Concat(x, x) }", "writes y|Concat", id="lacks an attribute"),
        pytest.param("g (float[4] x, float[3] z) => (float[4] y) { [sum] y = Add(x, z) }", "sum", id="wrong shapes"),
        pytest.param("g (float[4] x, int64[4] z) => (float[4] y) { [sum] y = Add(x, z) }", "sum", id="wrong dtypes"),
    ],
)
def test_an_invalid_model_is_told_with_its_node(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        verify(model(text))


def test_a_wrongly_declared_output_shape_is_not_held_against_a_model() -> None:
    proto = model("g (float[4,2] x) => (float[4,2] y) { y = Transpose(x) }")
    verify(proto)


def test_weights_beyond_the_whole_check_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.graph.verification._WHOLE_BYTES", 1000)
    verify(model("g (float[N,100] x) => (float[N,100] y) <float[100,100] w> { y = MatMul(x, w) }"))
    wrong = model("g (float[N,99] x) => (float[N,100] y) <float[100,100] w> { [product] y = MatMul(x, w) }")
    assert np.prod(wrong.graph.initializer[0].dims) == 10_000
    with pytest.raises(ModelError, match="product"):
        verify(wrong)
