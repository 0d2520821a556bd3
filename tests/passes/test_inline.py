"""inline: what it leaves alone; then branches, loops, what they capture and how they nest."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, assert_same, context, feeds, model, ops, outputs

from graphopt.graph import export_graph, import_graph, verify
from graphopt.model.inlining import inline_functions
from graphopt.passes.inline import Inline


def inlined(text: str, *, opset: int = 17, **weights: object) -> Run:
    return apply(Inline(), model(text, opset=opset, **weights))


def edited(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What becomes of a model that the checker would refuse, though files like it are about."""
    work = import_graph(proto)
    Inline().apply(work.gs, context())
    return export_graph(work)


def branches(then: str, other: str = "q = Neg(x)", *, value: int = 1, rest: str = "y = Exp(r)", more: str = "") -> str:
    return f"""g (float[4] x) => (float[4] y) <bool c = {{{value}}}{more}> {{
      r = If (c) < then_branch = t () => (float[4] p) {{ {then} }}, else_branch = e () => (float[4] q) {{ {other} }} >
      {rest} }}"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            """g (bool c, float[4] x) => (float[4] y) { y = If (c) < then_branch = t () => (float[4] p) { p = Relu(x) },
               else_branch = e () => (float[4] q) { q = Neg(x) } > }""",
            id="condition is an input",
        ),
        pytest.param(
            """g (float[4] x) => (float[4] y) <int64 n = {2}, bool c = {1}> { y = Loop (n, c, x) <
               body = b (int64 i, bool on, float[4] s) => (bool d, float[4] t) { d = Identity(on)  t = Exp(s) } > }""",
            id="loop that runs twice",
        ),
        pytest.param(
            """g (float[4] x, bool c) => (float[4] y) <int64 n = {1}> { y = Loop (n, c, x) <
               body = b (int64 i, bool on, float[4] s) => (bool d, float[4] t) { d = Identity(on)  t = Exp(s) } > }""",
            id="loop that may run once",
        ),
        pytest.param(
            """g (float[4] x) => (float[4] y, float[N,4] z) <int64 n = {0}, bool c = {1}> { y, z = Loop (n, c, x) <
               body = b (int64 i, bool on, float[4] s) => (bool d, float[4] t, float[4] u)
               { d = Identity(on)  t = Exp(s)  u = Neg(s) } > }""",
            id="loop that never runs, stacked output read",
        ),
    ],
)
def test_leaves_alone(text: str) -> None:
    assert inlined(text).report.changes == 0


@pytest.mark.parametrize(("value", "wanted"), [(1, ["Relu", "Exp"]), (0, ["Neg", "Exp"])])
def test_takes_the_branch(value: int, wanted: list[str]) -> None:
    assert ops(inlined(branches("p = Relu(x)", value=value)).after) == wanted


def test_keeps_the_name_of_a_graph_output() -> None:
    run = inlined(branches("a = Relu(x)  p = Abs(a)", rest="y = Identity(r)  n = Neg(r)"))
    assert [node.op_type for node in run.after.graph.node] == ["Relu", "Abs", "Identity", "Neg"]
    run = inlined("""g (float[4] x) => (float[4] y) <bool c = {1}> { y = If (c) <
      then_branch = t () => (float[4] p) { p = Relu(x) }, else_branch = e () => (float[4] q) { q = Neg(x) } > }""")
    assert [list(node.output) for node in run.after.graph.node] == [["y"]]


def test_constants_of_the_branch_move_out() -> None:
    text = """g (float[4] x) => (float[4] y, float[4] z) <bool c = {1}> {
      y = If (c) < then_branch = t () => (float[4] p) <float[4] w = {1, 2, 3, 4}> { p = Mul(x, w) },
                   else_branch = e () => (float[4] q) <float[4] w = {5, 6, 7, 8}> { q = Add(x, w) } >
      z = If (c) < then_branch = t () => (float[4] p) <float[4] w = {9, 8, 7, 6}> { p = Mul(x, w) },
                   else_branch = e () => (float[4] q) <float[4] w = {5, 6, 7, 8}> { q = Add(x, w) } > }"""
    run = inlined(text)
    assert ops(run.after) == ["Mul", "Mul"]
    assert len({tensor.name for tensor in run.after.graph.initializer} - {"c"}) == 2


def test_names_that_clash_are_made_fresh() -> None:
    def twin(out: str, function: str) -> str:
        return f"""{out} = If (c) < then_branch = t () => (float[4] p) {{ a = {function}(x)  p = Sqrt(a) }},
                                    else_branch = e () => (float[4] q) {{ a = Neg(x)  q = Neg(a) }} >"""

    run = inlined(f"g (float[4] x) => (float[4] y) <bool c = {{1}}> {{ {twin('u', 'Exp')}  {twin('v', 'Abs')}"
                  "  y = Add(u, v) }")  # fmt: skip
    assert sorted(ops(run.after)) == ["Abs", "Add", "Exp", "Sqrt", "Sqrt"]


def test_outputs_that_are_captured_constant_or_repeated() -> None:
    text = """g (float[4] x) => (float[4] y, float[4] z, float[4] k, float[4] m) <bool c = {1}, float[4] w> {
      r = Relu(x)
      y, a, b, k, m = If (c) <
        then_branch = t () => (float[4] p, float[4] r, float[4] p, float[4] v, float[4] r)
          <float[4] v = {1, 2, 3, 4}> { p = Exp(r) },
        else_branch = e () => (float[4] q, float[4] q, float[4] q, float[4] q, float[4] q) { q = Neg(x) } >
      s = Add(a, b)  z = Mul(s, w) }"""
    after = {tuple(node.output): (node.op_type, list(node.input)) for node in edited(model(text)).graph.node}
    assert after[("y",)] == ("Exp", ["r"])
    assert after[("s",)] == ("Add", ["r", "y"])
    assert (after[("k",)][0], after[("m",)]) == ("Identity", ("Identity", ["r"]))


def test_nested_branches_and_captured_values() -> None:
    text = """g (float[4] x, bool open) => (float[4] y) <bool c = {1}, bool no = {0}> {
      x2 = Neg(x)
      r = If (c) <
        then_branch = t () => (float[4] p) {
          m = Add(x2, x)
          p = If (no) < then_branch = tt () => (float[4] pp) { pp = Exp(m) },
                        else_branch = te () => (float[4] pq) {
            n = Mul(m, x2)
            pq = If (open) < then_branch = ttt () => (float[4] a) { a = Sub(n, m) },
                             else_branch = tte () => (float[4] b) { b = Sub(m, n) } > } > },
        else_branch = e () => (float[4] q) { q = If (no) < then_branch = et () => (float[4] pp) { pp = Exp(x) },
                                                          else_branch = ee () => (float[4] pq) { pq = Abs(x) } > } >
      y = Relu(r) }"""
    for flag in (True, False):
        proto = model(text)
        run = apply(Inline(), proto, feeds(proto) | {"open": np.array(flag)})
        assert (ops(run.after), run.report.changes) == (["Neg", "Add", "Mul", "If", "Relu"], 2)


def test_a_branch_within_a_loop() -> None:
    run = inlined("""g (float[4] x, int64 n, bool go) => (float[4] y) <bool c = {1}> {
      y = Loop (n, go, x) <body = body (int64 i, bool on, float[4] s) => (bool d, float[4] t) {
        d = Identity(on)
        t = If (c) < then_branch = tb () => (float[4] p) <float[4] w = {1, 2, 3, 4}> { p = Mul(s, w) },
                     else_branch = eb () => (float[4] q) { q = Neg(s) } > }> }""")
    body = next(attribute.g for attribute in run.after.graph.node[0].attribute)
    assert [node.op_type for node in body.node] == ["Identity", "Mul"]


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_loop_that_runs_once(opset: int) -> None:
    text = """g (float[4] x) => (float[4] y, float[N,4] z) <int64 n = {1}, bool c = {1}, float[4] w> {
      r = Mul(x, w)
      y, z = Loop (n, c, r) <body = body (int64 i, bool on, float[4] s) => (bool d, float[4] t, float[4] u)
        { d = Not(on)  f = Cast<to = 1>(i)  t = Add(s, f)  u = Exp(s) }> }"""
    run = inlined(text, opset=opset)
    assert (set(ops(run.after)), run.report.changes) == ({"Mul", "Not", "Cast", "Add", "Exp", "Unsqueeze"}, 1)


def test_a_loop_that_runs_once_and_hands_its_state_on() -> None:
    text = """g (float[4] x) => (float[4] y, float[4] z) <int64 n = {1}> {
      r = Neg(x)
      y, a = Loop (n, , r, x) <body = body (int64 i, bool on, float[4] s, float[4] o) =>
        (bool on, float[4] o, float[4] s) { d = Not(on) }>
      z = Exp(a) }"""
    assert set(ops(edited(model(text)))) == {"Neg", "Not", "Identity", "Exp"}


@pytest.mark.parametrize("head", ["<int64 n = {0}, bool c = {1}>", "<int64 n = {5}, bool c = {0}>"])
def test_a_loop_that_never_runs(head: str) -> None:
    text = f"""g (float[4] x) => (float[4] y, float[4] z) {head} {{
      r = Neg(x)
      y, a = Loop (n, c, r, x) <body = body (int64 i, bool on, float[4] s, float[4] o) =>
        (bool d, float[4] t, float[4] u) {{ d = Not(on)  t = Exp(s)  u = Abs(o) }}>
      z = Relu(a) }}"""
    assert sorted(ops(inlined(text).after)) == ["Identity", "Neg", "Relu"]


def test_types_that_are_no_tensors_pass_through() -> None:
    text = """g (float[4] x) => (float[4] y) <bool c = {1}, int64 at = {0}> {
      s = If (c) < then_branch = t () => (seq(float[4]) p) { p = SequenceConstruct(x) },
                   else_branch = e () => (seq(float[4]) q) { n = Neg(x)  q = SequenceConstruct(n) } >
      y = SequenceAt(s, at) }"""
    assert ops(inlined(text).after) == ["SequenceConstruct", "SequenceAt"]


def test_deep_nesting_with_the_same_names() -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["r"])], "b", [], [_info("r")]
    )  # fmt: skip
    for depth in range(20):
        nodes = [
            onnx.helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner if depth < 1 else _leaf())
        ]
        inner = onnx.helper.make_graph(nodes, "b", [], [_info("o")])
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [*inner.node], "g", [_info("x")], [_info("o")],
            [onnx.helper.make_tensor("c", onnx.TensorProto.BOOL, [], [True])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    assert ops(edited(proto)) == ["Neg"]


def _info(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4])


def _leaf() -> onnx.GraphProto:
    return onnx.helper.make_graph([onnx.helper.make_node("Exp", ["x"], ["r"])], "b", [], [_info("r")])


CALLS = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
  g (float[4] x, bool c) => (float[4] y, float[4] z) <float[4] w> {
    h = local.scale<alpha = 0.3>(x, w)
    k = local.scale(x, w)
    y = If (c) < then_branch = t () => (float[4] p) { a, p = local.both(h, k) },
                 else_branch = e () => (float[4] q) { q, b = local.both<alpha = 0.7>(h, k) } >
    t = local.same(h)
    z = local.bounded(t, , w)
  }
  <domain: "local", opset_import: ["" : 17]> scale <alpha: float = 0.1>(x, w) => (y)
    { t = Mul(x, w)  y = LeakyRelu<alpha: float = @alpha>(t) }
  <domain: "local", opset_import: ["" : 17, "local" : 1]> both <alpha: float = 0.2>(a, b) => (x, y)
    { x = local.scale<alpha: float = @alpha>(a, b)  t = local.scale(b, a)  y = Neg(t) }
  <domain: "local", opset_import: ["" : 17]> same (x) => (x) { t = Neg(x) }
  <domain: "local", opset_import: ["" : 17]> bounded (x, low, w) => (y) { h = Clip(x, low)  y = Add(h, w) }"""


