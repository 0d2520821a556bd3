"""fold_constants: what it leaves alone and why; then constant nodes, shape arithmetic and constant subgraphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support import Run, apply, context, feeds, initializer, model, ops

import graphopt
from graphopt import runtime
from graphopt.graph import import_graph
from graphopt.passes.fold_constants import FoldConstants


def folded(text: str, *, opset: int = 17, compare: bool = True, **weights: object) -> Run:
    run = apply(FoldConstants(), model(text, opset=opset, **weights), compare=compare)
    # Nothing that is folded makes the file larger; a few bytes of names aside.
    assert run.after.ByteSize() <= run.before.ByteSize() + 8
    return run


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            """g (float[N,4] x) => (float[N,4] y) <int8[4,4] q, float s> {
              w = DequantizeLinear(q, s)  y = MatMul(x, w) }""",
            id="dequantized weight",
        ),
        pytest.param(
            """g (float[N,4] x) => (float[N,4] y) <int8[4,4] q, float s> {
              w = DequantizeLinear(q, s)  t = Transpose(w)  y = MatMul(x, t) }""",
            id="transposed dequantized weight",
        ),
        pytest.param("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", id="nothing constant"),
        pytest.param("g (float[N,M] x) => (int64[2] y) { y = Shape(x) }", id="open shape"),
        pytest.param(
            """g (float[A,B] x, float[C,D] z) => (float[E,F] y) <int64[2] k = {1, 0}> {
              s = Shape(z)  a = Gather(s, k)  y = Reshape(x, a) }""",
            id="two open sizes of another tensor",
        ),
    ],
)
def test_leaves_alone(text: str) -> None:
    run = folded(text)
    assert (run.report.changes, run.skipped) == (0, ())


@pytest.mark.parametrize(
    "op", ["RandomNormal<shape = [4]>()", "RandomUniform<shape = [4]>()", "RandomNormalLike(w)", "Bernoulli(w)"]
)
def test_leaves_random_operators_alone(op: str) -> None:
    run = folded(
        f"g (float[4] x) => (float[4] y) <float[4] w> {{ r = {op}  y = Add(x, r) }}",
        compare=False, w=np.full(4, 0.5),
    )  # fmt: skip
    assert run.report.changes == 0


ADDED = "g (float[N,{n}] x) => (float[N,{n}] y) <{weights}> {{ w = {call}  y = Add(x, w) }}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            ADDED.format(n=2000, weights="int64[2] s = {1, 2000}", call="ConstantOfShape(s)"),
            "ConstantOfShape: its result (8,000 bytes) is larger than what it is computed from (16 bytes)",
            id="constant of shape",
        ),
        pytest.param(
            ADDED.format(n=2000, weights="float[1] v, int64[1] s = {2000}", call="Expand(v, s)"),
            "Expand: its result (8,000 bytes) is larger than what it is computed from (12 bytes)",
            id="expand",
        ),
        pytest.param(
            ADDED.format(n=4000, weights="float[40] v, int64[1] s = {100}", call="Tile(v, s)"),
            "Tile: its result (16,000 bytes) is larger than what it is computed from (168 bytes)",
            id="tile",
        ),
        pytest.param(
            ADDED.format(n=9000, weights="float16[9000] h", call="Cast<to = 1>(h)"),
            "Cast: its result (36,000 bytes) is larger than what it is computed from (18,000 bytes)",
            id="half precision weights",
        ),
        pytest.param(
            ADDED.format(n=200, weights="float[1] v, int64[1] s = {200}", call="Expand(v, s)"),
            "folding it would grow the file by",
            id="small growth",
        ),
        pytest.param(
            """g (float[4] x) => (float[4] y) <float[4] w, int64 n = {1000000000}, bool go = {1}> {
              z = Loop (n, go, w) <body = b (int64 i, bool c, float[4] s) => (bool d, float[4] t)
              { d = Identity(c)  t = Sin(s) }>  y = Add(x, z) }""",
            None,
            id="loop",
        ),
    ],
)
def test_leaves_what_grows_alone(text: str, reason: str | None) -> None:
    run = folded(text, compare="Loop" not in text)
    assert run.report.changes == 0
    assert [skip.reason[: len(reason)] for skip in run.skipped if reason] == ([reason] if reason else [])


def test_growth_can_be_allowed() -> None:
    text = ADDED.format(n=2000, weights="int64[2] s = {1, 2000}", call="ConstantOfShape(s)")
    run = apply(FoldConstants(max_growth_bytes=10_000), model(text))
    assert (ops(run.after), run.report.details["nodes_evaluated"]) == (["Add"], 1)


def test_small_growth_is_paid_by_what_shrinks() -> None:
    text = """g (float[N,200] x) => (float[N,200] y) <float[1] v, int64[1] s = {200}, float[200,50] big> {
      w = Expand(v, s)  a = Add(x, w)  m = ReduceMean<axes = [1], keepdims = 0>(big)  y = Mul(a, m) }"""
    run = folded(text)
    assert ops(run.after) == ["Add", "Mul"]
    assert run.report.details["growth_bytes"] < 0


def test_integer_division_by_zero_is_never_run() -> None:
    text = "g (int64[2] x) => (int64[2] y) <int64[2] a, int64[2] zero = {0, 0}> { d = Div(a, zero)  y = Add(x, d) }"
    assert folded(text, compare=False).report.changes == 0


def test_what_onnx_runtime_cannot_do_stays_with_its_reason() -> None:
    text = """g (float[4] x) => (float[4] y) <bfloat16[4] w, float[4] v> {
      s = Sin(w)  c = Cast<to = 1>(s)  a = Add(x, c)  e = Exp(v)  y = Add(a, e) }"""
    run = apply(FoldConstants(), model(text, opset=22, ir_version=10), compare=False)
    assert ops(run.after) == ["Sin", "Cast", "Add", "Add"]
    assert [skip.reason[:30] for skip in run.skipped] == ["Sin: ONNX Runtime cannot load "]


def test_of_many_nodes_without_a_kernel_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    session = runtime.session
    monkeypatch.setattr(runtime, "session", lambda *a, **k: (opened.append(1), session(*a, **k))[1])
    weights = ", ".join(f"bfloat16[4] w{place}" for place in range(64))
    lines = "  ".join(
        f"s{place} = Sin(w{place})  c{place} = Cast<to = 1>(s{place})  a{place + 1} = Add(a{place}, c{place})"
        for place in range(64)
    )
    text = f"g (float[4] a0) => (float[4] a64) <{weights}> {{ {lines} }}"
    proto = model(text, opset=22, ir_version=10)
    work = import_graph(proto)
    report = FoldConstants().apply(work.gs, context())
    assert len(report.skipped) == 64
    assert len(opened) < 16


def test_other_domains_are_left_alone() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
      g (float[4] x) => (float[4] y) <float[4] w> { c = custom.Exp(w)  y = Add(x, c) }"""
    assert apply(FoldConstants(), model(text), compare=False).report.changes == 0


