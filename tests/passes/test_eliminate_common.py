"""eliminate_common: what it leaves alone; then equal expressions, and tensors that are taken apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, feeds, model, ops

from graphopt.passes.eliminate_common import EliminateCommon


def merged(text: str, *, opset: int = 17, compare: bool = True, **weights: object) -> Run:
    return apply(EliminateCommon(), model(text, opset=opset, **weights), compare=compare)


def pair(first: str, second: str, declared: str = "") -> str:
    return f"g (float[4,4] x, float[4,4] z) => (float[A,B] y) <{declared}> {{ a = {first}  b = {second}  y = Sub(a, b) }}".replace(  # noqa: E501
        "<>", ""
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(pair("Relu(x)", "Relu(z)"), id="other inputs"),
        pytest.param(pair("Relu(x)", "Abs(x)"), id="other operator"),
        pytest.param(pair("LeakyRelu<alpha = 0.1>(x)", "LeakyRelu<alpha = 0.2>(x)"), id="other attributes"),
        pytest.param(pair("Sub(x, z)", "Sub(z, x)"), id="swapped, and it matters"),
        pytest.param(pair("Add(x, k)", "Add(x, l)", "float k = {1}, float l = {2}"), id="other constants"),
        pytest.param(
            pair("Add(x, k)", "Add(x, l)", "float k = {1}, float[1,1] l = {1}"), id="constants of other shape"
        ),
        pytest.param(pair("Clip(x, k)", "Clip(x, , k)", "float k = {0}"), id="another input left out"),
        pytest.param(
            "g (float[4] x) => (float[4] y, float[4] z) { y = Relu(x)  z = Relu(x) }", id="both are graph outputs"
        ),
        pytest.param(
            """g (bool c, float[4] x) => (float[4] y) { r = Exp(x)  s = If (c) <
               then_branch = t () => (float[4] p) { p = Exp(x) },
               else_branch = e () => (float[4] q) { q = Neg(x) } > y = Add(r, s) }""",
            id="output of a subgraph",
        ),
        pytest.param(
            """g (bool c, float[4] x) => (float[4] y) { s = If (c) <
               then_branch = t () => (float[4] p) { a = Exp(x)  p = Abs(a) },
               else_branch = e () => (float[4] q) { b = Exp(x)  q = Neg(b) } > y = Abs(s) }""",
            id="in two branches",
        ),
    ],
)
def test_leaves_alone(text: str) -> None:
    assert merged(text).report.changes == 0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(pair("RandomUniformLike(x)", "RandomUniformLike(x)"), id="random"),
        pytest.param(pair("Bernoulli<seed = 1.0>(x)", "Bernoulli<seed = 1.0>(x)"), id="random with a seed"),
        pytest.param(pair("Dropout(x, k, t)", "Dropout(x, k, t)", "float k = {0.5}, bool t = {1}"), id="training"),
    ],
)
def test_leaves_random_operators_alone(text: str) -> None:
    assert merged(text, compare=False).report.changes == 0


def test_leaves_other_domains_alone() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
      g (float[4] x) => (float[4] y) { a = custom.Noise(x)  b = custom.Noise(x)  y = Add(a, b) }"""
    assert merged(text, compare=False).report.changes == 0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(pair("Relu(x)", "Relu(x)"), id="unary"),
        pytest.param(pair("Add(x, z)", "Add(z, x)"), id="swapped"),
        pytest.param(pair("Softmax<axis = 1>(x)", "Softmax<axis = 1>(x)"), id="attributes"),
        pytest.param(pair("Transpose<perm = [1, 0]>(x)", "Transpose<perm = [1, 0]>(x)"), id="lists"),
        pytest.param(pair("Add(x, k)", "Add(x, l)", "float k = {1}, float l = {1}"), id="equal constants"),
        pytest.param(pair("Clip(x, k)", "Clip(x, k, )", "float k = {0}"), id="an input left out at the end"),
        pytest.param(pair("Mul(x, x)", "Mul(x, x)"), id="twice the same"),
        pytest.param(pair("Dropout(x, k)", "Dropout(x, k)", "float k = {0.5}"), id="inference Dropout"),
    ],
)
def test_computes_once(text: str) -> None:
    run = merged(text)
    assert (len(ops(run.after)), run.report.details["merged"]) == (2, 1)


