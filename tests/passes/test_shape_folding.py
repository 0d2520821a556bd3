"""Shape arithmetic with open sizes: closed targets, shared values, and what stays because it depends."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, assert_same, feeds, initializer, model, ops, outputs

from graphopt.passes.fold_constants import FoldConstants

CONSTANTS = """int64 nought = {0}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3},
  int64[1] four = {4}, int64[1] last = {-1}, int64[2] fore = {0, 1}, int64[2] twos = {2, 2}"""


def folded(shape: str, body: str, out: str, *, opset: int = 17) -> Run:
    """Fold ``body``, which computes ``y`` from ``x``; the same for several sizes of what is open."""
    text = f"g (float{shape} x) => (float{out} y) <{CONSTANTS}> {{ {body} }}"
    proto = model(text, opset=opset)
    run = apply(FoldConstants(), proto)
    for batch in (1, 3, 4):
        fed = feeds(proto, batch=batch)
        assert_same(outputs(proto, fed), outputs(run.after, fed))
    return run


def target(run: Run, op: str, slot: int) -> list[float]:
    node = next(node for node in run.after.graph.node if node.op_type == op)
    return initializer(run.after, node.input[slot]).tolist()


@pytest.mark.parametrize(
    ("shape", "body", "out", "wanted"),
    [
        pytest.param("[N,8]", "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis = 0>(n, twos, two)  "
                     "y = Reshape(x, t)", "[A,B,C,D]", [0, 2, 2, 2], id="copied"),
        pytest.param("[N,8]", "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis = 0>(four, two, n)  "
                     "y = Reshape(x, t)", "[A,B,C]", [4, 2, -1], id="left over"),
        pytest.param("[N,H,4]", "s = Shape(x)  n = Gather(s, fore)  t = Concat<axis = 0>(n, twos)  y = Reshape(x, t)",
                     "[A,B,C,D]", [0, 0, 2, 2], id="two copied"),
        pytest.param("[N,4]", "s = Shape(x)  n = Gather(s, zero)  m = Mul(n, two)  t = Concat<axis = 0>(m, two)  "
                     "y = Reshape(x, t)", "[A,B]", [-1, 2], id="a multiple is left over"),
        pytest.param("[N,H,4]", "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis = 0>(n, last)  y = Reshape(x, t)",
                     "[A,B]", [0, -1], id="as it could fail before"),
        pytest.param("[N,4,2]", "s = Shape(x)  p = Split(s)  a, b, c = Split(s)  d = Mul(b, c)  "
                     "t = Concat<axis = 0>(a, d)  y = Reshape(x, t)".replace("p = Split(s)  ", ""),
                     "[A,B]", [0, 8], id="split"),
        pytest.param("[N,4,2]", "s = Shape<start = 1>(x)  d = ReduceProd<keepdims = 1>(s)  n = Shape<end = 1>(x)  "
                     "t = Concat<axis = 0>(n, d)  y = Reshape(x, t)", "[A,B]", [0, 8], id="product of a part"),
        pytest.param("[N,4,2]", "s = Size(x)  e = Cast<to = 7>(s)  u = Unsqueeze(e, zero)  d = Div(u, two)  "
                     "t = Concat<axis = 0>(d, two)  y = Reshape(x, t)", "[A,B]", [-1, 2], id="size"),
        pytest.param("[N,5]", "s = Shape(x)  m = Gather(s, one)  r = Mod(m, three)  q = Sub(m, r)  "
                     "k = Min(q, four)  j = Max(k, two)  h = Sub(m, j)  i = Slice(x, zero, h, one)  "
                     "y = Add(i, i)", "[A,B]", None, id="remainder"),
    ],
)  # fmt: skip
def test_targets_of_reshape(shape: str, body: str, out: str, wanted: list[int] | None) -> None:
    run = folded(shape, body, out)
    assert "Shape" not in ops(run.after)
    if wanted is not None:
        assert target(run, "Reshape", 1) == wanted


def test_an_empty_batch_is_no_reason_to_fail() -> None:
    # [0, 4, -1] cannot tell what -1 is where there is no sample, the computed target can.
    body = """s = Shape(x)  n = Gather(s, zero)  h = Gather(s, one)  w = Gather(s, two)  a = Mul(h, w)
      t = Concat<axis = 0>(n, a, twos)  y = Reshape(x, t)"""
    run = folded("[N,H,W,4]", body, "[A,B,C,D]")
    assert "Shape" in ops(run.after)
    fed = {"x": np.zeros((0, 2, 3, 4), np.float32)}
    assert outputs(run.after, fed)["y"].shape == (0, 6, 2, 2)


def test_expand_keeps_a_size_of_its_input() -> None:
    run = folded("[N,1,4]", "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis = 0>(n, three, one)  y = Expand(x, t)",
                 "[A,B,C]")  # fmt: skip
    assert ops(run.after) == ["Expand"]
    assert target(run, "Expand", 1) == [1, 3, 1]


def test_expand_to_an_open_size_stays() -> None:
    run = folded("[N,4]", "s = Shape(x)  n = Gather(s, zero)  t = Concat<axis = 0>(n, one, four)  y = Expand(x, t)",
                 "[A,B,C]")  # fmt: skip
    assert "Shape" in ops(run.after)


def test_torch_expand_with_minus_one() -> None:
    body = """s = Shape(x)  n = Gather(s, zero)  t = Concat<axis = 0>(n, three, last)  k = Shape(t)
      o = ConstantOfShape<value = int64[1] {1}>(k)  m = ConstantOfShape<value = int64[1] {-1}>(k)  e = Equal(t, m)
      w = Where(e, o, t)  y = Expand(x, w)"""
    run = folded("[N,1,4]", body, "[A,B,C]")
    assert (ops(run.after), target(run, "Expand", 1)) == (["Expand"], [1, 3, 1])


def test_slice_to_the_end_of_an_axis() -> None:
    run = folded("[N,H]", "s = Shape(x)  h = Gather(s, one)  y = Slice(x, one, h, one)", "[A,B]")
    assert (ops(run.after), target(run, "Slice", 2)) == (["Slice"], [np.iinfo(np.int64).max])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("s = Shape(x)  h = Gather(s, zero)  y = Slice(x, zero, h, one)", id="size of another axis"),
        pytest.param("s = Shape(x)  h = Gather(s, one)  y = Slice(x, last, h, one, last)", id="backwards"),
        pytest.param("s = Shape(x)  h = Gather(s, one)  g = Div(h, two)  y = Slice(x, zero, g, one)", id="half"),
    ],
)
def test_slice_to_elsewhere_stays(body: str) -> None:
    assert "Shape" in ops(folded("[N,H]", body, "[A,B]").after)


@pytest.mark.parametrize(("factor", "closed"), [("two", True), ("four", True), ("three", False)])
def test_resize_to_a_multiple_is_scaled(factor: str, closed: bool) -> None:
    body = f"""s = Shape(x)  n = Slice(s, zero, two)  h = Slice(s, two, four)  d = Mul(h, {factor})
      t = Concat<axis = 0>(n, d)  y = Resize<mode = "nearest">(x, , , t)"""
    run = folded("[N,3,H,W]", body, "[A,B,C,D]")
    assert (ops(run.after) == ["Resize"]) == closed
    if closed:
        assert target(run, "Resize", 2) == [1, 1, 2 if factor == "two" else 4, 2 if factor == "two" else 4]


def test_each_layer_reads_the_batch_size_from_the_first() -> None:
    body = """a = Relu(x)  s = Shape(a)  n = Gather(s, nought)  u = Unsqueeze(n, zero)  c = ConstantOfShape(u)
      b = Neg(a)  t = Shape(b)  m = Slice(t, zero, one)  d = ConstantOfShape(m)
      e = Unsqueeze(c, one)  f = Unsqueeze(d, one)  g = Add(a, e)  h = Add(b, f)  y = Mul(g, h)"""
    run = folded("[N,4]", body, "[A,B]")
    assert ops(run.after).count("Shape") == 1
    assert "Slice" not in ops(run.after)


def test_padding_as_tensorflow_computes_it() -> None:
    # max((ceil(h / 2) - 1) * 2 + 3 - h, 0) in floats, on a size that is fixed while the batch is open.
    text = """g (float[N,3,15,15] x) => (float[A,B,C,D] y) <int64 axis = {2}, float stride = {2}, int64 i2 = {2},
      int64 one = {1}, int64 kernel = {3}, int64 zero = {0}, int64[1] first = {0}, int64[7] none = {0,0,0,0,0,0,0},
      float[4,3,3,3] w> {
      s = Shape(x)  h = Gather(s, axis)  f = Cast<to = 1>(h)  d = Div(f, stride)  c = Ceil(d)  i = Cast<to = 7>(c)
      j = Sub(i, one)  k = Mul(j, i2)  l = Add(k, kernel)  m = Sub(l, h)  p = Max(m, zero)  q = Unsqueeze(p, first)
      pads = Concat<axis = 0>(none, q)  r = Pad(x, pads)  y = Conv<strides = [2, 2]>(r, w) }"""
    run = apply(FoldConstants(), model(text))
    assert ops(run.after) == ["Pad", "Conv"]
    assert target(run, "Pad", 1) == [0, 0, 0, 0, 0, 0, 0, 2]


def test_a_range_reads_scalars() -> None:
    # Runtimes take a list of one number, the checker does not once it knows the number.
    text = """g (float[4,N] x) => (float[A,B] y) <int64[1] zero = {0}, int64 i0 = {0}, int64 i1 = {1}> {
      s = Shape(x)  n = Gather(s, zero)  r = Range(i0, n, i1)  f = Cast<to = 1>(r)  u = Unsqueeze(f, k)
      k = Constant<value = int64[1] {1}>()  y = Add(x, u) }""".replace(
        "u = Unsqueeze(f, k)\n      k = Constant<value = int64[1] {1}>()",
        "k = Constant<value = int64[1] {1}>()  u = Unsqueeze(f, k)",
    )
    proto = model(text)
    assert ops(apply(FoldConstants(), proto).after) == ["Add"]


def test_bodies_are_folded_too() -> None:
    text = """g (float[N,4] x, bool b) => (float[A,B,C] y) <int64[1] zero = {0}, int64[2] twos = {2, 2}> {
      y = If (b) <then_branch = t () => (float[A,B,C] p) { s = Shape(x)  n = Gather(s, zero)
          c = Concat<axis = 0>(n, twos)  p = Reshape(x, c) },
        else_branch = e () => (float[A,B,C] q) { s = Shape(x)  n = Gather(s, zero)
          c = Concat<axis = 0>(twos, n)  q = Reshape(x, c) }> }"""
    proto = model(text)
    for flag in (True, False):
        run = apply(FoldConstants(), proto, feeds(proto) | {"b": np.array(flag)})
    assert [len(each.g.node) for each in run.after.graph.node[0].attribute] == [1, 1]


# One step of shape arithmetic: an operator on two vectors of two elements, of which x's shape is one.
STEPS = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min")


@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5),
    flips=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_arithmetic_on_half_open_shapes(steps: list[tuple[str, int, int]], flips: bool) -> None:
    """Whatever is computed from [N, 6]: the result as numbers is the same with and without folding."""
    lines, last = ["s = Shape(x)"], "s"
    for place, (op, first, second) in enumerate(steps):
        lines.append(f"k{place} = Constant<value = int64[2] {{{first}, {second}}}>()")
        pair = f"k{place}, {last}" if flips and op in {"Add", "Sub", "Mul", "Max", "Min"} else f"{last}, k{place}"
        lines.append(f"v{place} = {op}({pair})")
        last = f"v{place}"
    body = "  ".join([*lines, "p, q = Split(" + last + ")", "a = Add(i, p)", "b = Mul(i, q)", "y = Sub(a, b)"])
    proto = model(f"g (float[N,6] x, int64[1] i) => (int64[1] y) {{ {body} }}")
    run = apply(FoldConstants(), proto)
    for batch in (1, 2, 5):
        fed = feeds(proto, batch=batch)
        assert_same(outputs(proto, fed), outputs(run.after, fed))


def test_an_open_size_that_went_through_a_float_is_not_taken_for_itself() -> None:
    # 2^24 + 1 is no float32. What is left over is right all the same: nothing else is open.
    body = """s = Shape(x)  f = Cast<to = 1>(s)  i = Cast<to = 7>(f)  n = Gather(i, zero)
      t = Concat<axis = 0>(n, one, four)  y = Expand(x, t)"""
    assert "Shape" in ops(folded("[N,4]", body, "[A,B,C]").after)


def test_the_interface_keeps_its_names() -> None:
    proto = model("g (float[2,3] x) => (int64[2] s, float[2,3] y) { s = Shape(x)  y = Relu(x) }")
    result = apply(FoldConstants(), proto).after
    assert [info.name for info in result.graph.output] == ["s", "y"]
    assert isinstance(result, onnx.ModelProto)
