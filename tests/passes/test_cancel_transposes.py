"""cancel_transposes: each operator it moves through, what it leaves alone, nets from TensorFlow, random graphs."""

from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nhwc_nets import NETS, TO_NCHW, Net
from support import Run, apply, context, feeds, model, ops

from graphopt.graph import import_graph
from graphopt.passes.cancel_transposes import CancelTransposes
from graphopt.passes.layout.mincut import Network
from graphopt.passes.layout.moves import is_movable_weight

T, BACK = "Transpose<perm = [0, 2, 3, 1]>", "Transpose<perm = [0, 3, 1, 2]>"


def cancelled(text: str, *, opset: int = 17, **weights: object) -> Run:
    return apply(CancelTransposes(), model(text, opset=opset, **weights))


def transposes(run: Run) -> int:
    return ops(run.after).count("Transpose")


def between(call: str, declared: str = "", *, shape: str = "2,3,4,5", out: str = "float[A,B,C,D] y") -> str:
    """A call on ``t``, which is NHWC, between convolution-like NCHW neighbours (global pooling holds its axes)."""
    weights = f"<{declared}>" if declared else ""
    return f"g (float[{shape}] x) => ({out}) {weights} {{ t = {T}(x)  r = {call}  y = {BACK}(r) }}"


I64 = "int64[{n}] {name} = {{{values}}}"


