"""eliminate_dead: what it leaves alone; then each kind of node and weight that it removes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, context, feeds, model, ops

from graphopt.graph import export_graph, import_graph
from graphopt.passes.eliminate_dead import EliminateDead


def cleaned(text: str, *, opset: int = 17, **weights: object) -> Run:
    return apply(EliminateDead(), model(text, opset=opset, **weights))


def one(call: str, declared: str = "", *, shape: str = "[N,3,4]", result: str = "[A,B,C]") -> str:
    return f"g (float{shape} x) => (float{result} y) <{declared}> {{ r = Relu(x)  t = {call}  y = Neg(t) }}".replace(
        "<>", ""
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(one("Transpose<perm = [0, 2, 1]>(r)"), id="transpose"),
        pytest.param(one("Transpose(r)"), id="transpose back to front"),
        pytest.param(one("Reshape(r, s)", "int64[3] s = {0, 4, 3}"), id="reshape to another shape"),
        pytest.param(one("Reshape(r, s)", "int64[3] s = {-1, 2, 2}", shape="[A,B,C]"), id="reshape of unknown sizes"),
        pytest.param(one("Reshape(r, s)", "int64[2] s = {0, -1}", result="[A,B]"), id="reshape to another rank"),
        pytest.param(one("Pad(r, p)", "int64[6] p = {0, 0, 0, 0, 0, 1}"), id="pad"),
        pytest.param(one("Slice(r, s, e)", "int64[1] s = {1}, int64[1] e = {9}"), id="slice that cuts"),
        pytest.param(
            one("Slice(r, s, e, a, b)", "int64[1] s = {3}, int64[1] e = {-9}, int64[1] a = {2}, int64[1] b = {-1}"),
            id="slice that reverses",
        ),
        pytest.param(one("Expand(r, s)", "int64[4] s = {1, 1, 1, 1}", result="[A,B,C,D]"), id="expand to more axes"),
        pytest.param(one("Add(r, k)", "float[1,1,1,1] k = {0}", result="[A,B,C,D]"), id="zero that adds an axis"),
        pytest.param(
            one("Add(r, k)", "float[5,1] k = {0, 0, 0, 0, 0}", shape="[N,1,4]"), id="zeros that widen an axis"
        ),
        pytest.param(one("Mul(r, k)", "float k = {1.0000001}"), id="nearly one"),
        pytest.param(one("Sub(k, r)", "float k = {0}"), id="zero minus x"),
        pytest.param(one("Div(k, r)", "float k = {1}"), id="one over x"),
        pytest.param(one("Tile(r, k)", "int64[3] k = {1, 2, 1}"), id="tile"),
        pytest.param(one("Concat<axis = 1>(r, x)"), id="concat of two"),
        pytest.param(one("Flatten<axis = 1>(r)", result="[A,B]"), id="flatten"),
        pytest.param("g (float[4] x) => (float16[4] y) { y = Cast<to = 10>(x) }", id="cast"),
        pytest.param(one("Pow(k, r)", "float k = {1}"), id="one to the power of x"),
        pytest.param(one("Div(r, k)", "float[1,1,1,1] k = {1}", result="[A,B,C,D]"), id="one that adds an axis"),
        pytest.param("g (float[4] x) => (float[4] y) { a = Reciprocal(x)  y = Reciprocal(a) }", id="reciprocal"),
        pytest.param(one("Clip(r)"), id="clip without bounds, which clips infinity"),
        pytest.param(one("Clip(r, k)", "float k = {0}"), id="clip"),
        pytest.param(one("Max(r, x)"), id="max of two"),
        pytest.param(one("Where(k, r, x)", "bool[4] k = {1, 1, 0, 1}"), id="where of both"),
        pytest.param(one("Where(k, r, x)", "bool[5,1,1,1] k = {1, 1, 1, 1, 1}", result="[A,B,C,D]"), id="where, wider"),
        pytest.param(one("Expand(r, s)", "int64[3] s = {1, 3, 8}", shape="[N,3,1]"), id="expand of one axis"),
        pytest.param(one("ReduceSum<keepdims = 1>(r, a)", "int64[1] a = {1}"), id="sum over an axis"),
        pytest.param(
            one("ReduceSum<keepdims = 0>(r, a)", "int64[1] a = {1}", shape="[N,1,4]", result="[A,B]"),
            id="sum that drops an axis",
        ),
        pytest.param(one("ReduceL1<axes = [1], keepdims = 1>(r)", shape="[N,1,4]"), id="absolute values"),
        pytest.param(one("ReduceSum<noop_with_empty_axes = 0>(r)", shape="[N,3,4]"), id="sum over all axes"),
        pytest.param(one("MaxPool<kernel_shape = [1], strides = [2]>(r)"), id="pooling with strides"),
        pytest.param(one("GlobalAveragePool(r)"), id="global pooling"),
        pytest.param(one("Resize(r, , k)", "float[3] k = {1, 1, 2}"), id="resize"),
        pytest.param(
            one(
                'Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "ceil">(r, , k)',
                "float[3] k = {1, 1, 1}",
            ),
            id="resize that shifts",
        ),
        pytest.param(one("Gather<axis = 1>(r, k)", "int64[3] k = {0, 2, 1}"), id="gather in another order"),
        pytest.param(one("Gather<axis = 1>(r, k)", "int64[2] k = {0, 1}"), id="gather of some"),
        pytest.param(one("Gather<axis = 0>(r, k)", "int64[2] k = {0, 1}"), id="gather of an open axis"),
        pytest.param(one('Einsum<equation = "abc->acb">(r)'), id="einsum"),
        pytest.param(one("LeakyRelu<alpha = 0.5>(r)"), id="leaky relu"),
        pytest.param("g (float[4] x) => (float[4] y) { r = Abs(x)  t = Neg(r)  y = Abs(t) }", id="abs of neg of abs"),
        pytest.param(
            "g (float[4] x) => (float[4] y) { a, b = Split<axis = 0>(x)  y = Concat<axis = 0>(b, a) }",
            id="halves swapped",
        ),
        pytest.param(
            "g (float[4,4] x) => (float[A,B] y) { a, b = Split<axis = 0>(x)  y = Concat<axis = 1>(a, b) }",
            id="joined along another axis",
        ),
        pytest.param(
            "g (float[4] x) => (float[4] y) { a = Cast<to = 7>(x)  y = Cast<to = 1>(a) }", id="cast that cuts"
        ),
        pytest.param(
            "g (float[4] x) => (int32[4] y) { a = Cast<to = 11>(x)  y = Cast<to = 6>(a) }", id="float to int by double"
        ),
        pytest.param(
            "g (int64[4] x) => (int64[4] y) { a = Cast<to = 1>(x)  y = Cast<to = 7>(a) }",
            id="integer to float and back",
        ),
        pytest.param(
            "g (int32[4] x) => (float16[4] y) { a = Cast<to = 11>(x)  y = Cast<to = 10>(a) }", id="rounded twice"
        ),
        pytest.param(
            "g (float[4] x, float[N] z) => (float[M] y) { y = Concat<axis = 0>(x, z) }", id="piece that may be empty"
        ),
        pytest.param(
            "g (float[1,N,4] x) => (float[A,B] y, float[A,C,B] h) <float[1,8,4] w, float[1,8,8] u> "
            "{ s, h = RNN<hidden_size = 8>(x, w, u)  y = Flatten(s) }",
            id="results that are read",
        ),
        pytest.param(
            "g (float[N] x, float[N] z) => (float[M] y) { s = Shape(z)  y = Expand(x, s) }", id="other symbol"
        ),
        pytest.param("g (float[4] x, float[4] unused) => (float[4] y) { y = Relu(x) }", id="unused input"),
    ],
)
def test_leaves_alone(text: str) -> None:
    run = cleaned(text)
    assert (run.report.changes, run.skipped) == (0, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            "g (float[4] x) => (float[4] y) { y = Identity(x) }",
            "Identity hands an input or a constant straight to a graph output",
            id="input to output",
        ),
        pytest.param(
            "g (float[4] x) => (float[4] y, float[4] z) { y = Relu(x)  z = Identity(y) }",
            "Identity hands one graph output to another",
            id="output to output",
        ),
        pytest.param(
            "g (float[4] x) => (float[4] y, bool[4] m) { r = Relu(x)  y, m = Dropout(r) }",
            "Dropout has a second output that is read",
            id="mask that is read",
        ),
    ],
)
def test_leaves_alone_with_a_reason(text: str, reason: str) -> None:
    run = cleaned(text)
    assert (run.report.changes, [skip.reason for skip in run.skipped]) == (0, [reason])


def test_a_value_from_outside_is_not_handed_to_an_output_of_a_subgraph() -> None:
    proto = model("""g (bool b, float[4] x) => (float[4] y) { z = Relu(x)  y = If (b) <
      then_branch = t () => (float[4] p) { p = Identity(z) },
      else_branch = e () => (float[4] q) { n = Neg(z)  q = Identity(n) }> }""")
    run = apply(EliminateDead(), proto)
    assert run.reasons == ["Identity hands a value from outside to an output of a subgraph"]
    assert run.report.details["no_ops"] == {"Identity": 1}


def test_leaves_training_dropout_alone() -> None:
    text = """g (float[4] x) => (float[4] y) <float ratio = {0.5}, bool on = {1}>
      { r = Relu(x)  d = Dropout(r, ratio, on)  y = Neg(d) }"""
    run = apply(EliminateDead(), model(text), compare=False)  # its outputs are random
    assert run.report.changes == 0


def test_leaves_dropout_alone_whose_mode_is_an_input() -> None:
    text = """g (float[4] x, bool on) => (float[4] y) <float ratio = {0.5}>
      { r = Relu(x)  d = Dropout(r, ratio, on)  y = Neg(d) }"""
    assert cleaned(text).report.changes == 0


def test_leaves_same_names_of_other_domains_alone() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
      g (float[4] x) => (float[4] y) { i = custom.Identity(x)  y = Relu(i) }"""
    assert apply(EliminateDead(), model(text), compare=False).report.changes == 0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(one("Identity(r)"), id="Identity"),
        pytest.param(one("Dropout(r)"), id="Dropout"),
        pytest.param(one("Dropout(r, k, off)", "float k = {0.5}, bool off = {0}"), id="Dropout, switched off"),
        pytest.param(one("Cast<to = 1>(r)"), id="Cast to the same"),
        pytest.param(one("Reshape(r, s)", "int64[3] s = {0, 3, 4}"), id="Reshape, copying"),
        pytest.param(one("Reshape(r, s)", "int64[3] s = {-1, 3, 4}"), id="Reshape, leaving one open"),
        pytest.param(one("Reshape(r, s)", "int64[3] s = {0, 0, -1}", shape="[A,B,C]"), id="Reshape of unknown sizes"),
        pytest.param(
            "g (float[N,3,4] x) => (float[A,B,C] y) { r = Relu(x)  s = Shape(r)  t = Reshape(r, s)  y = Neg(t) }",
            id="Reshape to its own shape",
        ),
        pytest.param(one("Transpose<perm = [0, 1, 2]>(r)"), id="Transpose"),
        pytest.param(one("Pad(r, p)", "int64[6] p = {0, 0, 0, 0, 0, 0}"), id="Pad"),
        pytest.param(
            one("Slice(r, s, e)", "int64[2] s = {0, 0}, int64[2] e = {9223372036854775807, 9223372036854775807}"),
            id="Slice to the far end",
        ),
        pytest.param(
            one("Slice(r, s, e, a)", "int64[1] s = {0}, int64[1] e = {3}, int64[1] a = {1}"), id="Slice of all"
        ),
        pytest.param(one("Expand(r, s)", "int64[3] s = {1, 3, 4}"), id="Expand"),
        pytest.param(one("Tile(r, k)", "int64[3] k = {1, 1, 1}"), id="Tile"),
        pytest.param(one("Concat<axis = 1>(r)"), id="Concat"),
        pytest.param(one("Sum(r)"), id="Sum"),
        pytest.param(one("Flatten(r)", shape="[N,4]", result="[A,B]"), id="Flatten"),
        pytest.param(one("Split<axis = 1>(r)"), id="Split"),
        pytest.param(one("Mul(r, k)", "float k = {1}"), id="times one"),
        pytest.param(one("Div(r, k)", "float[4] k = {1, 1, 1, 1}"), id="over ones"),
        pytest.param(one("Add(r, k)", "float[3,1] k = {0, 0, 0}"), id="plus zeros"),
        pytest.param(one("Sub(r, k)", "float[1,1,1] k = {0}"), id="minus zero"),
        pytest.param(one("Add(k, r)", "float k = {0}"), id="zero plus"),
        pytest.param(one("Mul(k, r)", "float[1] k = {1}"), id="one times"),
        pytest.param(one("Pow(r, k)", "float k = {1}"), id="to the power of one"),
        pytest.param(one("Pow(r, k)", "int64[1,1] k = {1}"), id="to the power of one, an integer"),
        pytest.param(one("Max(r, r)"), id="max of the same"),
        pytest.param(one("Where(k, r, x)", "bool[4] k = {1, 1, 1, 1}"), id="where, always"),
        pytest.param(one("Where(k, x, r)", "bool k = {0}"), id="where, never"),
        pytest.param(one("Expand(r, s)", "int64[2] s = {1, 1}", shape="[A,B,C]"), id="Expand by ones"),
        pytest.param(one("Expand(r, s)", "int64[2] s = {3, 1}"), id="Expand to what it has"),
        pytest.param(one("ReduceSum<keepdims = 1>(r, a)", "int64[1] a = {1}", shape="[N,1,4]"), id="sum over one"),
        pytest.param(one("ReduceMean<axes = [-2], keepdims = 1>(r)", shape="[N,1,4]"), id="mean over one"),
        pytest.param(one("ReduceSum<noop_with_empty_axes = 1>(r)", shape="[A,B,C]"), id="sum over no axis"),
        pytest.param(one("MaxPool<kernel_shape = [1]>(r)"), id="pooling of single elements"),
        pytest.param(one("AveragePool<kernel_shape = [1], strides = [1], pads = [0, 0]>(r)"), id="average of one"),
        pytest.param(one("GlobalAveragePool(r)", shape="[N,3,1]"), id="global pooling of one"),
        pytest.param(one("Resize(r, , k)", "float[3] k = {1, 1, 1}"), id="Resize by one"),
        pytest.param(
            one('Resize<mode = "linear">(r, , , s)', "int64[3] s = {2, 3, 4}", shape="[2,3,4]"), id="Resize to its size"
        ),
        pytest.param(one("Gather<axis = 1>(r, k)", "int64[3] k = {0, 1, 2}"), id="Gather of all"),
        pytest.param(one("Gather<axis = -2>(r, k)", "int64[3] k = {-3, 1, -1}"), id="Gather of all, from the end"),
        pytest.param(one('Einsum<equation = "abc -> abc">(r)'), id="Einsum"),
        pytest.param(one("LeakyRelu<alpha = 1.0>(r)"), id="LeakyRelu"),
        pytest.param(one("CastLike(r, x)"), id="CastLike"),
        pytest.param(one("Dropout(r, k, on)", "float k = {0}, bool on = {1}"), id="Dropout of nothing"),
    ],
)
def test_removes_no_ops(text: str) -> None:
    assert [op for op in ops(cleaned(text).after) if op != "Shape"] == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("g (float[4] x) => (float[4] y) { a = Neg(x)  b = Neg(a)  y = Exp(b) }", ["Exp"]),
        ("g (float[4] x) => (float[4] y) { a = Neg(x)  b = Neg(a)  c = Neg(b)  y = Exp(c) }", ["Neg", "Exp"]),
        ("g (float[4] x) => (float[4] y) { a = Neg(x)  i = Identity(a)  b = Neg(i)  y = Exp(b) }", ["Exp"]),
        ("g (bool[4] x) => (bool[4] y) { a = Not(x)  b = Not(a)  y = Not(b) }", ["Not"]),
        ("g (float[4] x) => (float[4] y) { a = Floor(x)  y = Floor(a) }", ["Floor"]),
        ("g (bool[4] x) => (bool[4] y) <bool t = {1}> { a = And(x, t)  y = Not(a) }", ["Not"]),
        ("g (bool[4] x) => (bool[4] y) <bool f = {0}> { a = Or(f, x)  b = Xor(a, f)  y = Not(b) }", ["Not"]),
        ("g (int32[4] x) => (int32[4] y) <int32 k = {1}> { a = Div(x, k)  y = Abs(a) }", ["Abs"]),
        ("g (float[6] x) => (float[6] y) { a, b = Split<axis=0>(x)  t = Concat<axis=-1>(a, b)  y = Exp(t) }", ["Exp"]),
        ("g (int32[4] x) => (int32[4] y) { a = Cast<to = 7>(x)  b = Cast<to = 6>(a)  y = Neg(b) }", ["Neg"]),
        ("g (int32[4] x) => (int8[4] y) { a = Cast<to = 7>(x)  y = Cast<to = 3>(a) }", ["Cast"]),
        ("g (float[4] x) => (float16[4] y) { a = Cast<to = 11>(x)  y = Cast<to = 10>(a) }", ["Cast"]),
        ("g (bool[4] x) => (bool[4] y) { a = Cast<to = 1>(x)  b = Cast<to = 9>(a)  y = Not(b) }", ["Not"]),
        ("g (float[N] x) => (float[N] y) <float[0] k> { a = Concat<axis = 0>(k, x, k)  y = Exp(a) }", ["Exp"]),
        ("g (float[2,N] x) => (float[2,M] y) <float[2,0] k> { y = Concat<axis = -1>(k, x, x) }", ["Concat"]),
    ],
)  # fmt: skip
def test_removes_what_undoes_itself(text: str, wanted: list[str]) -> None:
    assert ops(cleaned(text).after) == wanted


