"""fold_batchnorm: what it leaves alone and why; then every form that it folds, against ONNX Runtime unoptimized."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, feeds, initializer, model, ops

from graphopt.graph import export_graph, import_graph, remove_unused
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
      { r = Relu(x)  [a_name_as_long_as_exporters_write_them_with_the_path_to_a_module_and_all_that] s = Mul(r, k)
        y = Add(s, b) }""")
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
    # One more copy of the weights and two biases, less five vectors and two nodes.
    assert run.report.details["growth_bytes"] < 0
    assert run.after.ByteSize() <= run.before.ByteSize()


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


CONV4 = "float[4,4,3,3] w"
ATTENTION = """g (float[N,6,8] x) => (float[N,2,6,6] y) <float[8,8] w, float[8] b, float[8,8] v, float s>
  {{ q0 = MatMul(x, w)  q1 = Add(q0, b)  q2 = Reshape(q1, shape)  q3 = Transpose<perm = [0, 2, 1, 3]>(q2)
     k0 = MatMul(x, v)  k1 = Reshape(k0, shape)  k2 = Transpose<perm = [0, 2, 3, 1]>(k1)
     {} y = Softmax<axis = -1>(a) }}""".replace("float s>", "float s, int64[4] shape = {{0, 0, 2, 4}}>")


@pytest.mark.parametrize(
    ("weights", "body", "left"),
    [
        pytest.param(
            f"{CONV4}, float[4] k", "c = Conv(x, w)  t = Transpose<perm = [0, 2, 3, 1]>(c)  y = Mul(t, k)",
            ["Conv", "Transpose"], id="transposed",
        ),
        pytest.param(
            f"{CONV4}, float[4] k, float[4] b",
            "c = Conv(x, w)  t = Transpose<perm = [0, 2, 3, 1]>(c)  s = Mul(t, k)  y = Add(s, b)",
            ["Conv", "Transpose"], id="transposed, a new bias",
        ),
        pytest.param(
            f"{CONV4}, float[2,4,3,3] v, float[2] d, float[6,1,1] k, float[6,1,1] b",
            "c = Conv(x, w)  e = Conv(x, v, d)  t = Concat<axis = 1>(c, e)  s = Mul(t, k)  y = Add(s, b)",
            ["Conv", "Conv", "Concat"], id="concatenated channels",
        ),
        pytest.param(
            f"{CONV4}, float[4,4,3,3] v, float[4,1,1] k",
            "c = Conv(x, w)  e = Conv(x, v)  t = Concat<axis = -1>(c, e)  y = Mul(t, k)",
            ["Conv", "Conv", "Concat"], id="concatenated places",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k", "c = Conv(x, w)  s = Add(c, z)  y = Add(s, k)", ["Relu", "Conv", "Add"],
            id="a sum",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k", "c = Conv(x, w)  s = Sub(z, c)  y = Add(s, k)", ["Relu", "Conv", "Sub"],
            id="a difference",
        ),
        pytest.param(
            f"{CONV4}, float k = {{2.5}}", "c = Conv(x, w)  p = Mul(z, c)  y = Div(p, k)", ["Relu", "Conv", "Mul"],
            id="a product",
        ),
        pytest.param(
            f"{CONV4}, float k", "c = Conv(x, w)  e = Exp(z)  p = Div(c, e)  y = Mul(p, k)",
            ["Relu", "Conv", "Exp", "Div"], id="a quotient",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k = {{2.0, 1.0, 0.5, 3.0}}, float[4,1,1] b",
            "c = Conv(x, w)  p = MaxPool<kernel_shape = [2, 2]>(c)  s = Mul(p, k)  y = Add(s, b)",
            ["Conv", "MaxPool"], id="the largest",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k, float[4,1,1] b",
            "c = Conv(x, w)  p = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 0, 0]>(c)  s = Mul(p, k)"
            "y = Add(s, b)", ["Conv", "AveragePool"], id="the mean",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k",
            "c = Conv(x, w)  p = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1>(c)"
            "y = Mul(p, k)", ["Conv", "AveragePool"], id="the mean with its padding, no shift",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k = {{2.0, 1.0, 0.5, 3.0}}", "c = Conv(x, w)  r = Relu(c)  y = Mul(r, k)",
            ["Conv", "Relu"], id="relu",
        ),
        pytest.param(
            f"{CONV4}, float k", "c = Conv(x, w)  r = Flatten(c)  y = Div(r, k)", ["Conv", "Flatten"], id="flattened",
        ),
        pytest.param(
            "float[4] g, float[4] h, float[4,1,1] k, float[4,1,1] b",
            "n = InstanceNormalization(x, g, h)  s = Mul(n, k)  y = Add(s, b)", ["InstanceNormalization"],
            id="instance norm",
        ),
        pytest.param(
            "float[8] g, float[8] k, float[8] b", "n = LayerNormalization(x, g)  s = Mul(n, k)  y = Add(s, b)",
            ["LayerNormalization"], id="layer norm, a new bias",
        ),
        pytest.param(
            f"{CONV4}, float[4] b, float[4,1,1] k, float[4,1,1] e",
            "c = Conv(x, w)  s = Add(c, z)  t = Transpose(s)  u = Transpose(t)  v = Add(u, e)  y = Relu(v)",
            ["Relu", "Conv", "Add", "Transpose", "Transpose", "Relu"], id="far away",
        ),
    ],
)  # fmt: skip
def test_goes_to_distant_nodes(weights: str, body: str, left: list[str]) -> None:
    valid = "pads = [1, 1, 1, 1]"
    body = body.replace("Conv(", f"Conv<{valid}>(")
    relu = "z = Relu(x)  " if "Relu" in left and "z" in body else ""
    outputs = "[N,A]" if "Flatten" in left else "[A,B,C,D]"
    run = folded(f"g (float[N,4,8,8] x) => (float{outputs} y) <{weights}> {{ {relu}{body} }}")
    assert ops(run.after) == left
    assert run.report.details["folded_into_distant"] > 0


