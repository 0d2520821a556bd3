"""Cutting half of every group: the smaller net answers as the original with those channels at zero, and is smaller."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support import assert_same, feeds, initializer, model, ops, outputs

from graphopt import channels
from graphopt.errors import UsageError
from graphopt.graph import verify

CHAIN = """g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[4,3,1,1] w1, float[4] b1, float[2,4,3,3] w2>
  { a = Conv(x, w1, b1)  r = Relu(a)  y = Conv<pads=[1,1,1,1]>(r, w2) }"""


def shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def halved(proto: onnx.ModelProto, seed: int = 0) -> channels.Cut:
    """Cut half of every group at random and hold the result to what surgery promises."""
    found = channels.dependency_groups(proto)
    rng = np.random.default_rng(seed)
    scores = {group.number: rng.random(group.size) for group in found}
    selection = channels.select(found, scores, {group.number: group.size // 2 for group in found})
    untouched = proto.SerializeToString(deterministic=True)
    result = channels.cut(found, selection)
    masked = channels.mask(found, selection)
    assert proto.SerializeToString(deterministic=True) == untouched
    verify(result.model)
    fed = feeds(proto)
    assert_same(outputs(masked, fed), outputs(result.model, fed))
    assert channels.cut(found, selection).model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
    assert [info.SerializeToString() for info in result.model.graph.output] == [
        info.SerializeToString() for info in proto.graph.output
    ]
    return result


# Name -> text, shapes of the constants that become smaller at half of every group.
NARROWER = {
    "convolutions": (CHAIN, {"w1": (2, 3, 1, 1), "b1": (2,), "w2": (2, 2, 3, 3)}),
    "batch normalization": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[4,3,1,1] w1, float[4] s, float[4] b, float[4] m, float[4] var, float[2,4,1,1] w2>
        { a = Conv(x, w1)  n = BatchNormalization(a, s, b, m, var)  r = Sigmoid(n)  y = Conv(r, w2) }""",
        {"w1": (2, 3, 1, 1), "s": (2,), "b": (2,), "m": (2,), "var": (2,), "w2": (2, 2, 1, 1)},
    ),
    "residual stream": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[4,3,1,1] w1, float[6,4,1,1] w2, float[4,6,1,1] w3, float[2,4,1,1] w4>
        { a = Conv(x, w1)  b = Conv(a, w2)  c = Relu(b)  d = Conv(c, w3)  s = Add(a, d)  y = Conv(s, w4) }""",
        {"w1": (2, 3, 1, 1), "w2": (3, 2, 1, 1), "w3": (2, 3, 1, 1), "w4": (2, 2, 1, 1)},
    ),
    "depthwise": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[4,3,1,1] w1, float[4,1,3,3] dw, float[4] db, float[2,4,1,1] w2>
        { a = Conv(x, w1)  d = Conv<group=4, pads=[1,1,1,1]>(a, dw, db)  y = Conv(d, w2) }""",
        {"w1": (2, 3, 1, 1), "dw": (2, 1, 3, 3), "db": (2,), "w2": (2, 2, 1, 1)},
    ),
    "depthwise with a multiplier": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[4,3,1,1] w1, float[8,1,3,3] dw, float[2,8,1,1] w2>
        { a = Conv(x, w1)  d = Conv<group=4, pads=[1,1,1,1]>(a, dw)  y = Conv(d, w2) }""",
        {"w1": (2, 3, 1, 1), "dw": (4, 1, 3, 3), "w2": (2, 4, 1, 1)},
    ),
    "grouped": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,1,1] w1, float[12,4,1,1] wg, float[12] bg, float[2,12,1,1] w2>
        { a = Conv(x, w1)  d = Conv<group=2>(a, wg, bg)  y = Conv(d, w2) }""",
        {"w1": (4, 3, 1, 1), "wg": (6, 2, 1, 1), "bg": (6,), "w2": (2, 6, 1, 1)},
    ),
    "transposed, grouped": (
        """g (float[N,3,6,6] x) => (float[N,2,12,12] y)
        <float[8,3,1,1] w1, float[8,6,2,2] wg, float[12] bg, float[2,12,1,1] w2>
        { a = Conv(x, w1)  d = ConvTranspose<group=2, strides=[2,2]>(a, wg, bg)  y = Conv(d, w2) }""",
        {"w1": (4, 3, 1, 1), "wg": (4, 3, 2, 2), "bg": (6,), "w2": (2, 6, 1, 1)},
    ),
    "flattened": (
        """g (float[N,3,2,2] x) => (float[N,5] y) <float[4,3,1,1] w1, float[5,16] w2, float[5] b>
        { a = Conv(x, w1)  f = Flatten(a)  y = Gemm<transB=1>(f, w2, b) }""",
        {"w1": (2, 3, 1, 1), "w2": (5, 8)},
    ),
    "squeeze and excitation": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[4,3,1,1] w1, float[2,4,1,1] v1, float[4,2,1,1] v2, float[4] bias, float[2,4,1,1] w2>
        { a = Conv(x, w1)  p = GlobalAveragePool(a)  q = Conv(p, v1)  r = Relu(q)  s = Conv(r, v2, bias)
          t = Sigmoid(s)  m = Mul(a, t)  y = Conv(m, w2) }""",
        {"w1": (2, 3, 1, 1), "v1": (1, 2, 1, 1), "v2": (2, 1, 1, 1), "bias": (2,), "w2": (2, 2, 1, 1)},
    ),
    "matrix products": (
        """g (float[N,5,6] x) => (float[N,5,2] y) <float[6,8] w1, float[8] b1, float[8,2] w2>
        { a = MatMul(x, w1)  b = Add(a, b1)  r = Relu(b)  y = MatMul(r, w2) }""",
        {"w1": (6, 4), "b1": (4,), "w2": (4, 2)},
    ),
    "quantized weights": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <int8[4,3,1,1] w1, float[4] s1, int8[4] z1, int8[2,4,1,1] w2, float[2] s2, int8[2] z2>
        { d1 = DequantizeLinear<axis=0>(w1, s1, z1)  d2 = DequantizeLinear<axis=0>(w2, s2, z2)
          a = Conv(x, d1)  r = Relu(a)  y = Conv(r, d2) }""",
        {"w1": (2, 3, 1, 1), "s1": (2,), "z1": (2,), "w2": (2, 2, 1, 1)},
    ),
    "quantized depthwise": (
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[4,3,1,1] w1, int8[4,1,3,3] dw, float[4] s1, int8[4] z1, float[2,4,1,1] w2>
        { d = DequantizeLinear<axis=0>(dw, s1, z1)
          a = Conv(x, w1)  b = Conv<group=4, pads=[1,1,1,1]>(a, d)  y = Conv(b, w2) }""",
        {"w1": (2, 3, 1, 1), "dw": (2, 1, 3, 3), "s1": (2,), "z1": (2,), "w2": (2, 2, 1, 1)},
    ),
    "group normalization": (
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[8,3,1,1] w1, float[8] s, float[8] b, float[2,8,1,1] w2>
        { a = Conv(x, w1)  n = GroupNormalization<num_groups=4>(a, s, b)  y = Conv(n, w2) }""",
        {"w1": (4, 3, 1, 1), "s": (4,), "b": (4,), "w2": (2, 4, 1, 1)},
    ),
}