def test_infinite_values_pass_where_bounds_are_infinite() -> None:
    text = "g (float[4] x) => (float[4] y) <float a, float b> { t = Clip(x, a, b)  y = Neg(t) }"
    proto = model(text, a=-np.inf, b=np.inf)
    run = apply(EliminateDead(), proto, {"x": np.array([np.inf, -np.inf, 1, 2], np.float32)})
    assert ops(run.after) == ["Neg"]


def test_results_that_nobody_reads_are_not_asked_for() -> None:
    text = """g (float[3,N,4] x) => (float[A,B,C] y, float[N,4,D] z) <float[1,32,4] w, float[1,32,8] r> {
      s, h, c = LSTM<hidden_size = 8>(x, w, r)  y = Neg(h)
      p, i = MaxPool<kernel_shape = [2]>(x)  d, m = Dropout(p)  z = Neg(d) }"""
    run = cleaned(text)
    assert [list(node.output) for node in run.after.graph.node] == [["", "h"], ["y"], ["p"], ["z"]]
    assert run.report.details["trimmed"] == {"unread_results": 3}


@pytest.mark.parametrize(
    ("weights", "body"),
    [
        pytest.param("float[6,4,3,3] w, float[6] b", "y = Conv(x, w, b)", id="conv"),
        pytest.param("float[4,6,3,3] w, float[6] b", "y = ConvTranspose(x, w, b)", id="transposed"),
        pytest.param("float[256,3] w, float[3] b", "f = Flatten(x)  y = Gemm<beta = 2.0>(f, w, b)", id="gemm"),
        pytest.param(
            "float[6,4,3,3] w, int64[1] s", "b = ConstantOfShape(s)  y = Conv(x, w, b)", id="generated"
        ),
    ],
)  # fmt: skip
def test_biases_of_zeros_are_not_read(weights: str, body: str) -> None:
    text = f"g (float[N,4,8,8] x) => (float y) <{weights}> {{ {body} }}"
    run = cleaned(text, b=-np.zeros(6 if "Conv" in body else 3), s=[6])
    assert [len(node.input) for node in run.after.graph.node if node.input][-1] == 2
    assert run.report.details["trimmed"] == {"zero_biases": 1}


