"""fuse_padding: what it leaves alone; then each operator that takes up padding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, feeds, model, ops

from graphopt.passes.fuse_padding import FusePadding

PADS = "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"
TEXT = "g (float[1,4,6,6] x) => (float[A,B,C,D] y) <%s> { q = Pad(x, p)  y = %s }"
CONV = TEXT % (f"{PADS}, float[5,4,3,3] w", "Conv(q, w)")


def fused(text: str, *, opset: int = 17, **weights: object) -> Run:
    return apply(FusePadding(), model(text, opset=opset, **weights))


def pool(call: str, declared: str = "", value: str = "", before: str = "Identity(x)") -> str:
    pad = f"Pad(r, p, {value})" if value else "Pad(r, p)"
    more = f", {declared}" if declared else ""
    return f"""g (float[1,4,6,6] x) => (float[A,B,C,D] y) <{PADS}{more}>
        {{ r = {before}  q = {pad}  y = {call} }}"""


def attributes(run: Run) -> dict[str, object]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in run.after.graph.node[-1].attribute}


LOW = "float low = {-3.4028234663852886e38}"
ONE = "float one = {1}"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(CONV.replace("Pad(x", 'Pad<mode = "reflect">(x'), id="reflection"),
        pytest.param(CONV.replace("x, p)", "x, p, one)").replace("w>", f"w, {ONE}>"), id="padded with ones"),
        pytest.param(CONV.replace("0, 0, 1, 1, 0, 0, 1, 1", "0, 0, -1, 1, 0, 0, 1, 1"), id="cuts"),
        pytest.param(
            CONV.replace("0, 0, 1, 1, 0, 0, 1, 1", "0, 1, 0, 0, 0, 1, 0, 0").replace("[5,4", "[5,6"), id="channels"
        ),
        pytest.param(CONV.replace("0, 0, 1, 1, 0, 0, 1, 1", "1, 0, 0, 0, 0, 0, 0, 0"), id="batch"),
        pytest.param(CONV.replace("x)", "x, int64[8] s)", 1).replace("x, p)", "x, s)"), id="computed pads"),
        pytest.param(CONV.replace("x)", "x, float v)", 1).replace("x, p)", "x, p, v)"), id="computed value"),
        pytest.param(CONV.replace("y)", "y, float[A,B,C,D] q)", 1), id="graph output"),
        pytest.param(CONV.replace("Conv(", 'Conv<auto_pad = "SAME_UPPER">('), id="pads by itself"),
        pytest.param(TEXT % (f"{PADS}, float[4,5,3,3] w", "ConvTranspose(q, w)"), id="transposed convolution"),
        pytest.param(TEXT % (f"{PADS}, float[1,4,9,9] k", "Conv(k, q)"), id="weights are padded"),
        pytest.param(TEXT % (PADS, "Conv(q, q)"), id="read twice"),
        pytest.param(TEXT % (PADS, "Relu(q)"), id="no operator that pads"),
        pytest.param(pool("AveragePool<kernel_shape = [3, 3], ceil_mode = 1, strides = [2, 2]>(q)"), id="ceil mode"),
        pytest.param(pool("AveragePool<kernel_shape = [3, 3], pads = [0, 0, 1, 1]>(q)"), id="pads that do not count"),
        pytest.param(pool("AveragePool<kernel_shape = [1, 1]>(q)"), id="as much padding as the window"),
        pytest.param(pool("MaxPool<kernel_shape = [3, 3]>(q)"), id="maximum with zeros"),
        pytest.param(pool("MaxPool<kernel_shape = [3, 3]>(q)", before="LeakyRelu(x)"), id="may be negative"),
        pytest.param(pool("MaxPool<kernel_shape = [3, 3]>(q)", ONE, "one", "Relu(x)"), id="maximum with ones"),
        pytest.param(
            pool("MaxPool<kernel_shape = [3, 3], ceil_mode = 1, strides = [2, 2]>(q)", before="Relu(x)"), id="max ceil"
        ),
        pytest.param(
            pool("MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(q)", before="Relu(x)"), id="max with dilation"
        ),
        pytest.param(
            pool("MaxPool<kernel_shape = [3, 3]>(q)", before="Relu(x)")
            .replace("y = Max", "y, i = Max")
            .replace("D] y)", "D] y, int64[A,B,C,D] i)"),
            id="indices are read",
        ),
        pytest.param(
            pool("MaxPool<kernel_shape = [2, 2]>(q)", before="Relu(x)").replace("1,4,6,6", "1,4,H,W"),
            id="a plane that may be empty",
        ),
        pytest.param(
            "g (float[1,4,6,6] x) => (float[A,B,C,D] y) { y = AveragePool<kernel_shape = [6, 5]>(x) }", id="two windows"
        ),
        pytest.param(
            "g (float[1,4,H,6] x) => (float[A,B,C,D] y) { y = AveragePool<kernel_shape = [6, 6]>(x) }", id="open plane"
        ),
        pytest.param(
            """g (float[1,4,6,6] x) => (float[A,B,C,D] y)
            { y = AveragePool<kernel_shape = [6, 6], pads = [1, 1, 1, 1]>(x) }""",
            id="padded plane",
        ),
        pytest.param(
            """g (float[1,4,6,6] x) => (float[A,B,C,D] y)
            <int64[8] p = {0,0,-2,0,0,0,0,0}, int64[8] p2 = {0,0,2,0,0,0,0,0}> { a = Pad(x, p)  y = Pad(a, p2) }""",
            id="cuts, then pads",
        ),
        pytest.param(
            f"""g (float[1,4,6,6] x) => (float[A,B,C,D] y) <{PADS}, {ONE}> {{ a = Pad(x, p)  y = Pad(a, p, one) }}""",
            id="pads of two values",
        ),
    ],
)  # fmt: skip
def test_leaves_alone(text: str) -> None:
    proto = model(text)
    fed = feeds(proto)
    if "H" in text:
        fed = {"x": np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)}
    if "s" in fed:
        fed["s"] = np.asarray([0, 0, 1, 1, 0, 0, 1, 1])
    run = apply(FusePadding(), proto, fed)
    assert run.report.changes == 0


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(CONV, id="plain"),
        pytest.param(CONV.replace("0, 0, 1, 1, 0, 0, 1, 1", "0, 0, 0, 2, 0, 0, 1, 0"), id="asymmetric"),
        pytest.param(CONV.replace("Conv(", "Conv<pads = [1, 0, 0, 2], strides = [2, 1]>("), id="own pads"),
        pytest.param(CONV.replace("Conv(", 'Conv<auto_pad = "VALID", dilations = [2, 2]>('), id="valid"),
        pytest.param(CONV.replace("[5,4", "[4,1").replace("Conv(", "Conv<group = 4>("), id="depthwise"),
        pytest.param(CONV.replace("3,3] w", "1,1] w"), id="more padding than kernel"),
        pytest.param(CONV.replace("x, p)", "x, p, v)").replace("w>", "w, float v = {0}>"), id="zero given"),
        pytest.param(
            """g (float[1,4,9] x) => (float[A,B,C] y) <int64[6] p = {0, 0, 2, 0, 0, 1}, float[5,4,3] w>
            { q = Pad(x, p)  y = Conv(q, w) }""",
            id="one axis",
        ),
    ],
)
def test_convolution_pads_by_itself(text: str) -> None:
    assert ops(fused(text).after) == ["Conv"]


def test_pads_of_every_opset() -> None:
    old = "g (float[1,4,6,6] x) => (float[A,B,C,D] y) <float[5,4,3,3] w> { q = Pad<pads = %s>(x)  y = Conv(q, w) }"
    assert ops(fused(old % "[0, 0, 1, 2, 0, 0, 0, 1]", opset=10).after) == ["Conv"]
    new = """g (float[1,4,6,6] x) => (float[A,B,C,D] y)
        <float[5,4,3,3] w, int64[4] p = {1, 2, 0, 1}, int64[2] a = {-1, 2}> { q = Pad(x, p, , a)  y = Conv(q, w) }"""
    run = fused(new, opset=18)
    assert ops(run.after) == ["Conv"]
    assert attributes(run)["pads"] == [2, 1, 1, 0]


def test_every_reader_takes_its_own() -> None:
    text = """g (float[1,4,6,6] x) => (float[A,B,C,D] y, float[E,F,G,H] z) <%s, float[5,4,3,3] w, float[5,4,1,1] v>
        { q = Pad(x, p)  y = Conv(q, w)  z = Conv<pads = [1, 1, 1, 1]>(q, v) }"""
    assert ops(fused(text % PADS).after) == ["Conv", "Conv"]
    other = text.replace("Conv<pads = [1, 1, 1, 1]>(q, v)", "Relu(q)").replace(", float[5,4,1,1] v", "")
    run = fused(other % PADS)
    assert (run.report.changes, run.reasons) == (0, ["another of its readers cannot pad"])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(pool("AveragePool<kernel_shape = [3, 3]>(q)"), id="average"),
        pytest.param(
            pool("AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 1], count_include_pad = 1>(q)"), id="own count"
        ),
        pytest.param(pool("MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(q)", LOW, "low"), id="lowest value"),
        pytest.param(pool("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 0, 0]>(q)", before="Relu(x)"), id="after Relu"),
        pytest.param(
            pool("MaxPool<kernel_shape = [2, 2]>(q)", "float lo = {0.5}", before="Clip(x, lo)"), id="after Clip"
        ),
    ],
)  # fmt: skip
def test_pooling_pads_by_itself(text: str) -> None:
    assert "Pad" not in ops(fused(text).after)


def test_minus_infinity() -> None:
    text = pool("MaxPool<kernel_shape = [3, 3]>(q)", "float low", "low")
    assert "Pad" not in ops(fused(text, low=-np.inf).after)


def test_pads_are_merged() -> None:
    text = """g (float[1,4,6,6] x) => (float[A,B,C,D] y)
        <int64[8] p = {0,1,2,0,0,0,0,3}, int64[8] q = {1,0,1,0,0,0,0,0}> {
        a = Pad(x, p)  b = Pad(a, q)  y = Pad(b, p) }"""
    assert ops(fused(text).after) == ["Pad"]
    two = text.replace("y = Pad(b, p)", "y = Neg(b)  z = Relu(a)").replace("D] y)", "D] y, float[E,F,G,H] z)")
    assert ops(fused(two).after).count("Pad") == 2


def test_pads_are_merged_in_old_opsets() -> None:
    text = """g (float[4,6] x) => (float[A,B] y)
        { a = Pad<pads = [0, 1, 2, 0], value = 2.5>(x)  y = Pad<pads = [1, 0, 0, 4], value = 2.5>(a) }"""
    assert ops(fused(text, opset=9).after) == ["Pad"]


def test_pool_over_the_plane() -> None:
    text = "g (float[1,4,6,5] x) => (float[A,B,C,D] y) { y = AveragePool<kernel_shape = [6, 5], strides = [6, 5]>(x) }"
    run = fused(text)
    assert ops(run.after) == ["GlobalAveragePool"]
    assert attributes(run) == {}


def test_inside_a_subgraph() -> None:
    text = f"""g (bool c, float[1,4,6,6] x) => (float[A,B,C,D] y) <{PADS}, float[5,4,3,3] w> {{
        y = If(c) <then_branch = t () => (float[A,B,C,D] a) {{ q = Pad(x, p)  a = Conv(q, w) }},
                   else_branch = e () => (float[A,B,C,D] b) {{ r = Pad(x, p)  s = Relu(r)  b = Conv(s, w) }}> }}"""
    run = fused(text)
    assert run.report.details["fused"] == 1


def test_padded_value_read_by_a_subgraph() -> None:
    text = f"""g (bool c, float[1,4,6,6] x) => (float[A,B,C,D] y) <{PADS}, float[5,4,3,3] w> {{ q = Pad(x, p)
        y = If(c) <then_branch = t () => (float[A,B,C,D] a) {{ a = Conv(q, w) }},
                   else_branch = e () => (float[A,B,C,D] b) {{ s = Relu(q)  b = Conv(s, w) }}> }}"""
    run = fused(text)
    assert (run.report.changes, run.reasons) == (0, ["a subgraph reads the padded value"])


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_any_padding(data: st.DataObject) -> None:
    """Whatever is padded and by whatever it is read: the values stay."""
    draw = data.draw
    kernel = draw(st.integers(1, 3))
    sizes = [draw(st.integers(0, 3)) for _ in range(4)]
    own = [draw(st.integers(0, kernel - 1)) for _ in range(4)]
    shared = f"pads = {own}, strides = [{draw(st.integers(1, 3))}, {draw(st.integers(1, 2))}]"
    window = f"{shared}, kernel_shape = [{kernel}, {kernel}]"
    call = draw(
        st.sampled_from(
            [
                f"Conv<{shared}>(q, w)",
                f"Conv<{shared}, group = 4>(q, v)",
                f"AveragePool<{window}, count_include_pad = {draw(st.integers(0, 1))}>(q)",
                f"MaxPool<{window}, ceil_mode = {draw(st.integers(0, 1))}>(q)",
            ]
        )
    )  # fmt: skip
    before = draw(st.sampled_from(["Relu", "Identity", "Abs", "Tanh"]))
    text = f"""g (float[2,4,6,7] x) => (float[A,B,C,D] y)
        <int64[8] p = {{0, 0, {sizes[0]}, {sizes[1]}, 0, 0, {sizes[2]}, {sizes[3]}}}, float[3,4,{kernel},{kernel}] w,
         float[4,1,{kernel},{kernel}] v> {{ r = {before}(x)  q = Pad(r, p)  y = {call} }}"""
    apply(FusePadding(), model(text))
