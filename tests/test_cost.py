"""What a model costs: counted by hand on tiny graphs, and against the tables of the papers."""

import numpy as np
import onnx
import pytest

from graphopt.errors import UsageError
from graphopt.graph.cost import cost
from models.mobilenet_v1 import Net, build

HEADER = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>'


def model(text: str, header: str = HEADER) -> onnx.ModelProto:
    """A model in ONNX's text form; weights that the text only declares are zeros."""
    proto = onnx.parser.parse_model(f"{header} g {text}")
    for value in proto.graph.value_info:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        zeros = np.zeros([dim.dim_value for dim in tensor.shape.dim], dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(zeros, value.name))
    del proto.graph.value_info[:]
    return proto


def only_layer(text: str, **shapes: tuple[int, ...]):
    (layer,) = [layer for layer in cost(model(text), shapes).layers if layer.kind != "constant"]
    return layer


@pytest.mark.parametrize(
    ("text", "kind", "macs", "parameters"),
    [
        pytest.param(
            """(float[1,4,8,8] x) => (float[1,6,6,6] y) <float[6,4,3,3] w, float[6] b> { y = Conv(x, w, b) }""",
            "dense_kxk", 6 * 6 * 6 * 4 * 9, 6 * 4 * 9 + 6, id="convolution",
        ),
        pytest.param(
            """(float[1,4,8,8] x) => (float[1,6,8,8] y) <float[6,4,1,1] w> { y = Conv(x, w) }""",
            "pointwise", 6 * 8 * 8 * 4, 24, id="pointwise",
        ),
        pytest.param(
            """(float[1,4,8,8] x) => (float[1,8,6,6] y) <float[8,1,3,3] w> { y = Conv<group = 4>(x, w) }""",
            "depthwise", 8 * 6 * 6 * 9, 72, id="depthwise with multiplier 2",
        ),
        pytest.param(
            """(float[1,4,8,8] x) => (float[1,6,6,6] y) <float[6,2,3,3] w> { y = Conv<group = 2>(x, w) }""",
            "grouped", 6 * 6 * 6 * 2 * 9, 108, id="grouped",
        ),
        pytest.param(
            """(float[1,4,8] x) => (float[1,6,6] y) <float[6,4,3] w> { y = Conv(x, w) }""",
            "dense_kxk", 6 * 6 * 4 * 3, 72, id="1-D",
        ),
        pytest.param(
            """(float[1,2,4,4,4] x) => (float[1,3,2,2,2] y) <float[3,2,3,3,3] w> { y = Conv(x, w) }""",
            "dense_kxk", 3 * 8 * 2 * 27, 162, id="3-D",
        ),
        pytest.param(
            """(float[1,4,5,5] x) => (float[1,6,10,10] y) <float[4,6,2,2] w>
            { y = ConvTranspose<strides = [2, 2]>(x, w) }""",
            "transposed", 100 * 6 * 4, 96, id="transposed: stride 2, kernel 2, each output from one input",
        ),
        pytest.param(
            """(float[3,4] x) => (float[3,5] y) <float[5,4] w, float[5] b> { y = Gemm<transB = 1>(x, w, b) }""",
            "fully_connected", 3 * 5 * 4, 25, id="Gemm",
        ),
        pytest.param(
            """(float[2,3,4] x) => (float[2,3,5] y) <float[4,5] w> { y = MatMul(x, w) }""",
            "fully_connected", 2 * 3 * 5 * 4, 20, id="MatMul with a weight",
        ),
        pytest.param(
            """(float[2,3,4] x) => (float[2,5,4] y) <float[5,3] w> { y = MatMul(w, x) }""",
            "fully_connected", 2 * 5 * 4 * 3, 15, id="MatMul with the weight on the left",
        ),
        pytest.param(
            """(float[2,8,3,4] a, float[2,8,4,5] b) => (float[2,8,3,5] y) { y = MatMul(a, b) }""",
            "matmul", 2 * 8 * 3 * 5 * 4, 0, id="batched MatMul of two computed operands",
        ),
        pytest.param(
            """(float[7,2,3] x) => (float[7,1,2,4] y) <float[1,16,3] w, float[1,16,4] r, float[1,32] b>
            { y = LSTM<hidden_size = 4>(x, w, r, b) }""",
            "recurrent", 7 * 2 * (16 * 3 + 16 * 4), 48 + 64 + 32, id="LSTM",
        ),
        pytest.param(
            """(float[7,2,3] x) => (float[7,2,2,4] y) <float[2,12,3] w, float[2,12,4] r>
            { y = GRU<hidden_size = 4, direction = "bidirectional">(x, w, r) }""",
            "recurrent", 7 * 2 * 2 * (12 * 3 + 12 * 4), 2 * (36 + 48), id="GRU in both directions",
        ),
        pytest.param(
            """(float[2,3,4] a, float[2,5,4] b) => (float[2,3,5] y) { y = Einsum<equation = "bik,bjk->bij">(a, b) }""",
            "matmul", 2 * 3 * 5 * 4, 0, id="Einsum",
        ),
        pytest.param(
            """(float[2,3,4] a) => (float[2,3,5] y) <float[4,5] w> { y = Einsum<equation = "...j,jk">(a, w) }""",
            "fully_connected", 2 * 3 * 5 * 4, 20, id="Einsum with an ellipsis on one side",
        ),
        pytest.param(
            """(float[7,2,3,4] a, float[2,4,5] b) => (float[7,2,3,5] y)
            { y = Einsum<equation = "...ij,...jk->...ik">(a, b) }""",
            "matmul", 7 * 2 * 3 * 5 * 4, 0, id="Einsum with ellipses of two ranks",
        ),
        pytest.param(
            """(uint8[1,4,8,8] x) => (uint8[1,6,6,6] y)
            <float s = {0.1}, uint8 z = {0}, int8[6,4,3,3] w, float[6] ws, int8[6] wz, int32[6] b>
            { y = QLinearConv(x, s, z, w, ws, wz, s, z, b) }""",
            "dense_kxk", 6 * 6 * 6 * 4 * 9, 6 * 4 * 9 + 6, id="QLinearConv: scales and zero points do not count",
        ),
        pytest.param(
            """(uint8[3,4] x) => (int32[3,5] y) <int8[4,5] w> { y = MatMulInteger(x, w) }""",
            "fully_connected", 3 * 5 * 4, 20, id="MatMulInteger",
        ),
        pytest.param(
            """(float[1,4,8,8] x) => (float[1,6,6,6] y) <float[6,4,3,3] w, float[6] b>
            { y = com.microsoft.FusedConv<activation = "Relu">(x, w, b) }""",
            "dense_kxk", 6 * 6 * 6 * 4 * 9, 222, id="FusedConv of ONNX Runtime",
        ),
        pytest.param(
            """(float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4] s, float[4] b, float[4] m, float[4] v>
            { y = BatchNormalization(x, s, b, m, v) }""",
            "normalization", 0, 8, id="BatchNormalization: statistics are no parameters",
        ),
        pytest.param(
            """(float[1,4] x) => (float[2,2] y) <int64[2] shape = {2, 2}> { y = Reshape(x, shape) }""",
            "data_movement", 0, 0, id="Reshape: a shape is no parameter",
        ),
        pytest.param(
            """(float[1,4] x) => (float[1,4] y) <float low = {0}, float high = {6}> { y = Clip(x, low, high) }""",
            "elementwise", 0, 0, id="Clip: limits are no parameters",
        ),
        pytest.param(
            """(int64[1,4] x) => (float[1,4,8] y) <float[100,8] w> { y = Gather(w, x) }""",
            "data_movement", 0, 800, id="an embedding",
        ),
    ],
)  # fmt: skip
def test_counts_one_operator(text, kind, macs, parameters):
    layer = only_layer(text)

    assert (layer.kind, layer.macs, layer.parameters) == (kind, macs, parameters)


