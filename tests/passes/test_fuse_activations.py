"""Activations written out become operators, in every spelling; what is not quite one stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import apply, model, ops

from graphopt.passes.fuse_activations import FuseActivations

CONSTANTS = (
    "float zero = {0}, float one = {1}, float two = {2}, float three = {3}, float six = {6}, float half = {0.5}, "
    "float minus = {-1}, float sixth = {0.16666667}, float[1] three_1 = {3}, float[1,1,1,1] six_4 = {6}, "
    "float fourth = {0.25}, float root = {1.4142135}, float iroot = {0.70710677}, float k = {0.044715}, "
    "float s = {0.7978846}, float sk = {0.035677407}, float[3] threes = {3, 3, 3}"
)


def net(body: str, *, opset: int = 22, head: str = "(float[N,3] x) => (float[N,3] y)") -> onnx.ModelProto:
    return model(f"g {head} <{CONSTANTS}> {{ {body} }}", opset=opset)


def run(body: str, **options: object) -> list[str]:
    fed = {"x": np.linspace(-9, 9, 30, dtype=np.float32).reshape(10, 3)}
    return ops(apply(FuseActivations(), net(body, **options), fed).after)  # type: ignore[arg-type]


HARD_SWISHES = [
    "a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)",
    "a = Add(three, x)  b = Clip(a, zero, six)  c = Mul(b, x)  y = Mul(sixth, c)",
    "a = Add(x, three_1)  b = Clip(a, zero, six)  c = Div(b, six)  y = Mul(x, c)",
    "a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(b, sixth)  y = Mul(c, x)",
    "a = Add(x, three)  b = Clip(a, zero, six)  d = Div(x, six)  y = Mul(d, b)",
    "a = Sub(x, minus)  e = Add(a, two)  b = Clip(e, zero, six)  c = Mul(x, b)  y = Div(c, six)",
    "a = Add(x, three)  r = Relu(a)  b = Min(r, six)  c = Mul(x, b)  y = Div(c, six)",
    "a = Add(x, three)  r = Max(a, zero)  b = Min(six, r)  c = Mul(x, b)  y = Div(c, six)",
    "a = Mul(x, sixth)  e = Add(a, half)  b = Clip(e, zero, one)  y = Mul(b, x)",
    "a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)  y = Mul(x, a)",
    "k3 = Constant<value = float {3.0}>()  a = Add(x, k3)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)",
]


@pytest.mark.parametrize("body", HARD_SWISHES)
def test_hard_swish(body: str) -> None:
    assert [op for op in run(body) if op != "Constant"] == ["HardSwish"]


@pytest.mark.parametrize("body", [body for body in HARD_SWISHES if "HardSigmoid" not in body])
def test_hard_swish_of_older_operator_sets(body: str) -> None:
    assert [op for op in run(body, opset=13) if op != "Constant"] == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize("opset", [7, 10])
def test_hard_swish_with_clip_by_attributes(opset: int) -> None:
    body = "a = Add(x, three)  b = Clip<min = 0.0, max = 6.0>(a)  c = Mul(x, b)  y = Div(c, six)"
    assert run(body, opset=opset) == ["HardSigmoid", "Mul"]


def test_hard_swish_times_a_factor() -> None:
    assert run("a = Add(x, three)  b = Clip(a, zero, six)  y = Mul(x, b)") == ["HardSwish", "Mul"]
    body = "a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  d = Div(c, six)  y = Mul(d, fourth)"
    assert run(body) == ["HardSwish", "Mul"]


def test_hard_swish_with_other_constants() -> None:
    body = "a = Add(x, two)  b = Clip(a, zero, three)  c = Mul(x, b)  y = Div(c, three)"
    assert run(body) == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three)  b = Clip(a, zero, six)  y = Div(b, six)",
        "a = Mul(x, fourth)  b = Add(a, half)  y = Clip(b, zero, one)",
        "a = Add(x, one)  y = HardSigmoid(a)",
        "a = Add(x, three)  b = Min(a, six)  c = Relu(b)  y = Mul(c, sixth)",
    ],
)
def test_hard_sigmoid(body: str) -> None:
    assert run(body) == ["HardSigmoid"]


ERFS = [
    "a = Div(x, root)  e = Erf(a)  o = Add(e, one)  m = Mul(x, o)  y = Mul(m, half)",
    "a = Mul(x, iroot)  e = Erf(a)  o = Add(one, e)  h = Mul(o, half)  y = Mul(h, x)",
    "h = Mul(half, x)  a = Div(x, root)  e = Erf(a)  o = Add(e, one)  y = Mul(h, o)",
    "a = Div(x, root)  e = Erf(a)  h = Mul(e, half)  o = Add(h, half)  y = Mul(x, o)",
    "a = Div(x, root)  e = Erf(a)  o = Add(e, one)  m = Mul(x, o)  y = Div(m, two)",
]
TANHS = [
    "p = Pow(x, three)  a = Mul(p, k)  b = Add(x, a)  d = Mul(b, s)  t = Tanh(d)  o = Add(t, one)  m = Mul(x, o)"
    "  y = Mul(m, half)",
    "q = Mul(x, x)  p = Mul(q, x)  a = Mul(k, p)  b = Add(a, x)  d = Mul(s, b)  t = Tanh(d)  o = Add(one, t)"
    "  h = Mul(x, half)  y = Mul(h, o)",
    "q = Pow(x, two)  a = Mul(q, sk)  b = Add(a, s)  d = Mul(x, b)  t = Tanh(d)  h = Mul(t, half)  o = Add(h, half)"
    "  y = Mul(x, o)",
]


@pytest.mark.parametrize("body", ERFS + TANHS)
def test_gelu(body: str) -> None:
    assert run(body, opset=20) == ["Gelu"]
    assert "Gelu" not in run(body, opset=19)


def test_mish() -> None:
    body = "a = Softplus(x)  b = Tanh(a)  y = Mul(x, b)"
    assert run(body, opset=18) == ["Mish"]
    assert run(body, opset=17) == ["Softplus", "Tanh", "Mul"]
    assert "Mish" not in run("z = Neg(x)  a = Softplus(z)  b = Tanh(a)  y = Mul(x, b)")


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("n = Neg(x)  e = Exp(n)  o = Add(e, one)  y = Div(one, o)", ["Sigmoid"]),
        ("n = Mul(minus, x)  e = Exp(n)  o = Add(one, e)  y = Reciprocal(o)", ["Sigmoid"]),
        ("n = Neg(x)  e = Exp(n)  o = Add(e, one)  y = Div(x, o)", ["Sigmoid", "Mul"]),
        ("n = Neg(x)  e = Exp(n)  o = Add(e, two)  y = Div(one, o)", ["Neg", "Exp", "Add", "Div"]),
        ("e = Exp(x)  o = Add(e, one)  y = Div(one, o)", ["Exp", "Add", "Div"]),
    ],
)
def test_sigmoid(body: str, left: list[str]) -> None:
    assert run(body) == left


def test_swish_only_where_asked_for() -> None:
    spelled = "a = Sigmoid(x)  y = Mul(x, a)"
    assert run(spelled, opset=24) == ["Sigmoid", "Mul"]
    assert run("y = Swish(x)", opset=24) == ["Sigmoid", "Mul"]
    assert run("y = Swish<alpha = 2.0>(x)", opset=24) == ["Swish"]
    fed = {"x": np.linspace(-9, 9, 30, dtype=np.float32).reshape(10, 3)}
    for body, opset, left in (
        (spelled, 24, ["Swish"]),
        (spelled, 23, ["Sigmoid", "Mul"]),
        ("b = Mul(x, two)  a = Sigmoid(b)  y = Mul(x, a)", 24, ["Swish"]),
        ("y = Swish(x)", 24, ["Swish"]),
    ):
        assert ops(apply(FuseActivations(swish=True), net(body, opset=opset), fed).after) == left


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Relu(x)  y = Relu(a)", ["Relu"]),
        ("a = Relu(x)  y = Clip(a, minus, six)", ["Clip"]),
        ("a = Clip(x, minus, six)  y = Relu(a)", ["Clip"]),
        ("a = Clip(x, zero)  y = Relu(a)", ["Relu"]),
        ("y = Clip(x, zero)", ["Relu"]),
        ("y = Max(zero, x)", ["Relu"]),
        ("y = Max(x, half)", ["Clip"]),
        ("y = Min(three_1, x)", ["Clip"]),
        ("a = Max(x, minus)  b = Min(a, three)  c = Relu(b)  d = Clip(c, half, two)  y = Relu(d)", ["Clip"]),
        ("a = Clip(x, two, three)  y = Clip(a, zero, one)", ["Clip"]),
        ("y = LeakyRelu<alpha = 0.0>(x)", ["Relu"]),
        ("y = PRelu(x, fourth)", ["LeakyRelu"]),
        ("y = PRelu(x, threes)", ["LeakyRelu"]),
        ("a = PRelu(x, zero)  y = Clip(a, zero, six)", ["Clip"]),
        ("a = Relu(x)  b = Relu(a)  c = Exp(a)  y = Add(b, c)", ["Relu", "Exp", "Add"]),
        ("a = Clip(x, zero, six)  y = Clip(x, minus, one)", ["Clip", "Clip"]),
    ],
)
def test_clamps(body: str, left: list[str]) -> None:
    assert run(body) == left


def test_clamps_of_attributes() -> None:
    body = "a = Relu(x)  y = Clip<min = -1.0, max = 6.0>(a)"
    result = apply(FuseActivations(), net(body, opset=10)).after
    assert ops(result) == ["Clip"]
    assert {each.name: each.f for each in result.graph.node[0].attribute} == {"min": 0.0, "max": 6.0}


def test_clamp_without_effect_that_writes_an_output() -> None:
    head = "(float[N,3] x) => (float[N,3] y, float[N,3] z)"
    assert sorted(run("a = Relu(x)  y = Relu(a)  z = Exp(a)", head=head)) == ["Exp", "Relu"]
    assert run("z = Relu(x)  y = Relu(z)", head=head) == ["Relu", "Relu"]


SOFTMAX = "m = ReduceMax<axes = [{0}]>(x)  d = Sub(x, m)  e = Exp(d)  t = ReduceSum(e, last)  y = Div(e, t)"


@pytest.mark.parametrize(
    ("body", "opset", "left"),
    [
        (SOFTMAX.format(-1), 17, ["Softmax"]),
        (SOFTMAX.format(1), 17, ["Softmax"]),
        (SOFTMAX.format(0), 17, ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]),
        (SOFTMAX.format(-1).replace("(e, last)", "<axes = [1]>(e)"), 12, ["Softmax"]),
        (SOFTMAX.format(-1).replace("= [-1]", "= [-1], keepdims = 0").replace("Sub(x, m)", "Sub(x, x)"), 17, None),
    ],
)
def test_softmax(body: str, opset: int, left: list[str] | None) -> None:
    text = f"g (float[3,3] x) => (float[3,3] y) <int64[1] last = {{-1}}> {{ {body} }}"
    run = apply(FuseActivations(), model(text, opset=opset))
    assert ops(run.after) == (ops(run.before) if left is None else left)


def test_softmax_over_an_inner_axis_needs_opset_13() -> None:
    text = """g (float[2,3,4] x) => (float[2,3,4] y) <int64[1] axis = {1}> {
      m = ReduceMax<axes = [1]>(x)  d = Sub(x, m)  e = Exp(d)  t = ReduceSum(e, axis)  y = Div(e, t) }"""
    assert ops(apply(FuseActivations(), model(text, opset=13)).after) == ["Softmax"]
    old = text.replace("ReduceSum(e, axis)", "ReduceSum<axes = [1]>(e)").replace("<int64[1] axis = {1}>", "")
    assert len(ops(apply(FuseActivations(), model(old, opset=12)).after)) == 5


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("a = Add(x, two)  b = Clip(a, one, six)  c = Mul(x, b)  y = Div(c, six)", id="low not 0"),
        pytest.param("z = Exp(x)  a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(z, b)  y = Div(c, six)", id="z"),
        pytest.param("a = Div(x, root)  e = Erf(a)  o = Add(e, half)  m = Mul(x, o)  y = Mul(m, half)", id="erf + 1/2"),
        pytest.param("a = Mul(x, half)  e = Erf(a)  o = Add(e, one)  m = Mul(x, o)  y = Mul(m, half)", id="erf(x/2)"),
        pytest.param("a = Mul(x, s)  t = Tanh(a)  o = Add(t, one)  m = Mul(x, o)  y = Mul(m, half)", id="no cube"),
        pytest.param("a = PRelu(x, slopes)  y = Exp(a)", id="several slopes"),
        pytest.param("a = Relu(x)  y = Max(a, x)", id="maximum of two tensors"),
        pytest.param("y = Clip(x, minus, six)", id="a clip by itself"),
    ],
)  # fmt: skip
def test_left_alone(body: str) -> None:
    text = f"g (float[N,3] x) => (float[N,3] y) <{CONSTANTS}, float[3] slopes = {{0.1, 0.2, 0.3}}> {{ {body} }}"
    assert apply(FuseActivations(), model(text, opset=22)).report.changes == 0


HARD = "a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)"


@pytest.mark.parametrize("name", ["b", "c"])
def test_a_value_in_between_that_is_an_output_stays(name: str) -> None:
    proto = net(HARD, head=f"(float[N,3] x) => (float[N,3] y, float[N,3] {name})")
    run = apply(FuseActivations(), proto)
    assert name in {output for node in run.after.graph.node for output in node.output}


def test_a_value_in_between_that_is_read_stays() -> None:
    assert "Clip" in run("a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  d = Div(c, six)  y = Mul(d, b)")


def test_constants_with_more_axes_than_x() -> None:
    body = "a = Add(x, three_1)  b = Clip(a, zero, six)  c = Mul(x, b)  y = Div(c, six)"
    wider = net(body.replace("three_1", "six_4"), head="(float[N,3] x) => (float[1,1,N,3] y)")
    assert apply(FuseActivations(), wider).report.changes == 0
    proto = net(body, head="(float x) => (float[1] y)")
    assert apply(FuseActivations(), proto).report.changes == 0


def test_other_dtypes() -> None:
    text = """g (DT[N,3] x) => (DT[N,3] y) <DT three, DT zero, DT six> { BODY }"""
    bounds = {"three": 3, "zero": 0, "six": 6}
    half = model(text.replace("BODY", HARD).replace("DT", "float16"), opset=14, **bounds)
    assert ops(apply(FuseActivations(), half, rtol=3e-3).after) == ["HardSwish"]
    double = model(text.replace("BODY", HARD).replace("DT", "double"), opset=14, **bounds)
    assert apply(FuseActivations(), double).report.changes == 0
    clamps = "a = Relu(x)  y = Min(a, six)"
    double = model(text.replace("BODY", clamps).replace("DT", "double"), **bounds)
    assert ops(apply(FuseActivations(), double).after) == ["Clip"]
    integers = model(text.replace("BODY", "a = Max(x, zero)  y = Min(a, six)").replace("DT", "int32"), **bounds)
    assert apply(FuseActivations(), integers).report.changes == 0


def test_arithmetic_that_a_convolution_takes_up_stays() -> None:
    text = """g (float[N,3,4,4] x) => (float[N,3,4,4] y)
      <float[3,3,1,1] w, float half = {0.5}, float zero = {0}, float one = {1}> {
      c = Conv(x, w)  a = Add(c, half)  y = Clip(a, zero, one) }"""
    assert apply(FuseActivations(), model(text)).report.changes == 0


def test_in_subgraphs() -> None:
    text = """g (float[N,3] x, bool go) => (float[N,3] y) <float three = {3}, float zero = {0}, float six = {6}> {
      y = If (go) <then_branch = t () => (float[N,3] p)
        { a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)  p = Div(c, six) },
        else_branch = e () => (float[N,3] q) { q = Identity(x) }> }"""
    run = apply(FuseActivations(), model(text))
    body = run.after.graph.node[0].attribute[0].g
    assert [node.op_type for node in body.node] == ["HardSwish"]
    # What the outer graph computes and a subgraph reads is no private value of the activation.
    text = """g (float[N,3] x, bool go) => (float[N,3] y) <float three = {3}, float zero = {0}, float six = {6}> {
      a = Add(x, three)  b = Clip(a, zero, six)  c = Mul(x, b)
      y = If (go) <then_branch = t () => (float[N,3] p) { p = Div(c, six) },
        else_branch = e () => (float[N,3] q) { q = Identity(b) }> }"""
    assert apply(FuseActivations(), model(text)).report.changes == 0


def test_a_tensor_with_many_readers() -> None:
    body = "  ".join(
        f"a{i} = Add(x, three)  b{i} = Clip(a{i}, zero, six)  c{i} = Mul(x, b{i})  d{i} = Div(c{i}, six)"
        for i in range(40)
    )
    total = f"y = Sum({', '.join(f'd{i}' for i in range(40))})"
    assert run(f"{body}  {total}").count("HardSwish") == 40


OPERATORS = ["Add", "Mul", "Mul", "Div", "Clip", "Clip", "Relu", "Max", "Min", "Sigmoid", "HardSigmoid", "Neg"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_arithmetic(data: st.DataObject) -> None:
    """Random elementwise nets of what activations are made of, some values read twice or given out."""
    names, lines = ["x"], []
    scalars = ["zero", "one", "two", "three", "six", "half", "sixth", "three_1", "minus"]
    for step in range(data.draw(st.integers(2, 10), label="nodes")):
        recent = st.sampled_from([*names[-3:], "x"])
        op = data.draw(st.sampled_from(OPERATORS))
        first = data.draw(recent, label="first")
        if op in {"Relu", "Sigmoid", "HardSigmoid", "Neg"}:
            line = f"{op}({first})"
        elif op == "Clip":
            low, high = data.draw(st.sampled_from([("zero", "six"), ("zero", "one"), ("minus", "two"), ("two", "one")]))
            line = f"Clip({first}, {low}, {high})"
        elif op == "Div":
            line = f"Div({first}, {data.draw(st.sampled_from(['two', 'six', 'three_1']))})"
        else:
            second = data.draw(st.one_of(recent, st.sampled_from(scalars)), label="second")
            line = f"{op}({first}, {second})"
        lines.append(f"t{step} = {line}")
        names.append(f"t{step}")
    extra = data.draw(st.sampled_from(names[1:]), label="output")
    outputs = [names[-1]] + ([extra] if extra != names[-1] else [])
    head = f"(float[N,3] x) => ({', '.join(f'float[N,3] {name}' for name in outputs)})"
    opset = data.draw(st.sampled_from([11, 13, 14, 20]), label="opset")
    apply(FuseActivations(), net("  ".join(lines), opset=opset, head=head), rtol=1e-4)
