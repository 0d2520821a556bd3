"""For each rule a model that breaks it and one that keeps it, the smaller the better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from graphopt.targets.schema import Device, Hardware, Int8Rules, RuntimeModel
from tests.support import model

TENSORRT = Hardware(
    name="tensorrt-here",
    runtime="tensorrt",
    providers=("CPUExecutionProvider",),
    opset=(9, 20),
    precisions=("float32", "float16", "int8"),
    channel_multiple={"float16": 8, "int8": 16},
    int8=Int8Rules(
        activation_dtype="int8",
        quantize_bias=False,
        symmetric=True,
        quantized_operators=("Conv", "ConvTranspose", "Gemm", "MatMul"),
        quantize_outputs=False,
        residual_inputs="skip",
        shared_concat_scale=True,
        weight_nodes=True,
        minimum_channels=16,
        group_multiple=4,
    ),
    runtime_version="10.3",
    refused_operators=("NonZero", "QLinearConv"),
    written_out=("HardSwish",),
    dynamic_shapes="profiles",
    device=Device("8.7", 8, {"float16": 10.0}, 68.0, 8.0, 5.0),
    runtimes=(RuntimeModel("tensorrt", True, "float16", "any"),),
)
ACCELERATOR = replace(
    TENSORRT,
    accelerator="dla",
    dynamic_shapes="fixed",
    channel_multiple={"float16": 16, "int8": 32},
    int8=replace(TENSORRT.int8 or Int8Rules(), implicit=True),
)
CPU = Hardware(
    name="cpu-here",
    runtime="onnxruntime",
    providers=("CPUExecutionProvider",),
    opset=(7, 26),
    precisions=("float32", "int8"),
    channel_multiple={"float32": 16},
    int8=Int8Rules(),
)
STRONG = replace(TENSORRT, strongly_typed=True)


@dataclass(frozen=True)
class Example:
    """A model that breaks a rule and one that keeps it.

    Attributes:
        bad: text of the model that breaks it.
        good: text of the model that keeps it.
        where: the places that break it; a text for one.
        hardware: facts about the target.
        opset: of both models, unless the text begins with its own.
        weights: values of weights by name.
        good_hardware: facts about the target that the good model is for, where they differ.
    """

    bad: str
    good: str
    where: str | tuple[str, ...]
    hardware: Hardware = TENSORRT
    opset: int = 17
    weights: Mapping[str, Any] = field(default_factory=dict)
    good_hardware: Hardware | None = None

    def models(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """Both models."""
        return model(self.bad, opset=self.opset, **self.weights), model(self.good, opset=self.opset, **self.weights)


def instead(text: str, *changes: tuple[str, str]) -> str:
    """``text`` with parts replaced, each of which must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


# What graphopt writes for TensorRT: Q/DQ on the input and on float weights, all symmetric int8, bias in float.
QUANTIZED = """agraph (float[1,16,8,8] x) => (float[1,16,8,8] y)
    <float s = {0.02}, int8 z = {0}, float[16] var_w, int8[16] zeros, float[16,16,3,3] w, float[16] b>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    wq = QuantizeLinear<axis = 0>(w, var_w, zeros)
    wd = DequantizeLinear<axis = 0>(wq, var_w, zeros)
    [c] y = Conv<pads = [1,1,1,1]>(d, wd, b)
}"""
ZEROS: Mapping[str, Any] = {"zeros": [0] * 16}
BEHIND_CONV = "[c] v = Conv<pads = [1,1,1,1]>(d, wd, b)"
PAIR = "vq = QuantizeLinear(v, s, z) [pair] u = DequantizeLinear(vq, s, z) "  # behind the convolution
CONV_IS_LAST = "[c] y = Conv<pads = [1,1,1,1]>(d, wd, b)"