@pytest.mark.parametrize(
    ("weights", "body", "options"),
    [
        pytest.param("float[6,4,3,3] w, float[6] b", "y = Conv(x, w, b)", {"b": [0, 0, 0, 0, 0, 1]}, id="last"),
        pytest.param("float[6,4,3,3] w, float[6] b", "y = Conv(x, w, b)", {"b": [np.nan] * 6}, id="undefined"),
        pytest.param(
            "float[6,4,3,3] w, int64[1] s", "b = ConstantOfShape<value = float[1] {1.0}>(s)  y = Conv(x, w, b)",
            {"s": [6]}, id="generated ones",
        ),
        pytest.param(
            "float[256,3] w, float[3] b", "f = Flatten(x)  y = Gemm(f, w, b)", {"b": [0.0] * 3, "opset": 10}, id="old"
        ),
    ],
)  # fmt: skip
def test_other_biases_stay(weights: str, body: str, options: dict[str, Any]) -> None:
    text = f"g (float[N,4,8,8] x) => (float y) <{weights}> {{ {body} }}"
    assert not cleaned(text, **options).report.details["trimmed"]


def test_a_value_whose_name_means_another_inside_is_not_handed_on() -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["i"], ["r"]), onnx.helper.make_node("Abs", ["r"], ["p"])],
        "b", [], [onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, [4])],
    )  # fmt: skip
    proto = model("g (float[4] x, bool c) => (float[4] y) { r = Relu(x)  i = Identity(r)  y = Neg(i) }")
    last = proto.graph.node.pop()
    proto.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    assert last.op_type == "Neg"
    work = import_graph(proto)  # the checker refuses names that hide others; files that have them are about
    report = EliminateDead().apply(work.gs, context())
    export_graph(work)
    assert [skip.reason for skip in report.skipped] == [
        "Identity hands on a value whose name means another one where it is read"
    ]