@pytest.mark.parametrize(
    ("weights", "body"),
    [
        pytest.param(
            f"{CONV4}, float[4] k",
            "c = Conv(x, w)  t = Transpose<perm = [0, 2, 3, 1]>(c)  u = Exp(t)  s = Mul(t, k)  y = Add(s, u)",
            id="read twice",
        ),
        pytest.param(
            f"{CONV4}, float[8] k", "c = Conv(x, w)  t = Transpose<perm = [0, 2, 1, 3]>(c)  y = Mul(t, k)",
            id="another axis",
        ),
        pytest.param(
            f"{CONV4}, float[8,1,1] k", "c = Conv(x, w)  t = Concat<axis = 1>(c, z)  y = Mul(t, k)",
            id="one that does not take it",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k", "c = Conv(x, w)  s = Add(c, z)  y = Mul(s, k)", id="a scale of a sum",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k", "c = Conv(x, w)  s = Mul(c, z)  y = Mul(s, k)", id="a vector on a product",
        ),
        pytest.param(f"{CONV4}, float k", "c = Conv(x, w)  e = Exp(z)  s = Div(e, c)  y = Mul(s, k)", id="a divisor"),
        pytest.param(
            f"{CONV4}, float[4,1,1] k", "c = Conv(x, w)  p = MaxPool<kernel_shape = [2, 2]>(c)  y = Mul(p, k)",
            id="a falling function of the largest",
        ),
        pytest.param(
            f"{CONV4}, float[4,1,1] k",
            "c = Conv(x, w)  p = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1>(c)"
            "y = Add(p, k)", id="a shift of padding",
        ),
        pytest.param(f"{CONV4}, float[4,1,1] k", "c = Conv(x, w)  r = Relu(c)  y = Mul(r, k)", id="relu of negatives"),
        pytest.param(f"{CONV4}, float[4,1,1] k", "c = Conv(x, w)  r = Relu(c)  y = Add(r, k)", id="relu and a shift"),
        pytest.param(
            "float[8] g, float[8,1] k", "n = LayerNormalization(x, g)  y = Mul(n, k)", id="layer norm, another axis",
        ),
        pytest.param("float[8,8] w, float[8] k", "m = MatMul(x, w)  t = Transpose(m)  u = Transpose(t)  y = Add(u, k)",
                     id="a bias that a matrix product cannot hold"),
    ],
)  # fmt: skip
def test_leaves_alone_what_distant_nodes_cannot_take(weights: str, body: str) -> None:
    body = body.replace("Conv(", "Conv<pads = [1, 1, 1, 1]>(")
    z = "z = Sigmoid(x)  " if "z)" in body or "(z" in body else ""
    run = folded(f"g (float[N,4,8,8] x) => (float[A,B,C,D] y) <{weights}> {{ {z}{body} }}")
    assert run.report.changes == 0