OPERATORS = {
    "opset": Example(
        bad='<ir_version: 8, opset_import: ["" : 21]> agraph (float[2] x) => (float[2] y) { [r] y = Relu(x) }',
        good="agraph (float[2] x) => (float[2] y) { [r] y = Relu(x) }",
        where="",
    ),
    "refused_operator": Example(
        bad="agraph (float[2] x) => (int64[a,b] y) { [n] y = NonZero(x) }",
        good="agraph (float[2] x) => (float[2] y) { [n] y = Relu(x) }",
        where="n",
    ),
    "written_out_operator": Example(
        bad="agraph (float[2] x) => (float[2] y) { [h] y = HardSwish(x) }",
        good="agraph (float[2] x) => (float[2] y) { h = HardSigmoid<alpha = 0.1666667>(x) y = Mul(x, h) }",
        where="h",
    ),
    "foreign_operator": Example(
        bad='<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
        "agraph (float[2,3] x) => (float[2,3] y) { [f] y = com.microsoft.FastGelu(x) }",
        good="agraph (float[2,3] x) => (float[2,3] y) { [f] y = Sigmoid(x) }",
        where="f",
    ),
    "integer_operator": Example(
        bad="agraph (float[2,3] x) => (uint8[2,3] y, float s, uint8 z) { [d] y, s, z = DynamicQuantizeLinear(x) }",
        good="agraph (float[2,3] x) => (float[2,3] y) <float s = {0.1}, int8 z = {0}> "
        "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        where="d",
    ),
    "foreign_type": Example(
        bad="agraph (float[2] x) => (uint32[2] y) { [u] y = Cast<to = 12>(x) }",
        good="agraph (float[2] x) => (int64[2] y) { [u] y = Cast<to = 7>(x) }",
        where="y",
    ),
    "double_precision": Example(
        bad="agraph (float[2] x) => (float[2] y) { [up] t = Cast<to = 11>(x) r = Sqrt(t) y = Cast<to = 1>(r) }",
        good="agraph (float[2] x) => (float[2] y) { [up] y = Sqrt(x) }",
        where=("t", "r"),
    ),
    "restricted_operator": Example(
        bad="agraph (float[1,4,8,8] x) => (float[1,4,16,16] y) <float[4] scales = {1, 1, 2, 2}> "
        '{ [r] y = Resize<mode = "cubic">(x, , scales) }',
        good="agraph (float[1,4,8,8] x) => (float[1,4,16,16] y) <float[4] scales = {1, 1, 2, 2}> "
        '{ [r] y = Resize<mode = "linear">(x, , scales) }',
        where="r",
    ),
    "padded_output": Example(
        bad="agraph (float[1,9,4] boxes, float[1,1,9] scores) => (int64[n,3] y) "
        "{ [n] y = NonMaxSuppression(boxes, scores) }",
        good="agraph (float[1,9,4] boxes, float[1,1,9] scores) => (float[1,9,4] y) { [n] y = Relu(boxes) }",
        where="n",
    ),
}

SHAPES = {
    "unknown_rank": Example(
        bad="agraph (float x) => (float[2] y) { y = Relu(x) }",  # its shape is taken away by the test
        good="agraph (float[2] x) => (float[2] y) { y = Relu(x) }",
        where="x",
    ),
    "fixed_shapes": Example(
        bad="agraph (float[N,2] x) => (float[N,2] y) { y = Relu(x) }",
        good="agraph (float[1,2] x) => (float[1,2] y) { y = Relu(x) }",
        where="x",
        hardware=ACCELERATOR,
    ),
    "optimization_profile": Example(
        bad="agraph (float[N,2] x) => (float[N,2] y) { y = Relu(x) }",
        good="agraph (float[1,2] x) => (float[1,2] y) { y = Relu(x) }",
        where="x",
    ),
    "tensor_volume": Example(
        bad="agraph (float[65536,32768] x) => (float[65536,32768] y) { y = Relu(x) }",
        good="agraph (float[65536,32767] x) => (float[65536,32767] y) { y = Relu(x) }",
        where=("x", "y"),
    ),
}

EXPLICIT = {
    "zero_point_not_zero": Example(
        bad=instead(QUANTIZED, ("int8 z = {0}", "int8 z = {3}")),
        good=QUANTIZED,
        where=("q", "d"),
        weights=ZEROS,
    ),
    "parameters_not_constant": Example(
        bad=instead(
            QUANTIZED, ("float[1,16,8,8] x", "float[1,16,8,8] x, float s"), ("float s = {0.02}, ", ""),
            ("d = DequantizeLinear(q, s, z)", "t = Identity(s) d = DequantizeLinear(q, t, z)"),
        ),
        good=instead(QUANTIZED, ("d = DequantizeLinear(q, s, z)", "t = Identity(s) d = DequantizeLinear(q, t, z)")),
        where=("q", "d"),
        weights=ZEROS,
    ),
    "scale_not_positive": Example(
        bad=instead(QUANTIZED, ("float s = {0.02}", "float s = {0}")),
        good=QUANTIZED,
        where=("q", "d"),
        weights=ZEROS,
    ),
    "quantized_type": Example(
        bad=instead(QUANTIZED, ("(x, s, z)", "(x, s)"), ("(q, s, z)", "(q, s)")),  # uint8, as ONNX has it
        good=QUANTIZED,
        where=("q", "d"),
        weights=ZEROS,
    ),
    "activation_per_channel": Example(
        bad=instead(QUANTIZED, ("(x, s, z)", "(x, var_w, zeros)"), ("(q, s, z)", "(q, var_w, zeros)")),
        good=QUANTIZED,
        where=("q", "d"),
        weights=ZEROS,
    ),
    "weight_axis": Example(
        bad=instead(QUANTIZED, ("axis = 0", "axis = 1")),
        good=QUANTIZED,
        where="c",
        weights=ZEROS,
    ),
    "quantized_bias": Example(
        bad=instead(
            QUANTIZED, ("float[16] b", "int32[16] b, float bs = {0.0002}"), ("(d, wd, b)", "(d, wd, bd)"),
            ("[c]", "bd = DequantizeLinear(b, bs) [c]"),
        ),
        good=QUANTIZED,
        where="c",
        weights=ZEROS | {"b": [1] * 16},
    ),
}  # fmt: skip