@pytest.mark.parametrize("kind", ["Identity", "Neg", "Reshape", "Cast", "dead", "star"])
def test_long_chains_and_many_readers(kind: str) -> None:
    count = 3000
    make = onnx.helper.make_node
    inputs = {"Reshape": ["s"]}.get(kind, [])
    attrs = {"to": 1} if kind == "Cast" else {}
    nodes = [make("Relu", ["x"], ["t0"])]
    if kind == "star":
        nodes += [make("Identity", ["t0"], [f"i{number}"]) for number in range(count)]
        nodes += [make("Exp", [f"i{number}"], [f"e{number}"]) for number in range(count)]
        nodes += [make("Sum", [f"e{number}" for number in range(count)], [f"t{count}"])]
    else:
        op = "Exp" if kind == "dead" else kind
        nodes += [make(op, [f"t{n}", *inputs], [f"t{n + 1}"], **attrs) for n in range(count)]
    nodes.append(make("Abs", ["t0" if kind == "dead" else f"t{count}"], ["y"]))
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    shape = onnx.numpy_helper.from_array(np.array([0, 4]), "s")
    graph = onnx.helper.make_graph(nodes, "g", info[:1], info[1:], [shape] if inputs else [])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    work = import_graph(proto)
    EliminateDead().apply(work.gs, context())
    left = [node.op for node in work.gs.nodes]
    assert left == (["Relu", *["Exp"] * count, "Sum", "Abs"] if kind == "star" else ["Relu", "Abs"])


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("g (float[N,4] x) => (float[N,4] y) { d = Dropout<is_test = 1>(x)  y = Relu(d) }", 6),
        ("g (float[N,4] x) => (float[N,4] y) { d = Dropout<ratio = 0.3>(x)  y = Relu(d) }", 10),
        ("g (float[N,4] x) => (float[N,4] y) { d = Pad<pads = [0, 0, 0, 0]>(x)  y = Relu(d) }", 10),
        ("g (float[N,4] x) => (float[N,4] y) { d = Slice<starts = [0], ends = [2147483647]>(x)  y = Relu(d) }", 9),
        ("g (float[N,1] x) => (float[N,1] y) { d = ReduceSum<axes = [1], keepdims = 1>(x)  y = Relu(d) }", 9),
        (
            "g (float[1,3,4] x) => (float[1,3,4] y) { d = Upsample<scales = [1.0, 1.0, 1.0]>(x)  y = Relu(d) }",
            8,
        ),
    ],
)
def test_older_opsets_say_it_in_attributes(text: str, opset: int) -> None:
    runnable = opset > 6  # ONNX Runtime no longer has the Dropout of opset 6
    assert ops(apply(EliminateDead(), model(text, opset=opset), compare=runnable).after) == ["Relu"]


