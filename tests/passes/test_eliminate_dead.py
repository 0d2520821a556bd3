"""eliminate_dead: what it leaves alone; then each kind of node and weight that it removes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support import Run, apply, feeds, model, ops

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
    ],
)
def test_removes_no_ops(text: str) -> None:
    assert [op for op in ops(cleaned(text).after) if op != "Shape"] == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("g (float[N,4] x) => (float[N,4] y) { d = Dropout<is_test = 1>(x)  y = Relu(d) }", 6),
        ("g (float[N,4] x) => (float[N,4] y) { d = Dropout<ratio = 0.3>(x)  y = Relu(d) }", 10),
        ("g (float[N,4] x) => (float[N,4] y) { d = Pad<pads = [0, 0, 0, 0]>(x)  y = Relu(d) }", 10),
        ("g (float[N,4] x) => (float[N,4] y) { d = Slice<starts = [0], ends = [2147483647]>(x)  y = Relu(d) }", 9),
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