PLACEMENT = {
    "useless_quantizer": Example(
        # On the output of the model, as quantize_static has it.
        bad=instead(
            QUANTIZED, (CONV_IS_LAST, BEHIND_CONV + PAIR + "y = Identity(u)")
        ),
        good=QUANTIZED,
        where="pair",
        weights=ZEROS,
    ),
    "quantizer_in_fusion": Example(
        bad=instead(
            QUANTIZED,
            (CONV_IS_LAST, BEHIND_CONV + PAIR + "y = Relu(u)"),
        ),
        good=instead(QUANTIZED, (CONV_IS_LAST, BEHIND_CONV + "y = Relu(v)")),
        where="pair",
        weights=ZEROS,
    ),
    "residual_quantizer": Example(
        bad=instead(
            QUANTIZED,
            (CONV_IS_LAST, BEHIND_CONV + PAIR + "[add] y = Add(u, d)"),
        ),
        good=instead(QUANTIZED, (CONV_IS_LAST, BEHIND_CONV + "[add] y = Add(v, d)")),
        where="add",
        weights=ZEROS,
    ),
    "concat_scales": Example(
        bad=instead(
            QUANTIZED,
            ("float s = {0.02}", "float s = {0.02}, float other = {0.05}"),
            ("float[1,16,8,8] y)", "float[1,32,8,8] y)"),
            (CONV_IS_LAST, BEHIND_CONV + "r = Relu(v) rq = QuantizeLinear(r, other, z) "
                           "rd = DequantizeLinear(rq, other, z) [cat] y = Concat<axis = 1>(rd, d)"),
        ),
        good=instead(
            QUANTIZED,
            ("float[1,16,8,8] y)", "float[1,32,8,8] y)"),
            (CONV_IS_LAST, BEHIND_CONV + "r = Relu(v) rq = QuantizeLinear(r, s, z) "
                           "rd = DequantizeLinear(rq, s, z) [cat] y = Concat<axis = 1>(rd, d)"),
        ),
        where="cat",
        weights=ZEROS,
    ),
    "weight_form": Example(
        bad=instead(
            QUANTIZED, ("float[16,16,3,3] w", "int8[16,16,3,3] w"),
            ("wq = QuantizeLinear<axis = 0>(w, var_w, zeros)", ""), ("(wq, var_w", "(w, var_w"),
        ),
        good=QUANTIZED,
        where="c",
        weights=ZEROS,
    ),
    "half_quantized": Example(
        bad=instead(QUANTIZED, ("(d, wd, b)", "(d, w, b)")),
        good=QUANTIZED,
        where="c",
        weights=ZEROS,
    ),
    "few_channels": Example(
        bad=instead(
            QUANTIZED, ("float[1,16,8,8] x", "float[1,3,8,8] x"), ("float[16,16,3,3] w", "float[16,3,3,3] w")
        ),
        good=QUANTIZED,
        where="c",
        weights=ZEROS,
    ),
    "group_channels": Example(
        bad=instead(QUANTIZED, ("float[16,16,3,3] w", "float[16,2,3,3] w"), ("Conv<", "Conv<group = 8, ")),
        good=instead(QUANTIZED, ("float[16,16,3,3] w", "float[16,4,3,3] w"), ("Conv<", "Conv<group = 4, ")),
        where="c",
        weights=ZEROS,
    ),
    "unfolded_normalization": Example(
        bad=instead(
            QUANTIZED, ("float[16] b", "float[16] b, float[16] var_b"),
            (CONV_IS_LAST, "v = ConvTranspose<pads = [1,1,1,1]>(d, wd, b) "
                           "[bn] y = BatchNormalization(v, b, b, b, var_b)"),
        ),
        good=instead(
            QUANTIZED, ("float[16] b", "float[16] b, float[16] var_b"),
            (CONV_IS_LAST, BEHIND_CONV + "[bn] y = BatchNormalization(v, b, b, b, var_b)"),
        ),
        where="bn",
        weights=ZEROS,
    ),
}  # fmt: skip