@pytest.mark.parametrize(
    ("call", "declared", "opset"),
    [
        pytest.param("Relu(t)", "", 17, id="unary"),
        pytest.param("Cast<to = 11>(t)", "", 17, id="cast"),
        pytest.param("Clip(t, lo)", "float lo = {0}", 17, id="clip"),
        pytest.param("Dropout(t)", "", 17, id="dropout"),
        pytest.param("Add(t, t)", "", 17, id="with itself"),
        pytest.param("Add(t, c)", "float[3] c", 17, id="constant of lower rank"),
        pytest.param("Mul(c, t)", "float[4,1,3] c", 17, id="constant first"),
        pytest.param("Sub(t, c)", "float[2,4,5,3] c", 17, id="whole constant"),
        pytest.param("Div(t, c)", "float c", 17, id="scalar"),
        pytest.param("Max(t, c, d)", "float[3] c, float[1,1,1,1] d", 17, id="three operands"),
        pytest.param("PRelu(t, c)", "float[3] c", 17, id="prelu"),
        pytest.param("ReduceMean<axes = [1, 2]>(t)", "", 17, id="mean"),
        pytest.param("ReduceMax<axes = [-1]>(t)", "", 17, id="maximum of channels"),
        pytest.param("ReduceSum(t, a)", "int64[1] a = {1}", 17, id="sum"),
        pytest.param("ReduceL2(t, a)", "int64[2] a = {1, -2}", 18, id="norm"),
        pytest.param("Softmax<axis = 2>(t)", "", 17, id="softmax"),
        pytest.param("CumSum(t, a)", "int64 a = {-1}", 17, id="cumulative sum"),
        pytest.param("Slice(t, s, e)", "int64[3] s = {0, 1, 0}, int64[3] e = {9, 3, -1}", 17, id="slice"),
        pytest.param(
            "Slice(t, s, e, a, k)",
            "int64[2] s = {-1, 0}, int64[2] e = {-9, 3}, int64[2] a = {-1, 2}, int64[2] k = {-1, 2}",
            17,
            id="slice with steps",
        ),
        pytest.param("Slice<starts = [1], ends = [3]>(t)", "", 9, id="old slice"),
        pytest.param("Pad(t, p)", "int64[8] p = {0, 1, 0, 2, 1, 0, 3, 0}", 17, id="pad"),
        pytest.param("Pad<mode = \"reflect\">(t, p)", "int64[8] p = {0, 1, 0, 2, 0, 0, 3, 0}", 17, id="reflect"),
        pytest.param("Pad<pads = [0, 1, 0, 2, 1, 0, 3, 0]>(t)", "", 10, id="old pad"),
        pytest.param("Pad(t, p, , a)", "int64[4] p = {1, 0, 2, 1}, int64[2] a = {3, 1}", 18, id="pad of some axes"),
        pytest.param("Tile(t, k)", "int64[4] k = {1, 2, 1, 3}", 17, id="tile"),
        pytest.param("Concat<axis = -1>(t, t)", "", 17, id="concat"),
        pytest.param("Concat<axis = 1>(t, c)", "float[2,1,5,3] c", 17, id="concat with a constant"),
        pytest.param("Gather<axis = 3>(t, i)", "int64[2] i = {2, 0}", 17, id="gather"),
        pytest.param("Resize(t, , k)", "float[4] k = {1, 2, 1.5, 1}", 17, id="resize"),
        pytest.param("Resize(t, , , s)", "int64[4] s = {2, 7, 4, 3}", 17, id="resize to a size"),
        pytest.param("Resize(t, k)", "float[4] k = {1, 2, 2, 1}", 10, id="old resize"),
        pytest.param("Upsample(t, k)", "float[4] k = {1, 2, 2, 1}", 9, id="upsample"),
        pytest.param("Upsample<scales = [1.0, 2.0, 2.0, 1.0]>(t)", "", 8, id="old upsample"),
        pytest.param("Where(b, t, c)", "bool[5,1] b = {0, 1, 1, 0, 0}, float[3] c", 17, id="where"),
        pytest.param(
            "DequantizeLinear(q, s, z)  q = QuantizeLinear(t, s, z)", "float s = {0.1}, uint8 z = {128}", 17, id="q/dq"
        ),
        pytest.param(
            "DequantizeLinear<axis = 3>(q, s, z)  q = QuantizeLinear<axis = -1>(t, s, z)",
            "float[3] s = {0.1, 0.2, 0.3}, uint8[3] z = {128, 0, 7}",
            17,
            id="q/dq of each channel",
        ),
        pytest.param("Squeeze(u, a)  u = Unsqueeze(t, a)", "int64[1] a = {2}", 17, id="squeeze"),
        pytest.param("Squeeze<axes = [0]>(u)  u = Unsqueeze<axes = [0]>(t)", "", 11, id="old squeeze"),
        pytest.param(
            "Unsqueeze(m, a)  m = ReduceMin<axes = [1, 2], keepdims = 0>(t)", "int64[2] a = {1, 2}", 17, id="dropped"
        ),
        pytest.param("Expand(m, s)  m = ReduceMin<axes = [1]>(t)", "int64[3] s = {4, 1, 1}", 17, id="expand"),
    ],
)  # fmt: skip
def test_moves_through(call: str, declared: str, opset: int) -> None:
    steps = call.split("  ")
    text = between("@", declared).replace("r = @", "  ".join(reversed([f"r = {steps[0]}", *steps[1:]])))
    if call.startswith("Cast"):
        text = text.replace("float[A,B,C,D] y", "double[A,B,C,D] y")
    run = cancelled(text, opset=opset)
    assert transposes(run) == 0
    assert ops(run.after) == [op for op in ops(run.before) if op != "Transpose"]


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize(
    ("keep", "axes", "back"),
    [(1, "A,B,C,D", BACK), (0, "A,B,C", "Transpose<perm = [0, 2, 1]>")],
    ids=["kept", "dropped"],
)
def test_index_of_the_largest(op: str, keep: int, axes: str, back: str) -> None:
    text = f"""g (float[2,3,4,5] x) => (int64[{axes}] y)
        {{ t = {T}(x)  r = {op}<axis = 1, keepdims = {keep}>(t)  y = {back}(r) }}"""
    assert ops(cancelled(text).after) == [op]


def test_mean_of_everything() -> None:
    assert ops(cancelled(between("ReduceMean(t)"), opset=18).after) == ["ReduceMean", "Reshape"]


def test_top_values() -> None:
    text = f"""g (float[2,3,4,5] x) => (float[A,B,C,D] y, int64[E,F,G,H] z) <int64[1] k = {{2}}>
        {{ t = {T}(x)  v, i = TopK<axis = 1>(t, k)  y = {BACK}(v)  z = {BACK}(i) }}"""
    assert ops(cancelled(text).after) == ["TopK"]