def test_a_weight_behind_dequantize_linear_counts_for_the_convolution():
    found = cost(model(
        """(float[1,4,8,8] x) => (float[1,6,6,6] y)
        <int8[6,4,3,3] w, float[6] ws, int8[6] wz, int32[6] b, float[6] bs, int32[6] bz, float s = {0.1}, uint8 z = {0}>
        {
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            wd = DequantizeLinear<axis = 0>(w, ws, wz)
            bd = DequantizeLinear<axis = 0>(b, bs, bz)
            y = Conv(xd, wd, bd)
        }"""
    ))  # fmt: skip

    assert found.parameters == 6 * 4 * 9 + 6
    assert {layer.operator: layer.parameters for layer in found.layers}["Conv"] == found.parameters


def test_a_shared_weight_counts_once_for_its_first_user():
    found = cost(model("""(float[3,4] x) => (float[3,4] z) <float[4,4] w> { y = MatMul(x, w) z = MatMul(y, w) }"""))

    assert found.parameters == 16
    assert [layer.parameters for layer in found.layers] == [16, 0]
    assert found.weight_bytes == 64


def test_a_weight_in_a_constant_node_counts():
    found = cost(model("(float[3,2] x) => (float[3,2] y) { w = Constant<value_floats = [1.0, 2.0]>() y = Mul(x, w) }"))

    assert found.parameters == 2


