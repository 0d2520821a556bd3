"""``inspect``: the totals, what passes would find, the text that a person reads and the JSON of the contract."""

import json
import time

import numpy as np
import onnx
import pytest

from graphopt.errors import UsageError
from graphopt.inspection import inspect

HEADER = '<ir_version: 10, opset_import: ["" : 17]>'


def model(text: str) -> onnx.ModelProto:
    """A model in ONNX's text form; weights that the text only declares are ones."""
    proto = onnx.parser.parse_model(f"{HEADER} g {text}")
    for value in proto.graph.value_info:
        tensor = value.type.tensor_type
        ones = np.ones(
            [dim.dim_value for dim in tensor.shape.dim], onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(ones, value.name))
    del proto.graph.value_info[:]
    return proto


CONV_BN_RELU = """(float[N,3,8,8] x) => (float[N,4,6,6] y)
    <float[4,3,3,3] w, float[4] scale, float[4] shift, float[4] mean, float[4] var>
    { c = Conv(x, w) b = BatchNormalization(c, scale, shift, mean, var) y = Relu(b) }"""


def found_by(name: str, proto: onnx.ModelProto):
    return next(one for one in inspect(proto).opportunities if one.name == name)


def test_json_has_the_fields_of_the_contract():
    found = inspect(model(CONV_BN_RELU)).to_dict()

    assert found["schema"] == "graphopt.inspect/1"
    assert {"path", "sha256", "bytes", "nodes", "parameters", "macs", "opset"} == found["model"].keys()
    assert (found["model"]["nodes"], found["model"]["opset"]) == (3, 17)
    assert (found["model"]["parameters"], found["model"]["macs"]) == (108 + 8, 4 * 36 * 27)
    assert found["by_operator"][0] == {
        "kind": "dense_kxk", "nodes": 1, "macs": 3888, "macs_share": 1.0, "parameters": 108,
        "parameters_share": 108 / 116,
    }  # fmt: skip
    assert [layer["kind"] for layer in found["layers"]] == ["dense_kxk", "normalization", "elementwise"]
    assert {"name", "kind", "macs", "parameters", "bytes", "ms", "bound"} <= found["layers"][0].keys()
    assert found["latency"] is None
    json.dumps(found)


def test_text_names_the_totals_the_kinds_and_the_passes():
    text = str(inspect(model(CONV_BN_RELU), batch=2))

    assert "x float32[N, 3, 8, 8]" in text
    assert "MACs        7,776 (batch 2)" in text
    assert "dense_kxk" in text
    assert "1 of 1 BatchNormalization fold into the operator before them" in text


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        pytest.param("fold_batchnorm", CONV_BN_RELU, 1, id="BatchNormalization after Conv"),
        pytest.param("fold_batchnorm", CONV_BN_RELU.replace("(c, ", "<training_mode = 1>(c, "), 0, id="in training"),
        pytest.param("quantize_int8", CONV_BN_RELU, 1, id="one float convolution"),
        pytest.param(
            "fold_constants", "(float[2] x) => (float[2] y) <float[2] w> { a = Neg(w) b = Exp(a) y = Add(x, b) }", 2,
            id="a chain of constants",
        ),
        pytest.param("fold_constants", "(float[2] x) => (float[2] y) { a = Neg(x) y = Exp(a) }", 0, id="computed"),
        pytest.param("eliminate_dead", "(float[2] x) => (float[2] y) { a = Neg(x) y = Exp(x) }", 1, id="unused node"),
        pytest.param("eliminate_dead", "(float[2] x) => (float[2] y) { a = Identity(x) y = Exp(a) }", 1, id="Identity"),
        pytest.param("eliminate_dead", "(float[2] x) => (float[2] y) { a = Dropout(x) y = Exp(a) }", 1, id="Dropout"),
        pytest.param(
            "eliminate_dead", "(float[2] x) => (float[2] y, bool[2] m) { a, m = Dropout(x) y = Exp(a) }", 0,
            id="a Dropout whose mask is used",
        ),
        pytest.param(
            "eliminate_dead",
            "(float[2] x) => (float[2] y) <float[2] v, float[2] w> { a = Add(x, v) y = Mul(a, w) }", 1,
            id="one of two equal weights",
        ),
    ],
)  # fmt: skip
def test_counts_what_a_pass_would_find(name, text, places):
    assert found_by(name, model(text)).places == places


def test_a_quantized_convolution_is_not_counted_again():
    proto = model(
        """(float[1,3,8,8] x) => (float[1,4,6,6] y) <int8[4,3,3,3] w, float s = {0.1}, int8 z = {0}>
        { d = DequantizeLinear(w, s, z) y = Conv(x, d) }"""
    )

    assert found_by("quantize_int8", proto).places == 0


def test_absent_external_weights_are_a_warning(tmp_path):
    proto = model("(float[3,512] x) => (float[3,512] y) <float[512,512] w> { y = MatMul(x, w) }")
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin")
    (tmp_path / "weights.bin").unlink()

    found = inspect(path)

    assert (found.model.parameters, found.model.macs) == (512 * 512, 3 * 512 * 512)
    assert any("weights.bin" in warning for warning in found.warnings)


def test_unknown_sizes_are_a_warning_that_says_what_to_give():
    found = inspect(model("(float[N,3,H,W] x) => (float[N,4,P,Q] y) <float[4,3,3,3] w> { y = Conv(x, w) }"))

    assert found.model.macs is None
    assert any("--input-shape" in warning for warning in found.warnings)
    assert "at least 0; 1 layers could not be counted" in str(found)


def test_refuses_a_runtime_that_the_target_does_not_have():
    with pytest.raises(UsageError, match="'cpu' has no runtime 'eager-fp32'"):
        inspect(model(CONV_BN_RELU), runtime="eager-fp32")


def test_a_model_of_100_mb_is_quick(tmp_path):
    weights = [np.full((1024, 1024), number, np.float32) for number in range(25)]
    text = " ".join(f"h{index + 1} = MatMul(h{index}, w{index})" for index in range(25))
    proto = onnx.parser.parse_model(f"{HEADER} g (float[1,1024] h0) => (float[1,1024] h25) {{ {text} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, f"w{index}") for index, w in enumerate(weights))
    path = tmp_path / "large.onnx"
    onnx.save_model(proto, path)

    start = time.process_time()
    found = inspect(path)

    assert found.model.bytes > 100_000_000
    assert time.process_time() - start < 2
