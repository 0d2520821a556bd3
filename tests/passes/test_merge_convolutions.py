"""merge_convolutions: sums of branches and convolutions in a row, each guard, and random sums of branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, feeds, model, ops

from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.passes.merge_convolutions import MergeConvolutions

SAME = "pads = [1, 1, 1, 1]"
BN = "float[4] scale, float[4] shift, float[4] mean, float[4] var"


def merged(text: str, *, rtol: float = 2e-5, **options: Any) -> Run:
    return apply(MergeConvolutions(), model(text, **options), rtol=rtol)


def branches(body: str, weights: str, *, out: str = "[N,4,H,W]", given: str = "[N,4,8,8]") -> Run:
    return merged(f"g (float{given} x) => (float{out} y) <{weights}> {{ {body} }}")


W33, W11 = "float[4,4,3,3] v", "float[4,4,1,1] w"


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        pytest.param(f"a = Conv<{SAME}>(x, v)  b = Conv(x, w)  y = Add(a, b)", f"{W33}, {W11}", id="3x3 and 1x1"),
        pytest.param(
            f"a = Conv<{SAME}>(x, v, c)  b = Conv(x, w, d)  y = Add(b, a)",
            f"{W33}, {W11}, float[4] c, float[4] d",
            id="with biases",
        ),
        pytest.param(
            f"a = Conv<{SAME}, strides = [2, 2]>(x, v, c)  b = Conv<strides = [2, 2]>(x, w)  y = Add(b, a)",
            f"{W33}, {W11}, float[4] c",
            id="strided",
        ),
        pytest.param(
            "a = Conv<pads = [0, 0, 2, 2], strides = [2, 2]>(x, v)  b = Conv<strides = [2, 2]>(x, w)"
            "d = Add(a, b)  y = Add(d, c0)",
            f"{W33}, {W11}, float c0",
            id="padded on one side",
        ),
        pytest.param(
            f"a = Conv<{SAME}>(x, v)  b = BatchNormalization(x, scale, shift, mean, var)  y = Add(a, b)",
            f"{W33}, {BN}",
            id="normalization",
        ),
        pytest.param(f"a = Conv<{SAME}>(x, v)  y = Add(a, x)", W33, id="the input itself"),
        pytest.param(f"a = Conv<{SAME}>(x, v)  b = Mul(x, k)  y = Add(a, b)", f"{W33}, float[4,1,1] k", id="factors"),
        pytest.param(f"a = Conv<{SAME}>(x, v)  b = Mul(x, k)  y = Add(a, b)", f"{W33}, float k", id="a factor"),
        pytest.param(
            f"a = Conv<{SAME}>(x, v)  b = Conv(x, w)  c = BatchNormalization(x, scale, shift, mean, var)"
            f"y = Sum(a, b, c, x)",
            f"{W33}, {W11}, {BN}",
            id="all in a Sum",
        ),
        pytest.param(
            f"a = Conv<{SAME}, group = 2>(x, v)  b = Conv<group = 2>(x, w)  d = Add(a, b) y = Add(d, x)",
            "float[4,2,3,3] v, float[4,2,1,1] w",
            id="groups",
        ),
        pytest.param(
            f"a = Conv<{SAME}, group = 4>(x, v)  b = Conv<group = 4>(x, w)  d = Add(a, b) y = Add(d, x)",
            "float[4,1,3,3] v, float[4,1,1,1] w",
            id="depthwise",
        ),
        pytest.param(
            f"a = Conv<{SAME}>(x, v)  b = Conv<{SAME}, group = 2>(x, w)  y = Add(a, b)",
            f"{W33}, float[4,2,3,3] w",
            id="groups into none",
        ),
        pytest.param(
            "a = Conv<pads = [3, 3, 3, 3]>(x, v)  b = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, w)y = Add(a, b)",
            "float[4,4,7,7] v, float[4,4,3,3] w",
            id="dilated into dense",
        ),
        pytest.param(
            "a = Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>(x, v)  b = Conv(x, w)  y = Add(a, b)",
            f"{W33}, {W11}",
            id="into dilated",
        ),
        pytest.param(
            f"a = Conv<{SAME}>(x, v)  b = Conv<pads = [0, 1, 0, 1]>(x, w)  c = Conv<pads = [1, 0, 1, 0]>(x, u)"
            "d = Add(b, c)  y = Add(a, d)",
            f"{W33}, float[4,4,1,3] w, float[4,4,3,1] u",
            id="asymmetric kernels",
        ),
        pytest.param(
            'a = Conv<auto_pad = "SAME_LOWER">(x, v)  b = Conv<auto_pad = "SAME_UPPER">(x, w)  y = Add(a, b)',
            f"{W33}, {W11}",
            id="padding told by a name",
        ),
        pytest.param(
            'a = Conv<auto_pad = "VALID">(x, v)  b = Conv(x, w)  y = Add(a, b)', f"{W33}, float[4,4,3,3] w", id="valid"
        ),
    ],
)
def test_branches_become_one_convolution(body: str, weights: str) -> None:
    run = branches(body, weights)
    assert [op for op in ops(run.after) if op != "Add"] == ["Conv"]
    assert len(ops(run.after)) == (2 if "c0" in weights else 1)


def test_other_operands_stay() -> None:
    run = branches(
        f"r = Relu(x)  a = Conv<{SAME}>(x, v)  s = Add(a, r)  b = Conv(x, w)  t = Add(s, b)  y = Add(t, z)",
        f"{W33}, {W11}, float[4,1,1] z",
    )
    assert sorted(ops(run.after)) == ["Add", "Add", "Conv", "Relu"]


def test_branches_of_several_tensors_in_one_sum() -> None:
    run = branches(
        f"r = Relu(x)  a = Conv<{SAME}>(x, v)  b = Conv(x, w)  c = Conv(r, w)  d = Conv<{SAME}>(r, u)"
        "s = Add(a, c)  t = Add(b, d)  y = Add(s, t)",
        f"{W33}, {W11}, float[4,4,3,3] u",
    )
    assert sorted(ops(run.after)) == ["Add", "Conv", "Conv", "Relu"]


def test_one_axis_and_three() -> None:
    assert ops(
        merged("""g (float[N,4,8] x) => (float[N,4,8] y) <float[4,4,3] v, float[4,4,1] w>
        { a = Conv<pads = [1, 1]>(x, v)  b = Conv(x, w)  y = Add(a, b) }""").after
    ) == ["Conv"]
    assert ops(
        merged("""g (float[N,4,4,4,4] x) => (float[N,4,4,4,4] y) <float[4,4,3,3,3] v, float[4,4,1,1,1] w>
        { a = Conv<pads = [1, 1, 1, 1, 1, 1]>(x, v)  b = Conv(x, w)  y = Add(a, b) }""").after
    ) == ["Conv"]


@pytest.mark.parametrize(
    ("body", "weights", "left"),
    [
        ("a = Gemm(x, v, c)  b = Gemm<transB = 1, alpha = 0.5>(x, w)  y = Add(a, b)", "float[4] c", ["Gemm"]),
        ("a = MatMul(x, v)  b = MatMul(x, w)  y = Add(a, b)", "float[4] c", ["MatMul"]),
        ("a = MatMul(x, v)  b = Gemm(x, w, c)  y = Add(a, b)", "float[4] c", ["Gemm"]),
        ("a = MatMul(x, v)  s = Add(a, x)  y = Relu(s)", "float[4] c", ["MatMul", "Relu"]),
    ],
)
def test_matrix_products(body: str, weights: str, left: list[str]) -> None:
    run = merged(f"g (float[N,4] x) => (float[N,4] y) <float[4,4] v, float[4,4] w, {weights}> {{ {body} }}")
    assert ops(run.after) == left


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        pytest.param(
            f"r = Relu(x)  a = Conv<{SAME}>(x, v)  b = Conv<{SAME}>(r, w)  y = Add(a, b)",
            f"{W33}, float[4,4,3,3] w",
            id="not of one tensor",
        ),
        pytest.param(f"a = Conv<{SAME}>(x, v)  r = Relu(x)  y = Add(a, r)", W33, id="no linear branch"),
        pytest.param(
            f"a = Conv<{SAME}>(x, v)  b = Conv(x, w)  s = Add(a, b)  t = Exp(b)  y = Add(s, t)",
            f"{W33}, {W11}",
            id="read twice",
        ),
        pytest.param(
            "a = Conv(x, v)  b = Conv(x, w)  y = Add(a, b)",
            "float[4,4,8,8] v, float[4,4,1,1] w",
            id="stretched to a size",
        ),
        pytest.param(
            "a = Conv<pads = [0, 1, 0, 1]>(x, v)  b = Conv<pads = [1, 0, 1, 0]>(x, w)  y = Add(a, b)",
            "float[4,4,1,3] v, float[4,4,3,1] w",
            id="the union takes more work",
        ),
        pytest.param(
            f"a = Conv<{SAME}, group = 4>(x, v)  b = Conv(x, w)  y = Add(a, b)",
            f"float[4,1,3,3] v, {W11}",
            id="depthwise and dense",
        ),
        pytest.param(
            f"a = Conv<{SAME}>(x, v)  b = Mul(x, k)  y = Add(a, b)", f"{W33}, float[8,1] k", id="a factor a row"
        ),
        pytest.param(
            f"e = Exp(v)  a = Conv<{SAME}>(x, e)  b = Conv(x, w)  y = Add(a, b)", f"{W33}, {W11}", id="computed weights"
        ),
        pytest.param(f"a = Conv<{SAME}>(x, v)  b = Conv(x, w)  y = Sub(a, b)", f"{W33}, {W11}", id="difference"),
    ],
)
def test_leaves_other_sums_alone(body: str, weights: str) -> None:
    assert branches(body, weights).report.changes == 0


def test_leaves_padding_alone_that_depends_on_the_size() -> None:
    run = branches(
        'a = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, v)  b = Conv<strides = [2, 2]>(x, w)  y = Add(a, b)',
        f"{W33}, {W11}",
    )
    assert run.report.changes == 0


def test_leaves_branches_alone_that_are_outputs() -> None:
    run = merged(f"""g (float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] b) <{W33}, {W11}>
      {{ a = Conv<{SAME}>(x, v)  b = Conv(x, w)  y = Add(a, b) }}""")
    assert run.report.changes == 0


def test_leaves_the_input_alone_where_channels_differ() -> None:
    run = merged(f"""g (float[N,1,8,8] x) => (float[N,4,8,8] y) <float[4,1,3,3] v>
      {{ a = Conv<{SAME}>(x, v)  y = Add(a, x) }}""")
    assert run.report.changes == 0


def test_leaves_weights_alone_that_others_read_where_copies_cost_more() -> None:
    text = f"""g (float[N,16,8,8] x) => (float[N,16,8,8] y, float[N,16,8,8] z) <float[16,16,3,3] v, float[16,16,1,1] w>
      {{ a = Conv<{SAME}>(x, v)  b = Conv(x, w)  y = Add(a, b)
         e = Exp(y)  c = Conv<{SAME}>(e, v)  d = Conv(e, w)  f = Mul(c, d)  z = Add(f, e) }}"""
    assert merged(text).report.changes == 0
    assert merged(text.replace("16", "1")).report.changes == 1


def test_leaves_results_alone_that_half_precision_cannot_hold() -> None:
    big = np.full((4, 4, 1, 1), 4e4)
    run = apply(
        MergeConvolutions(),
        model(
            """g (float16[N,4,8,8] x) => (float16[N,4,8,8] y) <float16[4,4,1,1] v, float16[4,4,1,1] w>
            { a = Conv(x, v)  b = Conv(x, w)  y = Add(a, b) }""",
            v=big,
            w=big,
        ),
        compare=False,
    )
    assert run.report.changes == 0


def test_repvgg_with_its_normalizations() -> None:
    names = "abi"
    weights = ", ".join(f"float[4] {role}{name}" for name in names for role in ("scale", "shift", "mean", "var"))
    norms = "  ".join(
        f"n{name} = BatchNormalization({source}, scale{name}, shift{name}, mean{name}, var{name})"
        for name, source in zip(names, "abx", strict=True)
    )
    proto = model(f"""g (float[N,4,8,8] x) => (float[N,4,8,8] y) <{W33}, {W11}, {weights}>
      {{ a = Conv<{SAME}>(x, v)  b = Conv(x, w)  {norms}  s = Add(na, nb)  t = Add(s, ni)  y = Relu(t) }}""")
    run = apply(MergeConvolutions(), apply(FoldBatchNorm(), proto).after)
    assert ops(run.after) == ["Conv", "Relu"]
    assert run.report.details == {"branches": 2, "chains": 0, "growth_bytes": -4 * (16 + 4 + 4 * 4)}


def test_in_a_subgraph() -> None:
    proto = model(f"""g (bool b, float[1,4,8,8] x) => (float[1,4,8,8] y) <{W33}, {W11},
        float[4,4,3,3] k, float[4,4,1,1] l> {{ y = If (b) <then_branch = t () => (float[1,4,8,8] p)
          {{ c = Conv<{SAME}>(x, v)  d = Conv(x, w)  p = Add(c, d) }},
        else_branch = e () => (float[1,4,8,8] q) {{ r = Conv(x, l)  s = Conv<{SAME}>(r, k)  q = Add(s, x) }}> }}""")
    for flag in (True, False):
        run = apply(MergeConvolutions(), proto, feeds(proto) | {"b": np.array(flag)})
        assert [[node.op_type for node in each.g.node] for each in run.after.graph.node[0].attribute] == [["Conv"]] * 2


CHAINS = {
    "pointwise behind": ("float[4,4,3,3] v, float[2,4,1,1] w", f"a = Conv<{SAME}>(x, v)  y = Conv(a, w)"),
    "pointwise behind, biases": (
        "float[4,4,3,3] v, float[2,4,1,1] w, float[4] c, float[2] d",
        f"a = Conv<{SAME}>(x, v, c)  y = Conv(a, w, d)",
    ),
    "strides": (
        "float[4,4,3,3] v, float[2,4,1,1] w, float[4] c",
        f"a = Conv<{SAME}, strides = [2, 1]>(x, v, c)  y = Conv<strides = [2, 3]>(a, w)",
    ),
    "pointwise in front": ("float[4,4,1,1] v, float[2,4,3,3] w", f"a = Conv(x, v)  y = Conv<{SAME}>(a, w)"),
    "pointwise in front, bias": ("float[4,4,1,1] v, float[2,4,3,3] w, float[4] c", "a = Conv(x, v, c)  y = Conv(a, w)"),
    "both pointwise": ("float[4,4,1,1] v, float[2,4,1,1] w, float[4] c", "a = Conv(x, v, c)  y = Conv(a, w)"),
    "groups": ("float[4,2,1,1] v, float[4,2,3,3] w", "a = Conv<group = 2>(x, v)  y = Conv<group = 2>(a, w)"),
    "factors behind": ("float[4,4,3,3] v, float[4,1,1,1] w", "a = Conv(x, v)  y = Conv<group = 4>(a, w)"),
    "factors in front": ("float[4,1,1,1] v, float[4,4,3,3] w", "a = Conv<group = 4>(x, v)  y = Conv(a, w)"),
    "three": (
        "float[4,4,1,1] v, float[4,4,3,3] w, float[1,4,1,1] u",
        "a = Conv(x, v)  b = Conv(a, w)  y = Conv(b, u)",
    ),
}


@pytest.mark.parametrize("form", CHAINS)
def test_chains_become_one_convolution(form: str) -> None:
    weights, body = CHAINS[form]
    run = merged(f"g (float[N,4,9,9] x) => (float[N,M,H,W] y) <{weights}> {{ {body} }}")
    assert ops(run.after) == ["Conv"]


@pytest.mark.parametrize(
    ("weights", "body"),
    [
        pytest.param(
            "float[4,4,1,1] v, float[2,4,3,3] w, float[4] c",
            f"a = Conv(x, v, c)  y = Conv<{SAME}>(a, w)",
            id="a bias into padding",
        ),
        pytest.param("float[4,4,3,3] v, float[4,4,3,3] w", "a = Conv(x, v)  y = Conv(a, w)", id="two kernels"),
        pytest.param(
            "float[4,1,3,3] v, float[4,4,1,1] w", "a = Conv<group = 4>(x, v)  y = Conv(a, w)", id="depthwise separable"
        ),
        pytest.param("float[1,4,1,1] v, float[4,1,1,1] w", "a = Conv(x, v)  y = Conv(a, w)", id="a bottleneck"),
        pytest.param(
            "float[4,4,1,1] v, float[4,4,1,1] w",
            "a = Conv<strides = [2, 2]>(x, v)  y = Conv(a, w)  z = Exp(a)",
            id="read twice",
        ),
        pytest.param(
            "float[4,4,1,1] v, float[4,4,3,3] w",
            "a = Conv<strides = [2, 2]>(x, v)  y = Conv(a, w)",
            id="strided in front",
        ),
        pytest.param(
            "float[4,4,1,1] v, float[4,4,1,1] w",
            "a = Conv<pads = [1, 1, 1, 1]>(x, v)  y = Conv<pads = [1, 0, 0, 0]>(a, w)",
            id="padded points",
        ),
        pytest.param(
            "float[4,4,1,1] v, float[4,4,1,1] w", "a = Conv(x, v)  r = Relu(a)  y = Conv(r, w)", id="an activation"
        ),
    ],
)
def test_leaves_other_chains_alone(weights: str, body: str) -> None:
    run = merged(f"g (float[N,4,9,9] x) => (float[N,M,H,W] y) <{weights}> {{ {body} }}")
    assert run.report.changes == 0


@pytest.mark.parametrize(
    ("rank", "body", "left"),
    [
        (2, "a = Gemm(x, v, c)  y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(a, w, d)", ["Gemm"]),
        (2, "a = Gemm(x, v, c)  y = MatMul(a, u)", ["Gemm"]),
        (2, "a = MatMul(x, v)  y = Gemm(a, u, d)", ["Gemm"]),
        (3, "a = MatMul(x, v)  y = MatMul(a, u)", ["MatMul"]),
        (2, "a = Gemm(x, v, c)  b = Relu(a)  y = MatMul(b, u)", ["Gemm", "Relu", "MatMul"]),
    ],
)
def test_matrix_products_in_a_row(rank: int, body: str, left: list[str]) -> None:
    run = merged(f"""g (float[{"N,3,4" if rank == 3 else "N,4"}] x) => (float[{"N,3,2" if rank == 3 else "N,2"}] y)
      <float[4,6] v, float[2,6] w, float[6,2] u, float[6] c, float[2] d> {{ {body} }}""")
    assert ops(run.after) == left


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_sums(data: st.DataObject) -> None:
    """Branches of random kernels, groups, dilations and paddings, summed in a random tree with other operands."""
    groups = data.draw(st.sampled_from([1, 1, 2, 4]), label="groups")
    stride = data.draw(st.sampled_from([1, 1, 2]), label="stride")
    lines, weights, operands = ["r = Relu(x)"], [], []
    for step in range(data.draw(st.integers(2, 5), label="branches")):
        kind = data.draw(st.sampled_from(["conv", "conv", "conv", "bn", "x", "relu"] if stride == 1 else ["conv"]))
        source = data.draw(st.sampled_from(["x", "x", "r"]))
        if kind == "conv":
            size, dilation = data.draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1)]))
            group = data.draw(st.sampled_from([groups, groups, 1]))
            total = (size - 1) * dilation
            before = total // 2
            ours = f"[{before}, {before}, {total - before}, {total - before}]"
            weights.append(f"float[4,{4 // group},{size},{size}] w{step}, float[4] b{step}")
            bias = f", b{step}" if data.draw(st.booleans()) else ""
            lines.append(
                f"t{step} = Conv<group = {group}, pads = {ours}, strides = [{stride}, {stride}], "
                f"dilations = [{dilation}, {dilation}]>({source}, w{step}{bias})"
            )
        elif kind == "bn":
            weights.append(", ".join(f"float[4] {role}{step}" for role in ("scale", "shift", "mean", "var")))
            lines.append(f"t{step} = BatchNormalization({source}, scale{step}, shift{step}, mean{step}, var{step})")
        operands.append({"x": "x", "relu": "r"}.get(kind, f"t{step}"))
    count = 0
    while len(operands) > 1:
        many = data.draw(st.integers(2, min(3, len(operands))))
        taken = [operands.pop(data.draw(st.integers(0, len(operands) - 1))) for _ in range(many)]
        op = "Add" if many == 2 else "Sum"
        name = f"s{count}" if operands else "y"
        lines.append(f"{name} = {op}({', '.join(taken)})")
        operands.append(name)
        count += 1
    declared = f"<{', '.join(weights)}>" if weights else ""
    proto = model(f"g (float[N,4,9,9] x) => (float[N,4,H,W] y) {declared} {{ {'  '.join(lines)} }}")
    apply(MergeConvolutions(), proto, rtol=1e-4)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_chains(data: st.DataObject) -> None:
    """Convolutions in a row, of random kernels, groups, strides and paddings."""
    lines, weights, width = [], [], 4
    steps = data.draw(st.integers(2, 4), label="length")
    for step in range(steps):
        size, pad = data.draw(st.sampled_from([(1, 0), (1, 0), (1, 1), (3, 0), (3, 1)]))
        out = data.draw(st.sampled_from([2, 4, 8]))
        group = data.draw(st.sampled_from([1, 1, 2]))
        stride = data.draw(st.sampled_from([1, 1, 2]))
        weights.append(f"float[{out},{width // group},{size},{size}] w{step}, float[{out}] b{step}")
        bias = f", b{step}" if data.draw(st.booleans()) else ""
        source, target = f"t{step - 1}" if step else "x", f"t{step}" if step < steps - 1 else "y"
        lines.append(
            f"{target} = Conv<group = {group}, pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}]>"
            f"({source}, w{step}{bias})"
        )
        width = out
    proto = model(f"g (float[N,4,25,25] x) => (float[N,{width},H,W] y) <{', '.join(weights)}> {{ {'  '.join(lines)} }}")
    apply(MergeConvolutions(), proto, rtol=1e-4)