def test_whole_chains_become_one() -> None:
    chains = "  ".join(
        f"{side}1 = Exp(x)  {side}2 = Neg({side}1)  {side}3 = Shape({side}2)  {side}4 = Reshape({side}2, {side}3)"
        for side in "abc"
    )
    run = merged(f"g (float[4,4] x) => (float[A,B] y) {{ {chains}  s = Add(a4, b4)  y = Mul(s, c4) }}")
    assert ops(run.after) == ["Exp", "Neg", "Shape", "Reshape", "Add", "Mul"]


def test_a_chain_that_is_equal_after_an_operand_was_found_equal() -> None:
    run = merged("""g (float[4] x, float[4] z) => (float[4] y) {
      a = Exp(x)  b = Abs(z)  r = Add(a, b)  s = Relu(r)
      c = Exp(x)  d = Abs(z)  t = Add(c, d)  u = Relu(t)  y = Mul(s, u) }""")
    assert ops(run.after) == ["Exp", "Abs", "Add", "Relu", "Mul"]


def test_a_graph_output_keeps_its_name() -> None:
    run = merged("""g (float[4] x) => (float[4] y, float[4] b) {
      a = Exp(x)  r = Relu(a)  b = Exp(x)  s = Relu(b)  y = Add(r, s) }""")
    assert [(node.op_type, list(node.output)) for node in run.after.graph.node] == [
        ("Exp", ["b"]), ("Relu", ["r"]), ("Add", ["y"]),
    ]  # fmt: skip


def test_several_outputs() -> None:
    text = """g (float[4] x, int64[1] k) => (float[N] y, int64[N] i, int64[N] j)
      { a, i = TopK(x, k)  b, j2 = TopK(x, k)  y = Add(a, b)  j = Neg(j2) }"""
    proto = model(text)
    run = apply(EliminateCommon(), proto, feeds(proto) | {"k": np.array([2])})
    assert ops(run.after) == ["TopK", "Add", "Neg"]


def test_a_subgraph_uses_what_is_computed_outside() -> None:
    text = """g (bool c, float[4] x) => (float[4] y) { r = Exp(x)  k = Sqrt(r)  s = If (c) <
      then_branch = t () => (float[4] p) { a = Exp(x)  b = Sqrt(a)  p = Abs(b) },
      else_branch = e () => (float[4] q) { a = Exp(x)  l = Log(a)  q = Neg(l) } > y = Add(k, s) }"""
    proto = model(text)
    for flag in (True, False):
        run = apply(EliminateCommon(), proto, feeds(proto) | {"c": np.array(flag)})
        assert run.report.details["merged"] == 3


def test_what_stands_behind_a_subgraph_is_not_used_in_it() -> None:
    text = """g (bool c, float[4] x) => (float[4] y) { s = If (c) <
      then_branch = t () => (float[4] p) { a = Exp(x)  p = Abs(a) },
      else_branch = e () => (float[4] q) { q = Neg(x) } >
      r = Exp(x)  y = Add(r, s) }"""
    proto = model(text)
    run = apply(EliminateCommon(), proto, feeds(proto) | {"c": np.array(True)})
    assert run.report.changes == 0


def test_a_hidden_name_is_not_read() -> None:
    text = """g (bool c, float[4] x) => (float[4] y) { r = Exp(x)  s = If (c) <
      then_branch = t () => (float[4] p) { a = Exp(x)  u = If (c) <
        then_branch = tt () => (float[4] pp) { z = Neg(a)  pp = Abs(z) },
        else_branch = te () => (float[4] qq) { qq = Neg(a) } > p = Add(u, a) },
      else_branch = e () => (float[4] q) { z = Abs(x)  q = Neg(z) } > y = Add(r, s) }"""
    proto = model(text)
    run = apply(EliminateCommon(), proto, feeds(proto) | {"c": np.array(True)})
    assert run.report.details["merged"] == 1


