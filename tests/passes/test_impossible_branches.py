"""Branches that make the graph fail: what settles an If, what does not, and that ONNX Runtime does refuse the rest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, all_ops, apply, assert_same, context, model, outputs

from graphopt.errors import UnsupportedModelError
from graphopt.graph import export_graph, import_graph
from graphopt.passes.inline import Inline

# In the text that TorchScript makes of x.squeeze(2): three axes, or two where the last is 1.
SQUEEZE = """s = Shape<start = 2>(x)  c = Equal(s, one)
  r = If (c) < then_branch = t () => (float[] p) { p = Squeeze(x, two) },
               else_branch = e () => (float[] q) { q = Identity(x) } >"""
_POOLS = ("MaxPool<kernel_shape = [1]>(r)", "AveragePool<kernel_shape = [1]>(r)")
WEIGHTS = "<int64[1] one = {1}, int64[1] two = {2}, int64[1] zero = {0}, float[1,8,3] w, float[1,8,2] v, float[4,3,1] k"


def settled(rest: str, *, size: int, more: str = "", opset: int = 17, compare: bool = True, **fed: object) -> Run:
    """Inline the squeeze before ``rest``, and compare where it runs, at two batch sizes."""
    inputs = ", ".join(["float[N,3,M] x", *(f"bool {name}" for name in fed)])
    text = f"g ({inputs}) => (float[] y) {WEIGHTS}{more}> {{ {SQUEEZE} {rest} }}"
    for batch in (1, 2):
        arrays = {"x": np.random.default_rng(0).normal(size=(batch, 3, size)).astype(np.float32)}
        run = apply(
            Inline(), model(text, opset=opset), arrays | {k: np.array(v) for k, v in fed.items()}, compare=compare
        )
    return run


def left(run: Run) -> list[str]:
    return [op for op in all_ops(import_graph(run.after).gs) if op not in {"Shape", "Equal", "Identity"}]


@pytest.mark.parametrize(
    ("rest", "size", "wanted"),
    [
        ("u = Unsqueeze(r, zero)  , y = LSTM<hidden_size = 2>(u, w, v)", 1, ["Squeeze", "Unsqueeze", "LSTM"]),
        ("a = Relu(r)  , y = LSTM<hidden_size = 2>(a, w3, v)", 4, ["Relu", "LSTM"]),
        ("y = Conv(r, k)", 4, ["Conv"]),
        ("y = ConvTranspose(r, k3)", 4, ["ConvTranspose"]),
        ("y = Transpose<perm = [1, 0]>(r)", 1, ["Squeeze", "Transpose"]),
        ("y = MaxPool<kernel_shape = [1]>(r)", 4, ["MaxPool"]),
        ("y = AveragePool<kernel_shape = [1]>(r)", 4, ["AveragePool"]),
        ("y = Gemm(r, m)", 1, ["Squeeze", "Gemm"]),
        ("a = Add(r, row)  y = Gemm<transB = 1>(m, a)", 1, ["Squeeze", "Add", "Gemm"]),
        ("a = Mul(r, half)  b = Neg(a)  y = Transpose<perm = [1, 0]>(b)", 1, ["Squeeze", "Mul", "Neg", "Transpose"]),
        ("a = Add(row, r)  y = Transpose<perm = [0, 2, 1]>(a)", 4, ["Add", "Transpose"]),
    ],
)
def test_takes_the_branch_that_fits(rest: str, size: int, wanted: list[str]) -> None:
    more = ", float[1,8,4] w3, float[3,2,1] k3, float half = {0.5}, float[1] row = {2.0}, float[3,3] m"
    run = settled(rest, size=size, more=more)
    assert (left(run), run.report.details["settled"]) == (wanted, 1)


def test_a_chain_of_branches_and_siblings_of_one_condition() -> None:
    rest = """n = Shape(r)  m = Size(n)  is = Equal(m, rank)  not = Not(is)
      f = If (not) < then_branch = ft () => (float[] fp) { fp = Unsqueeze(r, one) },
                     else_branch = fe () => (float[] fq) { fq = Identity(r) } >
      h = If (not) < then_branch = ht () => (float[] hp) { hp = Neg(x) }, else_branch = he () => (float[] hq)
        { hq = Abs(x) } >
      u = Unsqueeze(f, zero)
      , z = LSTM<hidden_size = 2>(u, w, v)
      g = Squeeze(z, zero)
      l = If (not) < then_branch = lt () => (float[] lp) { lp = Exp(g) }, else_branch = le () => (float[] lq)
        { lq = Neg(g) } >
      o = ReduceMax<keepdims = 0>(h)
      y = Add(l, o)"""
    run = settled(rest, size=1, more=", int64 rank = {2}")
    assert run.report.details["settled"] == 4
    assert not {"If", "Exp"} & set(left(run))


def test_within_a_branch_only_what_stands_there() -> None:
    """The same condition in a branch that may not run at all, and in one that needs nothing."""
    rest = """y = If (flag) <
      then_branch = o () => (float[] yo) {
        a = If (c) < then_branch = at () => (float[] ap) { ap = Squeeze(x, two) },
                     else_branch = ae () => (float[] aq) { aq = Identity(x) } >
        yo = Transpose<perm = [1, 0]>(a) },
      else_branch = i () => (float[] yi) {
        b = If (c) < then_branch = bt () => (float[] bp) { bp = Squeeze(x, two) },
                     else_branch = be () => (float[] bq) { bq = Neg(x) } >
        yi = Relu(b) } >"""
    for flag, size in ((True, 1), (False, 1), (False, 4)):
        run = settled(rest, size=size, flag=flag)
        assert run.report.details["settled"] == 1
        assert left(run).count("If") == 2 + 1  # that of r, whose nodes nothing reads, the outer one and the last


@pytest.mark.parametrize(
    ("rest", "size"),
    [
        pytest.param("y = Relu(r)", 4, id="nothing asks for anything"),
        pytest.param("n = Transpose<perm = [1, 0]>(r)  y = Relu(r)", 0, id="asked for by what no output depends on"),
        pytest.param("a = Add(r, cube)  y = Transpose<perm = [0, 2, 1]>(a)", 1, id="a constant may add the axis"),
        pytest.param("y = Transpose(r)", 4, id="takes any number of axes"),
        pytest.param("a = Squeeze(r, mixed)  y = Transpose<perm = [0]>(a)", 0, id="axes that may be one"),
        pytest.param("a = Squeeze(r)  y = Transpose<perm = [1, 0]>(a)", 0, id="as many axes as are 1"),
        pytest.param("y = MaxPool<kernel_shape = [1, 1]>(r)", 0, id="neither fits"),
        pytest.param(
            """y = If (flag) < then_branch = o () => (float[] yo) { yo = Transpose<perm = [1, 0]>(r) },
                             else_branch = i () => (float[] yi) { yi = Relu(r) } >""",
            4,
            id="asked for in a branch that may not run",
        ),
    ],
)
def test_leaves_alone(rest: str, size: int) -> None:
    more = ", float[1,1,1] cube, int64[2] mixed = {0, -1}"
    fed = {"flag": False} if "flag" in rest else {}
    assert settled(rest, size=size or 1, more=more, compare=size > 0, **fed).report.changes == 0


def test_what_is_known_of_neither_branch() -> None:
    text = """g (float[N,M] x, int64[K] shape, bool c) => (float[] y) {
      r = If (c) < then_branch = t () => (float[] p) { p = Reshape(x, shape) },
                   else_branch = e () => (float[] q) { q = Identity(x) } >
      y = Transpose<perm = [0, 2, 1]>(r) }"""
    fed = {"x": np.ones((2, 3), np.float32), "shape": np.array([1, 2, 3]), "c": np.array(True)}
    # Two axes do not fit; the other branch is taken, whatever it brings along.
    assert apply(Inline(), model(text), fed).report.details["settled"] == 1
    both = text.replace("Identity(x)", "Reshape(x, shape)")
    assert apply(Inline(), model(both), fed).report.changes == 0


@pytest.mark.parametrize(
    ("rest", "axes"),
    [
        ("u = Unsqueeze(r, zero)  , y = LSTM<hidden_size = 2>(u, w, v)", 2),
        ("u = Unsqueeze(r, zero)  , y = GRU<hidden_size = 2>(u, gw, gv)", 2),
        ("u = Unsqueeze(r, zero)  , y = RNN<hidden_size = 2>(u, rw, rv)", 2),
        ("u = Unsqueeze(r, zero)  , y = LSTM<hidden_size = 3>(first, sw, sv, , , u, state)", 2),
        ("u = Unsqueeze(r, zero)  , y = LSTM<hidden_size = 3>(first, sw, sv, , , state, u)", 2),
        ("u = Unsqueeze(r, zero)  , y = GRU<hidden_size = 3>(first, tw, tv, , , u)", 2),
        ("y = Gemm(r, m)", 2),
        ("y = Gemm<transB = 1>(m, r)", 2),
        ("y = Conv(r, k)", 3),
        ("y = ConvTranspose(r, k3)", 3),
        ("y = Transpose<perm = [1, 0]>(r)", 2),
        ("y = MaxPool<kernel_shape = [1]>(r)", 3),
        ("y = AveragePool<kernel_shape = [1]>(r)", 3),
    ],
)
def test_the_runtime_refuses_what_does_not_fit(rest: str, axes: int) -> None:
    more = """, float[3,2,1] k3, float[1,6,3] gw, float[1,6,2] gv, float[1,2,3] rw, float[1,2,2] rv, float[2,1,3] first,
      float[1,1,3] state, float[1,12,3] sw, float[1,12,3] sv, float[1,9,3] tw, float[1,9,3] tv, float[3,3] m"""
    proto = model(f"g (float[N,3,M] x) => (float[] y) {WEIGHTS}{more}> {{ {SQUEEZE} {rest} }}")
    outputs(proto, {"x": np.ones((1, 3, 1 if axes == 2 else 4), np.float32)})
    with pytest.raises(UnsupportedModelError, match="Non-zero status code returned while running"):
        outputs(proto, {"x": np.ones((1, 3, 4 if axes == 2 else 1), np.float32)})


@pytest.mark.parametrize("operator", ["Conv(r, k)", "ConvTranspose(r, k3)", *_POOLS])
def test_the_runtime_refuses_more_axes_too(operator: str) -> None:
    proto = model(f"""g (float[1,3,4] x, bool c) => (float[] y)
    <int64[1] last = {{3}}, float[4,3,1] k, float[3,2,1] k3> {{
      r = If (c) < then_branch = t () => (float[] p) {{ p = Unsqueeze(x, last) }},
                   else_branch = e () => (float[] q) {{ q = Identity(x) }} >
      y = {operator} }}""")
    fed = {"x": np.ones((1, 3, 4), np.float32)}
    outputs(proto, fed | {"c": np.array(False)})
    with pytest.raises(UnsupportedModelError, match="Non-zero status code returned while running"):
        outputs(proto, fed | {"c": np.array(True)})


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_ways_to_an_operator(data: st.DataObject) -> None:
    """Wherever the original runs, whatever the conditions are, the result gives the same."""
    lines, seen = [], ["x"]
    steps = {
        "keep": "{o} = Neg({i})",
        "add": "{o} = Add(cube, {i})",
        "squeeze": "{o} = Squeeze({i}, zero)",
        "unsqueeze": "{o} = Unsqueeze({i}, zero)",
        "transpose": "{o} = Transpose<perm = [1, 0]>({i})",
        "pool": "{o} = MaxPool<kernel_shape = [1]>({i})",
        "conv": "{o} = Conv({i}, k)",
    }
    for number in range(data.draw(st.integers(3, 7))):
        held, out = data.draw(st.sampled_from(seen[-2:])), f"t{number}"
        kind = data.draw(st.sampled_from(["if", "if", *steps]))
        if kind == "if":
            bodies = [
                steps[data.draw(st.sampled_from(["keep", "add", "squeeze", "unsqueeze"]))].format(
                    o=f"{out}{end}", i=held
                )
                for end in "pq"
            ]
            lines.append(
                f"{out} = If ({data.draw(st.sampled_from('abc'))}) < then_branch = {out}t () => (float[] {out}p) "
                f"{{ {bodies[0]} }}, else_branch = {out}e () => (float[] {out}q) {{ {bodies[1]} }} >"
            )
        else:
            lines.append(steps[kind].format(o=out, i=held))
        seen.append(out)
    lines.append(f"y = Relu({seen[-1]})")
    proto = model(f"""g (float[1,1,1] x, bool a, bool b, bool c) => (float[] y)
      <int64[1] zero = {{0}}, float[1,1] cube, float[1,1,1] k> {{ {" ".join(lines)} }}""")
    work = import_graph(proto)
    Inline().apply(work.gs, context())
    after = export_graph(work)
    for flags in itertools.product([False, True], repeat=3):
        fed = {"x": np.full((1, 1, 1), 3, np.float32)} | {k: np.array(v) for k, v in zip("abc", flags, strict=True)}
        try:
            wanted = outputs(proto, fed)
        except UnsupportedModelError:
            continue
        assert_same(wanted, outputs(after, fed))
