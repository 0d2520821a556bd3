"""Spelled-out normalizations become operators; variances computed another way and shared values stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import apply, initializer, model, ops

from graphopt.passes.fuse_normalization import FuseNormalization

CONSTANTS = """float two = {2}, float eps = {0.00001}, float one = {1}, float[1] eps_1 = {0.00001},
    int64[1] last = {-1}, float[4] s, float[4] b, float[1,1,4] s3, float[3,4] s34, float[3,4] b34"""
CORE = """m = ReduceMean<axes = [-1]>(x)  d = Sub(x, m)  q = Pow(d, two)  v = ReduceMean<axes = [-1]>(q)
    e = Add(v, eps)  r = Sqrt(e)  """
FULL = CORE + "n = Div(d, r)  f = Mul(n, s)  y = Add(f, b)"


def net(body: str, *, opset: int = 17, head: str = "(float[N,3,4] x) => (float[N,3,4] y)") -> onnx.ModelProto:
    return model(f"g {head} <{CONSTANTS}> {{ {body} }}", opset=opset)


def after(body: str, **options: Any) -> list[str]:
    return ops(apply(FuseNormalization(), net(body, **options)).after)


@pytest.mark.parametrize(
    "body",
    [
        FULL,
        FULL.replace("Pow(d, two)", "Mul(d, d)"),
        FULL.replace("Add(v, eps)", "Add(eps, v)"),
        FULL.replace("Add(v, eps)", "Add(v, eps_1)"),
        FULL.replace("Mul(n, s)", "Mul(s, n)").replace("Add(f, b)", "Add(b, f)"),
        FULL.replace("q = Pow(d, two)", "c = Sub(x, m)  q = Pow(c, two)"),
        FULL.replace("n = Div(d, r)", "i = Reciprocal(r)  n = Mul(d, i)"),
        FULL.replace("n = Div(d, r)", "i = Div(one, r)  n = Mul(i, d)"),
        FULL.replace("Mul(n, s)", "Mul(n, s3)"),
        FULL.replace("axes = [-1]", "axes = [2]"),
        FULL.replace("axes = [-1]", "axes = [1, 2]").replace(" s)", " s34)").replace(" b)", " b34)"),
        CORE + "n = Div(d, r)  y = Mul(n, s)",
        CORE + "y = Div(d, r)",
        CORE + "n = Div(d, r)  y = Add(n, b)",
    ],
)
def test_layer_normalization(body: str) -> None:
    assert after(body) == ["LayerNormalization"] or "axes = [1, 2]" in body
    assert "LayerNormalization" in after(body)
    assert "LayerNormalization" not in after(body, opset=16)


def test_axes_as_inputs() -> None:
    body = FULL.replace("ReduceMean<axes = [-1]>(x)", "ReduceMean(x, last)")
    body = body.replace("ReduceMean<axes = [-1]>(q)", "ReduceMean(q, last)")
    assert after(body, opset=18) == ["LayerNormalization"]


def test_parameters_are_kept() -> None:
    run = apply(FuseNormalization(), net(FULL))
    (node,) = run.after.graph.node
    assert list(node.input) == ["x", "s", "b"]
    assert {each.name: pytest.approx(onnx.helper.get_attribute_value(each)) for each in node.attribute} == {
        "axis": 2,
        "epsilon": 1e-5,
    }


def test_large_means() -> None:
    fed = {"x": (np.random.default_rng(0).normal(size=(2, 3, 4)) + 50).astype(np.float32)}
    apply(FuseNormalization(), net(FULL), fed, rtol=1e-4)


CHANNELS = """g (float[N,3,5,7] x) => (float[N,3,5,7] y)
  <float two = {2}, float eps = {0.00001}, float[3,1,1] s, float[1,3,1,1] b> {
  m = ReduceMean<axes = [2, 3]>(x)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean<axes = [-2, -1]>(q)
  e = Add(v, eps)  r = Sqrt(e)  n = Div(d, r)  END }"""


@pytest.mark.parametrize("end", ["f = Mul(n, s)  y = Add(f, b)", "y = Mul(n, s)", "y = Add(n, b)", "y = Identity(n)"])
@pytest.mark.parametrize("opset", [11, 17])
def test_instance_normalization(end: str, opset: int) -> None:
    run = apply(FuseNormalization(), model(CHANNELS.replace("END", end), opset=opset))
    assert [op for op in ops(run.after) if op != "Identity"] == ["InstanceNormalization"]
    scale = initializer(run.after, run.after.graph.node[0].input[1])
    assert scale.shape == (3,)


RMS = "q = Pow(x, two)  v = ReduceMean(q, last)  e = Add(v, eps)  r = Sqrt(e)  "


@pytest.mark.parametrize("end", ["n = Div(x, r)  y = Mul(n, s)", "i = Reciprocal(r)  n = Mul(x, i)  y = Mul(s, n)"])
def test_rms_normalization(end: str) -> None:
    assert after(RMS + end, opset=23) == ["RMSNormalization"]
    assert "RMSNormalization" not in after(RMS + end, opset=22)


def test_a_bias_behind_rms_normalization_stays() -> None:
    assert after(RMS + "n = Div(x, r)  f = Mul(n, s)  y = Add(f, b)", opset=23) == ["RMSNormalization", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(FULL.replace("Mul(n, s)", "Mul(n, m)"), id="mean read elsewhere"),
        pytest.param(FULL.replace("Sub(x, m)", "Sub(m, x)"), id="mean minus x"),
        pytest.param(FULL.replace("Pow(d, two)", "Pow(x, two)"), id="another variance"),
        pytest.param(FULL.replace("Pow(d, two)", "Mul(d, x)"), id="no square"),
        pytest.param(FULL.replace("Div(d, r)", "Div(r, d)"), id="upside down"),
        pytest.param(FULL.replace("ReduceMean<axes = [-1]>(q)", "ReduceMean<axes = [1]>(q)"), id="different axes"),
        pytest.param(FULL.replace("axes = [-1]", "axes = [1]"), id="not the last axis"),
        pytest.param(FULL.replace("axes = [-1]", "axes = [0, 2]"), id="axes apart"),
        pytest.param(FULL.replace("Sqrt(e)", "Exp(e)"), id="no root"),
    ],
)
def test_left_alone(body: str) -> None:
    assert apply(FuseNormalization(), net(body)).report.changes == 0


@pytest.mark.parametrize("name", ["m", "d", "r"])
def test_a_value_in_between_that_is_an_output_stays(name: str) -> None:
    shape = "N,3,4" if name == "d" else "N,3,1"
    proto = net(FULL, head=f"(float[N,3,4] x) => (float[N,3,4] y, float[{shape}] {name})")
    assert apply(FuseNormalization(), proto).report.changes == 0


def test_a_result_that_is_an_output_ends_the_match() -> None:
    head = "(float[N,3,4] x) => (float[N,3,4] y, float[N,3,4] n)"
    assert after(FULL, head=head) == ["LayerNormalization", "Mul", "Add"]


def test_unknown_sizes_and_other_dtypes() -> None:
    open_size = FULL.replace("Mul(n, s)", "Mul(n, one)").replace("Add(f, b)", "Add(f, one)")
    head = "(float[N,3,K] x) => (float[N,3,K] y)"
    assert apply(FuseNormalization(), net(open_size, head=head)).report.changes == 0
    text = f"g (double[N,3,4] x) => (double[N,3,4] y) <{CONSTANTS}> {{ {FULL} }}".replace("float", "double")
    assert apply(FuseNormalization(), model(text)).report.changes == 0


def test_ones_for_a_bare_normalization_must_not_outweigh_it() -> None:
    head = "(float[N,3,250] x) => (float[N,3,250] y)"
    assert apply(FuseNormalization(), net(CORE + "y = Div(d, r)", head=head)).report.changes == 0
    twice = CORE + "a = Div(d, r)  " + " ".join(
        f"m{i} = ReduceMean<axes = [-1]>(a{i})  d{i} = Sub(a{i}, m{i})  q{i} = Mul(d{i}, d{i})  "
        f"v{i} = ReduceMean<axes = [-1]>(q{i})  e{i} = Add(v{i}, eps)  r{i} = Sqrt(e{i})  a{i + 1} = Div(d{i}, r{i})"
        for i in range(20)
    ).replace("a0", "a") + "  y = Identity(a20)"  # fmt: skip
    run = apply(FuseNormalization(), net(twice, head=head), rtol=1e-3)
    assert ops(run.after) == ["LayerNormalization"] * 21 + ["Identity"]
    assert run.after.ByteSize() <= run.before.ByteSize()


def test_in_subgraphs() -> None:
    text = f"""g (float[N,3,4] x, bool go) => (float[N,3,4] y) <{CONSTANTS}> {{
      y = If (go) <then_branch = t () => (float[N,3,4] p) {{ {FULL.replace("y =", "p =")} }},
        else_branch = k () => (float[N,3,4] o) {{ o = Identity(x) }}> }}"""
    run = apply(FuseNormalization(), model(text))
    assert [node.op_type for node in run.after.graph.node[0].attribute[0].g.node] == ["LayerNormalization"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_spellings(data: st.DataObject) -> None:
    """Several normalizations in a row, each in a spelling of its own, some values given out."""
    lines, names = [], ["x"]
    for i in range(data.draw(st.integers(1, 3), label="normalizations")):
        x = names[-1]
        axes = data.draw(st.sampled_from(["-1", "1, 2", "2", "1"]), label="axes")
        lines.append(f"m{i} = ReduceMean<axes = [{axes}]>({x})  d{i} = Sub({x}, m{i})")
        square = data.draw(st.sampled_from([f"Pow(d{i}, two)", f"Mul(d{i}, d{i})"]))
        lines.append(
            f"q{i} = {square}  v{i} = ReduceMean<axes = [{axes}]>(q{i})  e{i} = Add(v{i}, eps)  r{i} = Sqrt(e{i})"
        )
        lines.append(f"n{i} = Div(d{i}, r{i})")
        last = f"n{i}"
        for op in ("Mul", "Add"):
            if data.draw(st.booleans(), label=op):
                other = data.draw(st.sampled_from(["s", "b", "s3", "s34", "one", x]), label="operand")
                lines.append(f"{op}{last} = {op}({last}, {other})")
                last = f"{op}{last}"
        names.append(last)
    shown = dict.fromkeys([names[-1], data.draw(st.sampled_from(["d0", "n0", names[1]]), label="output")])
    head = f"(float[2,3,4] x) => ({', '.join(f'float[2,3,4] {name}' for name in shown)})"
    apply(FuseNormalization(), net("  ".join(lines), head=head), rtol=1e-3)