def slices(*parts: str, shape: str = "[N,6,4]") -> str:
    names = [f"o{number}" for number in range(len(parts))]
    calls = "  ".join(f"{name} = Slice(x, {part})" for name, part in zip(names, parts, strict=True))
    results = ", ".join(f"float[A,B,C] {name}" for name in names)
    numbers = ", ".join(f"int64[1] p{number} = {{{number}}}" for number in range(7))
    more = (
        "int64[1] m2 = {-2}, int64[1] m4 = {-4}, int64[1] far = {9223372036854775807}, int64[2] zz = {0, 0}, "
        "int64[2] za = {0, 3}, int64[2] ab = {4, 3}, int64[2] ad = {4, 6}, int64[2] axes = {2, 1}"
    )
    return f"g (float{shape} x) => ({results}) <{numbers}, {more}> {{ {calls} }}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(slices("p0, p2, p1", "p3, p6, p1"), id="gap"),
        pytest.param(slices("p0, p3, p1", "p2, p6, p1"), id="overlap"),
        pytest.param(slices("p0, p3, p1", "p3, p5, p1"), id="not to the end"),
        pytest.param(slices("p1, p3, p1", "p3, p6, p1"), id="not from the start"),
        pytest.param(slices("p0, p3, p1", "p3, p6, p1, p2"), id="in steps"),
        pytest.param(slices("p0, p3, p1", "p2, p4, p2"), id="other axes"),
        pytest.param(slices("p0, p3, p1", "p3, far, p1", shape="[N,M,4]"), id="unknown size"),
        pytest.param(slices("p0, p3, p1", "p6, far, p1"), id="empty piece"),
    ],
)
def test_leaves_slices_alone(text: str) -> None:
    proto = model(text)
    run = apply(EliminateCommon(), proto, {"x": np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)})
    assert run.report.changes == 0


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        pytest.param(slices("p0, p2, p1", "p2, far, p1"), [2, 4], id="two"),
        pytest.param(slices("p4, p6, p1", "p0, p1, p1", "p1, p4, p1"), [1, 3, 2], id="three, in any order"),
        pytest.param(slices("p0, m2, m2", "m2, far, p1"), [4, 2], id="counted from the end"),
        pytest.param(slices("zz, ab, axes", "za, ad, axes"), [3, 3], id="with an axis that is not cut"),
    ],
)
@pytest.mark.parametrize("opset", [11, 13])
def test_taking_apart_is_one_split(text: str, sizes: list[int], opset: int) -> None:
    run = merged(text, opset=opset)
    (node,) = run.after.graph.node
    assert node.op_type == "Split"
    found = {info.name: info.type.tensor_type.shape.dim[1].dim_value for info in run.after.graph.output}
    assert len(found) == len(sizes)


def test_slices_whose_parameters_are_attributes() -> None:
    text = """g (float[N,6] x) => (float[A,B] y) { a = Slice<starts = [0], ends = [3], axes = [1]>(x)
      b = Slice<starts = [3], ends = [6], axes = [1]>(x)  y = Sub(a, b) }"""
    assert ops(merged(text, opset=9).after) == ["Split", "Sub"]


def test_a_tensor_that_is_taken_apart_twice() -> None:
    run = merged(slices("p0, p3, p1", "p3, p6, p1", "p0, p2, p2", "p2, p4, p2"))
    assert ops(run.after) == ["Split", "Split"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_graphs(data: st.DataObject) -> None:
    """Few operators on few values, so that most of it is computed more than once, inside of branches too."""
    count = iter(range(1000))

    def block(seen: list[str], depth: int) -> str:
        lines = []
        for _ in range(data.draw(st.integers(2, 5))):
            name = f"t{next(count)}"
            kind = data.draw(st.sampled_from(["Neg", "Abs", "Add", "Mul", "Slice", "If"]))
            first, second = data.draw(st.sampled_from(seen)), data.draw(st.sampled_from(seen))
            if kind == "If" and depth < 2:
                number = next(count)
                then, other = block(list(seen), depth + 1), block(list(seen), depth + 1)
                lines.append(
                    f"{name} = If (flag) < then_branch = a{number} () => (float[4] p{number}) "
                    f"{{ {then}  p{number} = Neg({seen[-1]}) }}, else_branch = b{number} () => (float[4] q{number}) "
                    f"{{ {other}  q{number} = Abs({seen[-1]}) }} >"
                )
            elif kind in {"Add", "Mul"}:
                lines.append(f"{name} = {kind}({first}, {second})")
            elif kind == "Slice":
                lines.append(f"{name}h = Slice({first}, zero, two)  {name}l = Slice({first}, two, four)")
                lines.append(f"{name} = Concat<axis = 0>({name}l, {name}h)")
            else:
                lines.append(f"{name} = {'Neg' if kind == 'If' else kind}({first})")
            seen.append(name)
        return "  ".join(lines)

    seen = ["x"]
    body = block(seen, 0)
    results = data.draw(st.lists(st.sampled_from(seen[1:]), min_size=1, max_size=3, unique=True))
    declared = ", ".join(f"float[4] {name}" for name in results)
    numbers = "<int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}>"
    proto = model(f"g (float[4] x, bool flag) => ({declared}) {numbers} {{ {body} }}")
    apply(EliminateCommon(), proto, feeds(proto) | {"flag": np.array(data.draw(st.booleans()))})