@pytest.mark.parametrize(("text", "smaller"), NARROWER.values(), ids=NARROWER)
def test_constants_lose_half_their_channels(text: str, smaller: dict[str, tuple[int, ...]]) -> None:
    proto = model(text, var=np.array([0.5, 1, 1.5, 2]), s1=np.full(4, 0.1), s2=np.full(2, 0.1))
    result = halved(proto).model
    assert shapes(result) == shapes(proto) | smaller
    assert result.ByteSize() < proto.ByteSize()


def test_depthwise_convolutions_have_a_group_for_each_channel() -> None:
    result = halved(model(NARROWER["depthwise"][0])).model
    assert onnx.helper.get_node_attr_value(result.graph.node[1], "group") == 2


def test_half_as_many_groups_are_normalized() -> None:
    result = halved(model(NARROWER["group normalization"][0])).model
    assert onnx.helper.get_node_attr_value(result.graph.node[1], "num_groups") == 2


def piped(body: str, extra: str = "", read: str = "float[2,8,1,1] w2", *, opset: int = 17) -> onnx.ModelProto:
    """Eight channels through some data movement, from ``a`` to ``z``, between two convolutions."""
    weights = f"<float[8,3,1,1] w1, {read}{', ' * bool(extra)}{extra}>"
    text = f"g (float[N,3,6,6] x) => (float[N,2,h,w] y) {weights} {{ a = Conv(x, w1) {body} y = Conv(z, w2) }}"
    return model(text, opset=opset)


def with_integers(proto: onnx.ModelProto, **values: list[int]) -> onnx.ModelProto:
    for name, given in values.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(given, np.int64), name))
    return proto