def test_an_unused_weight_does_not_count():
    found = cost(model("(float[3,2] x) => (float[3,2] y) <float[2] w> { y = Relu(x) }"))

    assert found.parameters == 0


DYNAMIC = """(float[N,4,H,W] x) => (float[N,6,P,Q] y) <float[6,4,3,3] w> { y = Conv(x, w) }"""


def test_an_unknown_size_makes_the_total_unknown_and_says_why():
    found = cost(model(DYNAMIC))

    assert found.macs is None
    assert found.known_macs == 0
    assert found.unknown == ("y: the shape of 'y' is [1,6,?,?]",)
    assert found.peak_activation_bytes is None
    assert found.parameters == 216


def test_input_shapes_make_it_known():
    assert cost(model(DYNAMIC), {"x": (2, 4, 8, 8)}).macs == 2 * 6 * 36 * 4 * 9


def test_a_dynamic_first_axis_is_the_batch():
    one = cost(model("(float[N,4] x) => (float[N,5] y) <float[4,5] w> { y = MatMul(x, w) }"))
    eight = cost(model("(float[N,4] x) => (float[N,5] y) <float[4,5] w> { y = MatMul(x, w) }"), batch=8)

    assert (one.macs, eight.macs) == (20, 160)


def test_one_symbol_is_one_size():
    text = "(float[B,S,4] x, float[B,S,4] z) => (float[B,S,5] y) <float[4,5] w> { t = Add(x, z) y = MatMul(t, w) }"

    assert cost(model(text), {"x": (2, 7, 4)}).macs == 2 * 7 * 4 * 5


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        pytest.param({"z": (1, 4, 8, 8)}, "no input named 'z'; its inputs are x", id="no such input"),
        pytest.param({"x": (1, 4, 8)}, r"\[1, 4, 8\] contradicts it", id="another rank"),
        pytest.param({"x": (1, 3, 8, 8)}, r"\[1, 3, 8, 8\] contradicts it", id="another fixed size"),
    ],
)
def test_refuses_shapes_that_contradict_the_model(shapes, message):
    with pytest.raises(UsageError, match=message):
        cost(model(DYNAMIC), shapes)


def test_an_unknown_operator_is_not_counted_as_nothing():
    header = '<ir_version: 10, opset_import: ["" : 17, "mine" : 1]>'
    found = cost(model("(float[1,4] x) => (float[1,4] y) { y = mine.Magic(x) }", header))

    assert (found.macs, found.layers[0].kind) == (None, "unknown")
    assert found.unknown == ("y: operator mine::Magic is not known",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            """(float[2,6,32] q, float[2,6,32] k, float[2,6,32] v) => (float[2,6,32] y, float[2,4,8,8] s)
            { y, s = LinearAttention<q_num_heads = 4, kv_num_heads = 4>(q, k, v) }""",
            "LinearAttention is not counted", id="an operator without a rule",
        ),
        pytest.param(
            """(float[2,3] a, float[3,4] b, float[4,5] c) => (float[2,5] y)
            { y = Einsum<equation = "ij,jk,kl->il">(a, b, c) }""",
            "more than two operands", id="Einsum of three operands",
        ),
        pytest.param(
            "(float[0,4,8,8] x) => (float[0,6,6,6] y) <float[6,4,3,3] w> { y = Conv(x, w) }",
            "holds no element", id="a size of 0, as some write what they do not know",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_not_counted_as_nothing(text, reason):
    found = cost(model(text, HEADER.replace("17", "27")))

    assert found.macs is None
    assert reason in found.unknown[0]


def test_a_causal_convolution_counts_its_window_for_each_step():
    found = cost(model(
        """(float[2,6,9] x) => (float[2,6,9] y, float[2,6,3] s) <float[6,1,4] w>
        { y, s = CausalConvWithState(x, w) }""",
        HEADER.replace("17", "27"),
    ))  # fmt: skip

    assert (found.macs, found.parameters, found.layers[0].kind) == (2 * 6 * 9 * 4, 24, "depthwise")


def test_sizes_computed_from_constants_are_known():
    """As exporters write a padding: the pads are computed, although from constants only."""
    found = cost(model(
        """(float[1,4,8,8] x) => (float[1,6,P,Q] y)
        <int64[4] front = {0, 0, 1, 1}, float[6,4,3,3] w, float zero = {0}>
        { pads = Concat<axis = 0>(front, front) p = Pad(x, pads, zero) y = Conv(p, w) }"""
    ))  # fmt: skip

    assert found.macs == 6 * 8 * 8 * 4 * 9


def test_sizes_computed_from_the_input_are_known():
    """As exporters flatten: the batch is read from the input and put in front of the rest."""
    found = cost(model(
        """(float[N,4,2,2] x) => (float[N,5] y) <int64 first = {0}, int64[1] rest = {-1}, int64[1] axes = {0},
        float[16,5] w>
        {
            all = Shape(x)
            n = Gather(all, first)
            front = Unsqueeze(n, axes)
            wanted = Concat<axis = 0>(front, rest)
            flat = Reshape(x, wanted)
            y = MatMul(flat, w)
        }"""
    ), batch=3)  # fmt: skip

    assert found.macs == 3 * 16 * 5


def test_a_body_sees_the_sizes_of_the_graph_around_it():
    found = cost(model(
        """(bool c, float[1,4,8,8] x) => (float[1,4,M,K] y)
        <int64[8] pads = {0, 0, 1, 2, 0, 0, 1, 2}, float[4,4,3,3] w> {
            y = If(c) <
                then_branch = t() => (float[1,4,M,K] a) { p = Pad(x, pads) a = Conv(p, w) },
                else_branch = e() => (float[1,4,M,K] b) { b = Identity(x) }
            >
        }"""
    ))  # fmt: skip

    assert found.macs == 4 * 8 * 10 * 4 * 9


def test_sizes_in_an_old_model_are_known():
    """Until IR 3 constants had to be inputs, too; what is computed from them is a constant all the same."""
    proto = model("(float[1,4] x) => (float[P,Q] y) <int64[2] s = {2, 2}> { t = Identity(s) y = Reshape(x, t) }")
    proto.ir_version = 3
    proto.graph.input.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.INT64, [2]))

    assert cost(proto).peak_activation_bytes is not None