def test_split_and_concat() -> None:
    text = f"""g (float[2,6,4,5] x) => (float[A,B,C,D] y) <int64[2] s = {{2, 4}}, float[6] c>
        {{ t = {T}(x)  a, b = Split<axis = 3>(t, s)  d = Tanh(b)
          e = Concat<axis = 3>(d, a)  f = Mul(e, c)  y = {BACK}(f) }}"""
    run = cancelled(text)
    assert ops(run.after) == ["Split", "Tanh", "Concat", "Mul"]


def test_index_that_drops_an_axis() -> None:
    text = f"""g (float[2,3,4,5] x) => (float[A,B,C] y) <int64 i = {{1}}>
        {{ t = {T}(x)  r = Gather<axis = 1>(t, i)  y = Transpose<perm = [0, 2, 1]>(r) }}"""
    assert ops(cancelled(text).after) == ["Gather"]


def test_normalization() -> None:
    text = """g (float[2,3,4] x) => (float[A,B,C] y) <float[4] s, float[4] b>
        { t = Transpose<perm = [1, 0, 2]>(x)  r = LayerNormalization(t, s, b)  y = Transpose<perm = [1, 0, 2]>(r) }"""
    assert ops(cancelled(text).after) == ["LayerNormalization"]
    text = """g (float[2,3,4,5] x) => (float[A,B,C,D] y) <float[3] s, float[3] b, float[3] m, float[3] var>
        { t = Transpose<perm = [0, 1, 3, 2]>(x)  n = BatchNormalization(t, s, b, m, var)
          i = InstanceNormalization(n, s, b)  y = Transpose<perm = [0, 1, 3, 2]>(i) }"""
    assert ops(cancelled(text).after) == ["BatchNormalization", "InstanceNormalization"]


def test_matrix_products() -> None:
    """One matrix for all rows, whatever their order; batch axes of both; rank 2 as Gemm, which transposes by itself."""
    text = """g (float[2,3,4,5] x) => (float[A,B,C,D] y) <float[5,6] w>
        { t = Transpose<perm = [0, 2, 1, 3]>(x)  r = MatMul(t, w)  y = Transpose<perm = [0, 2, 1, 3]>(r) }"""
    assert ops(cancelled(text).after) == ["MatMul"]
    text = """g (float[2,3,4,5] x) => (float[A,B,C,D] y) <float[3,2,5,4] w>
        { t = Transpose<perm = [1, 0, 2, 3]>(x)  r = MatMul(t, w)  y = Transpose<perm = [1, 0, 2, 3]>(r) }"""
    assert ops(cancelled(text).after) == ["MatMul"]
    text = "g (float[5,2] x) => (float[A,B] y) <float[5,6] w> { t = Transpose(x)  y = MatMul(t, w) }"
    assert ops(cancelled(text).after) == ["Gemm"]
    text = """g (float[5,2] x, float[6,5] z) => (float[A,B] y)
        { t = Transpose(x)  u = Transpose(z)  y = Gemm<alpha = 0.5>(t, u) }"""
    assert ops(cancelled(text).after) == ["Gemm"]
    text = "g (float[5,2] x) => (float[A,B] y) { t = Transpose(x)  y = Gemm<transB = 1>(t, t) }"
    assert transposes(cancelled(text)) <= 1


def test_sizes_of_a_transposed_value() -> None:
    text = f"""g (float[N,3,4,5] x) => (float[A,B,C,D] y, int64[4] s)
        {{ t = {T}(x)  r = Relu(t)  s = Shape(r)  y = {BACK}(r) }}"""
    assert ops(cancelled(text).after) == ["Relu", "Shape", "Gather"]


def test_chains() -> None:
    text = """g (float[2,3,4] x) => (float[A,B,C] y) { a = Transpose<perm = [1, 2, 0]>(x)
        b = Transpose<perm = [1, 2, 0]>(a)  c = Transpose<perm = [1, 0, 2]>(b)  y = Relu(c) }"""
    assert ops(cancelled(text).after) == ["Transpose", "Relu"]
    text = text.replace(
        "y = Relu(c)", "d = Transpose<perm = [0, 2, 1]>(c)  e = Transpose<perm = [2, 1, 0]>(d) y = Relu(e)"
    )
    assert transposes(cancelled(text)) <= 1


