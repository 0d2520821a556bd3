"""fold_batchnorm: what it leaves alone and why; then every form that it folds, against ONNX Runtime unoptimized."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from support import Run, apply, feeds, initializer, model, ops

from graphopt.passes.fold_batchnorm import FoldBatchNorm

CONV_BN = """g (float[N,4,8,8] x) => (float[N,6,6,6] y)
  <float[6,4,3,3] w, float[6] scale, float[6] shift, float[6] mean, float[6] var>
  { c = Conv(x, w)  [bn] y = BatchNormalization(c, scale, shift, mean, var) }"""
BN_CONV = """g (float[N,4,8,8] x) => (float[N,6,H,W] y)
  <float[6,4,3,3] w, float[6] b, float[4] scale, float[4] shift, float[4] mean, float[4] var>
  { [bn] n = BatchNormalization(x, scale, shift, mean, var)  y = Conv(n, w, b) }"""
BN = "[bn] y = BatchNormalization(x, scale, shift, mean, var)"
PARAMETERS = "float[4] scale, float[4] shift, float[4] mean, float[4] var"


def folded(text: str, *, rtol: float = 2e-5, **options: Any) -> Run:
    return apply(FoldBatchNorm(), model(text, **options), rtol=rtol)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            CONV_BN.replace("6,6,6] y)", "6,6,6] y, float[N,6,6,6] c)"),
            "the output of Conv 'c' is a graph output",
            id="graph output",
        ),
        pytest.param(
            CONV_BN.replace("6,6,6] y)", "6,6,6] y, float[N,6,6,6] r)").replace("}", "r = Relu(c) }"),
            "the output of Conv 'c' has other readers",
            id="second reader",
        ),
        pytest.param(
            """g (bool b, float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] w, float[4] scale, float[4] shift,
            float[4] mean, float[4] var> { c = Conv(x, w)  y = If (b) <
              then_branch = t () => (float[1,4,8,8] p) { p = BatchNormalization(c, scale, shift, mean, var) },
              else_branch = e () => (float[1,4,8,8] q) { q = Relu(x) }> }""",
            "the output of Conv 'c' has other readers",
            id="read by a subgraph",
        ),
        pytest.param(
            CONV_BN.replace("x)", "x, float[6,4,3,3] k)", 1).replace("Conv(x, w)", "Conv(x, k)"),
            "the weights of Conv 'c' are a graph input",
            id="weights are an input",
        ),
        pytest.param(
            CONV_BN.replace("c = Conv(x, w)", "k = Exp(w)  c = Conv(x, k)"),
            "the weights of Conv 'c' are computed",
            id="weights are computed",
        ),
        pytest.param(
            CONV_BN.replace("x)", "x, float[6] b)", 1).replace("Conv(x, w)", "Conv(x, w, b)"),
            "the bias of Conv 'c' is a graph input",
            id="bias is an input",
        ),
        pytest.param(
            CONV_BN.replace("x)", "x, float[6] s)", 1).replace("(c, scale", "(c, s"),
            "its scale is a graph input",
            id="scale is an input",
        ),
        pytest.param(
            CONV_BN.replace("x)", "x, float[6] m)", 1).replace("shift, mean", "shift, m"),
            "its mean is a graph input",
            id="mean is an input",
        ),
        pytest.param(
            CONV_BN.replace("[bn]", "v = Exp(var) [bn]").replace("mean, var)", "mean, v)"),
            "its variance is computed",
            id="variance is computed",
        ),
        pytest.param(
            BN_CONV.replace("Conv(n, w, b)", "Conv<pads = [1, 1, 1, 1]>(n, w, b)"),
            "Conv 'y' reads it and pads with zeros, which must not be shifted",
            id="before a padded conv",
        ),
        pytest.param(
            BN_CONV.replace("Conv(n, w, b)", 'Conv<auto_pad = "SAME_UPPER">(n, w, b)'),
            "Conv 'y' reads it and pads with zeros, which must not be shifted",
            id="before a conv that pads by itself",
        ),
        pytest.param(
            BN_CONV.replace("[6,4,3,3] w", "[4,6,3,3] w").replace("Conv(", "ConvTranspose("),
            "ConvTranspose 'y' reads it, whose outputs see different parts of the kernel, and it shifts its input",
            id="before a transposed conv",
        ),
        pytest.param(
            f"""g (float[4,4] x) => (float[4,4] y) <float[4,4] w, {PARAMETERS}>
            {{ [bn] n = BatchNormalization(x, scale, shift, mean, var)  y = Gemm<transA = 1>(n, w) }}""",
            "Gemm 'y' reads its input transposed, or broadcasts as it did before opset 7",
            id="before a transposed Gemm",
        ),
        pytest.param(
            f"""g (float[N,4,5] x) => (float[N,4,4] y) <float[5,4] w, {PARAMETERS}> {{
            m = MatMul(x, w)  [bn] y = BatchNormalization(m, scale, shift, mean, var) }}""",
            "it does not run along the outputs of MatMul 'm'",
            id="along another axis than the outputs",
        ),
        pytest.param(
            f"""g (float[3,5] x) => (float[3,4] y) <float[5,4] w, float[3,1] b, {PARAMETERS}> {{
            m = Gemm(x, w, b)  [bn] y = BatchNormalization(m, scale, shift, mean, var) }}""",
            "the bias of Gemm 'm' differs from row to row",
            id="bias of each row",
        ),
        pytest.param(
            f"g (float[N,4,5] x) => (float[N,4,5] y) <{PARAMETERS}> {{ {BN} }}",
            "stands alone, where one BatchNormalization is the cheapest form there is",
            id="alone",
        ),
    ],
)  # fmt: skip
def test_leaves_alone(text: str, reason: str) -> None:
    run = folded(text)
    assert run.report.changes == 0
    assert run.reasons == [reason]


def test_leaves_training_mode_alone() -> None:
    text = CONV_BN.replace("y)\n", "y, float[6] rm, float[6] rv)\n").replace("[bn] y =", "[bn] y, rm, rv =")
    text = text.replace("BatchNormalization(", "BatchNormalization<training_mode = 1>(")
    run = folded(text)
    assert (run.report.changes, run.reasons) == (0, ["it is in training mode"])


@pytest.mark.parametrize("opset", [9, 13])
def test_leaves_older_opsets_alone_where_outputs_turn_training_on(opset: int) -> None:
    # ONNX Runtime then normalizes by the batch, although nothing reads the statistics.
    run = folded(CONV_BN.replace("[bn] y =", "[bn] y, rm, rv, sm, sv ="), opset=opset)
    assert (run.report.changes, run.reasons) == (0, ["its statistics outputs put it in training mode"])


def test_leaves_statistics_of_each_element_alone() -> None:
    text = CONV_BN.replace("BatchNormalization(", "BatchNormalization<spatial = 0>(")
    run = apply(FoldBatchNorm(), model(text, opset=7), compare=False)
    assert run.reasons == ["it normalizes each element by its own statistics (spatial=0)"]


def test_leaves_parameters_alone_that_give_no_finite_factors() -> None:
    run = apply(FoldBatchNorm(), model(CONV_BN, var=-np.ones(6)), compare=False)
    assert (run.report.changes, run.reasons) == (0, ["its parameters give infinite or undefined factors"])


def test_leaves_other_domains_alone() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>' + CONV_BN.replace("Batch", "custom.Batch")
    run = apply(FoldBatchNorm(), model(text), compare=False)
    assert (run.report.changes, run.reasons) == (0, [])


def test_leaves_weights_alone_that_would_overflow() -> None:
    proto = model(CONV_BN.replace("float[", "float16["), scale=np.full(6, 6e4), var=np.full(6, 1e-4))
    run = apply(FoldBatchNorm(), proto, compare=False)
    assert run.reasons == ["the folded parameters of Conv 'c' do not fit float16"]


POINTWISE = "g (float[N,{c},6,6] x) => (float{out} y) <float[{m},4,1,1] w, float{k} k> {{ {body} }}"
AFTER_CONV = "c = Conv(x, w)  y = Mul(c, k)"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("g (float[N,4] x) => (float[N,4] y) { a = Relu(x)  y = Mul(a, x) }", id="no constant"),
        pytest.param(
            POINTWISE.format(c=4, m=4, k="[4,1,6]", out="[N,4,6,6]", body=AFTER_CONV), id="varies along two axes"
        ),
        pytest.param(
            """g (float[2,3,4] x) => (float[2,3,4] y) <float[2,4,4] w, float[4] k> {
              m = MatMul(x, w)  y = Mul(m, k) }""",
            id="weights that differ over the batch",
        ),
        pytest.param(
            POINTWISE.format(c=4, m=4, k="[6]", out="[N,4,6,6]", body=AFTER_CONV), id="varies along the width"
        ),
        pytest.param(
            POINTWISE.format(c=4, m=4, k="[2,1,1,1]", out="[2,4,6,6]", body=AFTER_CONV).replace("[N,", "[1,", 1),
            id="widens the batch",
        ),
        pytest.param(
            POINTWISE.format(c=4, m=1, k="[5,1,1,1,1]", out="[A,B,C,D,E]", body=AFTER_CONV), id="adds an axis"
        ),
        pytest.param(
            POINTWISE.format(c=4, m=4, k="[1,1,1,1,1]", out="[A,B,C,D,E]", body=AFTER_CONV), id="a number with an axis"
        ),
        pytest.param(
            "g (float[N,1,6] x) => (float[N,4,6] y) <float[4,1] k = {1, 1, 1, 1}> { r = Relu(x)  y = Mul(r, k) }",
            id="ones that widen the channels",
        ),
        pytest.param(
            "g (float[N,1,6] x) => (float[N,4,6] y) <float[4,1] k = {1, 1, 1, 1}> { m = Mul(x, k)  y = Relu(m) }",
            id="ones that widen the channels in between",
        ),
        pytest.param(
            POINTWISE.format(c=4, m=1, k="[5,1,1]", out="[N,5,6,6]", body=AFTER_CONV), id="widens the channels"
        ),
        pytest.param(
            POINTWISE.format(c=1, m=2, k="[4,1,1]", out="[N,2,6,6]", body="c = Mul(x, k)  y = Conv(c, w)"),
            id="widens the channels before a conv",
        ),
        pytest.param(
            POINTWISE.format(c=4, m=4, k="[1]", out="[N,4,6,6]", body="c = Conv(x, w)  y = Div(k, c)"),
            id="constant over x",
        ),
        pytest.param(
            "g (float[N,3,4] x) => (float[N,3,5] y) <float[4,5] w, float[5] k> { m = MatMul(x, w)  y = Add(m, k) }",
            id="bias of a MatMul of rank 3",
        ),
        pytest.param(
            "g (float[N,4] x) => (float[N,4] y) <float[4] k> { a = Relu(x)  y = Mul(a, k) }", id="no neighbour"
        ),
        pytest.param("g (int64[N,4] x) => (int64[N,4] y) <int64[4] k> { a = Abs(x)  y = Mul(a, k) }", id="integers"),
    ],
)  # fmt: skip
def test_leaves_other_arithmetic_alone(text: str) -> None:
    assert folded(text).report.changes == 0


AFTER = {
    "conv": ("float[N,4,8,8] x", "float[6,4,3,3] w", "Conv(x, w)"),
    "conv with bias": ("float[N,4,8,8] x", "float[6,4,3,3] w, float[6] b", "Conv<pads = [1, 1, 1, 1]>(x, w, b)"),
    "grouped": ("float[N,4,8,8] x", "float[6,2,3,3] w", "Conv<group = 2, strides = [2, 2]>(x, w)"),
    "depthwise": ("float[N,6,8,8] x", "float[6,1,3,3] w", "Conv<group = 6>(x, w)"),
    "one axis": ("float[N,4,9] x", "float[6,4,3] w", "Conv(x, w)"),
    "three axes": ("float[N,4,5,5,5] x", "float[6,4,3,3,3] w", "Conv(x, w)"),
    "transposed": ("float[N,4,5,5] x", "float[4,6,3,3] w", "ConvTranspose<strides = [2, 2]>(x, w)"),
    "transposed with bias": ("float[N,4,5,5] x", "float[4,6,3,3] w, float[6] b", "ConvTranspose(x, w, b)"),
    "transposed in groups": ("float[N,4,5,5] x", "float[4,3,3,3] w", "ConvTranspose<group = 2, pads = [1,1,0,0]>(x,w)"),
    "gemm": ("float[N,4] x", "float[4,6] w, float[6] b", "Gemm(x, w, b)"),
    "gemm without bias": ("float[N,4] x", "float[4,6] w", "Gemm(x, w)"),
    "gemm with factors": ("float[N,4] x", "float[4,6] w, float[1,6] b", "Gemm<alpha = 0.5, beta = -2.0>(x, w, b)"),
    "gemm transposed": ("float[N,4] x", "float[6,4] w, float b", "Gemm<transB = 1, beta = 3.0>(x, w, b)"),
    "matmul": ("float[N,4] x", "float[4,6] w", "MatMul(x, w)"),
}  # fmt: skip
VECTORS = "float[6] scale, float[6] shift, float[6] mean, float[6] var"


@pytest.mark.parametrize("form", AFTER)
@pytest.mark.parametrize("opset", [13, 17])
def test_batchnorm_after(form: str, opset: int) -> None:
    given, weights, call = AFTER[form]
    text = f"""g ({given}) => (float[N,6{",?" * (given.count(",") - 1)}] y) <{weights}, {VECTORS}>
      {{ c = {call}  y = BatchNormalization<epsilon = 0.01>(c, scale, shift, mean, var) }}"""
    text = text.replace(",?", ",K")
    run = folded(text, opset=opset)
    assert ops(run.after) == [call.split("<")[0].split("(")[0].replace("MatMul", "Gemm")]
    assert run.report.details["folded_into_producer"] == 1
    assert run.skipped == ()


@pytest.mark.parametrize("form", AFTER)
@pytest.mark.parametrize(
    "chain",
    [
        pytest.param("y = Mul(c, factor)", id="scale"),
        pytest.param("y = Add(offset, c)", id="shift"),
        pytest.param("y = Sub(c, offset)", id="minus"),
        pytest.param("y = Sub(offset, c)", id="minus from"),
        pytest.param("y = Div(c, factor)", id="over"),
        pytest.param("y = Mul(c, number)", id="by a number"),
        pytest.param("t = Mul(c, factor)  u = Add(t, offset)  v = Div(u, number)  y = Sub(v, number)", id="chain"),
    ],
)
def test_arithmetic_after(form: str, chain: str) -> None:
    given, weights, call = AFTER[form]
    spread = ",1" * (given.count(",") - 1)
    text = f"""g ({given}) => (float[N,6{",K" * (given.count(",") - 1)}] y)
      <{weights}, float[6{spread}] factor, float[6{spread}] offset, float number> {{ c = {call}  {chain} }}"""
    run = folded(text)
    assert len(ops(run.after)) == 1


BEFORE = {
    "conv": ("[N,4,8,8]", "float[6,4,3,3] w", "Conv(n, w)"),
    "conv with bias": ("[N,4,8,8]", "float[6,4,3,3] w, float[6] b", "Conv<dilations = [2, 2]>(n, w, b)"),
    "pointwise that calls its padding same": ("[N,4,8,8]", "float[6,4,1,1] w", 'Conv<auto_pad = "SAME_UPPER">(n, w)'),
    "valid": ("[N,4,8,8]", "float[6,4,3,3] w", 'Conv<auto_pad = "VALID">(n, w)'),
    "grouped": ("[N,4,8,8]", "float[6,2,3,3] w", "Conv<group = 2>(n, w)"),
    "depthwise": ("[N,4,8,8]", "float[8,1,3,3] w", "Conv<group = 4>(n, w)"),
    "gemm": ("[N,4]", "float[4,6] w, float[6] b", "Gemm<alpha = 0.5, beta = 2.0>(n, w, b)"),
    "gemm transposed": ("[N,4]", "float[6,4] w", "Gemm<transB = 1, alpha = 3.0>(n, w)"),
    "matmul": ("[N,4]", "float[4,6] w", "MatMul(n, w)"),
}  # fmt: skip


@pytest.mark.parametrize("form", BEFORE)
def test_batchnorm_before(form: str) -> None:
    shape, weights, call = BEFORE[form]
    text = f"""g (float{shape} x) => (float[N,M{",K" * (shape.count(",") - 1)}] y) <{weights}, {PARAMETERS}>
      {{ n = BatchNormalization(x, scale, shift, mean, var)  y = {call} }}"""
    run = folded(text)
    assert ops(run.after) == [call.split("<")[0].split("(")[0].replace("MatMul", "Gemm")]
    assert run.report.details["folded_into_consumer"] == 1


@pytest.mark.parametrize("call", ["Conv<pads = [1, 1, 1, 1]>(n, w)", "ConvTranspose(n, w)"])
def test_a_scale_without_a_shift_goes_before_a_conv_that_pads(call: str) -> None:
    run = folded(f"""g (float[N,4,8,8] x) => (float[N,4,H,W] y) <float[4,4,3,3] w, float[4,1,1] k>
      {{ n = Mul(x, k)  y = {call} }}""")
    assert len(ops(run.after)) == 1


def test_a_shift_along_the_last_axis_goes_before_a_matmul_of_rank_3() -> None:
    run = folded("""g (float[N,3,4] x) => (float[N,3,5] y) <float[4,5] w, float[4] k, float[4] b>
      { s = Mul(x, k)  t = Add(s, b)  y = MatMul(t, w) }""")
    assert ops(run.after) == ["MatMul", "Add"]


def test_a_chain_after_a_matmul_of_rank_3_leaves_one_add() -> None:
    run = folded("""g (float[N,3,4] x) => (float[N,3,5] y) <float[4,5] w, float[5] k, float[5] b>
      { m = MatMul(x, w)  s = Mul(m, k)  y = Add(s, b) }""")
    assert ops(run.after) == ["MatMul", "Add"]


def test_caffe2_chains_merge_into_the_conv() -> None:
    run = folded(CONV_BN.replace("[6] var>", "[6] var, float[6,1,1] k, float[6,1,1] b>").replace("[bn] y =", "n =")
      .replace("}", "s = Mul(n, k)  y = Add(s, b) }"))  # fmt: skip
    assert ops(run.after) == ["Conv"]
    assert run.report.changes == 3


def test_caffe2_chains_without_a_conv_merge_into_the_batchnorm() -> None:
    run = folded(f"""g (float[N,4,5,5] x) => (float[N,4,5,5] y) <{PARAMETERS}, float[4,1,1] k, float[1,4,1,1] b>
      {{ r = Relu(x)  n = BatchNormalization(r, scale, shift, mean, var)  s = Mul(n, k)  y = Add(s, b) }}""")
    assert ops(run.after) == ["Relu", "BatchNormalization"]


def test_scale_and_shift_along_the_channels_become_one_batchnorm() -> None:
    run = folded("""g (float[N,4,5,5] x) => (float[N,4,5,5] y) <float[4,1,1] k, float[4,1,1] b>
      { r = Relu(x)  s = Mul(r, k)  y = Add(s, b) }""")
    assert ops(run.after) == ["Relu", "BatchNormalization"]


def test_scales_in_a_row_become_one() -> None:
    run = folded("""g (float[N,4] x) => (float[N,4] y) <float[4] a, float b, float[4] c>
      { r = Relu(x)  s = Mul(r, a)  t = Div(s, b)  y = Mul(c, t) }""")
    assert ops(run.after) == ["Relu", "Mul"]


def test_a_batchnorm_that_changes_nothing_goes() -> None:
    run = apply(
        FoldBatchNorm(),
        model(
            f"g (float[N,4,5] x) => (float[N,4,5] y) <{PARAMETERS}> {{ n = BatchNormalization<epsilon = 0.0>"
            "(x, scale, shift, mean, var) y = Relu(n) }",
            scale=np.ones(4), shift=np.zeros(4), mean=np.zeros(4), var=np.ones(4),
        ),
    )  # fmt: skip
    assert ops(run.after) == ["Relu"]


def test_shared_weights_get_a_copy_for_each_reader() -> None:
    run = folded("""g (float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z)
      <float[4,4,1,1] w, float[4] scale, float[4] shift, float[4] mean, float[4] var, float[4] var2>
      { a = Conv(x, w)  b = BatchNormalization(a, scale, shift, mean, var)
        y = Relu(b)  c = Conv(y, w)  z = BatchNormalization(c, shift, scale, mean, var2) }""")
    assert ops(run.after) == ["Conv", "Relu", "Conv"]
    assert len({node.input[1] for node in run.after.graph.node if node.op_type == "Conv"}) == 2
    # One more copy of the weights and two biases, less five vectors.
    assert run.report.details["growth_bytes"] == 4 * (16 + 2 * 4 - 5 * 4)


def test_a_weight_that_another_node_reads_stays_for_it() -> None:
    run = folded(CONV_BN.replace("y)\n", "y, float[6,4,3,3] k)\n").replace("}", "k = Exp(w) }"))
    np.testing.assert_array_equal(initializer(run.after, "w"), initializer(run.before, "w"))


def test_a_conv_in_a_subgraph_is_folded_too() -> None:
    proto = model(f"""g (bool b, float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] w, {PARAMETERS}> {{
        y = If (b) <then_branch = t () => (float[1,4,8,8] p)
          {{ c = Conv(x, w)  p = BatchNormalization(c, scale, shift, mean, var) }},
        else_branch = e () => (float[1,4,8,8] q) {{ q = Relu(x) }}> }}""")
    for flag in (True, False):
        run = apply(FoldBatchNorm(), proto, feeds(proto) | {"b": np.array(flag)})
        branch = next(each.g for each in run.after.graph.node[0].attribute if each.name == "then_branch")
        assert [node.op_type for node in branch.node] == ["Conv"]


def test_branches_that_share_names_are_folded_each_by_its_own_weights() -> None:
    proto = model(f"""g (bool b, float[1,4,8,8] x) => (float[1,4,8,8] y) {{
        y = If (b) <then_branch = t () => (float[1,4,8,8] p) <float[4,4,1,1] w, {PARAMETERS}>
          {{ c = Conv(x, w)  p = BatchNormalization(c, scale, shift, mean, var) }},
        else_branch = e () => (float[1,4,8,8] q) <float[4,4,3,3] w, {PARAMETERS}>
          {{ c = Conv<pads = [1, 1, 1, 1]>(x, w)  q = BatchNormalization(c, shift, scale, mean, var) }}> }}""")
    for flag in (True, False):
        run = apply(FoldBatchNorm(), proto, feeds(proto) | {"b": np.array(flag)})
        assert [[node.op_type for node in each.g.node] for each in run.after.graph.node[0].attribute] == [["Conv"]] * 2


def test_half_precision_is_computed_in_double() -> None:
    assert ops(folded(CONV_BN.replace("float[", "float16["), rtol=5e-3).after) == ["Conv"]


def test_double_precision_is_kept() -> None:
    run = folded(f"""g (double[N,4] x) => (double[N,4] y) <double[4,4] w, {PARAMETERS.replace("float", "double")}>
      {{ c = MatMul(x, w)  y = BatchNormalization(c, scale, shift, mean, var) }}""", rtol=1e-13)  # fmt: skip
    assert ops(run.after) == ["Gemm"]


def test_bfloat16_weights_stay_bfloat16() -> None:
    text = CONV_BN.replace("float[", "bfloat16[")
    run = apply(FoldBatchNorm(), model(text, opset=22, ir_version=10), compare=False)
    assert {tensor.data_type for tensor in run.after.graph.initializer} == {onnx.TensorProto.BFLOAT16}


def test_parameters_in_constant_nodes() -> None:
    text = CONV_BN.replace("float[6] mean, ", "").replace(
        "{ c", "{ mean = Constant<value = float[6] {0.5, 1, -1, 2, 0, 3}>()  c"
    )
    run = folded(text)
    assert "BatchNormalization" not in ops(run.after)


def test_weights_behind_dequantize_linear_are_left_alone() -> None:
    text = CONV_BN.replace("float[6,4,3,3] w", "int8[6,4,3,3] q, float one").replace(
        "c = Conv(x, w)", "w = DequantizeLinear(q, one)  c = Conv(x, w)"
    )
    assert folded(text).reasons == ["the weights of Conv 'c' are computed"]