@pytest.mark.parametrize(
    "scaling",
    [
        "m = MatMul(q3, k2)  a = Mul(m, s)",
        "p = Div(q3, s)  a = MatMul(p, k2)",
        "p = Mul(k2, s)  r = Mul(q3, s)  a = MatMul(r, p)",
    ],
)
def test_attention_is_scaled_in_its_weights(scaling: str) -> None:
    run = folded(ATTENTION.format(scaling))
    assert not {"Mul", "Div"} & set(ops(run.after))


def test_attention_with_a_computed_mask_keeps_its_division() -> None:
    text = ATTENTION.format("m = MatMul(q3, k2)  d = Div(m, s)  e = Exp(m0)  a = Add(d, e)")
    assert "Div" in ops(folded(text.replace("x) =>", "x, float[6,6] m0) =>")).after)


@pytest.mark.parametrize("opset", [12, 13, 18])
def test_one_part_of_a_split_is_scaled_in_the_weights(opset: int) -> None:
    sizes = "" if opset == 13 else ", int64[2] sizes = {4, 4}"
    call = {12: "Split<axis = -1, split = [4, 4]>(r)", 13: "Split<axis = -1>(r)", 18: "Split<axis = -1>(r, sizes)"}
    run = folded(
        f"""g (float[N,3,8] x) => (float[N,3,3] y) <float[8,8] w, float[8] b, float s{sizes}> {{
        m = MatMul(x, w)  r = Add(m, b)  q, k = {call[opset]}  p = Mul(q, s)
        t = Transpose<perm = [0, 2, 1]>(k)  y = MatMul(p, t) }}""",
        opset=opset,
    )
    assert ops(run.after) == ["MatMul", "Add", "Split", "Transpose", "MatMul"]


def test_one_of_several_gathered_places_is_scaled_in_the_weights() -> None:
    text = """g (float[N,6,8] x) => (float[N,2,6,6] y) <float[8,16] w, float[16] b, float s,
      int64[5] shape = {0, 0, 2, 2, 4}, int64 zero = {0}, int64 one = {ONE}> {
      m = MatMul(x, w)  r = Add(m, b)  h = Reshape(r, shape)  t = Transpose<perm = [2, 0, 3, 1, 4]>(h)
      q = Gather<axis = 0>(t, zero)  k = Gather<axis = 0>(t, one)  p = Mul(q, s)
      u = Transpose<perm = [0, 1, 3, 2]>(k)  y = MatMul(p, u) }"""
    assert "Mul" not in ops(folded(text.replace("ONE", "1")).after)
    assert "Mul" not in ops(folded(text.replace("ONE", "-1")).after)
    # Both readers see the same place.
    assert "Mul" in ops(folded(text.replace("ONE", "0")).after)


def test_a_batchnorm_of_flattened_rows_leaves_one_add() -> None:
    run = folded(f"""g (float[2,6,8] x) => (float[12,4] y) <float[8,4] w, {PARAMETERS}, int64[2] rows = {{-1, 4}}>
      {{ m = MatMul(x, w)  f = Reshape(m, rows)  {BN.replace("(x", "(f")} }}""")
    assert ops(run.after) == ["MatMul", "Add", "Reshape"]