RESHAPES = piped("m = Reshape(a, there) z = Reshape(m, back)")
MOVEMENT = {
    "explicit reshapes": (RESHAPES, {"there": [-1, 8, 36], "back": [-1, 8, 6, 6]}),
    "copied sizes": (RESHAPES, {"there": [0, 0, -1], "back": [0, 0, 6, 6]}),
    "copied size of another axis": (
        piped(
            """m = Reshape(a, there) t = Transpose<perm=[0,2,1]>(m)
            u = Reshape(t, back) z = Transpose<perm=[0,3,1,2]>(u)"""
        ),
        {"there": [0, 0, -1], "back": [0, 6, 6, -1]},
    ),
    "equal parts": (piped("p, q = Split<axis=1>(a, sizes) z = Concat<axis=1>(q, p)"), {"sizes": [4, 4]}),
    "unequal parts": (piped("p, q = Split<axis=1>(a, sizes) z = Concat<axis=1>(q, p)"), {"sizes": [5, 3]}),
    "slices": (
        piped("p = Slice(a, zero, five, one) q = Slice(a, five, end, one) z = Concat<axis=1>(q, p)"),
        {"zero": [0], "five": [5], "end": [2**62], "one": [1]},
    ),
    "slices with steps and negative bounds": (
        piped("p = Slice(a, zero, end, one, two) q = Slice(a, one, end, one, two) z = Concat<axis=1>(q, p)"),
        {"zero": [-8], "one": [1], "end": [8], "two": [2]},
    ),
    "a slice backwards": (
        piped("z = Slice(a, start, end, one, step)"),
        {"start": [-1], "end": [-(2**62)], "one": [1], "step": [-1]},
    ),
    "a gather": (piped("z = Gather<axis=1>(a, order)"), {"order": [3, 1, -1, 0, 2, 6, 5, 4]}),
    "a gather that repeats": (piped("z = Gather<axis=1>(a, order)"), {"order": [3, 1, 1, 0, 2, 6, 5, 4]}),
    "padding of other axes": (piped("z = Pad(a, pads)"), {"pads": [0, 0, 1, 1, 0, 0, 1, 1]}),
    "an expand": (piped("z = Expand(a, sizes)"), {"sizes": [1, 8, 6, 6]}),
    "an expand of pooled channels": (
        piped("p = GlobalAveragePool(a) z = Expand(p, sizes)"),
        {"sizes": [1, 8, 6, 6]},
    ),
    "a resize by sizes": (piped("z = Resize(a, none, none, sizes)".replace("none", "")), {"sizes": [2, 8, 12, 12]}),
    "a channel shuffle": (
        piped("m = Reshape(a, there) t = Transpose<perm=[0,2,1,3,4]>(m) z = Reshape(t, back)"),
        {"there": [-1, 2, 4, 6, 6], "back": [-1, 8, 6, 6]},
    ),
    "a pixel shuffle": (
        piped("z = DepthToSpace<blocksize=2>(a)", read="float[2,2,1,1] w2"),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("proto", "integers"), MOVEMENT.values(), ids=MOVEMENT)
def test_sizes_and_indices_follow(proto: onnx.ModelProto, integers: dict[str, list[int]]) -> None:
    proto = with_integers(onnx.ModelProto.FromString(proto.SerializeToString()), **integers)
    result = halved(proto).model
    assert initializer(result, "w1").shape[0] <= 5
    assert len(ops(result)) <= len(ops(proto))


def test_a_shuffle_that_keeps_its_order_goes() -> None:
    """All channels of one half: what the shuffle then does is nothing."""
    proto, integers = MOVEMENT["a channel shuffle"]
    found = channels.dependency_groups(with_integers(onnx.ModelProto.FromString(proto.SerializeToString()), **integers))
    result = channels.cut(found, {0: [4, 5, 6, 7]}).model
    assert ops(result) == ["Conv", "Conv"]


def test_sizes_that_are_computed_follow() -> None:
    proto = with_integers(
        piped(
            """s = Shape(a) n = Slice(s, zero, one, zero) there = Concat<axis=0>(n, c, hw) m = Reshape(a, there)
            back = Concat<axis=0>(n, c, h, h) z = Reshape(m, back)"""
        ),
        zero=[0], one=[1], c=[8], hw=[36], h=[6],
    )  # fmt: skip
    result = halved(proto).model
    assert initializer(result, "w1").shape[0] == 4
    fed = feeds(proto, batch=5)
    assert outputs(result, fed)["y"].shape[0] == 5


def test_one_channel_picked_by_its_number_is_found_under_its_new_one() -> None:
    proto = model(
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y, float[N,6,6] one)
        <float[8,3,1,1] w1, float[2,8,1,1] w2, int64 five>
        { a = Conv(x, w1)  y = Conv(a, w2)  one = Gather<axis=1>(a, five) }""",
        five=np.array(5),
    )
    result = halved(proto).model
    assert initializer(result, "five").shape == ()
    assert initializer(result, "five") < 5


def test_layer_normalization_still_counts_the_channels_that_went() -> None:
    proto = model(
        """g (float[N,5,6] x) => (float[N,5,2] y) <float[6,8] w1, float[8] s, float[8] b, float[8,2] w2>
        { a = MatMul(x, w1)  n = LayerNormalization<axis=-1>(a, s, b)  y = MatMul(n, w2) }"""
    )
    result = halved(proto).model
    assert ops(result) == ["MatMul", "Pad", "LayerNormalization", "Slice", "MatMul"]
    assert initializer(result, "w2").shape == (4, 2)


def test_declared_shapes_tell_what_remains_and_tensors_keep_their_names() -> None:
    proto = model(CHAIN.replace("float[2,4,3,3] w2>", "float[2,4,3,3] w2, float[N,4,6,6] r>"))
    result = halved(proto)
    declared = next(info for info in result.model.graph.value_info if info.name == "r").type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in declared] == ["N", 2, 6, 6]
    assert [node.output[0] for node in result.model.graph.node] == ["a", "r", "y"]
    assert sorted(result.kept) == ["a", "r"]
    assert [len(indices) for indices in result.kept["r"].values()] == [2]


def test_what_remains_is_told_in_the_order_of_the_smaller_tensor() -> None:
    found = channels.dependency_groups(model(CHAIN))
    result = channels.cut(found, {0: [3, 1]})
    np.testing.assert_array_equal(result.kept["a"][1], [0, 2])
    np.testing.assert_array_equal(initializer(result.model, "w1"), initializer(found.model, "w1")[[0, 2]])


def test_a_bias_that_two_layers_share_is_copied_where_they_lose_different_channels() -> None:
    proto = model(
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <float[4,3,1,1] w1, float[4,3,1,1] w2, float[4] b, float[2,4,1,1] w3, float[2,4,1,1] w4>
        { p = Conv(x, w1, b)  q = Conv(x, w2, b)  r = Conv(p, w3)  s = Conv(q, w4)  y = Add(r, s) }"""
    )
    found = channels.dependency_groups(proto)
    assert len(found) == 2
    selection = {0: [0, 1], 1: [2, 3]}
    fed = feeds(proto)
    result = channels.cut(found, selection).model
    assert_same(outputs(channels.mask(found, selection), fed), outputs(result, fed))
    assert len(shapes(result)) == 6


