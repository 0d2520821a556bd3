"""``inspect``: the totals, what passes would find, the text that a person reads and the JSON of the contract."""

import itertools
import json
import time

import numpy as np
import onnx
import pytest

from graphopt.errors import UsageError
from graphopt.inspection import inspect
from models.mobilenet_v1 import Net, build

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
        "parameters_share": 108 / 116, "weights": 108, "weights_share": 1.0,
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


@pytest.mark.parametrize(
    ("target", "runtime", "reason"),
    [
        pytest.param("cpu", "eager-fp32", "'cpu' has no runtime 'eager-fp32'; it has onnxruntime", id="cpu"),
        pytest.param("titan-xp", "tflite", "no runtime 'tflite'; it has tensorrt, .*eager-fp32", id="titan-xp"),
    ],
)
def test_refuses_a_runtime_that_the_target_does_not_have(target, runtime, reason):
    with pytest.raises(UsageError, match=reason):
        inspect(model(CONV_BN_RELU), target=target, runtime=runtime)


RESIDUAL = """(float[N,16,16,16] x) => (float[N,10] y)
    <float[64,16,3,3] v, float[64,64,3,3] w, float[64,64,1,1] u, int64[2] flat = {0, -1}, float[64,10] f>
    { a = Conv<pads = [1,1,1,1]>(x, v) b = Relu(a) c = Conv<pads = [1,1,1,1]>(b, w) d = Conv(b, u) e = Add(c, d)
      g = Relu(e) p = GlobalAveragePool(g) r = Reshape(p, flat) y = MatMul(r, f) }"""


def test_a_target_with_a_device_gets_an_estimate_for_the_model_and_each_layer():
    found = inspect(model(RESIDUAL), target="titan-xp", runtime="eager-fp32", batch=4).to_dict()

    latency = found["latency"]
    assert (latency["target"], latency["runtime"], latency["batch"]) == ("titan-xp", "eager-fp32", 4)
    assert latency["source"] == "estimated"
    assert latency["interval"][0] < latency["ms"] < latency["interval"][1]
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert all(layers[name]["ms"] > 0 for name in "abcdegpy")
    assert {layers[name]["bound"] for name in "abcdegpy"} <= {"compute", "memory", "launch"}
    assert layers["c"]["precision"] == "float32"
    json.dumps(found)


def test_what_runs_inside_another_kernel_says_so_and_takes_no_time_of_its_own():
    layers = {layer["name"]: layer for layer in inspect(model(RESIDUAL), target="jetson-orin-nano").to_dict()["layers"]}

    assert (layers["b"]["ms"], layers["b"]["bound"], layers["b"]["inside"]) == (0, None, "a")
    assert layers["a"]["inside"] is None


def test_text_says_estimated_where_the_time_goes_and_what_would_pay():
    text = str(inspect(model(RESIDUAL), target="jetson-orin-nano"))

    assert "latency     estimated" in text
    assert "90 % interval" in text
    assert "on jetson-orin-nano, tensorrt, batch 1" in text
    assert "most time" in text
    assert "where it would pay" in text


def test_other_forms_of_a_layer_are_priced_on_the_target():
    found = inspect(model(RESIDUAL), target="jetson-orin-nano", batch=64)
    choices = {choice.name: choice for choice in found.choices}

    assert set(choices) == {"a", "c", "d", "y"}
    assert all(choice.half_channels < choice.ms for choice in choices.values())
    assert choices["c"].rank_1 < choices["c"].rank_2
    assert choices["a"].rank_1 is None, "it reads the model's input"
    assert choices["d"].rank_1 is None, "it is pointwise"
    assert all(choice.int8 is not None for choice in choices.values())
    assert found.to_dict()["would_pay"][1]["predicted"].keys() == {"half_channels", "rank_1", "rank_2", "int8"}


@pytest.mark.parametrize(
    ("target", "runtime"),
    [
        pytest.param("jetson-nano", None, id="no int8 units"),
        pytest.param("titan-xp", "eager-fp32", id="a runtime that runs operators as they are"),
    ],
)
def test_int8_is_not_priced_where_it_is_not_to_be_had(target, runtime):
    found = inspect(model(RESIDUAL), target=target, runtime=runtime)

    assert {choice.int8 for choice in found.choices} == {None}


def test_channels_of_an_output_stay_when_the_others_are_halved():
    """The class scores behind a global mean are the convolution's channels."""
    proto = model(
        """(float[N,16,16,16] x) => (float[N,10] y) <float[32,16,3,3] v, float[10,32,1,1] w, int64[2] flat = {0, -1}>
        { a = Conv(x, v) b = Relu(a) c = Conv(b, w) p = GlobalAveragePool(c) y = Reshape(p, flat) }"""
    )
    both = model(
        """(float[N,16,16,16] x) => (float[N,10] y) <float[16,16,3,3] v, float[10,16,1,1] w, int64[2] flat = {0, -1}>
        { a = Conv(x, v) b = Relu(a) c = Conv(b, w) p = GlobalAveragePool(c) y = Reshape(p, flat) }"""
    )

    halved = {choice.name: choice.half_channels for choice in inspect(proto, target="titan-xp", batch=64).choices}
    cut = {choice.name: choice.ms for choice in inspect(both, target="titan-xp", batch=64).choices}

    assert halved == pytest.approx(cut, rel=0.05)


