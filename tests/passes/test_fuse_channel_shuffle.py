"""Channel shuffles, however they are written: recognised, absorbed into weights, or made one operator."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import apply, feeds, initializer, model, ops

from graphopt.latency import estimate
from graphopt.passes.fuse_channel_shuffle import FuseChannelShuffle
from graphopt.targets import load_target

PASS = FuseChannelShuffle()
MOVING = {"Reshape", "Transpose", "Gather", "Split", "Slice", "Concat", "Squeeze", "Unsqueeze", "DepthToSpace"}


def between(body: str, *, extra: str = "", spatial: str = "4,4", opset: int = 17) -> onnx.ModelProto:
    """A shuffle of ``a`` into ``b`` between two 1x1 convolutions of 6 channels."""
    return model(
        f"""g (float[N,3,{spatial}] x) => (float[N,5,{spatial}] y)
        <float[6,3,1,1] w1, float[6] b1, float[5,6,1,1] w2{extra}>
        {{ c = Conv(x, w1, b1)  a = Relu(c)  {body}  y = Conv(b, w2) }}""",
        opset=opset,
    )


S5 = ", int64[5] s5 = {0, 2, 3, 4, 4}, int64[4] s4 = {0, 6, 4, 4}"
FORMS = {
    "PyTorch": ("r = Reshape(a, s5)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  b = Reshape(t, s4)", S5),
    "minus one": (
        "r = Reshape(a, s5)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  b = Reshape(t, s4)",
        ", int64[5] s5 = {-1, 2, 3, 4, 4}, int64[4] s4 = {0, -1, 4, 4}",
    ),
    "4-D": (
        "r = Reshape(a, s4)  t = Transpose<perm = [0, 2, 1, 3]>(r)  b = Reshape(t, s)",
        ", int64[4] s4 = {0, 3, 2, 16}, int64[4] s = {0, 6, 4, 4}",
    ),
    "flattened": (
        "r = Reshape(a, s3)  t = Transpose<perm = [0, 2, 1, 3]>(r)  f = Flatten(t)  b = Reshape(f, s)",
        ", int64[4] s3 = {-1, 3, 2, 16}, int64[4] s = {-1, 6, 4, 4}",
    ),
    "through Squeeze": (
        """u = Unsqueeze(a, one)  r = Reshape(u, s6)  t = Transpose<perm = [0, 1, 3, 2, 4, 5]>(r)  q = Squeeze(t, one)
        b = Reshape(q, s)""",
        ", int64[1] one = {1}, int64[6] s6 = {0, 1, 2, 3, 4, 4}, int64[4] s = {0, 6, 4, 4}",
    ),
    "Gather": ("b = Gather<axis = 1>(a, i)", ", int64[6] i = {0, 3, 1, 4, 2, 5}"),
    "negative indices": ("b = Gather<axis = -3>(a, i)", ", int32[6] i = {0, -3, 1, -2, 2, -1}"),
    "Split and Concat": (
        """p, q, r, s, t, u = Split<axis = 1>(a, parts)  b = Concat<axis = 1>(p, s, q, t, r, u)""",
        ", int64[6] parts = {1, 1, 1, 1, 1, 1}",
    ),
    "Split and stack": (
        """p, q = Split<axis = 1>(a, parts)  u = Unsqueeze(p, two)  v = Unsqueeze(q, two)
        c2 = Concat<axis = 2>(u, v)  b = Reshape(c2, s)""",
        ", int64[2] parts = {3, 3}, int64[1] two = {2}, int64[4] s = {0, 6, 4, 4}",
    ),
    "Slices and stack": (
        """p = Slice(a, n0, n3, n1)  q = Slice(a, n3, n9, n1)  u = Unsqueeze(p, two)  v = Unsqueeze(q, two)
        c2 = Concat<axis = 2>(u, v)  b = Reshape(c2, s)""",
        """, int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n3 = {3}, int64[1] n9 = {9223372036854775807},
        int64[1] two = {2}, int64[4] s = {0, 6, 4, 4}""",
    ),
    "Slices with steps": (
        """p = Slice(a, n0, n9, n1, n2)  q = Slice(a, n1, n9, n1, n2)  b = Concat<axis = 1>(q, p)""",
        ", int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n2 = {2}, int64[1] n9 = {99}",
    ),
    "backwards": (
        "b = Slice(a, m1, far, n1, m1)",
        ", int64[1] m1 = {-1}, int64[1] n1 = {1}, int64[1] far = {-9223372036854775808}",
    ),
    "computed shape": (
        """sh = Shape(a)  n = Gather(sh, z)  h = Gather(sh, two)  w = Gather(sh, three)
        n1 = Unsqueeze(n, zz)  h1 = Unsqueeze(h, zz)  w1_ = Unsqueeze(w, zz)
        s5 = Concat<axis = 0>(n1, g, k, h1, w1_)  s4 = Concat<axis = 0>(n1, c6, h1, w1_)
        r = Reshape(a, s5)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  b = Reshape(t, s4)""",
        """, int64 z = {0}, int64 two = {2}, int64 three = {3}, int64[1] zz = {0}, int64[1] g = {2}, int64[1] k = {3},
        int64[1] c6 = {6}""",
    ),
    "int32 shape, divided": (
        """sh = Shape(a)  sh2 = Cast<to = 6>(sh)  n = Slice(sh2, n0, n1)  c1 = Slice(sh2, n1, n2)
        hw = Slice(sh2, n2, n4)
        k = Div(c1, g)  s5 = Concat<axis = 0>(n, g, k, hw)  s5_ = Cast<to = 7>(s5)  s4 = Cast<to = 7>(sh2)
        r = Reshape(a, s5_)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  b = Reshape(t, s4)""",
        ", int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n2 = {2}, int64[1] n4 = {4}, int32[1] g = {3}",
    ),
    "two in turn": (
        """r = Reshape(a, s5)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  m = Reshape(t, s4)
        r2 = Reshape(m, s5)  t2 = Transpose<perm = [0, 2, 1, 3, 4]>(r2)  b = Reshape(t2, s4)""",
        S5,
    ),
}
DYNAMIC = ("computed shape", "int32 shape, divided", "Gather", "negative indices", "Split and Concat", "backwards")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_into_the_weights(form: str) -> None:
    body, extra = FORMS[form]
    run = apply(PASS, between(body, extra=extra))
    assert Counter(ops(run.after)) == Counter(["Conv", "Relu", "Conv"])


@pytest.mark.parametrize("form", DYNAMIC)
def test_forms_with_open_height_and_width(form: str) -> None:
    body, extra = FORMS[form]
    proto = between(body, extra=extra, spatial="H,W")
    for height, width in ((4, 4), (3, 7)):
        x = np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)
        run = apply(PASS, proto, {"x": x})
        assert Counter(ops(run.after)) == Counter(["Conv", "Relu", "Conv"])


def test_in_another_layout() -> None:
    """A shuffle between two Transposes that then cancel."""
    body = """t0 = Transpose<perm = [0, 2, 3, 1]>(a)  r = Reshape(t0, s5)  t = Transpose<perm = [0, 1, 2, 4, 3]>(r)
        q = Reshape(t, s4)  b = Transpose<perm = [0, 3, 1, 2]>(q)"""
    run = apply(PASS, between(body, extra=", int64[5] s5 = {0, 4, 4, 2, 3}, int64[4] s4 = {0, 4, 4, 6}"))
    assert ops(run.after) == ["Conv", "Relu", "Conv"]


def test_depth_to_space_and_back() -> None:
    """Two rearrangements of space that only permute channels between them."""
    proto = model(
        """g (float[N,3,4,4] x) => (float[N,5,4,4] y) <float[8,3,1,1] w1, float[5,8,1,1] w2>
        { a = Conv(x, w1)  d = DepthToSpace<blocksize = 2, mode = "CRD">(a)  b = SpaceToDepth<blocksize = 2>(d)
          y = Conv(b, w2) }"""
    )
    assert ops(apply(PASS, proto).after) == ["Conv", "Conv"]


def test_mixed_with_the_batch() -> None:
    """Halves taken out of one transposed tensor, as in the original ShuffleNet v2."""
    proto = model(
        """g (float[N,3,4,4] x) => (float[N,5,4,4] y, float[N,3,4,4] z)
        <float[6,3,1,1] w1, float[5,3,1,1] w2, int64[3] s3 = {-1, 2, 16}, int64[5] s5 = {2, -1, 3, 4, 4},
         int64 zero = {0}, int64 one = {1}>
        { a = Conv(x, w1)  r = Reshape(a, s3)  t = Transpose<perm = [1, 0, 2]>(r)  q = Reshape(t, s5)
          p = Gather<axis = 0>(q, zero)  s = Gather<axis = 0>(q, one)  y = Conv(p, w2)  z = Relu(s) }"""
    )
    run = apply(PASS, proto)
    assert Counter(ops(run.after)) == Counter(["Conv", "Split", "Conv", "Relu"])


def test_channels_last() -> None:
    """In a product over the last axis; what cannot be absorbed there stays, for Gather is slow."""
    text = """g (float[N,4,4,3] x) => (float[N,4,4,5] y)
        <float[3,6] w1, float[6] b1, float[6,5] w2, int64[5] s5 = {0, 4, 4, 2, 3}, int64[4] s4 = {0, 4, 4, 6}>
        { m = MatMul(x, w1)  c = Add(m, b1)  a = Relu(c)  r = Reshape(a, s5)  t = Transpose<perm = [0, 1, 2, 4, 3]>(r)
          b = Reshape(t, s4)  y = MatMul(b, w2) }"""
    assert ops(apply(PASS, model(text)).after) == ["MatMul", "Add", "Relu", "MatMul"]
    kept = text.replace("float[N,4,4,5] y", "float[N,4,4,6] a, float[N,4,4,6] b, float[N,4,4,5] y")
    assert apply(PASS, model(kept)).report.changes == 0


PASSED = {
    "activations": "b0 = HardSwish(b)  b1 = Clip(b0, lo, hi)",
    "BatchNormalization": "b1 = BatchNormalization(b, scale, shift, mean, var)",
    "InstanceNormalization": "b1 = InstanceNormalization(b, scale, shift)",
    "arithmetic": "b0 = Mul(b, k)  b1 = Add(k2, b0)",
    "PRelu": "b1 = PRelu(b, k)",
    "pooling": "b0 = MaxPool<kernel_shape = [3, 3]>(b)  b1 = AveragePool<kernel_shape = [1, 1]>(b0)",
    "depthwise": "b1 = Conv<group = 6, pads = [1, 1, 1, 1]>(b, dw, shift)",
    "depthwise, transposed": "b1 = ConvTranspose<group = 6, pads = [1, 1, 1, 1]>(b, dw, shift)",
    "padding": 'b1 = Pad<mode = "reflect">(b, pads)',
    "squeeze and excite": "g = GlobalAveragePool(b)  g1 = Conv(g, sq)  g2 = Sigmoid(g1)  b1 = Mul(b, g2)",
    "softmax over channels": "b1 = Softmax<axis = 1>(b)",
    "resize": "b1 = Resize(b, , scales)",
    "residual": "b0 = Conv(b, sq)  b1 = Add(b0, b)",
    "transposed": "b0 = Transpose<perm = [0, 2, 3, 1]>(b)  c = Add(b0, shift)  b1 = Transpose<perm = [0, 3, 1, 2]>(c)",
    "spatial halves": "b0, b00 = Split<axis = 2>(b, halves)  b1 = Concat<axis = -1>(b0, b00)",
    "mean": "b0 = ReduceMean<axes = [2, 3]>(b)  b1 = Sub(b, b0)",
    "norm over channels": "b0 = ReduceL2<axes = [1]>(b)  b1 = Div(b, b0)",
}


@pytest.mark.parametrize("how", PASSED)
def test_moves_through(how: str) -> None:
    body, extra = FORMS["PyTorch"]
    extra += """, float lo = {-1.0}, float hi = {1.0}, float[6] scale, float[6] shift, float[6] mean, float[6] var,
        float[6,1,1] k, float[1,6,1,1] k2, float[6,1,3,3] dw, float[6,6,1,1] sq, int64[8] pads = {0,0,1,1,0,0,1,1},
        float[4] scales = {1.0, 1.0, 2.0, 2.0}, int64[2] halves = {2, 2}"""
    text = f"{body}  {PASSED[how]}"
    proto = model(
        f"""g (float[N,3,4,4] x) => (float[N,5,H,W] y) <float[6,3,1,1] w1, float[5,6,1,1] w2{extra}>
        {{ a = Conv(x, w1)  {text}  y = Conv(b1, w2) }}"""
    )
    run = apply(PASS, proto)
    assert not {"Gather", "Reshape"} & set(ops(run.after))
    assert ops(run.after).count("Transpose") == how.count("transposed") * (how == "transposed") * 2


def test_into_a_flattened_product() -> None:
    """Flatten leaves height x width entries for each channel."""
    body, extra = FORMS["PyTorch"]
    proto = model(
        f"""g (float[N,3,4,4] x) => (float[N,5] y) <float[6,3,1,1] w1, float[96,5] w2, float[5] b2{extra}>
        {{ a = Conv(x, w1)  {body}  f = Flatten(b)  y = Gemm(f, w2, b2) }}"""
    )
    assert ops(apply(PASS, proto).after) == ["Conv", "Flatten", "Gemm"]


def test_a_producer_of_any_order_takes_it() -> None:
    """Where the reader is not understood, the producer writes in the order wanted: here straight to an output."""
    body, extra = FORMS["PyTorch"]
    proto = model(
        f"""g (float[N,3,4,4] x) => (float[N,6,4,4] b) <float[6,3,1,1] w1, float[6] b1{extra}>
        {{ c = Conv(x, w1, b1)  a = Relu(c)  {body} }}"""
    )
    run = apply(PASS, proto)
    assert ops(run.after) == ["Conv", "Relu"]
    np.testing.assert_array_equal(
        initializer(run.after, run.after.graph.node[0].input[2]), initializer(proto, "b1")[[0, 3, 1, 4, 2, 5]]
    )


def test_flipped_colours_go_into_the_first_convolution() -> None:
    proto = model(
        """g (float[N,3,4,4] x) => (float[N,5,4,4] y) <float[5,3,1,1] w, int64[3] i = {2, 1, 0}>
        { b = Gather<axis = 1>(x, i)  y = Conv(b, w) }"""
    )
    assert ops(apply(PASS, proto).after) == ["Conv"]


GROUPED = """g (float[N,4,4,4] x) => (float[N,8,4,4] y)
    <float[8,2,1,1] w1, float[8,1,3,3] dw, float[8,4,1,1] w2, int64[5] s5 = {0, 2, 4, 4, 4}, int64[4] s4 = {0, 8, 4, 4}>
    { a = Conv<group = 2>(x, w1)  r = Reshape(a, s5)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  b = Reshape(t, s4)
      d = Conv<group = 8, pads = [1, 1, 1, 1]>(b, dw)  y = Conv<group = 2>(d, w2) }"""


def test_between_grouped_convolutions_one_gather_is_left() -> None:
    assert ops(apply(PASS, model(GROUPED)).after) == ["Conv", "Gather", "Conv", "Conv"]


def test_within_groups_it_goes() -> None:
    """A permutation that does not lead out of the groups is absorbed by grouped convolutions too."""
    text = GROUPED.replace("{0, 2, 4, 4, 4}", "{0, 2, 2, 2, 16}").replace("[0, 2, 1, 3, 4]", "[0, 1, 3, 2, 4]")
    assert ops(apply(PASS, model(text)).after) == ["Conv", "Conv", "Conv"]
    transposed = text.replace("y = Conv<group = 2>(d, w2)", "y = ConvTranspose<group = 2>(d, w2)")
    assert ops(apply(PASS, model(transposed)).after) == ["Conv", "Conv", "ConvTranspose"]
    first = text.replace("a = Conv<group = 2>(x, w1)", "a = ConvTranspose<group = 2>(x, v1)").replace(
        "float[8,2,1,1] w1", "float[4,4,1,1] v1"
    )
    assert ops(apply(PASS, model(first)).after) == ["ConvTranspose", "Conv", "Conv"]


SHUFFLENET_V2 = """g (float[N,3,8,8] x) => (float[N,7] y)
    <float[4,3,1,1] wa, float[4,3,1,1] wb, float[7,8] wf, float[7] bf,
     float[4,4,1,1] u1, float[4,1,3,3] d1, float[4,4,1,1] v1, float[4,4,1,1] u2, float[4,1,3,3] d2, float[4,4,1,1] v2,
     int64[5] s5 = {0, 2, 4, 8, 8}, int64[4] s4 = {0, 8, 8, 8}, int64[2] half = {4, 4}>
    { a0 = Conv(x, wa)  a = Relu(a0)  b0 = Conv(x, wb)  b = Relu(b0)
      c = Concat<axis = 1>(a, b)  r = Reshape(c, s5)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  z = Reshape(t, s4)
      p, q = Split<axis = 1>(z, half)
      e1 = Conv(q, u1)  e2 = Conv<group = 4, pads = [1, 1, 1, 1]>(e1, d1)  e3 = Conv(e2, v1)  e = Relu(e3)
      c2 = Concat<axis = 1>(p, e)  r2 = Reshape(c2, s5)  t2 = Transpose<perm = [0, 2, 1, 3, 4]>(r2)
      z2 = Reshape(t2, s4)  p2, q2 = Split<axis = 1>(z2, half)
      f1 = Conv(q2, u2)  f2 = Conv<group = 4, pads = [1, 1, 1, 1]>(f1, d2)  f3 = Conv(f2, v2)  f = Relu(f3)
      c3 = Concat<axis = 1>(p2, f)  r3 = Reshape(c3, s5)  t3 = Transpose<perm = [0, 2, 1, 3, 4]>(r3)
      z3 = Reshape(t3, s4)
      m = GlobalAveragePool(z3)  g = Flatten(m)  y = Gemm<transB = 1>(g, wf, bf) }"""


def test_shufflenet_v2() -> None:
    """Each branch is cut once and each reader joined once, whatever number of shuffles lies between."""
    run = apply(PASS, model(SHUFFLENET_V2))
    left = Counter(op for op in ops(run.after) if op in MOVING)
    assert left == Counter(Split=3, Concat=3)


ENGINE = "jetson-tx2"


def test_an_engine_launches_a_kernel_for_each_piece_of_a_split() -> None:
    """Cutting into more pieces takes longer there than one Transpose, and a Gather is no faster than that."""
    cut = apply(PASS, model(SHUFFLENET_V2))
    kept = apply(PASS, model(SHUFFLENET_V2), target=ENGINE)
    assert kept.report.changes == 0
    hardware = load_target(ENGINE).hardware
    kept_ms, cut_ms = (estimate(run.after, hardware).ms for run in (kept, cut))
    assert kept_ms < cut_ms
    assert apply(PASS, model(GROUPED), target=ENGINE).report.changes == 0


def test_an_engine_is_spared_shuffles_that_go_into_weights() -> None:
    body, extra = FORMS["PyTorch"]
    run = apply(PASS, between(body, extra=extra), target=ENGINE)
    assert not MOVING & set(ops(run.after))


WALLS = {
    "input and output": ("", "x", "y"),
    "not understood": ("lrn = LRN<size = 3>(x)", "lrn", "y"),
}


@pytest.mark.parametrize("how", WALLS)
def test_becomes_one_gather(how: str) -> None:
    body, source, _ = WALLS[how]
    proto = model(
        f"""g (float[N,6,4,4] x) => (float[N,6,4,4] y) <int64[5] s5 = {{0, 2, 3, 4, 4}}, int64[4] s4 = {{0, 6, 4, 4}}>
        {{ {body} r = Reshape({source}, s5)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  y = Reshape(t, s4) }}"""
    )
    assert Counter(op for op in ops(apply(PASS, proto).after) if op in MOVING) == Counter(["Gather"])


def test_inverse_shuffles_cancel() -> None:
    proto = model(
        """g (float[N,6,4,4] x) => (float[N,6,4,4] y)
        <int64[5] s23 = {0, 2, 3, 4, 4}, int64[5] s32 = {0, 3, 2, 4, 4}, int64[4] s4 = {0, 6, 4, 4}, float[6,1,1] k>
        { r = Reshape(x, s23)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  m = Reshape(t, s4)  n = Mul(m, k)
          r2 = Reshape(n, s32)  t2 = Transpose<perm = [0, 2, 1, 3, 4]>(r2)  y = Reshape(t2, s4) }"""
    )
    assert ops(apply(PASS, proto).after) == ["Mul"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            """g (float[N,6,H,4] x) => (float[N,6,H,4] y) <int64[5] s = {-1, 2, 3, 4, 4}, int64[4] s4 = {-1, 6, 4, 4}>
            { r = Reshape(x, s)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  y = Reshape(t, s4) }""",
            "height is open: only for 4 is it the channels that are shuffled",
        ),
        (
            """g (float[N,C,4,4] x) => (float[N,C,4,4] y) <int64[5] s = {0, 2, -1, 4, 4}, int64[4] s4 = {0, -1, 4, 4}>
            { r = Reshape(x, s)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  y = Reshape(t, s4) }""",
            "the number of channels is open",
        ),
        (
            """g (float[N,6,4,4] x) => (float[N,6,4,4] y, float[N,3,2,4,4] z)
            <int64[5] s = {0, 2, 3, 4, 4}, int64[4] s4 = {0, 6, 4, 4}>
            { r = Reshape(x, s)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  y = Reshape(t, s4)  z = Relu(t) }""",
            "what lies in between is read",
        ),
        (
            """g (float[N,6,4,4] x) => (float[N,6,4,4] y) <int64[5] s = {0, 2, 3, 4, 4}, int64[4] s4 = {0, 6, 4, 4}>
            { r = Reshape(x, s)  t = Transpose<perm = [0, 2, 1, 4, 3]>(r)  y = Reshape(t, s4) }""",
            "height and width change places too",
        ),
        (
            """g (float[N,6,4,4] x, int64[5] s) => (float[N,6,4,4] y) <int64[4] s4 = {0, 6, 4, 4}>
            { r = Reshape(x, s)  t = Transpose<perm = [0, 2, 1, 3, 4]>(r)  y = Reshape(t, s4) }""",
            "the shape is an input",
        ),
        (
            """g (float[N,6,4,4] x, int64[6] i) => (float[N,5,4,4] y) <float[5,6,1,1] w>
            { b = Gather<axis = 1>(x, i)  y = Conv(b, w) }""",
            "the indices are an input",
        ),
        (
            """g (float[N,6,4,4] x) => (float[N,2,4,4] y) <float[2,3,1,1] w, int64[2] half = {3, 3}>
            { p, q = Split<axis = 1>(x, half)  c = Concat<axis = 1>(p, q)  a = Conv(p, w)  b = Conv(q, w)
              y = Add(a, b) }""",
            "nothing is scrambled",
        ),
    ],
)
def test_leaves_alone(text: str, why: str) -> None:
    proto = model(text)
    fed = feeds(proto) if "[5] s)" not in text else {**feeds(proto), "s": np.array([0, 2, 3, 4, 4])}
    if "H" in text or "C," in text:
        fed = {"x": np.random.default_rng(0).normal(size=(2, 6, 4, 4)).astype(np.float32)}
    assert apply(PASS, proto, fed).report.changes == 0, why


KEPT = {
    "weights are an input": ("float[6,3,1,1] w1", "y = Conv(b, w2)", ", float[5,6,1,1] w2"),
    "weights are computed": ("float[6,3,1,1] w1, float[5,6,1,1] w0", "w2 = Neg(w0)  y = Conv(b, w2)", ""),
    "neighbouring channels meet": ("float[6,3,1,1] w1", "y = LRN<size = 3>(b)", ""),
}


@pytest.mark.parametrize("how", KEPT)
@pytest.mark.parametrize("source", ["x", "relu"])
def test_walls_keep_the_gather_or_push_it_back(how: str, source: str) -> None:
    """A wall on one side only: the other takes it. On both sides: a Gather."""
    declared, tail, inputs = KEPT[how]
    body, extra = FORMS["PyTorch"]
    head = "a = Conv(x, w1)" if source == "x" else "a = Relu(x)"
    channels = 3 if source == "x" else 6
    out = 6 if "LRN" in tail else 5
    proto = model(
        f"""g (float[N,{channels},4,4] x{inputs}) => (float[N,{out},4,4] y) <{declared}{extra}>
        {{ {head}  {body}  {tail} }}"""
    )
    after = ops(apply(PASS, proto).after)
    assert after.count("Gather") == (source == "relu")
    assert "Reshape" not in after


def test_shared_weights_are_copied_only_when_small() -> None:
    body, extra = FORMS["PyTorch"]
    proto = model(
        f"""g (float[N,3,4,4] x, float[N,6,4,4] z) => (float[N,99,4,4] y, float[N,99,4,4] y2)
        <float[6,3,1,1] w1, float[99,6,3,3] w2{extra}>
        {{ a = Conv(x, w1)  {body}  y = Conv<pads = [1, 1, 1, 1]>(b, w2)  y2 = Conv<pads = [1, 1, 1, 1]>(z, w2) }}"""
    )
    run = apply(PASS, proto)
    assert Counter(ops(run.after)) == Counter(["Conv"] * 3)
    assert run.after.ByteSize() < proto.ByteSize()


def test_in_a_branch_and_captured_by_one() -> None:
    """Shuffles inside a branch are treated; a tensor that a branch captures keeps its order."""
    body, extra = FORMS["PyTorch"]
    proto = model(
        f"""g (float[N,3,4,4] x, bool flag) => (float[N,5,4,4] y)
        <float[6,3,1,1] w1, float[5,6,1,1] w2, float[5,6,1,1] w3{extra}>
        {{ a = Conv(x, w1)  {body}
           y = If(flag) <
             then_branch = then_graph () => (float[N,5,4,4] y1) {{ y1 = Conv(b, w2) }},
             else_branch = else_graph () => (float[N,5,4,4] y2)
               {{ c = Conv(x, w1)  r9 = Reshape(c, s5)  t9 = Transpose<perm = [0, 2, 1, 3, 4]>(r9)  b9 = Reshape(t9, s4)
                  y2 = Conv(b9, w3) }}
           > }}"""
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    for flag in (True, False):
        run = apply(PASS, proto, {"x": x, "flag": np.array(flag)})
    branches = [[node.op_type for node in attribute.g.node] for attribute in run.after.graph.node[-1].attribute]
    assert ops(run.after) == ["Conv", "If"]
    assert branches == [["Conv"], ["Conv", "Conv"]]


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 18, 20])
def test_opsets(opset: int) -> None:
    """Split takes its sizes as an attribute before opset 13."""
    text = SHUFFLENET_V2
    if opset < 13:
        text = text.replace("Split<axis = 1>(z, half)", "Split<axis = 1, split = [4, 4]>(z)")
        text = text.replace("Split<axis = 1>(z2, half)", "Split<axis = 1, split = [4, 4]>(z2)")
    run = apply(PASS, model(text, opset=opset))
    assert Counter(op for op in ops(run.after) if op in MOVING) == Counter(Split=3, Concat=3)


def test_what_only_the_shape_is_read_of() -> None:
    """Shape does not mind the order; the tensor stays."""
    body, extra = FORMS["PyTorch"]
    proto = model(
        f"""g (float[N,3,4,4] x) => (float[N,5,4,4] y, int64[4] s) <float[6,3,1,1] w1, float[5,6,1,1] w2{extra}>
        {{ a = Conv(x, w1)  {body}  y = Conv(b, w2)  s = Shape(b) }}"""
    )
    assert Counter(ops(apply(PASS, proto).after)) == Counter(["Conv", "Shape", "Conv"])


def test_operators_of_other_domains() -> None:
    """They only share a name."""
    proto = model(
        """<ir_version: 8, opset_import: ["" : 17, "other" : 1]>
        g (float[N,6,4,4] x) => (float[N,6,4,4] y, float[N,6,4,4] z, float[N,6,4,4] u)
        { y = other.Gather(x)  a = other.Transpose()  z = other.Concat(a)  u = other.Slice(x, x, x, x, x) }"""
    )
    assert apply(PASS, proto, compare=False).report.changes == 0


def test_channels_of_two_axes() -> None:
    """One tensor whose channels and rows are both shuffled: neither is mistaken for the other."""
    proto = model(
        """g (float[N,3,6,5] x) => (float[N,5,2,5] y, float[N,5,4,5] z)
        <float[4,3,1,1] w, float[5,4,1,1] v, int64[6] rows = {0, 3, 1, 4, 2, 5}, int64[4] i = {0, 2, 1, 3},
         int64[2] parts = {2, 4}>
        { a = Conv(x, w)  b = Gather<axis = 1>(a, i)  c = Gather<axis = 2>(b, rows)  p, q = Split<axis = 2>(c, parts)
          y = Conv(p, v)  z = Conv(q, v) }"""
    )
    run = apply(PASS, proto)
    assert ops(run.after).count("Gather") >= 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_nets(data: st.DataObject) -> None:
    """Nets with shuffles, splits, joins, grouped and depthwise convolutions, residuals and several outputs."""
    lines: list[str] = []
    weights: list[str] = []
    names, channels = ["x"], [4]
    for step in range(data.draw(st.integers(3, 14), label="nodes")):
        at = data.draw(st.integers(max(0, len(names) - 4), len(names) - 1), label="source")
        x, count, out = names[at], channels[at], f"t{step}"
        kinds = [
            "conv",
            "grouped",
            "depthwise",
            "bn",
            "relu",
            "mul",
            "pool",
            "shuffle",
            "gather",
            "concat",
            "split",
            "add",
        ]
        kind = data.draw(st.sampled_from(kinds), label="kind")
        width = count
        if kind in {"conv", "grouped"}:
            width = data.draw(st.sampled_from([4, 8, 12]))
            groups = 2 if kind == "grouped" and count % 2 == 0 else 1
            weights.append(f"float[{width},{count // groups},1,1] w{step}, float[{width}] b{step}")
            bias = f", b{step}" if data.draw(st.booleans()) else ""
            lines.append(f"{out} = Conv<group = {groups}>({x}, w{step}{bias})")
        elif kind == "depthwise":
            times = data.draw(st.sampled_from([1, 1, 2]))
            width = count * times
            weights.append(f"float[{width},1,3,3] w{step}")
            lines.append(f"{out} = Conv<group = {count}, pads = [1, 1, 1, 1]>({x}, w{step})")
        elif kind == "bn":
            weights.append(", ".join(f"float[{count}] {role}{step}" for role in ("scale", "shift", "mean", "var")))
            lines.append(f"{out} = BatchNormalization({x}, scale{step}, shift{step}, mean{step}, var{step})")
        elif kind == "relu":
            lines.append(f"{out} = Relu({x})")
        elif kind == "mul":
            weights.append(f"float[{count},1,1] k{step}")
            lines.append(f"{out} = Mul({x}, k{step})")
        elif kind == "pool":
            lines.append(f"{out} = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({x})")
        elif kind == "shuffle":
            divisors = [size for size in range(2, count) if count % size == 0] or [1]
            groups = data.draw(st.sampled_from(divisors))
            weights.append(f"int64[5] s{step} = {{0, {groups}, {count // groups}, 4, 4}}")
            weights.append(f"int64[4] z{step} = {{0, {count}, 4, 4}}")
            lines.append(f"r{step} = Reshape({x}, s{step})  q{step} = Transpose<perm = [0, 2, 1, 3, 4]>(r{step})")
            lines.append(f"{out} = Reshape(q{step}, z{step})")
        elif kind == "gather":
            chosen = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=6))
            width = len(chosen)
            weights.append(f"int64[{width}] i{step} = {{{', '.join(map(str, chosen))}}}")
            lines.append(f"{out} = Gather<axis = 1>({x}, i{step})")
        elif kind == "concat":
            other = data.draw(st.integers(0, len(names) - 1), label="other")
            width = count + channels[other]
            lines.append(f"{out} = Concat<axis = 1>({x}, {names[other]})")
        elif kind == "split":
            width = data.draw(st.integers(1, count - 1)) if count > 1 else 0
            if not width:
                continue
            weights.append(f"int64[2] p{step} = {{{width}, {count - width}}}")
            lines.append(f"{out}, {out}_ = Split<axis = 1>({x}, p{step})")
            names.append(f"{out}_")
            channels.append(count - width)
        else:
            alike = [name for name, size in zip(names, channels, strict=True) if size == count]
            lines.append(f"{out} = Add({x}, {data.draw(st.sampled_from(alike))})")
        names.append(out)
        channels.append(width)
    outputs = {names[-1]: channels[-1]}
    if data.draw(st.booleans(), label="head"):
        weights.append(f"float[5,{channels[-1]},1,1] head")
        lines.append(f"y = Conv({names[-1]}, head)")
        outputs = {"y": 5}
    for _ in range(data.draw(st.integers(0, 2), label="more outputs")):
        at = data.draw(st.integers(1, len(names) - 1)) if len(names) > 1 else 0
        outputs[names[at]] = channels[at]
    outputs.pop("x", None)
    if not outputs:
        return
    declared = f"<{', '.join(weights)}>" if weights else ""
    head = ", ".join(f"float[N,{count},4,4] {name}" for name, count in outputs.items())
    apply(PASS, model(f"g (float[N,4,4,4] x) => ({head}) {declared} {{ {'  '.join(lines)} }}"), rtol=1e-4)