@pytest.mark.parametrize(
    ("weights", "body", "left"),
    [
        ("float[3,4] a, float[3,4] b", "s = Add(r, a)  y = Add(b, s)", ["Relu", "Add"]),
        ("float[3,4] a, float[3,4] b", "s = Sub(a, r)  y = Sub(b, s)", ["Relu", "Add"]),
        ("float[3,4] a, float[3,4] b", "s = Sub(r, a)  y = Sub(b, s)", ["Relu", "Sub"]),
        ("float[3,4] a, float[3,4] b", "s = Mul(r, a)  y = Div(s, b)", ["Relu", "Mul"]),
        ("float[3,4] a, float[3,4] b", "e = Exp(r)  s = Div(a, e)  y = Mul(s, b)", ["Relu", "Exp", "Div"]),
        ("float[3,4] a, float[3,4] b", "e = Exp(r)  s = Div(a, e)  y = Div(b, s)", ["Relu", "Exp", "Mul"]),
        ("float[3,4] a, float[3,4] b", "s = Mul(r, a)  y = Add(s, b)", ["Relu", "Mul", "Add"]),
        ("float[3,4] a, float[3,4] b, float[3,4] c", "s = Mul(r, a)  t = Mul(s, b)  y = Div(t, c)", ["Relu", "Mul"]),
    ],
)
def test_constants_in_a_row_are_reassociated(weights: str, body: str, left: list[str]) -> None:
    assert ops(folded(f"g (float[N,3,4] x) => (float[N,3,4] y) <{weights}> {{ r = Relu(x)  {body} }}").after) == left


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_integers_wrap_around_when_reassociated(dtype: str) -> None:
    big = np.array([100, 27, -128, 127]).astype(dtype)
    proto = model(
        f"""g ({dtype}[N,4] x) => ({dtype}[N,4] y, {dtype}[N,4] z)
        <{dtype}[4] a, {dtype}[4] b, {dtype}[4] c, {dtype}[4] d>
        {{ s = Add(x, a)  y = Sub(b, s)  t = Mul(x, c)  z = Mul(d, t) }}""",
        a=big, b=big, c=big, d=big,
    )  # fmt: skip
    run = apply(FoldBatchNorm(), proto, compare=dtype.endswith(("32", "64")))
    assert ops(run.after) == ["Sub", "Mul"]


@pytest.mark.parametrize(
    ("weights", "body"),
    [
        ("float[3,4] a, float[3,4] b = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2}", "s = Mul(r, a)  y = Div(s, b)"),
        ("float[64,1,1] a, float[3,4] b", "s = Add(r, a)  y = Add(s, b)"),
        ("float a = {1e-30}, float[3,4] b = {1e-30, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}", "s = Mul(r, a)  y = Mul(s, b)"),
        ("float[3,4] a, float[3,4] b", "s = Mul(r, a)  e = Exp(s)  t = Add(s, b)  y = Add(t, e)"),
    ],
)
def test_leaves_constants_alone_that_cannot_be_put_together(weights: str, body: str) -> None:
    text = f"g (float[N,3,4] x) => (float[A,B,C] y) <{weights}> {{ r = Relu(x)  {body} }}"
    if "64" in weights:
        text = text.replace("[A,B,C]", "[A,B,C]").replace("[N,3,4]", "[N,1,1,1]").replace("[A,B,C]", "[A,B,C,D]")
    assert apply(FoldBatchNorm(), model(text), compare=False).report.changes == 0


GENERATED = """g (float[N,4,8,8] x) => (float[N,6,H,W] y) <int64[4] shape, float[6] scale, float[6] shift,
  float[6] mean, float[6] var> { w = ConstantOfShape<value = float[1] {0.3}>(shape) BODY }"""
ALIKE = {"scale": [0.5] * 6, "shift": [0.25] * 6, "mean": [0.1] * 6, "var": [0.7] * 6}