FLOAT_CONV = "agraph (float[1,16,8,8] x) => (float[1,16,8,8] y) <float[16,16,1,1] w> { [c] y = Conv(x, w) }"
HALF_CONV = instead(FLOAT_CONV, ("float[", "float16["))

PRECISION = {
    "int8_refused": Example(
        bad=QUANTIZED,
        good=FLOAT_CONV,
        where="q",
        hardware=replace(TENSORRT, int8=None, int8_refusal="no integer products"),
        weights=ZEROS,
    ),
    "implicit_int8": Example(
        bad=QUANTIZED,
        good=FLOAT_CONV,
        where="q",
        hardware=ACCELERATOR,
        weights=ZEROS,
    ),
    "float32_only": Example(bad=FLOAT_CONV, good=HALF_CONV, where="c", hardware=STRONG),
    "foreign_precision": Example(bad=HALF_CONV, good=FLOAT_CONV, where="c", hardware=CPU),
}

# What graphopt writes for ONNX Runtime's CPU provider: uint8 activations with the least value at the zero point.
ON_CPU = """agraph (float[1,16,8,8] x) => (float[1,16,8,8] y)
    <float s = {0.02}, uint8 z = {0}, float ws = {0.01}, int8 wz = {0}, int8[16,16,3,3] w,
     int32[16] b, float bs = {0.0002}>
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    wd = DequantizeLinear(w, ws, wz)
    bd = DequantizeLinear(b, bs)
    [c] v = Conv<pads = [1,1,1,1]>(d, wd, bd)
    r = Relu(v)
    [rq] rq = QuantizeLinear(r, s, z)
    y = DequantizeLinear(rq, s, z)
}"""
WEIGHTS: Mapping[str, Any] = {"w": [[[[5, -3, 1]] * 3] * 16] * 16, "b": [1] * 16}
BACK_IN_FLOAT = ("[rq] rq = QuantizeLinear(r, s, z)\n    y = DequantizeLinear(rq, s, z)", "")

CPU_INT8 = {
    "cpu_result_not_quantized": Example(
        bad=instead(ON_CPU, BACK_IN_FLOAT, ("r = Relu", "y = Relu")),
        good=ON_CPU,
        where="c",
        hardware=CPU,
        weights=WEIGHTS,
    ),
    "cpu_activation_kept": Example(
        bad=instead(ON_CPU, ("uint8 z = {0}", "uint8 z = {128}")),
        good=ON_CPU,
        where="c",
        hardware=CPU,
        weights=WEIGHTS,
    ),
    "cpu_weights_only": Example(
        bad=instead(ON_CPU, ("Conv<pads = [1,1,1,1]>(d", "Conv<pads = [1,1,1,1]>(x")),
        good=ON_CPU,
        where="c",
        hardware=CPU,
        weights=WEIGHTS,
    ),
    "cpu_signed_activations": Example(
        bad=instead(
            ON_CPU, ("uint8 z = {0}", "int8 z = {-128}"), ("y = D", "y2 = Sigmoid(y) y = D"),
            ("float[1,16,8,8] y)", "float[1,16,8,8] y, float[1,16,8,8] y2)"),
        ),
        good=instead(ON_CPU, ("uint8 z = {0}", "int8 z = {-128}")),
        where="rq",
        hardware=CPU,
        weights=WEIGHTS,
    ),
    "cpu_signed_integers": Example(
        bad="agraph (int8[4,16] x) => (int32[4,2] y) <int8[16,2] w> { [m] y = MatMulInteger(x, w) }",
        good="agraph (uint8[4,16] x) => (int32[4,2] y) <int8[16,2] w> { [m] y = MatMulInteger(x, w) }",
        where="m",
        hardware=CPU,
    ),
    "cpu_unsigned_weights": Example(
        bad=instead(ON_CPU, ("int8 wz = {0}, int8[", "uint8 wz = {128}, uint8[")),
        good=ON_CPU,
        where="c",
        hardware=CPU,
        weights=WEIGHTS | {"w": [[[[5, 3, 1]] * 3] * 16] * 16},
    ),
    "cpu_saturating_weights": Example(
        bad=instead(ON_CPU, ("int8[16,16,3,3] w", "int8[16,16,3,3] full")).replace("(w, ws", "(full, ws"),
        good=ON_CPU,
        where="c",
        hardware=replace(CPU, int8=Int8Rules(weight_bits=7)),
        weights=WEIGHTS | {"full": [[[[127, -100, 1]] * 3] * 16] * 16},
    ),
    "cpu_computed_bias": Example(
        bad=instead(ON_CPU, ("float[1,16,8,8] x", "float[1,16,8,8] x, float[16] bias"), ("wd, bd)", "wd, bias)")),
        good=ON_CPU,
        where="c",
        hardware=CPU,
        weights=WEIGHTS,
    ),
    "cpu_no_integer_kernel": Example(
        bad=instead(ON_CPU, ("v = Conv", "v = ConvTranspose")),
        good=ON_CPU,
        where="c",
        hardware=CPU,
        weights=WEIGHTS,
    ),
}  # fmt: skip

