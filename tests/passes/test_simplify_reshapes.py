"""simplify_reshapes: what it leaves alone; then chains that only change the shape, and random ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, feeds, model, ops

from graphopt.passes.simplify_reshapes import SimplifyReshapes


def simplified(text: str, *, opset: int = 17, batch: int = 2, compare: bool = True, **weights: object) -> Run:
    proto = model(text, opset=opset, **weights)
    return apply(SimplifyReshapes(), proto, feeds(proto, batch=batch) if compare else None, compare=compare)


def net(body: str, declared: str = "", *, x: str = "float[N,3,4]", y: str = "float[A,B]") -> str:
    return f"g ({x} x) => ({y} y) <{declared}> {{ r = Sin(x)  {body}  y = Neg(t) }}".replace("<>", "")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(net("t = Reshape(r, s)", "int64[2] s = {0, 12}"), id="one reshape"),
        pytest.param(
            net("a = Flatten<axis = 2>(r)  t = Unsqueeze(a, k)", "int64[1] k = {1}", x="float[A,B,C,D]",
                y="float[E,F,G]"),
            id="two sizes left over",
        ),
        pytest.param(net("t = Flatten(r)"), id="one flatten"),
        pytest.param(
            net("a = Reshape(r, s)  b = Softmax(a)  t = Reshape(b, u)", "int64[2] s = {0, 12}, int64[3] u = {0, 3, 4}",
                y="float[A,B,C]"),
            id="softmax runs along an axis",
        ),
        pytest.param(
            net("a = Reshape(r, s)  b = Add(a, k)  t = Reshape(b, u)",
                "int64[2] s = {0, 12}, int64[3] u = {0, 3, 4}, float[12] k", y="float[A,B,C]"),
            id="a constant along an axis",
        ),
        pytest.param(
            net("a = Reshape(r, s)  b = Relu(a)  t = Reshape(b, u)  z = Neg(b)",
                "int64[2] s = {0, 12}, int64[3] u = {0, 3, 4}", y="float[D,E] z, float[A,B,C]"),
            id="a second reader between",
        ),
        pytest.param(
            "g (float[N,4] x) => (float[A,B] y) { a = ReduceMax<axes = [1], keepdims = 0>(x)  y = Identity(a) }",
            id="reduction",
        ),
        pytest.param(
            net("a = Transpose<perm = [2, 1, 0]>(r)  t = Squeeze(a, k)", "int64[1] k = {2}", x="float[1,3,4]"),
            id="squeezed after a transpose of no reshape",
        ),
        pytest.param("g (float[N,4] x) => (int64[A] y) { y = Shape(x) }", id="one shape"),
        pytest.param(
            "g (float[N] x) => (int32[N] y) { a = Cast<to = 6>(x)  y = Cast<to = 6>(a) }", id="a cast that rounds"
        ),
        pytest.param(
            "g (int64[N] x) => (int64[N] y) { a = Cast<to = 6>(x)  y = Cast<to = 7>(a) }", id="a cast that wraps"
        ),
        pytest.param(
            "g (uint8[N] x) => (int8[N] y) { a = Cast<to = 1>(x)  y = Cast<to = 3>(a) }",
            id="an integer through a float",
        ),
    ],
)  # fmt: skip
def test_leaves_alone(text: str) -> None:
    run = simplified(text)
    assert (run.report.changes, run.skipped) == (0, ())


CHAINS = [
    pytest.param("a = Reshape(r, s)  t = Reshape(a, u)", "int64[2] s = {0, 12}, int64[2] u = {-1, 6}", ["Reshape"],
                 id="reshape of reshape"),
    pytest.param("a = Reshape(r, s)  t = Reshape(a, u)", "int64[3] s = {-1, 2, 6}, int64[2] u = {0, 12}", ["Reshape"],
                 id="a zero for a size that is the same"),
    pytest.param("a = Reshape(r, s)  t = Reshape(a, u)", "int64[2] s = {-1, 6}, int64[2] u = {-1, 0}", ["Reshape"],
                 id="a zero for a known size"),
    pytest.param("a = Reshape(r, s)  t = Reshape(a, u)", "int64[4] s = {0, 1, 12, 1}, int64[3] u = {0, 3, 4}", [],
                 id="back again"),
    pytest.param("a = Flatten(r)  t = Reshape(a, u)", "int64[3] u = {-1, 3, 4}", [], id="flatten undone"),
    pytest.param("a = Flatten(r)  t = Flatten(a)", "", ["Flatten"], id="flatten of flatten"),
    pytest.param("a = Reshape(r, s)  t = Flatten<axis = 2>(a)", "int64[4] s = {0, 1, 3, 4}", ["Flatten"],
                 id="flatten of reshape"),
    pytest.param("a = Unsqueeze(r, k)  t = Unsqueeze(a, l)", "int64[1] k = {1}, int64[2] l = {0, 3}", ["Unsqueeze"],
                 id="unsqueeze twice"),
    pytest.param("a = Unsqueeze(r, k)  t = Squeeze(a, l)", "int64[2] k = {0, 2}, int64[1] l = {-3}", ["Unsqueeze"],
                 id="one of two axes taken out again"),
    pytest.param("a = Unsqueeze(r, k)  t = Squeeze(a, l)", "int64[2] k = {0, 2}, int64[2] l = {2, 0}", [],
                 id="unsqueeze undone"),
    pytest.param("a = Unsqueeze(r, k)  t = Reshape(a, u)", "int64[1] k = {-1}, int64[2] u = {0, -1}", ["Reshape"],
                 id="reshape of unsqueeze"),
    pytest.param("a = Reshape(r, s)  b = Relu(a)  c = Sigmoid(b)  t = Reshape(c, u)",
                 "int64[2] s = {-1, 4}, int64[3] u = {-1, 3, 4}", ["Relu", "Sigmoid"], id="activated in another shape"),
    pytest.param("a = Reshape(r, s)  b = Mul(k, a)  t = Flatten(b)",
                 "int64[4] s = {0, 2, 2, 3}, float[1] k", ["Mul", "Flatten"], id="scaled in another shape"),
    pytest.param("a = ReduceMean<axes = [1], keepdims = 0>(r)  t = Unsqueeze(a, k)", "int64[1] k = {1}",
                 ["ReduceMean"], id="reduced axis put back"),
    pytest.param("a = ReduceMean<axes = [-1]>(r)  t = Squeeze(a, k)", "int64[1] k = {2}", ["ReduceMean"],
                 id="reduced axis taken out"),
    pytest.param("a = ReduceMax<keepdims = 0>(r)  t = Reshape(a, u)", "int64[3] u = {1, 1, 1}", ["ReduceMax"],
                 id="everything reduced"),
    pytest.param("a = Unsqueeze(r, k)  b = Transpose<perm = [3, 1, 2, 0]>(a)  t = Squeeze(b, l)",
                 "int64[1] k = {0}, int64[1] l = {-1}", ["Transpose"], id="an axis of size 1 through a transpose"),
    pytest.param("a = Reshape(r, s)  b = Transpose<perm = [2, 0, 3, 1]>(a)  t = Squeeze(b, l)",
                 "int64[4] s = {0, 1, 2, 6}, int64[1] l = {3}", ["Reshape", "Transpose"],
                 id="reshape, transpose, squeeze"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "declared", "left"), CHAINS)
@pytest.mark.parametrize("batch", [3, 1])
def test_chains_become_one_or_none(body: str, declared: str, left: list[str], batch: int) -> None:
    run = simplified(net(body, declared, y="float"), batch=batch)
    assert ops(run.after) == ["Sin", *left, "Neg"]


def test_an_empty_batch_stays_possible() -> None:
    text = net("a = Reshape(r, s)  t = Flatten<axis = 2>(a)", "int64[5] s = {0, 3, 2, 1, 2}")
    run = simplified(text, batch=0)
    assert ops(run.after) == ["Sin", "Flatten", "Neg"]
    text = net("a = Unsqueeze(r, k)  t = Reshape(a, u)", "int64[1] k = {1}, int64[2] u = {-1, 4}")
    assert ops(simplified(text, batch=0).after) == ["Sin", "Reshape", "Neg"]


def test_zero_and_minus_one_are_not_brought_together() -> None:
    """Two open sizes: as Reshape(0, -1) this would fail on an empty batch, as Flatten it does not."""
    text = net("a = Unsqueeze(r, k)  t = Flatten<axis = 3>(a)", "int64[1] k = {3}", x="float[N,M,4]")
    run = simplified(text, batch=0)
    assert ops(run.after) == ["Sin", "Flatten", "Neg"]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 18, 21])
def test_every_opset(opset: int) -> None:
    squeeze = "Squeeze<axes = [1]>(a)" if opset < 13 else "Squeeze(a, k)"
    unsqueeze = "Unsqueeze<axes = [1, 2]>(r)" if opset < 13 else "Unsqueeze(r, l)"
    declared = "" if opset < 13 else "int64[1] k = {1}, int64[2] l = {1, 2}"
    run = simplified(net(f"a = {unsqueeze}  t = {squeeze}", declared, y="float[A,B,C,D]"), opset=opset)
    assert ops(run.after) == ["Sin", "Unsqueeze", "Neg"]


def test_allowzero_means_zero() -> None:
    text = """g (float[2,0,3] x) => (float[A,B] y) <int64[2] s = {0, 5}, int64[3] u = {0, 1, 4}> {
      a = Reshape<allowzero = 1>(x, s)  y = Reshape<allowzero = 1>(a, u) }"""
    assert ops(simplified(text).after) == ["Reshape"]


def test_a_zero_of_the_intermediate_is_not_taken_for_one_of_the_source() -> None:
    """What onnxoptimizer gets wrong: the 0 copies 6, not the 4 of x."""
    text = net("a = Reshape(r, s)  t = Reshape(a, u)", "int64[3] s = {2, 6, 4}, int64[2] u = {-1, 0}", x="float[3,4,4]")
    run = simplified(text)
    assert ops(run.after) == ["Sin", "Reshape", "Neg"]


def test_outputs_and_other_readers_keep_what_they_read() -> None:
    text = """g (float[N,3,4] x) => (float[A,B] a, float[C,D] y, float[N,3,4] z)
      <int64[2] s = {0, 12}, int64[2] u = {-1, 6}, int64[3] v = {-1, 3, 4}> {
      a = Reshape(x, s)  y = Reshape(a, u)  z = Reshape(a, v) }"""
    run = simplified(text)
    assert ops(run.after) == ["Reshape", "Reshape", "Identity"]


def test_a_computed_target() -> None:
    text = """g (float[N,3,4] x, float[N,12] z) => (float[A,B] y) <int64[3] s = {4, -1, 3}> {
      r = Relu(x)  a = Reshape(r, s)  t = Shape(z)  b = Reshape(a, t)  y = Neg(b) }"""
    assert ops(simplified(text).after) == ["Relu", "Reshape", "Neg"]
    back = text.replace("Shape(z)", "Shape(x)").replace("[A,B]", "[A,B,C]")
    assert ops(simplified(back).after) == ["Relu", "Neg"]
    # Two open sizes, and a 0 at run time would copy one of another tensor.
    open_sizes = text.replace("[N,12]", "[N,M]")
    proto = model(open_sizes)
    run = apply(SimplifyReshapes(), proto, {**feeds(proto), "z": np.zeros((2, 12), np.float32)})
    assert (ops(run.after), run.report.changes) == (ops(run.before), 0)


def test_subgraphs() -> None:
    text = """g (float[N,3,4] x, bool go) => (float[A,B] y) <int64[2] s = {0, 12}, int64[2] u = {-1, 6}> {
      o = Reshape(x, s)
      y = If (go) <then_branch = t () => (float[A,B] p) { a = Reshape(x, s)  p = Reshape(a, u) },
                   else_branch = e () => (float[C,D] q) { q = Reshape(o, u) }> }"""
    proto = model(text)
    run = apply(SimplifyReshapes(), proto, {**feeds(proto), "go": np.array(True)})
    branches = [[node.op_type for node in attribute.g.node] for attribute in run.after.graph.node[1].attribute]
    assert (ops(run.after), sorted(map(len, branches))) == (["Reshape", "If"], [1, 1])


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (7, 11, ["Cast"]), (1, 11, ["Cast"]), (9, 1, ["Cast", "Cast"]),
    ],
)  # fmt: skip
def test_casts(first: int, second: int, left: list[str]) -> None:
    text = f"g (int32[N] x) => (float[N] y) {{ a = Cast<to = {first}>(x)  y = Cast<to = {second}>(a) }}"
    text = text.replace("float[N] y", "double[N] y" if second == 11 else "float[N] y")
    if first == 1:
        text = text.replace("int32[N] x", "int16[N] x")
    assert ops(simplified(text).after) == left


def test_a_cast_there_and_back() -> None:
    text = "g (int32[N] x) => (int32[N] y) { r = Abs(x)  a = Cast<to = 7>(r)  b = Cast<to = 6>(a)  y = Neg(b) }"
    assert ops(simplified(text).after) == ["Abs", "Neg"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_chains(data: st.DataObject) -> None:
    """Chains of shape-only and elementwise operators with open batch, some read twice: always the same outputs."""
    batch = data.draw(st.sampled_from([1, 2, 3]))
    shape: list[int] = [batch, 2, 6]
    lines, weights = ["t0 = Sin(x)"], []
    names, shapes = ["t0"], [shape]
    for step in range(1, data.draw(st.integers(2, 8)) + 1):
        source = data.draw(st.integers(max(0, len(names) - 2), len(names) - 1))
        x, shape = names[source], list(shapes[source])
        kind = data.draw(st.sampled_from(["reshape", "flatten", "squeeze", "unsqueeze", "relu", "scale", "transpose"]))
        out = f"t{step}"
        if kind == "reshape":
            rest = int(np.prod(shape)) // batch
            cut = data.draw(st.sampled_from([size for size in (1, 2, 3, 4, 6, 12) if rest % size == 0]))
            wide = [[batch, cut, rest // cut], [cut, batch, rest // cut], [batch * cut, rest // cut]]
            shape = data.draw(st.sampled_from(wide))
            target = list(shape)
            target[data.draw(st.integers(0, len(shape) - 1))] = -1
            if batch > 1 and batch in target:
                target = [-1 if size == batch else max(size, 1) for size in shape]
                target = target if target.count(-1) == 1 else list(shape)
            weights.append(f"int64[{len(target)}] w{step} = {{{', '.join(map(str, target))}}}")
            lines.append(f"{out} = Reshape({x}, w{step})")
        elif kind == "flatten":
            axis = data.draw(st.integers(0, len(shape)))
            shape = [int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))]
            lines.append(f"{out} = Flatten<axis = {axis}>({x})")
        elif kind == "squeeze" and 1 in shape[1:]:
            axis = 1 + shape[1:].index(1)
            sign = data.draw(st.sampled_from([0, len(shape)]))
            weights.append(f"int64[1] w{step} = {{{axis - sign}}}")
            shape = shape[:axis] + shape[axis + 1 :]
            lines.append(f"{out} = Squeeze({x}, w{step})")
        elif kind == "unsqueeze":
            axis = data.draw(st.integers(0, len(shape)))
            shape = [*shape[:axis], 1, *shape[axis:]]
            weights.append(f"int64[1] w{step} = {{{axis}}}")
            lines.append(f"{out} = Unsqueeze({x}, w{step})")
        elif kind == "transpose":
            order = data.draw(st.permutations(range(len(shape))))
            shape = [shape[axis] for axis in order]
            lines.append(f"{out} = Transpose<perm = [{', '.join(map(str, order))}]>({x})")
        elif kind == "scale":
            weights.append(f"float[1] w{step}")
            lines.append(f"{out} = Mul({x}, w{step})" if shape else f"{out} = Relu({x})")
        else:
            lines.append(f"{out} = Relu({x})")
        names.append(out)
        shapes.append(shape)
    declared = f"<{', '.join(weights)}>" if weights else ""
    rank = ",".join("ABCDEFGHIJKLMN"[: len(shapes[-1])])
    text = f"g (float[N,2,6] x) => (float[{rank}] y) {declared} {{ {'  '.join(lines)}  y = Neg({names[-1]}) }}"
    proto = model(text)
    apply(SimplifyReshapes(), proto, feeds(proto, batch=batch))
