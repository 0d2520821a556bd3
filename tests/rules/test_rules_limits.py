"""Limits of operators: of the ONNX parser, and of the deep learning accelerator. Each case is one step too far."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphopt.rules import check_model
from graphopt.targets.schema import Device
from tests.rules.rule_examples import ACCELERATOR, TENSORRT
from tests.support import model

RESIZE = "agraph (float[1,4,8,8] x) => (float[1,4,16,16] y) <float[4] f = {{1, 1, 2, 2}}> {{ y = Resize<{0}>(x, , f) }}"
LSTM = (
    "agraph (float[3,2,4] x) => (float[a,b,c,d] y) <float[1,20,4] w, float[1,20,5] r> "
    "{{ y = LSTM<hidden_size = 5, {0}>(x, w, r) }}"
)

# What the parser leaves out -> a word of the complaint.
NOT_IMPORTED = {
    RESIZE.format('mode = "cubic"'): "mode 'cubic'",
    RESIZE.format('coordinate_transformation_mode = "tf_crop_and_resize"'): "coordinate_transformation_mode",
    RESIZE.format('nearest_mode = "up"'): "nearest_mode 'up'",
    RESIZE.format('keep_aspect_ratio_policy = "not_larger"'): "keep_aspect_ratio_policy",
    RESIZE.format("antialias = 1"): "antialias must be 0",
    LSTM.format("layout = 1"): "layout must be 0",
    LSTM.format("input_forget = 1"): "input_forget must be 0",
    "agraph (float[1,4,8,8] x) => (float[1,4,4,4] y, int64[1,4,4,4] i) "
    "{ y, i = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) }": "output 'Indices'",
    "agraph (float[1,4,8,8] x) => (float[1,4,6,6] y) "
    "{ y = MaxPool<kernel_shape = [2,2], dilations = [2,2]>(x) }": "dilations must all be 1",
    "agraph (float[1,4,8,8] x) => (float[1,4,6,6] y) "
    "{ y = AveragePool<kernel_shape = [2,2], dilations = [2,2]>(x) }": "dilations must all be 1",
    "agraph (float[4,8] x, int64 axis) => (float[4,8] y) { y = CumSum(x, axis) }": "'axis' must be a constant",
    "agraph (int64[4] x, int64 depth) => (float[4,n] y) <float[2] v = {0, 1}> "
    "{ y = OneHot(x, depth, v) }": "'depth' must be a constant",
    "agraph (float[4,8] x) => (float[4,8] y, float[4,1] mean) <float[8] s> "
    "{ y, mean = LayerNormalization(x, s) }": "output 'Mean'",
    "agraph (float[1,2,3,3,3] x, float[1,2,2,2,3] g) => (float[1,2,2,2,2] y) "
    "{ y = GridSample(x, g) }": "4 axes, not 5",
    "agraph (float[4] x, float[1] u) => (float[4] y) <int64[1,1] i> "
    '{ y = ScatterND<reduction = "add">(x, i, u) }': "reduction 'add'",
    "agraph (float[4] x) => (float[4] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }": "training_mode",
}  # fmt: skip

IMPORTED = (
    RESIZE.format('mode = "linear", coordinate_transformation_mode = "align_corners"'),
    RESIZE.format('mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"'),
    LSTM.format("layout = 0"),
    "agraph (float[1,4,8,8] x) => (float[1,4,4,4] y) { y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) }",
    "agraph (float[4,8] x) => (float[4,8] y) <int64 axis = {1}> { y = CumSum(x, axis) }",
    "agraph (float[4,8] x) => (float[4,8] y) <float[8] s> { y = LayerNormalization(x, s) }",
    "agraph (float[4] x) => (float[4] y) { y = Dropout(x) }",
)


def image_to_image(node: str, *, inside: str = "1,4,8,8", outside: str = "n,c,h,w", weights: str = "") -> str:
    declared = f" <{weights}>" if weights else ""
    return f"agraph (float[{inside}] x) => (float[{outside}] y){declared} {{ {node} }}"


def conv(attributes: str, kernel: str = "3,3", out: int = 4) -> str:
    return image_to_image(f"y = Conv<{attributes}>(x, w)", inside="1,4,64,64", weights=f"float[{out},4,{kernel}] w")


def transposed(attributes: str, weights: str = "float[4,4,2,2] w") -> str:
    return image_to_image(f"y = ConvTranspose<{attributes}>(x, w)", weights=weights)


# What the accelerator does not run -> the rule that says so and a word of it.
NOT_ON_DLA = {
    conv("strides = [9,9]"): ("dla_convolution", "stride 9"),
    conv("strides = [1,1]", kernel="1,33"): ("dla_convolution", "kernel size 33"),
    conv("dilations = [33,1]"): ("dla_convolution", "dilation 33"),
    conv("pads = [3,3,3,3]"): ("dla_convolution", "padding 3, which must be less than the kernel"),
    conv("strides = [1,1]", kernel="1,1", out=8193): ("dla_convolution", "output channels 8193"),
    image_to_image("y = Conv(x, w)", inside="1,4,9", outside="n,c,l", weights="float[4,4,3] w"): (
        "dla_convolution", "3 axes"),
    transposed("group = 2", "float[4,2,2,2] w"): ("dla_convolution", "groups"),
    transposed("pads = [1,1,1,1]"): ("dla_convolution", "padding"),
    transposed("output_padding = [1,1], strides = [2,2]"): ("dla_convolution", "padding"),
    transposed("dilations = [2,2]"): ("dla_convolution", "dilation"),
    transposed("strides = [33,1]"): ("dla_convolution", "stride 33"),
    image_to_image("y = AveragePool<kernel_shape = [9,1]>(x)", inside="1,4,16,16"): ("dla_pooling", "window 9"),
    image_to_image("y = MaxPool<kernel_shape = [2,2], strides = [17,1]>(x)"): ("dla_pooling", "stride 17"),
    image_to_image("y = MaxPool<kernel_shape = [2,2], dilations = [2,2]>(x)"): ("dla_pooling", "dilation"),
    "agraph (float[1,4,8,8] x, float[4,1,1] s) => (float[1,4,8,8] y) { y = PRelu(x, s) }": ("dla_layer", "slope"),
    image_to_image("y = LRN<size = 4>(x)"): ("dla_layer", "window of 4"),
    image_to_image("y = Softmax<axis = 3>(x)", inside="1,1,2,1025"): ("dla_layer", "1025 values"),
    image_to_image("y = Softmax<axis = 1>(x)", inside="1,8193", outside="n,c"): ("dla_layer", "8193 values"),
    image_to_image("y = Slice(x, a, b, ax, st)", weights="int64[1] a = {0}, int64[1] b = {4}, "
                   "int64[1] ax = {2}, int64[1] st = {2}"): ("dla_layer", "steps"),
    image_to_image("y = Slice(x, a, b, ax)", inside="4,4,8,8",
                   weights="int64[1] a = {0}, int64[1] b = {2}, int64[1] ax = {0}"): ("dla_layer", "batch"),
    "agraph (float[1,4,8,8] x, int64[1] a) => (float[n,c,h,w] y) <int64[1] b = {2}, int64[1] ax = {2}> "
    "{ y = Slice(x, a, b, ax) }": ("dla_layer", "computed bounds"),
    image_to_image("y, z = Split<axis = 0, num_outputs = 2>(x)", inside="2,4,8,8"): ("dla_layer", "split of the batch"),
    image_to_image("y = Resize<mode = \"linear\">(x, , f)", weights="float[4] f = {1, 1, 5, 5}"): (
        "dla_layer", "factor 5"),
    image_to_image("y = Resize<mode = \"nearest\">(x, , f)", weights="float[4] f = {1, 1, 1.5, 1.5}"): (
        "dla_layer", "factor 1.5"),
    image_to_image("y = Resize(x, , f)", weights="float[4] f = {1, 2, 2, 2}"): ("dla_layer", "channels"),
    image_to_image("y = Resize<mode = \"cubic\">(x, , f)", weights="float[4] f = {1, 1, 2, 2}"): (
        "dla_layer", "mode 'cubic'"),
    image_to_image("y = Transpose<perm = [1,0,2,3]>(x)"): ("dla_layer", "batch"),
    image_to_image("y = Concat<axis = 2>(x, x)"): ("dla_layer", "axis 2"),
    image_to_image("y = Concat<axis = 1>(x)"): ("dla_layer", "single input"),
    image_to_image("y = Relu(x)", inside="4097,1,1,1"): ("dla_sizes", "batch of 4097"),
    image_to_image("y = GlobalAveragePool(x)"): ("dla_operator", "AveragePool or MaxPool"),
}  # fmt: skip

ON_DLA = (
    conv("strides = [8,8], pads = [2,2,2,2], dilations = [1,1]"),
    conv("strides = [1,1]", kernel="32,1"),
    transposed("strides = [2,2]"),
    transposed("strides = [64,1]", "float[4,4,64,1] w"),
    image_to_image("y = MaxPool<kernel_shape = [8,8], pads = [7,7,7,7]>(x)"),
    image_to_image("y = LRN<size = 5>(x)"),
    image_to_image("y = Softmax<axis = 1>(x)", inside="1,8192", outside="n,c"),
    image_to_image("y = Softmax<axis = 3>(x)", inside="1,1,2,1024"),
    image_to_image("y = PRelu(x, s)", weights="float[4,1,1] s"),
    image_to_image('y = Resize<mode = "nearest">(x, , f)', weights="float[4] f = {1, 1, 32, 32}"),
    image_to_image('y = Resize<mode = "linear">(x, , f)', weights="float[4] f = {1, 1, 4, 4}"),
    image_to_image("y = Transpose<perm = [0,2,3,1]>(x)"),
    image_to_image("t = Concat<axis = -3>(x, x) y = Relu(t)"),
)


@pytest.mark.parametrize("text", NOT_IMPORTED, ids=list(NOT_IMPORTED.values()))
def test_the_parser_leaves_it_out(text: str) -> None:
    (finding,) = check_model(model(text, opset=18, i=[[1]]), TENSORRT, ["restricted_operator"])
    assert NOT_IMPORTED[text] in finding.message


@pytest.mark.parametrize("text", IMPORTED)
def test_the_parser_takes_it(text: str) -> None:
    assert check_model(model(text), TENSORRT, ["restricted_operator"]) == []


@pytest.mark.parametrize("text", NOT_ON_DLA, ids=[f"{rule}: {word}" for rule, word in NOT_ON_DLA.values()])
def test_the_accelerator_leaves_it_to_the_gpu(text: str) -> None:
    finding, *_ = check_model(model(text, opset=18), ACCELERATOR, ["dla"])
    rule, word = NOT_ON_DLA[text]
    assert finding.rule == rule
    assert word in finding.message


@pytest.mark.parametrize("text", ON_DLA)
def test_the_accelerator_runs_it(text: str) -> None:
    assert check_model(model(text), ACCELERATOR, ["dla"]) == []


def test_a_gpu_has_no_such_limits() -> None:
    for text in NOT_ON_DLA:
        assert check_model(model(text, opset=18), TENSORRT, ["dla"]) == []


def test_softmax_is_none_of_xavier_s_accelerator() -> None:
    softmax = model(image_to_image("y = Softmax<axis = 1>(x)"))
    xavier = replace(ACCELERATOR, device=Device("7.2", 6, {"int8": 5.0}, 137.0, 32.0, 5.0))
    assert check_model(softmax, ACCELERATOR, ["dla"]) == []
    assert [finding.rule for finding in check_model(softmax, xavier, ["dla"])] == ["dla_layer"]


def test_int8_sums_want_one_range_on_the_accelerator() -> None:
    text = """agraph (float[1,4,8,8] x) => (float[1,4,8,8] y) <float s = {{0.1}}, float t = {{{0}}}, int8 z = {{0}}>
    {{ q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
       r = QuantizeLinear(x, t, z) b = DequantizeLinear(r, t, z) [sum] y = Add(a, b) }}"""
    assert check_model(model(text.format(0.1)), ACCELERATOR, ["dla_layer"]) == []
    (finding,) = check_model(model(text.format(0.2)), ACCELERATOR, ["dla_layer"])
    assert finding.where == "sum"


def test_what_the_profile_wants_written_out_is_told_once() -> None:
    wanted = replace(ACCELERATOR, written_out=("HardSwish",))
    findings = check_model(model(image_to_image("y = HardSwish(x)")), wanted, ["operators", "dla"])
    assert [finding.rule for finding in findings] == ["written_out_operator"]


@pytest.mark.parametrize(
    ("mean", "rule"),
    [
        ("<axes = [2,3], keepdims = 0>(x)", "written_out_operator"),
        ("<axes = [-1,-2], keepdims = 0>(x)", "written_out_operator"),
        ("<axes = [1]>(x)", "dla_operator"),
        ("<keepdims = 0>(x)", "dla_operator"),
    ],
)
def test_a_mean_without_a_simpler_form_is_left_to_the_gpu(mean: str, rule: str) -> None:
    """Over an image it is a pool; over channels, as in attention and normalization, nothing native stands for it."""
    wanted = replace(ACCELERATOR, written_out=("ReduceMean",))
    proto = model(f"agraph (float[1,4,8,8] x) => (float y) {{ y = ReduceMean{mean} }}", opset=13)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert [finding.rule for finding in check_model(proto, wanted, ["operators", "dla"])] == [rule]


def test_sizes_that_are_computed_do_not_run_on_the_accelerator_anyway() -> None:
    text = """agraph (float[1,4,8,8] x) => (float[n,c] y) <int64 zero = {0}, int64[1] rest = {-1}, int64[1] ax = {0}>
    { s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, ax) t = Concat<axis = 0>(u, rest) y = Reshape(x, t) }"""
    assert check_model(model(text), ACCELERATOR, ["dla"]) == []