def test_back_to_the_start() -> None:
    text = f"g (float[2,3,4,5] x) => (float[A,B,C,D] y) {{ r = Exp(x)  t = {T}(r)  y = {BACK}(t) }}"
    assert ops(cancelled(text).after) == ["Exp"]
    read = text.replace("t = ", "s = Log(r)  t = ").replace("D] y)", "D] y, float[E,F,G,H] s)")
    assert ops(cancelled(read).after) == ["Exp", "Log"]
    inside = f"g (float[2,3,4,5] x) => (float[A,B,C,D] y) {{ t = {T}(x)  u = {BACK}(t)  y = Exp(u) }}"
    assert ops(cancelled(inside).after) == ["Exp"]


def test_outputs_keep_their_order() -> None:
    text = f"""g (float[2,3,4,5] x) => (float[A,B,C,D] y, float[E,F,G,H] t)
        {{ t = {T}(x)  r = Relu(t)  y = {BACK}(r) }}"""
    run = cancelled(text)
    assert sorted(ops(run.after)) == ["Relu", "Transpose"]
    text = f"""g (float[2,3,4,5] x) => (float[A,B,C,D] y, float[E,F,G,H] r)
        {{ t = {T}(x)  r = Relu(t)  y = {BACK}(r) }}"""
    assert transposes(cancelled(text)) == 1


def test_only_axes_of_size_one_move() -> None:
    text = "g (float[N,3,1,1] x) => (float[A,B,C,D] y) { y = Transpose<perm = [0, 2, 3, 1]>(x) }"
    assert ops(cancelled(text).after) == ["Reshape"]
    text = "g (float[2,0,1] x) => (float[A,B,C] y) { y = Transpose<perm = [0, 2, 1]>(x) }"
    assert ops(cancelled(text).after) == ["Transpose"]
    text = "g (float[N,M,1] x) => (float[A,B,C] y) { y = Transpose<perm = [2, 0, 1]>(x) }"
    assert ops(cancelled(text).after) == ["Transpose"]
    text = "g (float[N,M,1] x) => (float[A,B,C] y) { y = Transpose<perm = [0, 2, 1]>(x) }"
    assert ops(cancelled(text).after) == ["Reshape"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(between("Flatten(t)").replace(f"y = {BACK}(r)", "y = Neg(r)").replace("B,C,D", "B"), id="flat"),
        pytest.param(between("Softmax<axis = 1>(t)"), id="old softmax of many axes"),
        pytest.param(between("DepthToSpace<blocksize = 2>(t)"), id="depth to space"),
        pytest.param(between("Softmax<axis = 3>(t)"), id="old softmax that must stay last"),
        pytest.param(between("Reshape(t, s)", "int64[4] s = {2, 10, 2, 3}"), id="reshape"),
        pytest.param(between("Slice(t, s, e, a)", "int64[1] s = {0}, int64[1] e = {2}").replace(
            "5] x)", "5] x, int64[1] a)"), id="computed axes"),
        pytest.param(f"g (float[2,3,4,5] x) => (float[A,B,C,D] y) {{ y = {T}(x) }}", id="alone"),
        pytest.param(f"g (float[2,3,4,5] x) => (float[A,B,C,D] y) {{ t = {T}(x)  y = Relu(t) }}", id="at the border"),
        pytest.param(between("Add(t, v)").replace("5] x)", "5] x, float[3] v)"), id="computed operand of lower rank"),
        pytest.param(between("Resize(t, , k)", "float[4] k = {2, 1, 1, 1}"), id="resized batch"),
        pytest.param("""g (float[2,3,4] x, float[2,5,3] z) => (float[A,B,C] y)
            { t = Transpose<perm = [0, 2, 1]>(z)  y = MatMul(x, t) }""".replace("[2,3,4] x", "[2,4,3] x"), id="rows"),
    ],
)  # fmt: skip
def test_leaves_alone(text: str) -> None:
    proto = model(text, opset=13 if "Resize" in text else 12)
    fed = feeds(proto)
    if "a" in fed:
        fed["a"] = np.asarray([1])
    run = apply(CancelTransposes(), proto, fed)
    assert run.report.changes == 0