def test_a_graph_output_keeps_its_name() -> None:
    run = cleaned("g (float[4] x) => (float[4] y) { a = Relu(x)  b = Identity(a)  y = Identity(b)  c = Neg(a) }")
    assert [(node.op_type, list(node.output)) for node in run.after.graph.node] == [("Relu", ["y"])]


def test_a_chain_of_no_ops_goes_at_once() -> None:
    chain = "  ".join(f"t{i + 1} = Identity(t{i})" for i in range(50))
    run = cleaned(f"g (float[4] x) => (float[4] y) {{ t0 = Relu(x)  {chain}  y = Neg(t50) }}")
    assert run.report.changes == 50


def test_unused_nodes_and_weights_go() -> None:
    run = cleaned("g (float[4] x) => (float[4] y) <float[4] w> { a = Mul(x, w)  b = Exp(a)  y = Relu(x) }")
    assert (ops(run.after), len(run.after.graph.initializer)) == (["Relu"], 0)


def test_no_ops_in_subgraphs_go() -> None:
    run = cleaned("""g (float[4] x, int64 n, bool go) => (float[4] y) {
      y = Loop (n, go, x) <body = body (int64 i, bool c, float[4] s) => (bool d, float[4] t)
        { e = Identity(c)  d = Not(e)  u = Identity(s)  t = Relu(u) }> }""")
    assert run.report.details["no_ops"] == {"Identity": 2}


