"""Products of two matrices become Gemm with bias and transposes inside; all others stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import apply, initializer, model, ops

from graphopt.passes.fuse_gemm import FuseGemm

WEIGHTS = """float[4,3] w, float[3,4] v, float[3] b, float[1,3] row, float[2,1] column, float[2,3] full,
    float scalar, float[1] one, float[1,1,3] wide"""


def net(
    body: str, *, head: str = "(float[N,4] x) => (float[N,3] y)", opset: int = 17, more: str = ""
) -> onnx.ModelProto:
    return model(f"g {head} <{WEIGHTS}> {{ {body} }}", opset=opset)


def after(body: str, **options: Any) -> list[str]:
    return ops(apply(FuseGemm(), net(body, **options)).after)


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(x, w)  y = Add(m, b)",
        "m = MatMul(x, w)  y = Add(row, m)",
        "m = MatMul(x, w)  y = Add(m, scalar)",
        "m = MatMul(x, w)  a = Add(m, b)  y = Add(a, row)",
        "k = Constant<value = float[3] {1, 2, 3}>()  m = MatMul(x, w)  y = Add(m, k)",
        "m = Gemm(x, w)  y = Add(m, b)",
        "m = Gemm(x, w, b)  y = Add(m, one)",
        "m = Gemm<alpha = 0.5, beta = 2.0>(x, w, b)  y = Add(m, row)",
        "m = Gemm<transB = 1>(x, v)  y = Add(m, b)",
        "m = Gemm<alpha = 0.5, beta = 0.0>(x, w, b)  y = Add(m, row)",
    ],
)
def test_bias(body: str) -> None:
    assert [op for op in after(body) if op != "Constant"] == ["Gemm"]


@pytest.mark.parametrize("bias", ["full", "column"])
def test_bias_by_row(bias: str) -> None:
    head = "(float[2,4] x) => (float[2,3] y)"
    assert after(f"m = MatMul(x, w)  y = Add(m, {bias})", head=head) == ["Gemm"]
    # With an open number of rows, one row may be meant, which the bias would widen.
    body = f"m = MatMul(x, w)  y = Add(m, {bias})"
    proto = net(body, head="(float[N,4] x) => (float[M,3] y)")
    assert apply(FuseGemm(), proto, {"x": np.ones((1, 4), np.float32)}).report.changes == 0


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("t = Transpose(x)  y = MatMul(t, w)", "(float[4,N] x) => (float[N,3] y)"),
        ("t = Transpose<perm = [1, 0]>(x)  y = Gemm(t, w, b)", "(float[4,N] x) => (float[N,3] y)"),
        ("t = Transpose<perm = [1, 0]>(x)  y = Gemm<transA = 1>(t, w, b)", "(float[N,4] x) => (float[N,3] y)"),
        ("t = Transpose(z)  m = MatMul(x, t)  y = Add(m, b)", "(float[N,4] x, float[3,4] z) => (float[N,3] y)"),
        ("t = Transpose(x)  y = MatMul(t, t)", "(float[4,4] x) => (float[4,4] y)"),
    ],
)
def test_transposes(body: str, head: str) -> None:
    assert after(body, head=head) == ["Gemm"]


def test_transpose_of_several_products() -> None:
    body = "t = Transpose(x)  a = MatMul(t, w)  c = Gemm(t, w, b)  y = Sub(a, c)"
    assert sorted(after(body, head="(float[4,N] x) => (float[N,3] y)")) == ["Gemm", "Gemm", "Sub"]


def test_factors_go_into_constants() -> None:
    run = apply(FuseGemm(), net("y = Gemm<alpha = 0.5, beta = 3.0>(x, w, b)"))
    assert not run.after.graph.node[0].attribute
    weights, bias = (initializer(run.after, name) for name in run.after.graph.node[0].input[1:])
    np.testing.assert_allclose(weights, 0.5 * initializer(run.before, "w"))
    np.testing.assert_allclose(bias, 3 * initializer(run.before, "b"), rtol=1e-6)
    assert not apply(FuseGemm(), net("y = Gemm<beta = 3.0>(x, w)")).after.graph.node[0].attribute


def test_weights_that_others_read_are_not_copied() -> None:
    body = "a = Gemm<alpha = 0.5>(x, w, b)  c = MatMul(x, w)  y = Sub(a, c)"
    assert apply(FuseGemm(), net(body)).report.changes == 0


@pytest.mark.parametrize(
    ("body", "head"),
    [
        pytest.param("m = MatMul(x, w)  y = Add(m, b)", "(float[N,2,4] x) => (float[N,2,3] y)", id="rank 3"),
        pytest.param("m = MatMul(x, w)  y = Add(m, b)", "(float[4] x) => (float[3] y)", id="rank 1"),
        pytest.param("m = MatMul(x, w)  y = Add(m, wide)", "(float[N,4] x) => (float[1,N,3] y)", id="bias of rank 3"),
        pytest.param("m = MatMul(x, z)  y = Add(m, b)", "(float[N,4] x, float[4,1] z) => (float[N,3] y)", id="widened"),
        pytest.param("m = MatMul(x, w)  y = Add(m, m)", "(float[N,4] x) => (float[N,3] y)", id="added to itself"),
        pytest.param("m = MatMul(x, w)  y = Add(m, z)", "(float[N,4] x, float[3] z) => (float[N,3] y)", id="computed"),
        pytest.param("m = MatMul(x, w)  y = Add(m, b)", "(float[N,4] x) => (float[N,3] y, float[N,3] m)", id="output"),
        pytest.param("m = MatMul(x, w)  a = Add(m, b)  c = Exp(m)  y = Add(a, c)", "(float[N,4] x) => (float[N,3] y)",
                     id="other reader"),
        pytest.param("t = Transpose(x)  m = MatMul(t, w)  y = Exp(t)", "(float[4,N] x) => (float[N,4] y)", id="kept"),
        pytest.param("t = Transpose(x)  y = MatMul(t, w)", "(float[4,N] x) => (float[N,3] y, float[N,4] t)", id="o"),
        pytest.param("t = Transpose<perm = [0, 2, 1]>(x)  y = MatMul(t, w)", "(float[2,4,5] x) => (float[2,5,3] y)",
                     id="transpose of rank 3"),
        pytest.param("t = Transpose<perm = [0, 1]>(x)  y = MatMul(t, w)", "(float[N,4] x) => (float[N,3] y)",
                     id="axes in order"),
    ],
)  # fmt: skip
def test_left_alone(body: str, head: str) -> None:
    assert apply(FuseGemm(), net(body, head=head)).report.changes == 0


def test_matrix_products_of_old_operator_sets_need_a_bias() -> None:
    head = "(float[4,N] x) => (float[N,3] y)"
    assert apply(FuseGemm(), net("t = Transpose(x)  y = MatMul(t, w)", head=head, opset=10)).report.changes == 0
    assert after("t = Transpose(x)  m = MatMul(t, w)  y = Add(m, b)", head=head, opset=10) == ["Gemm"]


def test_integers_stay() -> None:
    text = "g (int32[N,4] x) => (int32[N,3] y) <int32[4,3] w, int32[3] b> { m = MatMul(x, w)  y = Add(m, b) }"
    assert apply(FuseGemm(), model(text)).report.changes == 0


def test_in_subgraphs() -> None:
    text = f"""g (float[N,4] x, bool go) => (float[N,3] y) <{WEIGHTS}> {{
      m = MatMul(x, w)
      y = If (go) <then_branch = t () => (float[N,3] p) {{ i = MatMul(x, w)  p = Add(i, b) }},
        else_branch = e () => (float[N,3] q) {{ q = Add(m, b) }}> }}"""
    run = apply(FuseGemm(), model(text))
    assert ops(run.after) == ["MatMul", "If"]
    assert [node.op_type for node in run.after.graph.node[1].attribute[0].g.node] == ["Gemm"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_products(data: st.DataObject) -> None:
    names, lines = ["x"], []
    for step in range(data.draw(st.integers(2, 8), label="nodes")):
        source = data.draw(st.sampled_from(names[-3:]), label="source")
        op = data.draw(st.sampled_from(["Transpose({})", "MatMul({}, s)", "MatMul(s, {})", "Add({}, b)", "Add(row, {})",
            "Gemm({}, s, b)", "Gemm<transA = 1, alpha = 0.5>({}, s)", "Gemm<transB = 1, beta = 2.0>({}, s, row)",
            "Tanh({})", "MatMul({0}, {0})", "Gemm(s, {}, full)"]))  # fmt: skip
        lines.append(f"t{step} = {op.format(source)}")
        names.append(f"t{step}")
    shown = dict.fromkeys([names[-1], data.draw(st.sampled_from(names[1:]), label="output")])
    head = f"(float[3,3] x) => ({', '.join(f'float[3,3] {name}' for name in shown)})"
    text = f"g {head} <float[3,3] s, float[3] b, float[1,3] row, float[3,3] full> {{ {'  '.join(lines)} }}"
    apply(FuseGemm(), model(text), rtol=1e-4)
