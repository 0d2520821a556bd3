"""simplify_reshapes: slices, gathers, concatenations, broadcasts and vectors of sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, feeds, initializer, model, ops

from graphopt.passes.simplify_reshapes import SimplifyReshapes


def simplified(text: str, *, opset: int = 17, batch: int = 2, **weights: object) -> Run:
    proto = model(text, opset=opset, **weights)
    return apply(SimplifyReshapes(), proto, feeds(proto, batch=batch))


def net(body: str, declared: str = "", *, x: str = "float[N,6,8]", y: str = "float[A,B,C]") -> str:
    return f"g ({x} x) => ({y} y) <{declared}> {{ r = Sin(x)  {body}  y = Neg(t) }}".replace("<>", "")


def vectors(**values: list[int]) -> str:
    return ", ".join(f"int64[{len(items)}] {name} = {{{', '.join(map(str, items))}}}" for name, items in values.items())


FAR = 2**63 - 1
SLICES = "a = Slice(r, s, e, k, d)  t = Slice(a, p, q, l, f)"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            net(SLICES, vectors(s=[1], e=[-1], k=[1], d=[1], p=[0], q=[-1], l=[1], f=[1]), x="float[N,H,W]"),
            id="two ends from the back of an open size",
        ),
        pytest.param(
            net(SLICES, vectors(s=[-3], e=[FAR], k=[1], d=[1], p=[1], q=[3], l=[1], f=[1]), x="float[N,H,W]"),
            id="a start from the back of an open size",
        ),
        pytest.param(
            net(SLICES, vectors(s=[0], e=[FAR], k=[1], d=[2], p=[1], q=[3], l=[1], f=[1]), x="float[N,H,W]"),
            id="steps of an open size",
        ),
        pytest.param(
            net("a = Concat<axis = 1>(r, r)  t = Slice(a, s, e, k)", vectors(s=[5], e=[7], k=[1])), id="both parts"
        ),
        pytest.param(
            net("a = Concat<axis = 1>(r, r)  t = Slice(a, s, e, k)", vectors(s=[0], e=[6], k=[2])), id="another axis"
        ),
        pytest.param(net("a = Gather<axis = 1>(r, i)  t = Gather<axis = 2>(a, i)", vectors(i=[1, 3])), id="two axes"),
        pytest.param(net("t = Gather<axis = 1>(r, i)", "int64 i = {0}", y="float[A,B]"), id="a gather"),
        pytest.param(
            net("a, b = Split<axis = 1>(r)  t = Concat<axis = 1>(b, a)"), id="split and put together the other way"
        ),
        pytest.param(
            net("a, b = Split<axis = 1>(r)  t = Concat<axis = 2>(a, b)"), id="split and put together along another axis"
        ),
        pytest.param(
            net("a = Concat<axis = 1>(r, r)  t = Concat<axis = 2>(a, a)"), id="concatenated along two axes"
        ),
        pytest.param(
            net("a = Concat<axis = 1>(r, x)  b = Concat<axis = 1>(a, x)  t = Mul(b, b)  z = Neg(a)",
                y="float[D,E,F] z, float[A,B,C]"),
            id="a concat with two readers",
        ),
        pytest.param(
            net("m = ReduceMax<axes = [2]>(r)  s = Shape(x)  a = Expand(m, s)  t = Softmax(a)"),
            id="expand that is needed",
        ),
        pytest.param(
            "g (float[N,1] x, float[M,4] z) => (float[A,B] y) <int64[2] s = {3, 4}> {"
            " a = Expand(x, s)  y = Add(a, z) }",
            id="expand to what is not proven",
        ),
        pytest.param(
            "g (float[4] x, float[4] z) => (float[A,B] y) <int64[2] s = {1, 4}> { a = Expand(x, s)  y = Add(a, z) }",
            id="expand to another rank",
        ),
    ],
)  # fmt: skip
def test_leaves_alone(text: str) -> None:
    proto = model(text)
    feed = feeds(proto)
    for name, shape in (("x", (3, 1)), ("z", (3, 4))):
        if "float[M,4] z" in text:
            feed[name] = np.ones(shape, np.float32)
        elif "[N,H,W]" in text:
            feed["x"] = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    run = apply(SimplifyReshapes(), proto, feed)
    assert (run.report.changes, run.skipped) == (0, ())


@pytest.mark.parametrize(
    "bounds",
    [
        ([1], [5], [1], [1], [0], [4], [2], [1]),  # other axis
        ([1], [FAR], [1], [1], [1], [3], [1], [1]),
        ([1], [FAR], [1], [1], [1], [-1], [1], [1]),
        ([2], [-1], [1], [1], [1], [FAR], [1], [2]),
        ([1], [5], [1], [1], [1], [9], [1], [1]),
        ([0, 1], [9, 5], [0, 2], [1, 1], [1, 1], [2, 3], [2, 1], [1, 2]),
    ],
)
@pytest.mark.parametrize("size", ["N,6,8", "N,H,W"])
def test_slices_of_slices(bounds: tuple[list[int], ...], size: str) -> None:
    declared = vectors(**dict(zip("sekdpqlf", bounds, strict=True)))
    proto = model(net(SLICES, declared, x=f"float[{size}]"))
    for shape in ((2, 6, 8), (1, 1, 2), (3, 9, 4)) if "H" in size else ((2, 6, 8),):
        run = apply(SimplifyReshapes(), proto, {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)})
        assert ops(run.after) == ["Sin", "Slice", "Neg"]


def test_slices_with_attributes() -> None:
    text = net(
        "a = Slice<axes = [1], starts = [1], ends = [5]>(r)"
        "  t = Slice<axes = [2, 1], starts = [0, 1], ends = [3, 9]>(a)"
    )
    run = simplified(text, opset=9)
    assert ops(run.after) == ["Sin", "Slice", "Neg"]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), open_sizes=st.booleans())
def test_random_slices_of_slices(data: st.DataObject, open_sizes: bool) -> None:
    """Whatever the bounds and steps: the same elements."""
    bound = st.integers(-8, 8) | st.sampled_from([FAR, -FAR, 2**31 - 1])
    step = st.sampled_from([1, 1, 2, 3, -1, -2])
    axes = st.sampled_from([[0], [1], [0, 1], [1, 0], [-1]])
    lines, weights = [], {}
    for at, source in enumerate(["x", "t0", "t1"]):
        over = data.draw(axes)
        drawn = [[data.draw(kind) for _ in over] for kind in (bound, bound, step)]
        weights.update(dict(zip((f"s{at}", f"e{at}", f"a{at}", f"d{at}"), (*drawn[:2], over, drawn[2]), strict=True)))
        lines.append(f"t{at} = Slice({source}, s{at}, e{at}, a{at}, d{at})")
    size = "N,M" if open_sizes else "5,7"
    text = f"g (float[{size}] x) => (float[A,B] y) <{vectors(**weights)}> {{ {'  '.join(lines)}  y = Neg(t2) }}"
    feed = {"x": np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)}
    apply(SimplifyReshapes(), model(text), feed)


PIECES = [
    ("a = Concat<axis = 1>(r, x)  t = Slice(a, s, e, k)", vectors(s=[6], e=[12], k=[1]), []),
    ("a = Concat<axis = 1>(x, r)  t = Slice(a, s, e, k)", vectors(s=[7], e=[FAR], k=[1]), ["Slice"]),
    ("a = Concat<axis = -2>(x, r)  t = Slice(a, s, e, k)", vectors(s=[8, 1], e=[10, 3], k=[1, 2]), ["Slice"]),
    ("a = Gather<axis = 1>(r, i)  t = Gather<axis = 1>(a, j)", vectors(i=[5, -2, 1], j=[-1, 0]), ["Gather"]),
    ("a = Gather<axis = 2>(r, i)  t = Unsqueeze(a, k)", "int64 i = {-1}, " + vectors(k=[2]), ["Slice"]),
    ("a = Gather<axis = 1>(r, i)  t = Reshape(a, k)", "int64 i = {3}, " + vectors(k=[-1, 1, 8]), ["Slice"]),
    ("a = Unsqueeze(r, k)  b = Gather<axis = 2>(a, i)  t = Mul(b, b)", "int64 i = {0}, " + vectors(k=[2]), ["Mul"]),
    ("a, b = Split<axis = 1>(r)  t = Concat<axis = 1>(a, b)", "", []),
    ("a, b = Split<axis = 1>(r)  t = Concat<axis = 1>(x, a, b, x)", "", ["Concat"]),
    ("a = Concat<axis = 1>(r, x)  t = Concat<axis = -2>(x, a, r)", "", ["Concat"]),
    ("a = Slice(r, s, e, k)  b = Slice(r, e, f, k)  t = Concat<axis = 1>(a, b)", vectors(s=[1], e=[3], f=[5], k=[1]),
     ["Slice"]),
    ("a = Slice(r, s, e, k)  b = Slice(r, e, f, k)  t = Concat<axis = 1>(a, b)", vectors(s=[0], e=[-2], f=[9], k=[1]),
     []),
    ("a = Slice(r, s, s, k)  t = Concat<axis = 1>(a, r)", vectors(s=[1], k=[1]), []),
    ("a = Expand(r, s)  t = Expand(a, e)", vectors(s=[1, 1, 6, 1], e=[3, 1, 1, 1]), ["Expand"]),
    ("a = Tile(r, s)  t = Tile(a, e)", vectors(s=[1, 2, 1], e=[2, 3, 1]), ["Tile"]),
    ("m = ReduceMax<axes = [2]>(r)  s = Shape(r)  a = Expand(m, s)  t = Div(r, a)", "", ["ReduceMax", "Div"]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "declared", "left"), PIECES)
@pytest.mark.parametrize("batch", [3, 1])
def test_pieces(body: str, declared: str, left: list[str], batch: int) -> None:
    y = "float[A,B,C,D]" if "Expand(a" in body else "float[A,B,C]"
    run = simplified(net(body, declared, y=y), batch=batch)
    assert ops(run.after)[ops(run.after)[0] == "Sin" :] == [*left, "Neg"]


def test_concats_thousands_deep() -> None:
    lines = "  ".join(f"t{n + 1} = Concat<axis = 0>(t{n}, x)" for n in range(2000))
    run = apply(SimplifyReshapes(), model(f"g (float[1] x) => (float[A] y) {{ t0 = Sin(x)  {lines}  y = Neg(t2000) }}"))
    assert ops(run.after) == ["Sin", "Concat", "Neg"]


def test_a_mask_selects() -> None:
    text = """g (float[N,4] x, float[N] w) => (float[A,B] y, float[C] z) <float zero = {0.0}> {
      m = Greater(w, zero)  i = NonZero(m)  t = Transpose(i)  a = GatherND(x, t)  y = Neg(a)
      j = NonZero(m)  u = Transpose<perm = [1, 0]>(j)  b = GatherND(w, u)  z = Neg(b) }"""
    run = simplified(text, batch=9)
    assert sorted(ops(run.after)) == ["Compress", "Compress", "Greater", "Neg", "Neg"]


def test_one_slice_before_a_split() -> None:
    text = net("a, b = Split<axis = 1>(r)  c = Slice(a, s, e, k)  d = Slice(b, s, e, k)  t = Add(c, d)",
               vectors(s=[1], e=[FAR], k=[2]))  # fmt: skip
    assert ops(simplified(text).after) == ["Sin", "Slice", "Split", "Add", "Neg"]
    others = net("a, b = Split<axis = 1>(r)  c = Slice(a, s, e, k)  d = Slice(b, z, q, k)  t = Add(c, d)",
                 vectors(s=[1], e=[FAR], k=[2], z=[0], q=[7]))  # fmt: skip
    assert simplified(others).report.changes == 0
    read_twice = text.replace("t = Add(c, d)", "t = Concat<axis = 2>(c, d, a)")
    assert simplified(read_twice).report.changes == 0


@pytest.mark.parametrize(
    ("taken", "attributes"),
    [
        ("Gather(s, i)<int64[2] i = {1, 2}>", {"start": 1, "end": 3}),
        ("Gather(s, i)<int64[2] i = {-2, -1}>", {"start": -2}),
        ("Slice(s, i, j)<int64[1] i = {-3}, int64[1] j = {-1}>", {"start": -3, "end": -1}),
        ("Gather(s, i)<int64[2] i = {2, 1}>", None),
        ("Gather(s, i)<int64[2] i = {-1, 0}>", None),
    ],
)
def test_sizes_of_a_tensor_of_unknown_rank(taken: str, attributes: dict[str, int] | None) -> None:
    call, declared = taken.rstrip(">").split("<")
    text = f"""g (float[N,3,4] x, int64[M] w) => (int64[A] y) <{declared}> {{
      r = Reshape(x, w)  s = Shape(r)  t = {call}  y = Neg(t) }}"""
    proto = model(text)
    run = apply(SimplifyReshapes(), proto, {**feeds(proto), "w": np.array([1, 2, -1, 4])})
    if attributes is None:
        assert run.report.changes == 0
    else:
        node = run.after.graph.node[1]
        assert (node.op_type, {a.name: a.i for a in node.attribute}) == ("Shape", attributes)


def test_reduced_axes_of_a_tensor_of_unknown_rank() -> None:
    text = """g (float[N,3,4] x, int64[M] w) => (float[A,B,C] y) <int64[1] k = {1}> {
      r = Reshape(x, w)  a = ReduceMean<axes = [1], keepdims = 0>(r)  y = Unsqueeze(a, k) }"""
    proto = model(text)
    run = apply(SimplifyReshapes(), proto, {**feeds(proto), "w": np.array([2, 3, 4])})
    assert ops(run.after) == ["Reshape", "ReduceMean"]


# Vectors of sizes.
TARGET = (
    "g (float[N,C,H,W] x, float[N,C,P] z) => (float[D,E,F] y) <{declared}> {{ r = Sin(x)  {body}  y = Reshape(r, t) }}"
)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_vectors_of_sizes(opset: int) -> None:
    unsqueeze = "Unsqueeze<axes = [0]>({})" if opset < 13 else "Unsqueeze({}, k)"
    body = "  ".join(
        f"s{at} = Shape(r)  g{at} = Gather(s{at}, i{at})  n{at} = {unsqueeze.format(f'g{at}')}" for at in range(2)
    )
    body += f"  m = Mul(g0, g1)  o = {unsqueeze.format('m')}  h = Gather(s0, j)  t = Concat<axis = 0>(n0, n1, h)"
    declared = "int64 i0 = {0}, int64 i1 = {1}, int64[2] j = {2, 3}" + (", int64[1] k = {0}" if opset >= 13 else "")
    text = TARGET.format(body=body, declared=declared).replace("[D,E,F]", "[D,E,F,G]")
    run = simplified(text.replace(f"  m = Mul(g0, g1)  o = {unsqueeze.format('m')}", ""), opset=opset)
    assert ops(run.after) == ["Sin"] or sorted(ops(run.after)) in (
        ["Identity", "Sin"], ["Reshape", "Shape", "Sin"],
    )  # fmt: skip


def test_a_size_is_one_node() -> None:
    text = """g (float[N,C,H] x) => (float[A,B,D] y)
      <int64 i = {1}, int64[1] k = {0}, int64[2] ones = {1, 4}, float c> {
      r = Sin(x)  s = Shape(r)  g = Gather(s, i)  u = Unsqueeze(g, k)
      t = Concat<axis = 0>(ones, u)  y = Expand(c, t) }"""
    run = simplified(text)
    assert sorted(ops(run.after)) == ["Concat", "Expand", "Shape"]
    shape = next(node for node in run.after.graph.node if node.op_type == "Shape")
    assert (shape.input[0], {a.name: a.i for a in shape.attribute}) == ("x", {"start": 1, "end": 2})


def test_sizes_that_exporters_fill_in() -> None:
    text = """g (float[N,3,4] x, float[1,1,4] c) => (float[A,B,D] y)
      <int64 i = {0}, int64[1] k = {0}, int64[1] m = {-1}, int64[3] three = {-1, -1, -1}, int64[3] ones = {1, 1, 1}> {
      s = Shape(x)  g = Gather(s, i)  u = Unsqueeze(g, k)  t = Concat<axis = 0>(u, m, m)
      q = Equal(t, three)  w = Where(q, ones, t)  y = Expand(c, w) }"""
    run = simplified(text)
    assert sorted(ops(run.after)) == ["Concat", "Expand", "Shape"]


def test_equal_shapes_are_asked_for_once() -> None:
    text = """g (float[N,C,H] x) => (int64[3] y, int64[3] z) {
      r = Sin(x)  q = Relu(r)  a = Shape(r)  b = Shape(q)  y = Neg(a)  z = Abs(b) }"""
    run = simplified(text)
    assert sorted(ops(run.after)) == ["Abs", "Neg", "Shape"]


def test_constants_hold_what_they_held() -> None:
    text = net(SLICES, vectors(s=[1], e=[5], k=[1], d=[1], p=[1], q=[3], l=[1], f=[1]))
    text = text.replace("y = Neg(t)", "n = Neg(t)  y = Slice(n, s, e, k, d)")
    run = simplified(text)
    assert initializer(run.before, "s").tolist() == [1]