def expanded(proto: onnx.ModelProto, fed: dict[str, object] | None = None) -> onnx.ModelProto:
    """The model with its functions expanded, held to the same outputs, and left as it was itself."""
    untouched = proto.SerializeToString(deterministic=True)
    after = inline_functions(proto)
    assert proto.SerializeToString(deterministic=True) == untouched
    verify(after)
    fed = feeds(proto) | (fed or {})
    assert_same(outputs(proto, fed), outputs(after, fed))
    assert inline_functions(after) is after
    return after


@pytest.mark.parametrize("flag", [True, False])
def test_functions_are_expanded(flag: bool) -> None:
    # ONNX Runtime cannot run a function that returns its own input: what it should give is said without it.
    plain = "".join(line for line in CALLS.splitlines(keepends=True) if "same (x)" not in line)
    proto, said = model(CALLS), model(plain.replace("t = local.same(h)", "t = Identity(h)"))
    after = inline_functions(proto)
    verify(after)
    fed = feeds(proto) | {"c": np.array(flag)}
    assert_same(outputs(said, fed), outputs(after, fed))
    assert (len(after.functions), "local" in {node.domain for node in after.graph.node}) == (0, False)
    assert ops(after) == ["Mul", "LeakyRelu", "Mul", "LeakyRelu", "If", "Neg", "Identity", "Clip", "Add"]