def test_a_larger_batch_of_a_fixed_one_is_estimated_for_all_of_it():
    fixed = model(RESIDUAL.replace("float[N,", "float[1,"))

    one, sixteen = (inspect(fixed, target="titan-xp", runtime="eager-fp32", batch=batch) for batch in (1, 16))
    dynamic = inspect(model(RESIDUAL), target="titan-xp", runtime="eager-fp32", batch=16)

    assert sixteen.model.macs == 16 * one.model.macs
    assert sixteen.latency.batch == 16
    assert sixteen.latency.ms == pytest.approx(dynamic.latency.ms)


def test_unknown_sizes_leave_the_latency_unknown_and_say_which():
    text = "(float[N,3,H,W] x) => (float[N,4,P,Q] y) <float[4,3,3,3] w> { y = Conv(x, w) }"

    found = inspect(model(text), target="jetson-orin-nano")

    assert found.to_dict()["latency"] is None
    assert {layer["ms"] for layer in found.to_dict()["layers"]} == {None}
    assert any("no latency is estimated" in warning and "--input-shape" in warning for warning in found.warnings)


def test_findings_of_the_target_are_listed():
    """TensorRT 8.2 of the Nano takes opset 13 at most."""
    found = inspect(model(CONV_BN_RELU), target="jetson-nano")

    assert any(finding["code"].startswith("GO2") for finding in found.to_dict()["findings"])
    assert "findings (" in str(found)


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


def separable(text: str, **shapes: tuple[int, ...]):
    return inspect(model(text), input_shapes=shapes).separable


def test_a_convolution_is_counted_as_depthwise_and_pointwise():
    (layer,) = separable(
        """(float[1,4,8,8] x) => (float[1,6,6,6] y) <float[4,4,1,1] v, float[6,4,3,3] w>
        { t = Conv(x, v) y = Conv(t, w) }"""
    )

    assert (layer.name, layer.kernel, layer.channels, layer.filters) == ("y", (3, 3), 4, 6)
    assert (layer.macs, layer.parameters, layer.reads_input) == (36 * 6 * 4 * 9, 6 * 4 * 9, False)
    one, two = layer.ranks
    assert (one.form, one.macs, one.parameters) == ("depthwise_first", 36 * (4 * 9 + 4 * 6), 4 * 9 + 4 * 6)
    assert (two.rank, two.macs) == (2, 2 * one.macs)
    assert layer.saves_up_to == 3  # 4 * (36 + 24) = 240 weights, more than the 216 there are


@pytest.mark.parametrize(
    ("text", "form", "macs"),
    [
        pytest.param(
            "(float[1,8,8,8] x) => (float[1,2,8,8] y) <float[2,8,3,3] w> { y = Conv<pads = [1,1,1,1]>(x, w) }",
            "pointwise_first", 64 * (8 * 2 + 2 * 9), id="few filters: pointwise first",
        ),
        pytest.param(
            "(float[1,8,9,9] x) => (float[1,6,4,4] y) <float[6,8,3,3] w> { y = Conv<strides = [2,2]>(x, w) }",
            "depthwise_first", 16 * (8 * 9 + 8 * 6), id="stride: pointwise last, where the output is small",
        ),
        pytest.param(
            "(float[1,4,8] x) => (float[1,6,6] y) <float[6,4,3] w> { y = Conv(x, w) }",
            "depthwise_first", 6 * (4 * 3 + 4 * 6), id="1-D",
        ),
        pytest.param(
            "(float[1,8,8,8] x) => (float[1,8,6,6] y) <float[8,4,3,3] w> { y = Conv<group = 2>(x, w) }",
            "depthwise_first", 36 * 2 * (4 * 9 + 4 * 4), id="grouped",
        ),
        pytest.param(
            """(float[1,4,5,5] x) => (float[1,4,10,10] y) <float[4,4,2,2] w>
            { y = ConvTranspose<strides = [2, 2]>(x, w) }""",
            "pointwise_first", 25 * (4 * 4 + 4 * 4), id="transposed: pointwise first, where the input is small",
        ),
    ],
)  # fmt: skip
def test_the_cheaper_order_is_counted(text, form, macs):
    (layer,) = separable(text)

    assert (layer.ranks[0].form, layer.ranks[0].macs) == (form, macs)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("(float[1,4,8,8] x) => (float[1,6,8,8] y) <float[6,4,1,1] w> { y = Conv(x, w) }", id="1x1"),
        pytest.param(
            "(float[1,4,8,8] x) => (float[1,4,6,6] y) <float[4,1,3,3] w> { y = Conv<group = 4>(x, w) }", id="depthwise"
        ),
        pytest.param(
            "(float[1,4,8,8] x, float[6,4,3,3] w) => (float[1,6,6,6] y) { y = Conv(x, w) }", id="computed weights"
        ),
        pytest.param(
            """(float[1,4,8,8] x) => (float[1,6,6,6] y) <int8[6,4,3,3] v, float s = {0.1}, int8 z = {0}>
            { w = DequantizeLinear(v, s, z) y = Conv(x, w) }""", id="int8 already"
        ),
        pytest.param("(float[3,4] x) => (float[3,5] y) <float[4,5] w> { y = MatMul(x, w) }", id="no convolution"),
    ],
)  # fmt: skip
def test_what_cannot_be_separated_is_left_out(text):
    assert separable(text) == ()