def test_equal_weights_become_one() -> None:
    text = """g (float[4] x) => (float[4] y) <float[4] a, float[4] b, float[2,2] other, float[4] c> {
      p = Add(x, a)  q = Mul(p, b)  y = Sub(q, c)  z = Relu(other) }"""
    same = np.arange(4)
    run = cleaned(text, a=same, b=same, c=same + 1, other=same.reshape(2, 2))
    assert len(run.after.graph.initializer) == 2
    assert (run.report.details["duplicate_weights"], run.report.details["duplicate_bytes"]) == (1, 16)


def test_equal_bytes_of_another_type_or_shape_stay() -> None:
    text = """g (float[4] x, int32[4] i) => (float[4] y, int32[4] j, float[1,4] k)
      <float[4] a, int32[4] b, float[1,4] c> { y = Add(x, a)  j = Add(i, b)  k = Add(x, c) }"""
    run = cleaned(text, a=np.zeros(4), b=np.zeros(4), c=np.zeros((1, 4)))
    assert run.report.details["duplicate_weights"] == 0


def test_equal_weights_of_a_subgraph_and_its_parent_become_one() -> None:
    proto = model("""g (bool b, float[4] x) => (float[4] y) <float[4] w = {1, 2, 3, 4}> {
      z = Add(x, w)
      y = If (b) < then_branch = t () => (float[4] p) <float[4] v = {1, 2, 3, 4}> { p = Mul(z, v) },
                   else_branch = e () => (float[4] q) <float[4] u = {1, 2, 3, 4}> { q = Sub(z, u) } > }""")
    for flag in (True, False):
        run = apply(EliminateDead(), proto, feeds(proto) | {"b": np.array(flag)})
    assert run.report.details["duplicate_weights"] == 2
    assert [tensor.name for tensor in run.after.graph.initializer] == ["w"]