def test_too_old_opset_is_left_alone() -> None:
    text = between("Relu(t)")
    assert apply(CancelTransposes(), model(text, opset=6)).report.changes == 0


def test_shared_weights() -> None:
    """A large constant that others read is not copied; a small one is."""
    text = f"""g (float[1,64,16,16] x, float[1,16,16,64] z) => (float[A,B,C,D] y, float[E,F,G,H] w)
        <float[1,16,16,64] c> {{ t = {T}(x)  r = Add(t, c)  y = {BACK}(r)  w = Mul(z, c) }}"""
    assert cancelled(text).report.changes == 0
    small = text.replace("<float[1,16,16,64] c>", "<float[64] c>")
    assert transposes(cancelled(small)) == 0


def test_subgraphs() -> None:
    text = f"""g (bool c, float[2,3,4,5] x) => (float[A,B,C,D] y) {{ k = {T}(x)  y = If(c) <
        then_branch = a () => (float[A,B,C,D] p) {{ t = {T}(x)  r = Relu(t)  p = {BACK}(r) }},
        else_branch = b () => (float[E,F,G,H] q) {{ s = Relu(k)  q = {BACK}(s) }}> }}"""
    run = cancelled(text)
    assert run.report.details["cancelled"] == 2
    fed = {"c": np.asarray(False), "x": feeds(run.before)["x"]}
    apply(CancelTransposes(), model(text), fed)


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("name", NETS)
def test_nets_from_tensorflow(name: str, opset: int) -> None:
    """Only the borders keep a Transpose: one at the input, one at an output that has axes to keep."""
    run = apply(CancelTransposes(), NETS[name](opset))
    assert transposes(run) == (2 if name == "inception" else 1)
    first = next(node for node in run.after.graph.node if node.op_type == "Transpose")
    assert list(first.input) == ["x"]
    assert list(first.attribute[0].ints) == TO_NCHW
    kept = Counter(op for op in ops(run.after) if op not in {"Transpose", "Reshape"})
    assert kept == Counter(op for op in ops(run.before) if op not in {"Transpose", "Reshape"})


def test_nothing_to_do_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("looked at types")

    monkeypatch.setattr("graphopt.passes.cancel_transposes.types_of", never)
    work = import_graph(model("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }"))
    assert CancelTransposes().apply(work.gs, context()).changes == 0


def test_deep_nets() -> None:
    net = Net([1, 4, 4, 2])
    x, w = "x", net.drawn(2, 2, 1, 1)
    for _ in range(400):
        x = net.node("Add", [x, net.node("Relu", [net.in_nchw("Conv", x, w)])])
    proto = net.build(x, [1, 4, 4, 2])
    work = import_graph(proto)
    CancelTransposes().apply(work.gs, context())
    assert sum(node.op == "Transpose" for node in work.gs.nodes) == 2


def test_one_value_with_many_readers() -> None:
    net = Net([1, 4, 4, 2])
    moved = net.node("Transpose", ["x"], perm=TO_NCHW)
    parts = [net.node("Transpose", [net.node("Relu", [moved])], perm=[0, 2, 3, 1]) for _ in range(300)]
    proto = net.build(net.node("Sum", parts), [1, 4, 4, 2])
    work = import_graph(proto)
    CancelTransposes().apply(work.gs, context())
    assert not any(node.op == "Transpose" for node in work.gs.nodes)


def test_minimum_cut() -> None:
    """Source -5-> a -3-> b -4-> sink, and a -1-> sink: the cheapest is to part a from both."""
    network = Network()
    a, b = network.add_node(), network.add_node()
    network.feed(a, 5)
    network.connect(a, b, 3)
    network.drain(b, 4)
    network.drain(a, 1)
    assert network.source_side() == {a}