@pytest.mark.parametrize(
    ("body", "shape", "left"),
    [
        pytest.param(
            "c = Conv(x, w)  y = BatchNormalization(c, scale, shift, mean, var)", [6, 4, 3, 3], "Conv", id="conv"
        ),
        pytest.param(
            "c = ConvTranspose(x, w)  y = BatchNormalization(c, scale, shift, mean, var)", [4, 6, 3, 3],
            "ConvTranspose", id="transposed",
        ),
        pytest.param(
            "c = Conv<group = 2>(x, w)  y = BatchNormalization(c, scale, shift, mean, var)", [6, 2, 3, 3], "Conv",
            id="groups",
        ),
        pytest.param(
            "n = Mul(x, half) o = Add(n, half) y = Conv<group = 2>(o, w, shift)", [6, 2, 3, 3], "Conv", id="before"
        ),
    ],
)  # fmt: skip
def test_weights_that_are_one_number_stay_so(body: str, shape: list[int], left: str) -> None:
    text = GENERATED.replace("BODY", body).replace("float[6] var", "float[6] var, float half")
    run = folded(text, shape=shape, **ALIKE)
    assert [op for op in ops(swept(run)) if op != "ConstantOfShape"] == [left]
    assert ops(swept(run)).count("ConstantOfShape") == 1
    assert run.after.ByteSize() < run.before.ByteSize()


def test_generated_parameters_are_read() -> None:
    text = GENERATED.replace("BODY", """v = ConstantOfShape<value = float[1] {0.7}>(length)  c = Conv(x, w)
      k = ConstantOfShape<value = float[1] {2.0}>(column)
      n = BatchNormalization(c, v, v, v, v)  y = Mul(k, n)""")  # fmt: skip
    text = text.replace("shape,", "shape, int64[1] length, int64[3] column,")
    run = folded(text, shape=[6, 4, 3, 3], length=[6], column=[6, 1, 1])
    assert [op for op in ops(swept(run)) if op != "ConstantOfShape"] == ["Conv"]


def test_weights_that_are_one_number_are_not_written_out() -> None:
    body = "c = Conv(x, w)  y = BatchNormalization(c, scale, shift, mean, var)"
    run = folded(GENERATED.replace("BODY", body), shape=[6, 4, 3, 3])
    assert "would have to be written out" in run.reasons[0]


def test_layers_alike_share_what_is_made() -> None:
    """Weights and parameters that several layers share, scaled alike, are shared again: else nothing could go."""
    layers = " ".join(
        f"c{i} = Conv(x{i}, w)  n{i} = BatchNormalization(c{i}, scale, shift, mean, var)  x{i + 1} = Relu(n{i})"
        for i in range(6)
    )
    text = f"""g (float[N,16,8,8] x0) => (float[N,16,8,8] y) <float[16,16,1,1] w, float[16] scale, float[16] shift,
      float[16] mean, float[16] var, float[16,8,8] a, float[16,8,8] b>
      {{ {layers}  s = Mul(x6, a)  y = Mul(s, b) }}"""
    run = folded(text, scale=[0.1] * 16)
    assert ops(run.after) == [*["Conv", "Relu"] * 6, "Mul"]
    assert len(run.after.graph.initializer) == 3


def swept(run: Run) -> onnx.ModelProto:
    """The model without the nodes that nothing reads, which are for eliminate_dead."""
    work = import_graph(run.after)
    remove_unused(work.gs)
    return export_graph(work)