def test_subgraphs_of_functions_keep_their_names_apart() -> None:
    after = expanded(
        model("""<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
      g (float[4] x, bool c) => (float[4] y) { t = local.pick(x, c)  p = Neg(t)  y = local.pick(p, c) }
      <domain: "local", opset_import: ["" : 17]> pick (a, c) => (r) {
        t = Exp(a)
        r = If (c) < then_branch = t () => (p) { x = Abs(t)  p = Neg(x) }, else_branch = e () => (p) { p = Sqrt(t) } >
      }""")
    )
    assert ops(after) == ["Exp", "If", "Neg", "Exp", "If"]


def test_a_function_of_another_version_that_means_the_same() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
      g (float[4] x) => (float[4] y) { t = local.same(x)  y = local.other(t) }
      <domain: "local", opset_import: ["" : 18]> same (x) => (y) { t = Relu(x)  y = Neg(t) }
      <domain: "local", opset_import: ["" : 18]> other (x) => (y) { y = ReduceMax<keepdims = 1>(x) }"""
    after = inline_functions(model(text))
    assert [function.name for function in after.functions] == ["other"]
    assert ops(after) == ["Relu", "Neg", "other"]


@pytest.mark.parametrize(
    "function",
    [
        '<domain: "local", opset_import: ["" : 18]> f (x) => (y) { y = ReduceMax<keepdims = 1>(x) }',
        '<domain: "local", opset_import: ["" : 17]> f (x) => (y) { y = Relu(x)  y = Neg(x) }',
        '<domain: "local", opset_import: ["" : 17]> f (x) => (y) { y = other.Thing(x) }',
    ],
)
def test_functions_left_alone(function: str) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
      g (float[4] x) => (float[4] y) { y = local.f(x) }"""
    proto = model(text + function)
    assert inline_functions(proto) is proto