UNARY = ["Relu(#)", "Neg(#)", "Add(#, c1)", "Mul(#, c3)", "Softmax<axis = 1>(#)", "Pad(#, p)", "Slice(#, s, e, a)"]
UNARY += ["Transpose<perm = [0, 2, 3, 1]>(#)", "Transpose<perm = [0, 3, 1, 2]>(#)", "Transpose<perm = [0, 1, 3, 2]>(#)"]
UNARY += ["Transpose<perm = [3, 2, 1, 0]>(#)", "ReduceMean<axes = [1]>(#)", "CumSum(#, i)", "MatMul(#, w)"]
UNARY += ["MaxPool<kernel_shape = [1, 1]>(#)", "Flip"]
BINARY = ["Add(#, @)", "Mul(@, #)", "Concat<axis = 0>(#, @)", "Concat<axis = 3>(@, #)", "Max(#, @, c1)"]
CONSTANTS = """float[3] c1, float[3,1,1] c3, int64[8] p = {0,1,0,0,0,0,0,-1}, int64[1] s = {0}, int64[1] e = {2},
    int64[1] a = {2}, int64 i = {3}, float[3,3] w"""


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_random_graphs(data: st.DataObject) -> None:
    """Operators at random on tensors whose axes have all one size: every order fits, and every mistake shows."""
    draw = data.draw
    names = ["x", "z"]
    lines = []
    for count in range(draw(st.integers(3, 12))):
        first, second = (draw(st.sampled_from(names[-5:])) for _ in range(2))
        call = draw(st.sampled_from(UNARY + BINARY))
        call = "Transpose(#)" if call == "Flip" else call
        if call.startswith(("Pad", "Slice", "ReduceMean", "Concat")):
            # Back to one size, or nothing fits any more.
            lines.append(f"u{count} = {call.replace('#', first).replace('@', second)}")
            lines.append(f'v{count} = Resize<mode = "nearest">(u{count}, , , size)')
        else:
            lines.append(f"v{count} = {call.replace('#', first).replace('@', second)}")
        names.append(f"v{count}")
    outs = draw(st.lists(st.sampled_from(names[2:]), unique=True, max_size=2).map(lambda more: [*more]))
    outs = list(dict.fromkeys([names[-1], *outs]))
    declared = ", ".join(f"float[A{place},B{place},C{place},D{place}] {name}" for place, name in enumerate(outs))
    text = f"""g (float[3,3,3,3] x, float[3,3,3,3] z) => ({declared}) <{CONSTANTS}, int64[4] size = {{3, 3, 3, 3}}>
        {{ {"  ".join(lines)} }}"""
    before = ops(model(text)).count("Transpose")
    run = cancelled(text)
    assert transposes(run) <= before


def test_constants_of_a_subgraph_are_moved_there() -> None:
    text = f"""g (bool c, float[2,3,4,5] x) => (float[A,B,C,D] y) {{ y = If(c) <
        then_branch = a () => (float[A,B,C,D] p) <float[3] w> {{ t = {T}(x)  r = Add(t, w)  p = {BACK}(r) }},
        else_branch = b () => (float[E,F,G,H] q) {{ q = Neg(x) }}> }}"""
    proto = model(text)
    fed = {"c": np.asarray(True), "x": feeds(proto)["x"]}
    run = apply(CancelTransposes(), proto, fed)
    body = onnx.helper.get_attribute_value(run.after.graph.node[0].attribute[0])
    assert [node.op_type for node in body.node] == ["Add"]


def test_weights_that_onnx_reads_as_little_endian_move_too() -> None:
    # Such a dtype is numpy's own but for a flag, which a copy of the weight keeps until the model is written.
    weight = gs.Constant("w", np.ones((1, 4, 1, 1), np.dtype(np.float32).newbyteorder("<")))
    gs.Node("Add", inputs=[gs.Variable("x"), weight], outputs=[gs.Variable("y")])
    assert is_movable_weight(weight)
    for other in (ml_dtypes.int4, ml_dtypes.bfloat16):
        assert not is_movable_weight(gs.Constant("w", np.ones((1, 4, 1, 1), other)))