def test_equal_weights_of_two_branches_alone_stay() -> None:
    run = cleaned("""g (bool b, float[4] x) => (float[4] y) {
      y = If (b) < then_branch = t () => (float[4] p) <float[4] v = {1, 2, 3, 4}> { p = Mul(x, v) },
                   else_branch = e () => (float[4] q) <float[4] u = {1, 2, 3, 4}> { q = Sub(x, u) } > }""")
    assert run.report.details["duplicate_weights"] == 0


def test_an_input_with_a_default_is_no_weight() -> None:
    proto = model("g (float[4] x, float[4] w) => (float[4] y) <float[4] v> { a = Add(x, w)  y = Mul(a, v) }")
    equal = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(equal, "w"))
    assert apply(EliminateDead(), proto).report.changes == 0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_graphs(data: st.DataObject) -> None:
    """Graphs most of which is no-ops, within branches too; any value may be an output."""
    count = iter(range(1000))
    calls = (
        "Identity({0})", "Neg({0})", "Abs({0})", "Add({0}, zero)", "Mul(one, {0})", "Dropout({0})", "Sub({0}, {1})",
        "Reshape({0}, shape)", "Where(yes, {0}, {1})", "Cast<to=1>({0})", "Concat<axis=0>({0}, none)", "Max({0}, {0})",
    )  # fmt: skip

    def block(seen: list[str], depth: int) -> str:
        lines = []
        for _ in range(data.draw(st.integers(1, 6))):
            name = f"t{next(count)}"
            first, second = data.draw(st.sampled_from(seen)), data.draw(st.sampled_from(seen))
            if depth < 2 and data.draw(st.integers(0, 5)) == 0:
                number = next(count)
                inner = [list(seen), list(seen)]
                then, other = block(inner[0], depth + 1), block(inner[1], depth + 1)
                lines.append(
                    f"{name} = If (flag) < then_branch = a{number} () => (float[4] p{number}) "
                    f"{{ {then}  p{number} = Identity({inner[0][-1]}) }}, else_branch = b{number} () => "
                    f"(float[4] q{number}) {{ {other}  q{number} = Abs({inner[1][-1]}) }} >"
                )
            else:
                lines.append(f"{name} = {data.draw(st.sampled_from(calls)).format(first, second)}")
            seen.append(name)
        return "  ".join(lines)

    seen = ["x"]
    body = block(seen, 0)
    results = data.draw(st.lists(st.sampled_from(seen[1:]), min_size=1, max_size=3, unique=True))
    declared = ", ".join(f"float[4] {name}" for name in results)
    constants = "<float zero = {0}, float one = {1}, int64[1] shape = {-1}, bool yes = {1}, float[0] none>"
    proto = model(f"g (float[4] x, bool flag) => ({declared}) {constants} {{ {body} }}")
    apply(EliminateDead(), proto, feeds(proto) | {"flag": np.array(data.draw(st.booleans()))})


def test_weights_that_nothing_reads_go_even_where_nothing_else_does() -> None:
    done = apply(EliminateDead(), model("g (float[2] x) => (float[2] y) <float[9] v, float[2] w> { y = Add(x, w) }"))
    assert done.report.changes == done.report.details["unused_weights"] == 1
    assert [tensor.name for tensor in done.after.graph.initializer] == ["w"]


def test_a_weight_that_only_a_body_reads_or_the_graph_returns_stays() -> None:
    proto = model("""g (bool c, float[2] x) => (float[2] y, float[2] v) <float[2] v, float[2] w> {
        y = If (c) <then_branch = t () => (float[2] a) { a = Add(x, w) },
                    else_branch = e () => (float[2] b) { b = Neg(x) }>
    }""")
    assert apply(EliminateDead(), proto).report.changes == 0