CHANNELS = {
    "channels_off_step": Example(
        bad="agraph (float[1,3,8,8] x) => (float[1,5,8,8] y) <float[30,3,1,1] w, float[5,30,1,1] v> "
        "{ [first] t = Conv(x, w) [last] y = Conv(t, v) }",
        good="agraph (float[1,3,8,8] x) => (float[1,5,8,8] y) <float[32,3,1,1] w, float[5,32,1,1] v> "
        "{ [first] t = Conv(x, w) [last] y = Conv(t, v) }",
        where="first",
    ),
}


def alternating(times: int) -> str:
    """Layers of the accelerator with ``times`` layers between that it lacks."""
    between = "".join(f"e{i} = Erf(t{i}) t{i + 1} = Relu(e{i}) " for i in range(times))
    return f"{IMAGE} {{ t0 = Relu(x) {between} y = Relu(t{times}) }}"


IMAGE = "agraph (float[1,16,8,8] x) => (float[1,16,8,8] y) "
DLA = {
    "dla_operator": Example(
        bad=IMAGE + "{ [n] y = Erf(x) }",
        good=IMAGE + "{ [n] y = Sigmoid(x) }",
        where="n",
        hardware=ACCELERATOR,
    ),
    "dla_convolution": Example(
        bad="agraph (float[1,3,32,32] x) => (float[1,8,2,2] y) <float[8,3,16,16] w> "
        "{ [c] y = Conv<strides = [16,16]>(x, w) }",
        good="agraph (float[1,3,32,32] x) => (float[1,8,3,3] y) <float[8,3,16,16] w> "
        "{ [c] y = Conv<strides = [8,8]>(x, w) }",
        where="c",
        hardware=ACCELERATOR,
    ),
    "dla_pooling": Example(
        bad="agraph (float[1,3,16,16] x) => (float[1,3,8,8] y) { [p] y = MaxPool<kernel_shape = [9,9]>(x) }",
        good="agraph (float[1,3,16,16] x) => (float[1,3,9,9] y) { [p] y = MaxPool<kernel_shape = [8,8]>(x) }",
        where="p",
        hardware=ACCELERATOR,
    ),
    "dla_layer": Example(
        bad="agraph (float[1,16,8,8] x) => (float[1,16,16,8] y) { [cat] y = Concat<axis = 2>(x, x) }",
        good="agraph (float[1,16,8,8] x) => (float[1,32,8,8] y) { [cat] y = Concat<axis = 1>(x, x) }",
        where="cat",
        hardware=ACCELERATOR,
    ),
    "dla_sizes": Example(
        bad="agraph (float[1,1,1,8193] x) => (float[1,1,1,8193] y) { [r] y = Relu(x) }",
        good="agraph (float[4096,1,1,8192] x) => (float[4096,1,1,8192] y) { [r] y = Relu(x) }",
        where="r",
        hardware=ACCELERATOR,
    ),
    "dla_precision": Example(
        bad=FLOAT_CONV,
        good=HALF_CONV,
        where="c",
        hardware=replace(ACCELERATOR, strongly_typed=True),
    ),
    "dla_loadables": Example(
        bad=alternating(16),
        good=alternating(15),
        where="",
        hardware=ACCELERATOR,
    ),
}

EXAMPLES: Mapping[str, Example] = OPERATORS | SHAPES | EXPLICIT | PLACEMENT | PRECISION | CPU_INT8 | CHANNELS | DLA
