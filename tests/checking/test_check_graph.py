"""What is wrong with a graph whatever the target: each rule with a model that breaks it and ones that do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support import model

from graphopt.checking import check
from graphopt.rules import Finding


def found(proto: onnx.ModelProto) -> list[Finding]:
    return list(check(proto, use_config=False).files[0].findings)


def codes(proto: onnx.ModelProto) -> list[str]:
    return [one.code for one in found(proto)]


# GO110 unused nodes


def test_nodes_that_lead_nowhere_are_one_finding() -> None:
    proto = model("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(x) b = Relu(a) c = Relu(b) }")
    (one,) = found(proto)
    assert (one.code, one.where, one.level) == ("GO110", "a", "warning")
    assert "3 nodes lead to no output: a, b, c" in one.message


def test_nodes_of_a_body_that_lead_nowhere() -> None:
    proto = model("""g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Relu(x) unused = Neg(x) },
                    else_branch = e () => (float[2] b) { b = Neg(x) }>
    }""")
    (one,) = found(proto)
    assert one.code == "GO110"
    assert "then_branch" in one.message


def test_what_only_a_body_reads_is_used() -> None:
    proto = model("""g (bool c, float[2] x) => (float[2] y) <float[2] w> {
        r = Relu(x)
        y = If (c) <then_branch = t () => (float[2] a) { a = Add(r, w) },
                    else_branch = e () => (float[2] b) { b = Neg(x) }>
    }""")
    assert codes(proto) == []


# GO111 unused weights


def test_weights_that_no_node_reads() -> None:
    proto = model("g (float[2] x) => (float[2] y) <float[9] v, float[2] w> { y = Add(x, w) }")
    (one,) = found(proto)
    assert (one.code, one.where) == ("GO111", "v")
    assert "36 bytes" in one.message


def test_a_weight_that_is_an_output_is_used() -> None:
    assert codes(model("g (float[2] x) => (float[2] y, float[9] v) <float[9] v> { y = Relu(x) }")) == []


# GO112 duplicate weights

TWICE = """g (float[N,16] x) => (float[N,16] y) <float[16,16] v, float[16,16] w> {
    a = MatMul(x, v) y = MatMul(a, w)
}"""


def test_weights_of_equal_values_are_told_with_what_they_cost() -> None:
    values = np.arange(256.0).reshape(16, 16)
    (one,) = found(model(TWICE, v=values, w=values))
    assert (one.code, one.where) == ("GO112", "w")
    assert "1,024 bytes too many: w repeats v" in one.message


def test_raw_and_typed_fields_are_one_value() -> None:
    values = np.arange(256, dtype=np.float32).reshape(16, 16)
    proto = model(TWICE, v=values, w=values)
    proto.graph.initializer[1].ClearField("raw_data")
    proto.graph.initializer[1].float_data.extend(values.ravel().tolist())
    assert codes(proto) == ["GO112"]


def test_weights_that_differ_in_one_value_are_none() -> None:
    first, second = np.ones((16, 16)), np.ones((16, 16))
    second[7, 3] = 2
    assert codes(model(TWICE, v=first, w=second)) == []


def test_small_equal_weights_are_not_worth_a_line() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) <float[4] v, float[4] w> { a = Add(x, v) y = Mul(a, w) }"
    assert codes(model(text, v=np.ones(4), w=np.ones(4))) == []


def test_equal_weights_of_another_shape_or_type_are_none() -> None:
    text = "g (float[N,16] x) => (float[N,8] y) <float[16,32] v, float[32,16] w, float[16,8] u> {\n"
    text += "a = MatMul(x, v) b = MatMul(a, w) y = MatMul(b, u) }"
    assert codes(model(text, v=np.ones((16, 32)), w=np.ones((32, 16)))) == []


def test_every_quantizer_has_scales_and_zero_points_of_its_own() -> None:
    text = """g (float[N,300] x) => (float[N,300] y) <float[300] s, int8[300] z, float[300] t, int8[300] w> {
        a = QuantizeLinear<axis = 1>(x, s, z) b = DequantizeLinear<axis = 1>(a, t, w) y = Relu(b)
    }"""
    ones, zeros = np.ones(300), np.zeros(300)
    assert codes(model(text, s=ones, t=ones, z=zeros, w=zeros)) == []


# GO113 BatchNormalization left unfolded

NORMALIZED = """g (float[N,3,8,8] x) => (float[N,4,6,6] y)
<float[4,3,3,3] w, float[4] s, float[4] b, float[4] m, float[4] var> {
    c = Conv(x, w)
    n = BatchNormalization(c, s, b, m, var)
    y = Relu(n)
}"""


def test_a_batchnorm_behind_a_convolution_is_left_unfolded() -> None:
    (one,) = found(model(NORMALIZED))
    assert (one.code, one.where, one.level) == ("GO113", "n", "warning")
    assert "fold_batchnorm" in one.message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("c = Conv(x, w)", "k = Conv(x, w) c = Relu(k)", id="an activation between"),
        pytest.param("y = Relu(n)", "y = Add(n, c)", id="the convolution has another reader"),
        pytest.param("<float[4,3,3,3] w, ", "<", id="the weight is an input"),
        pytest.param("float[4] m, ", "", id="the statistics are an input"),
    ],
)
def test_a_batchnorm_that_cannot_be_folded_is_no_finding(before: str, after: str) -> None:
    text = NORMALIZED.replace(before, after)
    if "w," not in text:
        text = text.replace("] x)", "] x, float[4,3,3,3] w)")
    if "float[4] m" not in text:
        text = text.replace("] x)", "] x, float[4] m)")
    assert codes(model(text)) == []


def test_a_weight_that_the_caller_may_override_cannot_be_folded_into() -> None:
    proto = model(NORMALIZED)
    weight = proto.graph.initializer[0]
    proto.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    assert codes(proto) == []
    proto.ir_version = 3
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
        for one in proto.graph.initializer[1:]
    )
    proto.opset_import[0].version = 13
    assert codes(proto) == ["GO113"]


def test_behind_quantized_weights_the_advice_is_to_fold_first() -> None:
    text = NORMALIZED.replace("float[4,3,3,3] w", "int8[4,3,3,3] q, float one").replace(
        "c = Conv(x, w)", "w = DequantizeLinear(q, one) c = Conv(x, w)"
    )
    (one,) = found(model(text, q=np.ones((4, 3, 3, 3)), one=np.float32(0.1)))
    assert one.code == "GO113"
    assert "fold before quantizing" in one.message


# GO114 training mode


def test_dropout_and_batchnorm_in_training_mode_are_errors() -> None:
    text = NORMALIZED.replace("n = BatchNormalization", "n, u, v = BatchNormalization<training_mode = 1>")
    (one,) = found(model(text))
    assert (one.code, one.where, one.level) == ("GO114", "n", "error")
    dropout = "g (float[2] x) => (float[2] y) <float r, bool t> { y = Dropout(x, r, t) }"
    assert codes(model(dropout, r=0.5, t=True)) == ["GO114"]
    assert codes(model(dropout, r=0.5, t=False)) == []
    assert codes(model("g (float[2] x) => (float[2] y) { y = Dropout(x) }")) == []


def test_before_opset_14_the_mode_shows_in_the_outputs() -> None:
    text = NORMALIZED.replace("n = BatchNormalization", "n, u, v, k, l = BatchNormalization")
    assert "GO114" in codes(model(text, opset=13))


def test_what_belongs_to_training_is_an_error() -> None:
    text = "g (float[N,4] x, int64[N] t) => (float y) { y = SoftmaxCrossEntropyLoss(x, t) }"
    assert codes(model(text)) == ["GO114"]
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.training_info.add()
    assert codes(proto) == ["GO114"]


def test_findings_come_in_the_order_of_their_codes_and_are_the_same_each_time() -> None:
    text = NORMALIZED.replace("y = Relu(n)", "y = Relu(n) z = Neg(n)").replace(
        "<float[4,3", "<float[7] idle, float[4,3"
    )
    first = found(model(text))
    assert [one.code for one in first] == ["GO110", "GO111", "GO113"]
    assert found(model(text)) == first