def test_both_branches_of_an_if_count_once():
    found = cost(model(
        """(bool c, float[3,4] x) => (float[3,4] y) <float[4,4] w, float[4,4] v>
        { y = If(c) <then_branch = a () => (float[3,4] t) { t = MatMul(x, w) },
                     else_branch = b () => (float[3,4] t) { t = MatMul(x, v) }> }"""
    ))  # fmt: skip

    assert (found.nodes, found.parameters, found.macs) == (3, 32, 2 * 48)


def test_absent_external_weights_are_counted():
    whole = model("(float[3,4] x) => (float[3,5] y) <float[4,5] w> { y = MatMul(x, w) }")
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 5])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="absent.bin")
    del whole.graph.initializer[:]
    whole.graph.initializer.append(tensor)

    found = cost(whole)

    assert (found.parameters, found.macs, found.weight_bytes) == (20, 60, 80)


def test_memory_is_the_most_that_is_alive_at_a_time():
    found = cost(model("(float[100] x) => (float[1] y) { a = Relu(x) b = Neg(a) y = ReduceSum<keepdims = 1>(b) }"))

    assert found.peak_activation_bytes == 2 * 400
    assert [layer.bytes for layer in found.layers] == [800, 800, 404]


def test_the_model_is_not_changed():
    before = model(DYNAMIC)
    untouched = before.SerializeToString(deterministic=True)

    cost(before, {"x": (1, 4, 9, 9)})

    assert before.SerializeToString(deterministic=True) == untouched


def test_mobilenet_has_the_published_totals():
    """arXiv 1704.04861, table 4: 569 M multiply-adds and 4.2 M parameters, 4866 M and 29.3 M without separation."""
    small, full = cost(build(Net(), seed=None)), cost(build(Net(plain=True), seed=None))

    assert small.macs == pytest.approx(569e6, rel=0.01)
    assert small.parameters == pytest.approx(4.2e6, rel=0.01)
    assert full.macs == pytest.approx(4866e6, rel=0.01)
    assert full.parameters == pytest.approx(29.3e6, rel=0.01)


@pytest.mark.parametrize("batchnorm", [False, True], ids=["as the paper counts", "with normalization and a bias"])
def test_mobilenet_has_the_published_shares(batchnorm: bool):
    """arXiv 1704.04861, table 2, in per cent of multiply-adds and of parameters, by which it means weights.

    The table prints 1.19 for the share of the 3x3 convolution's multiply-adds; its column then sums to 99.29. With the
    digits in their right order, 1.91, it sums to 100.
    """
    shares = {
        kind.kind: (100 * kind.macs_share, 100 * kind.weights_share)
        for kind in cost(build(Net(batchnorm=batchnorm), seed=None)).by_kind()
        if kind.macs
    }

    published = {
        "pointwise": (94.86, 74.59),
        "depthwise": (3.06, 1.06),
        "dense_kxk": (1.91, 0.02),
        "fully_connected": (0.18, 24.33),
    }
    assert shares.keys() == published.keys()
    for kind, expected in published.items():
        np.testing.assert_allclose(shares[kind], expected, atol=0.01, err_msg=kind)


