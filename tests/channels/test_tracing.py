"""What can be cut, and what goes with it: tiny graphs, one rule each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.channels import Dependencies, Group, dependency_groups
from graphopt.channels.tracing import trace_graph
from graphopt.graph import import_graph
from tests import support


def found(text: str, **options: Any) -> Dependencies:
    return dependency_groups(support.model(text, **options))


def parts(group: Group) -> set[tuple[str, int, str]]:
    """Each parameter of a group with its axis and what it is to the channels."""
    return {(member.parameter, member.axis, member.role) for member in group.members}


def reasons(dependencies: Dependencies) -> set[str]:
    return {fixed.reason for fixed in dependencies.fixed}


def only(dependencies: Dependencies) -> Group:
    assert len(dependencies) == 1
    return dependencies[0]


def test_filters_go_with_their_batch_normalization_and_the_weights_that_read_them() -> None:
    group = only(
        found("""
        g (float[1,3,8,8] x) => (float[1,2,8,8] y)
        <float[6,3,3,3] w, float[6] b, float[6] s, float[6] t, float[6] m, float[6] var, float[2,6,1,1] v> {
            a = Conv<pads=[1,1,1,1]>(x, w, b)
            n = BatchNormalization(a, s, t, m, var)
            r = Relu(n)
            y = Conv(r, v)
        }""")
    )
    assert group.size == 6
    assert parts(group) == {
        ("w", 0, "writes"), ("b", 0, "writes"), ("s", 0, "follows"), ("t", 0, "follows"), ("m", 0, "follows"),
        ("var", 0, "follows"), ("v", 1, "reads"),
    }  # fmt: skip
    assert {(axis.tensor, axis.axis) for axis in group.tensors} == {("a", 1), ("n", 1), ("r", 1)}
    assert group.parameters == 27 + 5 + 2
    assert group.keep == 1


def test_the_outputs_of_the_graph_are_fixed_and_say_so() -> None:
    dependencies = found("""
        g (float[1,3,4,4] x) => (float[1,6,4,4] y) <float[6,3,1,1] w> { y = Conv(x, w) }""")
    assert len(dependencies) == 0
    assert reasons(dependencies) == {"they are the graph's output 'y'"}
    assert dependencies.share["convolution"] == 0.0


def test_a_residual_stream_is_one_group_through_the_whole_stage() -> None:
    dependencies = found("""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y)
        <float[8,3,1,1] w0, float[5,8,1,1] w1, float[8,5,1,1] w2, float[2,8,1,1] w3> {
            a = Conv(x, w0)
            b = Conv(a, w1)
            c = Conv(b, w2)
            d = Add(a, c)
            y = Conv(d, w3)
        }""")
    stream, inner = dependencies
    assert (stream.size, inner.size) == (8, 5)
    assert parts(stream) == {("w0", 0, "writes"), ("w2", 0, "writes"), ("w1", 1, "reads"), ("w3", 1, "reads")}
    assert dependencies.share["convolution"] == 1.0


def test_a_concat_reads_both_and_a_split_tells_its_parts_apart() -> None:
    dependencies = found(
        """
        g (float[1,3,4,4] x) => (float[1,2,4,4] y)
        <float[8,3,1,1] w0, float[4,3,1,1] w1, float[2,12,1,1] w2, float[5,2,1,1] w3> {
            a = Conv(x, w0)
            b, c = Split<axis=1>(a)
            r = Relu(c)
            d = Conv(x, w1)
            e = Concat<axis=1>(d, b, r)
            y = Conv(e, w2)
        }""",
        opset=11,
    )
    assert [group.size for group in dependencies] == [4, 4, 4]
    reads = [next(member for member in group.members if member.role == "reads") for group in dependencies]
    assert [list(member.indices[:, 0]) for member in reads] == [[4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]


def test_squeeze_and_excitation_goes_along() -> None:
    stream = found("""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y)
        <float[8,3,1,1] w0, float[4,8,1,1] w1, float[8,4,1,1] w2, float[2,8,1,1] w3> {
            a = Conv(x, w0)
            p = GlobalAveragePool(a)
            q = Conv(p, w1)
            r = Relu(q)
            s = Conv(r, w2)
            t = Sigmoid(s)
            u = Mul(a, t)
            y = Conv(u, w3)
        }""")[0]
    assert parts(stream) == {("w0", 0, "writes"), ("w2", 0, "writes"), ("w1", 1, "reads"), ("w3", 1, "reads")}


def test_a_flatten_reads_every_place_of_a_channel() -> None:
    group = only(
        found("""
        g (float[2,3,2,2] x) => (float[2,5] y) <float[4,3,1,1] w, float[16,5] v> {
            a = Conv(x, w)
            f = Flatten(a)
            y = Gemm(f, v)
        }""")
    )
    read = next(member for member in group.members if member.role == "reads")
    assert (read.parameter, read.axis) == ("v", 0)
    assert read.indices.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_filters_follow_the_channels(multiplier: int) -> None:
    count = 4 * multiplier
    group = only(
        found(f"""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[4,3,1,1] w, float[{count},1,3,3] d, float[2,{count},1,1] v> {{
            a = Conv(x, w)
            b = Conv<group=4, pads=[1,1,1,1]>(a, d)
            y = Conv(b, v)
        }}""")
    )
    follow = next(member for member in group.members if member.role == "follows")
    assert follow.indices.tolist() == np.arange(count).reshape(4, multiplier).tolist()


def test_a_grouped_convolution_asks_for_equal_counts() -> None:
    dependencies = found("""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[6,3,1,1] w, float[4,3,1,1] d, float[2,4,1,1] v> {
            a = Conv(x, w)
            b = Conv<group=2>(a, d)
            y = Conv(b, v)
        }""")
    read, written = dependencies.balances
    assert (read.side, written.side) == ("reads", "writes")
    assert [block[0].tolist() for block in read.blocks] == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert [block[1].tolist() for block in written.blocks] == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert [group.keep for group in dependencies] == [2, 2]
    # One channel goes with one slice of the filters of its own block.
    assert [group.parameters for group in dependencies] == [3 + 2, 3 + 2]


def test_a_channel_shuffle_is_a_gather() -> None:
    proto = support.model(
        """
        g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[6,3,1,1] w, float[2,6,1,1] v, int64[5] s, int64[4] t> {
            a = Conv(x, w)
            b = Reshape(a, s)
            c = Transpose<perm=[0,2,1,3,4]>(b)
            d = Reshape(c, t)
            y = Conv(d, v)
        }""",
        s=[1, 2, 3, 4, 4],
        t=[1, 6, 4, 4],
    )
    trace = trace_graph(import_graph(proto).gs)
    (moved,) = trace.moved.values()
    assert (moved.source.name, moved.axis, moved.order.tolist()) == ("a", 1, [0, 3, 1, 4, 2, 5])
    assert only(dependency_groups(proto)).size == 6


def test_pixel_shuffle_couples_what_becomes_one_channel() -> None:
    for mode, first in (("DCR", [0, 2, 4, 6]), ("CRD", [0, 1, 2, 3])):
        group = only(
            found(f"""
            g (float[1,3,4,4] x) => (float[1,2,8,8] y) <float[8,3,1,1] w, float[2,2,1,1] v> {{
                a = Conv(x, w)
                b = DepthToSpace<blocksize=2, mode="{mode}">(a)
                y = Conv(b, v)
            }}""")
        )
        assert group.members[0].indices[0].tolist() == first


def test_attention_cuts_the_same_dimension_of_every_head() -> None:
    dependencies = found(
        """
        g (float[2,5,12] x) => (float[2,5,3] y)
        <float[12,24] q, float[12,24] k, float[12,24] v, float[24,3] o, int64[4] s, int64[3] t> {
            a = MatMul(x, q)
            b = MatMul(x, k)
            c = MatMul(x, v)
            d = Reshape(a, s)
            e = Reshape(b, s)
            f = Reshape(c, s)
            h = Transpose<perm=[0,2,1,3]>(d)
            i = Transpose<perm=[0,2,3,1]>(e)
            j = Transpose<perm=[0,2,1,3]>(f)
            k1 = MatMul(h, i)
            l = Softmax<axis=-1>(k1)
            m = MatMul(l, j)
            n = Transpose<perm=[0,2,1,3]>(m)
            p = Reshape(n, t)
            y = MatMul(p, o)
        }""",
        s=[2, 5, 3, 8],
        t=[2, 5, 24],
    )
    scores, values = dependencies
    assert parts(scores) == {("q", 1, "writes"), ("k", 1, "writes")}
    assert scores.size == 8
    assert scores.members[0].indices[0].tolist() == [0, 8, 16]
    assert parts(values) == {("v", 1, "writes"), ("o", 0, "reads")}


LAYER_NORM = """
    g (float[2,5,4] x) => (float[2,5,3] y) <float[4,6] w, float[6] s, float[6] t, float[6,3] v> {
        a = MatMul(x, w)
        b = %s(a)
        c = LayerNormalization(b, s, t)
        y = MatMul(c, v)
    }"""


def test_layer_normalization_lets_zeros_through_only() -> None:
    group = only(found(LAYER_NORM % "Relu"))
    assert parts(group) == {("w", 1, "writes"), ("s", 0, "follows"), ("t", 0, "follows"), ("v", 0, "reads")}
    walled = found(LAYER_NORM % "Sigmoid")
    assert len(walled) == 0
    assert any("not zero once zeroed" in reason for reason in reasons(walled))


@pytest.mark.parametrize(("opset", "count"), [(18, 2), (21, 6)])
def test_group_normalization_cuts_whole_groups(opset: int, count: int) -> None:
    group = only(
        found(
            f"""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y)
        <float[6,3,1,1] w, float[{count}] s, float[{count}] t, float[2,6,1,1] v> {{
            a = Conv(x, w)
            b = GroupNormalization<num_groups=2>(a, s, t)
            y = Conv(b, v)
        }}""",
            opset=opset,
        )
    )
    assert group.size == 2
    assert {member.parameter: member.indices.shape for member in group.members}["s"] == (2, count // 2)


def test_what_is_padded_on_shrinks_along() -> None:
    inner, border = found(
        """
        g (float[1,3,4,4] x) => (float[1,2,4,4] y)
        <float[4,3,1,1] w, float[6,3,1,1] u, float[2,6,1,1] v, int64[8] p> {
            a = Conv(x, w)
            b = Pad(a, p)
            c = Conv(x, u)
            d = Add(b, c)
            y = Conv(d, v)
        }""",
        p=[0, 1, 0, 0, 0, 1, 0, 0],
    )
    assert (inner.size, inner.writers) == (4, ("a", "c"))
    assert (border.size, border.writers) == (2, ("c",))


@pytest.mark.parametrize("call", ["Softmax<axis=1>(a)", "LRN<size=3>(a)", "Hardmax<axis=1>(a)"])
def test_walls_keep_their_channels_and_say_why(call: str) -> None:
    dependencies = found(f"""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[6,3,1,1] w, float[2,6,1,1] v> {{
            a = Conv(x, w)
            b = {call}
            y = Conv(b, v)
        }}""")
    assert len(dependencies) == 0
    assert any(call.split("<", maxsplit=1)[0] in reason for reason in reasons(dependencies))


def test_what_the_body_of_an_if_reads_is_fixed() -> None:
    dependencies = found("""
        g (float[1,3,4,4] x, bool c) => (float[1,2,4,4] y) <float[6,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            b = If(c) <then_branch = t () => (float[1,6,4,4] p) { p = Relu(a) },
                       else_branch = e () => (float[1,6,4,4] q) { q = Neg(a) }>
            y = Conv(b, v)
        }""")
    assert len(dependencies) == 0
    assert any("body of If" in reason for reason in reasons(dependencies))


def test_a_shared_weight_stays_one() -> None:
    group = only(
        found("""
        g (float[1,3,4,4] x, float[1,3,4,4] z) => (float[1,2,4,4] y, float[1,2,4,4] u)
        <float[6,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            b = Conv(z, w)
            y = Conv(a, v)
            u = Conv(b, v)
        }""")
    )
    assert group.size == 6
    assert group.writers == ("a", "b")


def test_sizes_that_are_read_off_a_channel_axis_are_frozen() -> None:
    proto = support.model(
        """
        g (float[N,3,4,4] x) => (float[N,2] y)
        <float[6,3,1,1] w, float[96,2] v, int64[1] i0, int64[1] i1, int64 f> {
            a = Conv(x, w)
            s = Shape(a)
            n = Gather(s, i0)
            c = Gather(s, i1)
            t = Concat<axis=0>(n, m)
            k = Constant<value_ints=[16]>()
            m = Mul(c, k)
            r = Reshape(a, t)
            y = MatMul(r, v)
        }""",
        i0=[0],
        i1=[1],
    )
    nodes = {node.output[0]: node for node in proto.graph.node}
    del proto.graph.node[:]
    proto.graph.node.extend(nodes[name] for name in ("a", "s", "n", "c", "k", "m", "t", "r", "y"))
    assert only(dependency_groups(proto)).size == 6
    (frozen,) = trace_graph(import_graph(proto).gs).frozen
    assert (frozen.node.op, frozen.input, frozen.entries.tolist(), frozen.told) == ("Reshape", 1, [False, True], True)


def test_a_sequence_read_by_an_lstm_can_be_narrower() -> None:
    group = only(
        found("""
        g (float[7,1,3] x) => (float[7,1,1,5] y) <float[3,6] p, float[1,20,6] w, float[1,20,5] r> {
            a = MatMul(x, p)
            y = LSTM<hidden_size=5>(a, w, r)
        }""")
    )
    assert parts(group) == {("p", 1, "writes"), ("w", 2, "reads")}


def test_quantized_weights_are_cut_with_their_scales() -> None:
    group = only(
        found("""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y)
        <int8[6,3,1,1] w, float[6] s, int8[6] z, float[2,6,1,1] v, float xs, uint8 xz> {
            d = DequantizeLinear<axis=0>(w, s, z)
            a = Conv(x, d)
            q = QuantizeLinear(a, xs, xz)
            e = DequantizeLinear(q, xs, xz)
            y = Conv(e, v)
        }""")
    )
    assert parts(group) == {("w", 0, "writes"), ("s", 0, "writes"), ("z", 0, "writes"), ("v", 1, "reads")}
    assert group.name == "a"


def test_quantized_convolutions_are_cut_with_their_scales() -> None:
    group = only(
        found("""
        g (uint8[1,3,4,4] x) => (uint8[1,2,4,4] y)
        <float s, uint8 z, int8[6,3,1,1] w, float[6] ws, int8[6] wz, int32[6] b, int8[2,6,1,1] v, float vs, int8 vz> {
            a = QLinearConv(x, s, z, w, ws, wz, s, z, b)
            y = QLinearConv(a, s, z, v, vs, vz, s, z)
        }""")
    )
    assert parts(group) == {
        ("w", 0, "writes"), ("ws", 0, "writes"), ("wz", 0, "writes"), ("b", 0, "writes"), ("v", 1, "reads"),
    }  # fmt: skip


def test_dropout_in_training_draws_for_the_whole_tensor() -> None:
    text = """
        g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[6,3,1,1] w, float r, bool t, float[2,6,1,1] v> {
            a = Conv(x, w)
            d = Dropout(a, r, t)
            y = Conv(d, v)
        }"""
    assert len(found(text, t=False)) == 1
    assert any("training" in reason for reason in reasons(found(text, t=True)))


def test_what_computes_a_parameter_is_fixed() -> None:
    dependencies = found(
        """
        g (float[1,3,4,4] x, float[1,3] z) => (float[1,2,4,4] y)
        <float[6,3,1,1] w, float[3,6] p, float[6] t, float[6] m, float[6] var, float[2,6,1,1] v, int64[1] k> {
            a = Conv(x, w)
            q = MatMul(z, p)
            s = Reshape(q, k)
            n = BatchNormalization(a, s, t, m, var)
            y = Conv(n, v)
        }""",
        k=[6],
    )
    assert len(dependencies) == 0
    assert any("a parameter of BatchNormalization" in reason for reason in reasons(dependencies))


def test_the_model_is_not_touched_and_the_answer_is_the_same_each_time() -> None:
    proto = support.model("""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[6,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            y = Conv(a, v)
        }""")
    before = proto.SerializeToString(deterministic=True)
    assert str(dependency_groups(proto)) == str(dependency_groups(proto))
    assert proto.SerializeToString(deterministic=True) == before


def test_the_graph_of_couplings_says_why() -> None:
    graph = found("""
        g (float[1,3,4,4] x) => (float[1,2,4,4] y) <float[6,3,1,1] w, float[2,6,1,1] v> {
            a = Conv(x, w)
            b = Relu(a)
            y = Conv(b, v)
        }""").graph
    assert graph.edges[("tensor", "a", 1), ("tensor", "b", 1)]["why"] == "Relu 'b'"
    assert graph.edges[("parameter", "w", 0), ("tensor", "a", 1)]["why"] == "Conv 'a'"
    assert graph.edges[("parameter", "v", 1), ("tensor", "b", 1)]["why"] == "Conv 'y'"