def test_what_is_separable_is_what_the_pass_can_separate():
    """Importing passes takes longer than inspecting, so the rules stand in two places."""
    from graphopt.passes.separable.decompose import geometry_of

    for operator, shape, groups in itertools.product(
        ("Conv", "ConvTranspose"), [(4, 1, 3, 3), (4, 2, 3, 3), (4, 4, 1, 1), (4, 4, 3), (4, 2, 1, 3, 3)], (1, 2, 4)
    ):
        channels = shape[1] * groups if operator == "Conv" else shape[0]
        node = onnx.helper.make_node(operator, ["x", "w"], ["y"], group=groups)
        weight = onnx.numpy_helper.from_array(np.ones(shape, np.float32), "w")
        floats, sizes = onnx.TensorProto.FLOAT, [1, channels, *[8] * (len(shape) - 2)]
        ends = [onnx.helper.make_tensor_value_info(*one) for one in (("x", floats, sizes), ("y", floats, None))]
        proto = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight]),
            opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10,
        )  # fmt: skip

        assert bool(inspect(proto).separable) == (not isinstance(geometry_of(node, shape), str)), (operator, shape)


def test_unknown_sizes_leave_the_weights_to_count():
    (layer,) = separable("(float[N,8,H,W] x) => (float[N,8,P,Q] y) <float[8,8,3,3] w> { y = Conv(x, w) }")

    assert (layer.macs, layer.ranks[0].macs) == (None, None)
    assert (layer.parameters, layer.ranks[0].parameters) == (576, 72 + 64)


def test_the_plain_net_at_rank_1_is_mobilenet():
    """arXiv 1704.04861, table 4: the first convolution, which reads the image, is whole in both."""
    plain, mobilenet = (inspect(build(Net(plain=one), seed=None)) for one in (True, False))

    at_rank_1 = plain.separated[0]

    assert (at_rank_1.rank, at_rank_1.layers) == (1, 13)
    assert (at_rank_1.macs, at_rank_1.parameters) == (mobilenet.model.macs, mobilenet.model.parameters)
    assert "whole model at rank 1: 4,867 M -> 569 M MACs, 29.3 M -> 4.2 M parameters (13 separated)" in str(plain)
    assert [layer.name for layer in plain.separable if layer.reads_input] == ["stem"]


def test_separable_layers_in_json():
    found = inspect(build(Net(plain=True, width=0.25, size=32), seed=None)).to_dict()

    assert len(found["separable"]) == 14
    assert found["separable"][1]["kernel"] == [3, 3]
    assert found["separable"][1]["ranks"][0].keys() == {"rank", "form", "macs", "parameters"}
    assert [each["rank"] for each in found["separated"]] == [1, 2]
    json.dumps(found)


def test_on_this_machine_the_model_and_its_kernels_are_measured_when_asked():
    found = inspect(model(RESIDUAL), batch=2, measure=True).to_dict()

    latency = found["latency"]
    assert (latency["source"], latency["target"], latency["runtime"], latency["batch"]) == (
        "measured", "cpu", "onnxruntime", 2,
    )  # fmt: skip
    assert 0 < latency["interval"][0] <= latency["ms"] <= latency["interval"][1]
    layers = {layer["name"]: layer["ms"] for layer in found["layers"]}
    assert all(layers[name] > 0 for name in "acd"), "convolutions, whatever is fused into them"
    assert layers["b"] is None, "the activation runs inside a convolution: its own time is not known"


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        pytest.param(RESIDUAL, {"target": "titan-xp"}, "not this machine: measure on the device", id="another device"),
        pytest.param(
            RESIDUAL.replace("float[N,", "float[1,"), {"batch": 4}, "fixed at 1: one of 4 cannot be run", id="batch"
        ),
    ],
)
def test_what_cannot_be_measured_here_is_refused(text, options, reason):
    with pytest.raises(UsageError, match=reason):
        inspect(model(text), measure=True, **options)