def test_a_default_of_an_input_is_no_constant() -> None:
    proto = model("g (float[4] x, float[4] w) => (float[4] y) { e = Exp(w)  y = Add(x, e) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    assert apply(FoldConstants(), proto).report.changes == 0


def test_constant_nodes_become_initializers_under_their_name() -> None:
    run = folded("""g (float[2] x) => (float[2] y) { w = Constant<value = float[2] {1, 2}>()
      k = Constant<value_floats = [3.0, 4.0]>()  a = Add(x, w)  y = Mul(a, k) }""")
    assert ops(run.after) == ["Add", "Mul"]
    np.testing.assert_array_equal(initializer(run.after, "w"), [1, 2])
    np.testing.assert_array_equal(initializer(run.after, "k"), [3, 4])


def test_constant_nodes_in_subgraphs_and_before_their_outputs() -> None:
    proto = model("""g (bool b, float[2] x) => (float[2] y) { y = If (b) <
      then_branch = t () => (float[2] p) { w = Constant<value = float[2] {1, 2}>()  p = Add(x, w) },
      else_branch = e () => (float[2] q) { q = Constant<value = float[2] {3, 4}>() }> }""")
    for flag in (True, False):
        run = apply(FoldConstants(), proto, feeds(proto) | {"b": np.array(flag)})
    assert run.report.details["constant_nodes"] == 1


def test_branches_that_share_names_are_folded_each_to_its_own_values() -> None:
    proto = model("""g (bool b, float[2] x) => (float[2] y) { y = If (b) <
      then_branch = t () => (float[2] p) <float[2] w = {1, 2}> {
        k = Constant<value = float[2] {5, 6}>()  v = Add(w, k)  n = Neg(v)  p = Add(x, n) },
      else_branch = e () => (float[2] q) <float[2] w = {3, 4}> {
        k = Constant<value = float[2] {7, 8}>()  v = Mul(w, k)  n = Exp(v)  q = Mul(x, n) }> }""")
    for flag in (True, False):
        run = apply(FoldConstants(), proto, feeds(proto) | {"b": np.array(flag)})
        assert [len(each.g.node) for each in run.after.graph.node[0].attribute] == [1, 1]


def test_a_weight_is_computed_at_once() -> None:
    run = folded("""g (float[N,4] x) => (float[N,6] y) <float[6,4] w, float[6,4] mask> {
      m = Mul(w, mask)  t = Transpose(m)  y = MatMul(x, t) }""")
    assert ops(run.after) == ["MatMul"]
    wanted = (initializer(run.before, "w") * initializer(run.before, "mask")).T
    np.testing.assert_array_equal(initializer(run.after, "t"), wanted)


def test_an_if_with_a_constant_condition_and_constant_branches() -> None:
    run = folded("""g (float[64] x) => (float[64] y) <bool b = {1}, float[64] w, float[64] v> {
      c = If (b) < then_branch = t () => (p) { p = Add(w, v) }, else_branch = e () => (q) { q = Sub(w, v) } >
      y = Add(x, c) }""")
    assert "If" not in ops(run.after)


def test_a_constant_output_is_written_by_a_constant_node() -> None:
    run = folded("g (float[2] x) => (float[2] y, float[1,1] z) <float[64,64] w> { y = Relu(x)  z = ReduceMax(w) }")
    assert ops(run.after) == ["Relu", "Constant"]


SHAPES = {
    "batch open": ("[N,3,4]", "s = Shape(r)  b = Gather(s, zero)  t = Concat<axis = 0>(b, tail)  y = Reshape(r, t)"),
    "all known": ("[2,3,4]", "s = Shape(r)  b = Gather(s, zero)  t = Concat<axis = 0>(b, tail)  y = Reshape(r, t)"),
    "product of known": (
        "[N,3,4]",
        """s = Shape(r)  b = Slice(s, zero, one)  c = Gather(s, one)  d = Gather(s, two)  e = Mul(c, d)
        t = Concat<axis = 0>(b, e)  y = Reshape(r, t)""",
    ),
    "scalars": (
        "[N,3,4]",
        """s = Shape(r)  b = Gather(s, nought)  u = Unsqueeze(b, zero)  t = Concat<axis = 0>(u, tail)
        y = Reshape(r, t)""",
    ),
    "cast and back": (
        "[N,3,4]",
        """s = Shape(r)  i = Cast<to = 6>(s)  j = Cast<to = 7>(i)  b = Gather(j, zero)
        t = Concat<axis = 0>(b, tail)  y = Reshape(r, t)""",
    ),
    "two open, one copied": ("[N,H,4]", "s = Shape(r)  h = Gather(s, one)  b = Gather(s, zero)  "
        "t = Concat<axis = 0>(b, h, two, two)  y = Reshape(r, t)"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shape_arithmetic(name: str) -> None:
    shape, body = SHAPES[name]
    rank = 4 if "two, two" in body else 2 if "(b, e)" in body else 3
    run = folded(f"""g (float{shape} x) => (float[{",".join("ABCD"[:rank])}] y)
      <int64 nought = {{0}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[2] tail = {{2,6}}>
      {{ r = Relu(x)  {body} }}""")
    assert ops(run.after) == ["Relu", "Reshape"]


def test_flatten_written_by_an_exporter_for_every_batch() -> None:
    text = """g (float[N,3,4] x) => (float[A,B] y) <int64 zero = {0}, int64[1] first = {0}, int64[1] rest = {-1}> {
      s = Shape(x)  b = Gather(s, zero)  u = Unsqueeze(b, first)  t = Concat<axis = 0>(u, rest)  y = Reshape(x, t) }"""
    run = folded(text)
    assert ops(run.after) == ["Reshape"]
    for batch in (1, 2, 5):
        apply(FoldConstants(), model(text), feeds(model(text), batch=batch))


def test_an_open_size_of_another_tensor_is_left_over_not_copied() -> None:
    run = folded("""g (float[N,12] x, float[M,3] z) => (float[A,B] y) <int64[1] zero = {0}, int64[1] k = {12}> {
      s = Shape(z)  b = Gather(s, zero)  t = Concat<axis = 0>(b, k)  y = Reshape(x, t) }""")
    target = next(node.input[1] for node in run.after.graph.node)
    np.testing.assert_array_equal(initializer(run.after, target), [-1, 12])


def test_equal_names_of_sizes_are_not_taken_for_equal_sizes() -> None:
    # ONNX Runtime does not hold callers to the names: here x is fed with 4 x 2 and z with 2 x 4.
    proto = model("g (float[N,K] x, float[N,K] z) => (float[A,B] y) { s = Shape(z)  y = Reshape(x, s) }")
    fed = {"x": np.zeros((4, 2), np.float32), "z": np.zeros((2, 4), np.float32)}
    assert ops(apply(FoldConstants(), proto, fed).after) == ["Shape", "Reshape"]


def test_declared_shapes_in_between_are_not_trusted() -> None:
    proto = model("""g (float[N,4] x, float[4,4] w) => (float[A,B] y) <int64[1] k = {4}, float[N,7] r> {
      r = MatMul(x, w)  s = Shape(r)  one = Constant<value = int64[1] {1}>()  c = Gather(s, one)
      t = Concat<axis = 0>(m, c)  m = Constant<value = int64[1] {-1}>()  y = Reshape(r, t) }""".replace(
        "t = Concat<axis = 0>(m, c)  m = Constant<value = int64[1] {-1}>()",
        "m = Constant<value = int64[1] {-1}>()  t = Concat<axis = 0>(m, c)",
    ))  # fmt: skip
    proto.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value = 7
    run = apply(FoldConstants(), proto, compare=True)
    assert ops(run.after) == ["MatMul", "Reshape"]


def test_negative_numbers_divide_towards_zero() -> None:
    run = folded("""g (float[7,4] x, int64[1] i) => (int64[1] y) <int64[1] zero = {0}, int64[1] k = {-2}> {
      s = Shape(x)  n = Gather(s, zero)  d = Div(n, k)  y = Add(d, i) }""")
    assert ops(run.after) == ["Add"]
    np.testing.assert_array_equal(initializer(run.after, "d"), [-3])


def test_a_shape_read_backwards() -> None:
    run = folded("""g (float[2,3,N] x, int64[2] i) => (int64[2] y) <int64[1] a = {1}, int64[1] b = {-9},
      int64[1] axis = {0}, int64[1] step = {-1}> { s = Shape(x)  r = Slice(s, a, b, axis, step)  y = Add(r, i) }""")
    assert ops(run.after) == ["Add"]
    np.testing.assert_array_equal(initializer(run.after, "r"), [3, 2])


def test_a_shape_reshaped_with_a_copied_size() -> None:
    run = folded("""g (float[3,2] x, int64[2,1] k) => (int64[2,1] y) <int64[2] t = {0, 1}> {
      s = Shape(x)  r = Reshape(s, t)  y = Add(r, k) }""")
    assert ops(run.after) == ["Add"]


@pytest.mark.parametrize("kind", [16, 17, 18, 19, 20, 21, 22], ids=onnx.TensorProto.DataType.Name)
def test_types_that_onnx_runtime_does_not_hand_out(kind: int) -> None:
    text = f"g (float[64] x) => (float[64] y) <float[64] w> {{ q = Cast<to = {kind}>(w)  y = Relu(x) }}"
    values = np.arange(64) % 7
    proto = model(text, opset=21, ir_version=10, w=values)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("q", kind, [64]))
    result = apply(FoldConstants(), proto, compare=False).after
    assert ops(result) == ["Relu", "Constant"]
    held = result.graph.node[1].attribute[0].t
    assert held.data_type == kind
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(held).astype(np.float32), values)


def test_an_output_that_an_old_constant_node_cannot_hold_stays_computed() -> None:
    text = """g (float[2] x) => (float[2] y, bool[1] z) <bool[300] w, bool[300] v, int64[1] first = {0}> {
      y = Relu(x)  a = And(w, v)  z = Gather(a, first) }"""
    assert ops(folded(text, opset=8).after) == ["Relu", "Gather"]
    assert ops(folded(text, opset=9).after) == ["Relu", "Constant"]


def test_a_weight_is_quantized_at_once_and_stays_quantized() -> None:
    run = folded("""g (float[N,4] x) => (float[N,4] y) <float[4,4] f, float s, int8 z> {
      q = QuantizeLinear(f, s, z)  w = DequantizeLinear(q, s, z)  y = MatMul(x, w) }""")
    assert ops(run.after) == ["DequantizeLinear", "MatMul"]
    assert initializer(run.after, "q").dtype == np.int8


def test_float_weights_with_quantizers_behind_stay_for_targets_that_want_them_so() -> None:
    """TensorRT 8 reads float constant, Q, DQ; whether it reads integers and DQ alone is not documented."""
    proto = model("""g (float[N,4] x) => (float[N,4] y) <float[2,8] f, int64[2] shape = {4, 4}, float s, int8 z> {
      r = Reshape(f, shape)  q = QuantizeLinear(r, s, z)  w = DequantizeLinear(q, s, z)  y = MatMul(x, w) }""")
    kept = graphopt.run(proto, ["fold_constants"], target="jetson-agx-xavier")
    assert ops(kept) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    assert ops(graphopt.run(proto, ["fold_constants"], target="cpu")) == ["DequantizeLinear", "MatMul"]


def test_a_dequantized_answer_is_computed() -> None:
    run = folded("""g (float[2] x) => (float[2] y, float[1] z) <int8[64] q, float s, int64[1] k = {0}> {
      w = DequantizeLinear(q, s)  z = Gather(w, k)  y = Relu(x) }""")
    assert ops(run.after) == ["Relu", "Constant"]


def test_a_model_that_uses_no_input_becomes_its_answers() -> None:
    run = apply(
        FoldConstants(), model("g () => (float[20,50] y) <float[1] v, int64[2] s = {20, 50}> { y = Expand(v, s) }")
    )
    assert ops(run.after) == ["Constant"]


def test_a_short_loop_is_run() -> None:
    run = folded("""g (float[64] x) => (float[64] y) <float[64] w, float[64] v, int64 n = {3}, bool go = {1}> {
      z = Loop (n, go, w) <body = b (int64 i, bool c, float[64] s) => (bool d, float[64] t)
      { d = Identity(c)  t = Add(s, v) }>  y = Add(x, z) }""")
    assert ops(run.after) == ["Add"]


def test_what_leads_to_a_sequence_is_computed() -> None:
    text = """g (float[64] x, int64 i) => (float[64] y) <float[64] w, float[64] v, float[64] u> {
      a = Mul(w, v)  b = Exp(u)  s = SequenceConstruct(a, b)  z = SequenceAt(s, i)  y = Add(x, z) }"""
    proto = model(text)
    run = apply(FoldConstants(), proto, feeds(proto) | {"i": np.array(1)})
    assert ops(run.after) == ["SequenceConstruct", "SequenceAt", "Add"]


@pytest.mark.parametrize("divisor", ["{0, 2}", "{-1, 2}"])
@pytest.mark.parametrize("op", ["Div", "Mod"])
def test_divisions_that_may_kill_the_runtime_are_never_run(op: str, divisor: str) -> None:
    text = f"""g (int32[2] x) => (int32[2] y) <int32[2] k, int32[2] d = {divisor}> {{
      q = {op}(k, d)  y = Add(x, q) }}"""
    proto = model(text, k=np.array([np.iinfo(np.int32).min, 5]))
    assert apply(FoldConstants(), proto, compare=False).report.changes == 0


def test_equal_results_are_stored_once() -> None:
    text = """g (float[N,64] x) => (float[N,64] y) <float[64] a, float[64] b, float[64] c> {
      p = Add(a, b)  q = Add(b, a)  r = Mul(x, p)  y = Add(r, q) }"""
    run = folded(text)
    assert len(run.after.graph.initializer) == 1