def test_one_weight_of_two_layers_stays_one() -> None:
    proto = model(
        """g (float[N,4,6,6] x) => (float[N,2,6,6] y) <float[4,4,1,1] w, float[4,4,1,1] w0, float[2,4,1,1] w2>
        { o = Conv(x, w0) p = Conv(o, w) r = Relu(p)  q = Conv(r, w)  y = Conv(q, w2) }"""
    )
    assert len(shapes(halved(proto).model)) == 3


def test_nothing_selected_changes_nothing() -> None:
    proto = model(CHAIN)
    found = channels.dependency_groups(proto)
    assert channels.cut(found, {}).model == proto
    assert channels.cut(found, {0: []}).model == proto
    assert channels.mask(found, {}) == proto


@pytest.mark.parametrize(
    ("text", "selection", "message"),
    [
        pytest.param(CHAIN, {0: [0, 1, 2, 3]}, "must keep at least 1 of its 4 channels", id="nothing left"),
        pytest.param(CHAIN, {0: [4]}, "has no channel 4", id="no such channel"),
        pytest.param(CHAIN, {9: [0]}, "there is no group 9", id="no such group"),
        pytest.param(NARROWER["grouped"][0], {0: [0]}, "2 blocks, which must lose equally many", id="unequal blocks"),
    ],
)
def test_what_cannot_be_cut_is_refused(text: str, selection: dict[int, list[int]], message: str) -> None:
    found = channels.dependency_groups(model(text))
    with pytest.raises(UsageError, match=message):
        channels.cut(found, selection)