def test_functions_that_a_runtime_knows_are_left_alone() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
      g (float[4] x) => (float[4] y) { y = com.microsoft.Gelu(x) }
      <domain: "com.microsoft", opset_import: ["" : 17]> Gelu (x) => (y) { y = Relu(x) }"""
    proto = model(text)
    assert inline_functions(proto) is proto


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_nesting(data: st.DataObject) -> None:
    """Branches in branches, conditions fixed or open, names shared between siblings, values captured from anywhere."""
    counter = iter(range(1000))

    def block(depth: int, seen: list[str], result: str) -> str:
        lines = []
        for _ in range(data.draw(st.integers(1, 2))):
            # Siblings may use one name; a name that is seen already may not be used again.
            shared = data.draw(st.sampled_from(["a", "b", "c"]))
            name = shared if shared not in seen and depth else f"t{next(counter)}"
            source = data.draw(st.sampled_from(seen))
            if depth < 3 and data.draw(st.booleans()):
                condition = data.draw(st.sampled_from(["yes", "no", "flag"]))
                number = next(counter)
                then = block(depth + 1, [*seen], f"p{number}")
                other = block(depth + 1, [*seen], f"q{number}")
                lines.append(
                    f"{name} = If ({condition}) < then_branch = t{number} () => (float[4] p{number}) {{ {then} }}, "
                    f"else_branch = e{number} () => (float[4] q{number}) {{ {other} }} >"
                )
            else:
                lines.append(f"{name} = {data.draw(st.sampled_from(['Neg', 'Abs', 'Relu']))}({source})")
            seen.append(name)
        lines.append(f"{result} = Add({seen[-1]}, {data.draw(st.sampled_from(seen))})")
        return "  ".join(lines)

    text = f"g (float[4] x, bool flag) => (float[4] y) <bool yes = {{1}}, bool no = {{0}}> {{ {block(0, ['x'], 'y')} }}"
    proto = model(text)
    apply(Inline(), proto, feeds(proto) | {"flag": np.array(data.draw(st.booleans()))})