def test_leaves_large_weights_alone_that_others_read() -> None:
    text = f"""g (float[N,16,8,8] x) => (float[N,16,8,8] y, float[N,16,8,8] z) <float[16,16,1,1] w,
      {PARAMETERS.replace("4", "16")}>
      {{ c = Conv(x, w)  y = BatchNormalization(c, scale, shift, mean, var)  z = Conv(y, w) }}"""
    run = folded(text)
    assert run.report.changes == 0
    assert "copies would make the model larger" in run.reasons[0]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_ways_to_a_distant_convolution(data: st.DataObject) -> None:
    """A map along any axis, behind any run of nodes that move values: the result is always the same."""
    shape = [2, 4, 6, 6]
    weights = ["float[4,4,1,1] w", "float[4] b", "float[144,144] m"]
    lines = ["t0 = Conv(x, w, b)"]
    for step in range(1, data.draw(st.integers(2, 5), label="steps") + 1):
        source, out = f"t{step - 1}", f"t{step}"
        kind = data.draw(
            st.sampled_from(["transpose", "reshape", "relu", "sum", "split", "concat", "number", "matrix"])
        )
        if kind == "transpose":
            order = data.draw(st.permutations(range(len(shape))))
            lines.append(f"{out} = Transpose<perm = {list(order)}>({source})")
            shape = [shape[axis] for axis in order]
        elif kind == "reshape":
            places = list(range(len(shape) - 1))
            if len(shape) > 2 and data.draw(st.booleans()):
                place = data.draw(st.sampled_from(places))
                shape = [*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :]]
            else:
                place = data.draw(st.sampled_from([*places, len(shape) - 1]))
                shape = [*shape[:place], 1, shape[place], *shape[place + 1 :]]
            weights.append(f"int64[{len(shape)}] shape{step} = {{{', '.join(map(str, shape))}}}")
            lines.append(f"{out} = Reshape({source}, shape{step})")
        elif kind == "split" and any(size % 2 == 0 for size in shape):
            axis = data.draw(st.sampled_from([axis for axis, size in enumerate(shape) if size % 2 == 0]))
            lines.append(f"{out}, rest{step} = Split<axis = {axis}>({source})")
            shape[axis] //= 2
        elif kind == "concat":
            axis = data.draw(st.integers(0, len(shape) - 1))
            lines.append(f"other{step} = Exp(number)  wide{step} = Expand(other{step}, shape{step})")
            weights.append(f"int64[{len(shape)}] shape{step} = {{{', '.join(map(str, shape))}}}")
            lines.append(f"{out} = Concat<axis = {axis}>({source}, wide{step})")
            shape[axis] *= 2
        elif kind == "matrix" and shape[-1] == 144:
            lines.append(f"{out} = MatMul({source}, m)")
        elif kind == "number":
            weights.append(f"float k{step}")
            lines.append(f"{out} = {data.draw(st.sampled_from(['Mul', 'Add', 'Div', 'Sub']))}({source}, k{step})")
        elif kind == "sum":
            lines.append(f"{out} = Add({source}, number)")
        else:
            lines.append(f"{out} = Relu({source})")
    axis = data.draw(st.integers(0, len(shape) - 1), label="axis")
    spread = ",1" * (len(shape) - axis - 1)
    weights.append(f"float[{shape[axis]}{spread}] factor")
    op = data.draw(st.sampled_from(["Mul", "Add", "Sub"]), label="map")
    lines.append(f"y = {op}(t{step}, factor)")
    out = ", ".join("ABCDEFGHIJ"[: len(shape)])
    head = f"g (float[2,4,6,6] x, float[1] number) => (float[{out}] y) <{', '.join(weights)}>"
    apply(FoldBatchNorm(), model(f"{head} {{ {'  '.join(lines)} }}"), rtol=1e-4)


def test_a_gelu_that_is_written_out_stays_whole() -> None:
    """ONNX Runtime has one kernel for it, if it finds all of it; the factor 0.5 would fit the next weights."""
    proto = model("""g (float[N,5,4] x) => (float[N,5,4] y)
      <float[4,4] w, float[4,4] v, float root = {1.4142135}, float one = {1}, float half = {0.5}> {
      a = MatMul(x, w)  d = Div(a, root)  e = Erf(d)  p = Add(e, one)  m = Mul(a, p)  h = Mul(m, half)
      y = MatMul(h, v) }""")
    assert ops(apply(FoldBatchNorm(), proto).after) == ops(proto)


def test_the_bias_before_a_gelu_is_no_part_of_it() -> None:
    proto = model("""g (float[N,4,3,3] x) => (float[N,4,3,3] y)
      <float[4,4,1,1] w, float[1,4,1,1] bias, float root = {1.4142135}, float one = {1}, float half = {0.5}> {
      c = Conv(x, w)  a = Add(c, bias)  d = Div(a, root)  e = Erf(d)  p = Add(e, one)  m = Mul(a, p)
      y = Mul(m, half) }""")
    assert ops(apply(FoldBatchNorm(), proto).after) == ["Conv", "Div", "Erf", "Add", "Mul", "Mul"]