@pytest.mark.parametrize(
    ("text", "parameters", "weights"),
    [
        pytest.param(
            "(float[1,4,8,8] x) => (float[1,6,6,6] y) <float[6,4,3,3] w, float[6] b> { y = Conv(x, w, b) }", 222, 216,
            id="a bias is no weight",
        ),
        pytest.param(
            """(float[7,2,3] x) => (float[7,1,2,4] y) <float[1,16,3] w, float[1,16,4] r, float[1,32] b>
            { y = LSTM<hidden_size = 4>(x, w, r, b) }""", 144, 112, id="both weights of a recurrence",
        ),
        pytest.param(
            "(float[1,4] x) => (float[1,4] y) <float[4] w> { y = Mul(x, w) }", 4, 0, id="a scale is none",
        ),
        pytest.param("(float[3,4] x) => (float[3,5] y) <float[4,5] w> { y = MatMul(x, w) }", 20, 20, id="MatMul"),
    ],
)  # fmt: skip
def test_weights_are_what_inputs_are_multiplied_with(text, parameters, weights):
    layer = only_layer(text)

    assert (layer.parameters, layer.weights) == (parameters, weights)


def test_weights_of_a_shared_tensor_count_once():
    found = cost(model("""(float[3,4] x) => (float[3,4] z) <float[4,4] w> { y = MatMul(x, w) z = MatMul(y, w) }"""))

    assert [layer.weights for layer in found.layers] == [16, 0]


def test_a_negative_size_is_an_open_one() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,4,8,8] y)'
        " <float[4,3,1,1] w = {0,0,0,0,0,0,0,0,0,0,0,0}> { y = Conv(x, w) }"
    )
    for axis in (0, 2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1

    assert cost(proto, shapes={"x": (1, 3, 8, 8)}).macs == 4 * 3 * 64


FIXED_BATCH = """(float[1,4,8,8] x) => (float[1,10] y) <float[6,4,3,3] w, int64[2] flat = {1, 216}, float[216,10] v>
    { c = Conv(x, w) r = Reshape(c, flat) y = MatMul(r, v) }"""


def test_a_larger_batch_of_a_model_with_a_fixed_one_is_copies_that_share_their_weights():
    """Its Reshape to [1, 216] would refuse an input of 16."""
    one, sixteen = cost(model(FIXED_BATCH)), cost(model(FIXED_BATCH), batch=16)

    assert sixteen.macs == 16 * one.macs
    assert (sixteen.parameters, sixteen.weight_bytes) == (one.parameters, one.weight_bytes)
    assert sixteen.peak_activation_bytes == 16 * one.peak_activation_bytes


def test_what_is_computed_from_sizes_is_there_once_whatever_the_batch():
    proto = model(
        """(float[1,4] x) => (float[1,4] y) <float[1] one = {1.0}>
        { s = Shape(x) f = Cast<to = 1>(s) m = ReduceMax<keepdims = 0>(f) d = Mul(m, one) y = Mul(x, d) }"""
    )
    layers = {layer.name: layer for layer in cost(proto, batch=8).layers}

    assert layers["d"].activation_bytes == cost(proto).layers[3].activation_bytes
    assert layers["y"].activation_bytes == 2 * 8 * 4 * 4 + 4


@pytest.mark.parametrize(
    ("text", "batch", "reason"),
    [
        pytest.param("(float[4,4] x) => (float[4,4] y) { y = Relu(x) }", 6, "fixed at 4", id="no multiple"),
        pytest.param(
            "(float[1,4] x, float[2,4] h) => (float[2,4] y) { y = Add(x, h) }", 8, "differ", id="unequal first axes"
        ),
    ],
)
def test_refuses_a_batch_that_the_model_cannot_have(text, batch, reason):
    with pytest.raises(UsageError, match=reason):
        cost(model(text), batch=batch)


def test_a_size_that_only_the_exporter_noted_is_known_with_its_symbol() -> None:
    """PyTorch writes ``as_strided`` as arithmetic on so many indices that its shape is not computed here."""
    text = """(float[N,4] x) => (float[P,5] y) <float[2,5] w>
        { z = NonZero(x) t = Transpose(z) v = Cast<to = 1>(t) y = MatMul(v, w) }"""
    proto, noted = model(text), model(text)
    noted.graph.value_info.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, ["N", 2]))

    assert cost(proto, batch=8).macs is None
    assert cost(noted, batch=8).macs is not None
