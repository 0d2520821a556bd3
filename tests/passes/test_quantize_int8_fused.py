"""That ONNX Runtime really runs in int8 what was written for it, read off its own optimized graph."""

from __future__ import annotations

import onnx
import pytest
from int8_nets import (
    U8,
    Ranges,
    feed_for,
    net,
    own_cache,
    quantized,
    runs_as,
    sqnr,
    unfused,
    units_of,
)

from graphopt.passes.quantize_int8.fused import MARK, left_in_float
from graphopt.passes.quantize_int8.placement import Placement, place
from graphopt.passes.quantize_int8.write import write

__all__ = ["own_cache"]

PADS = "<pads = [1,1,1,1]>"
POSITIVE = (0.0, 8.0)
IMAGE = "float[1,8,8,8]"


def conv_net(body: str, *, result: str = IMAGE, more: str = "") -> onnx.ModelProto:
    """A net on an image of 8 channels with 3x3 weights ``u``, ``v``, ``w``."""
    return net(f"g ({IMAGE} x) => ({result} y) <float[8,8,3,3] u, float[8,8,3,3] v{more}> {{ {body} }}")


@pytest.mark.parametrize(
    ("model", "ranges", "expected"),
    [
        pytest.param(
            conv_net(f"a = Conv{PADS}(x, u)  r = Relu(a)  b = Conv{PADS}(r, v)  y = Relu(b)"),
            {"r": POSITIVE, "y": POSITIVE},
            ["QLinearConv"] * 2,
            id="chain: the Relus are gone",
        ),
        pytest.param(
            conv_net(f"a = Conv{PADS}(x, u)  y = Clip(a, low, high)", more=", float low = {0}, float high = {6}"),
            {"y": (0.0, 6.0)},
            ["QLinearConv"],
            id="Relu6",
        ),
        pytest.param(
            conv_net(f"a = Conv{PADS}(x, u)  r = Relu(a)  b = Conv{PADS}(r, v)  s = Add(b, r)  y = Relu(s)"),
            {"r": POSITIVE, "y": POSITIVE},
            ["QLinearConv", "QLinearConv", "QLinearAdd"],
            id="residual",
        ),
        pytest.param(
            conv_net(f"a = Conv{PADS}(x, u)  s = Sigmoid(a)  y = Mul(a, s)"),
            {"s": (0.0, 1.0)},
            ["QLinearConv", "QLinearSigmoid", "QLinearMul"],
            id="SiLU",
        ),
        pytest.param(
            conv_net(f"a = Conv{PADS}(x, u)  y = LeakyRelu(a)"),
            {},
            ["QLinearConv", "QLinearLeakyRelu"],
            id="LeakyRelu behind its own quantizer",
        ),
        pytest.param(
            conv_net(
                f"a = Conv{PADS}(x, u)  m = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)  y = Conv{PADS}(m, v)",
                result="float[1,8,4,4]",
            ),
            {},
            ["QLinearConv", "NhwcMaxPool", "QLinearConv"],
            id="MaxPool",
        ),
        pytest.param(
            conv_net(
                f"a = Conv{PADS}(x, u)  m = AveragePool<kernel_shape = [2,2], strides = [2,2]>(a) y = Conv{PADS}(m, v)",
                result="float[1,8,4,4]",
            ),
            {},
            ["QLinearConv", "QLinearAveragePool", "QLinearConv"],
            id="AveragePool",
        ),
        pytest.param(
            conv_net(
                f"a = Conv{PADS}(x, u)  b = Conv{PADS}(x, v)  c = Concat<axis = 1>(a, b)  y = Conv(c, k)",
                more=", float[8,16,1,1] k",
            ),
            {},
            ["QLinearConv", "QLinearConv", "QLinearConcat", "QLinearConv"],
            id="Concat",
        ),
        pytest.param(
            conv_net(
                f"a = Conv{PADS}(x, u)  p = GlobalAveragePool(a)  f = Flatten(p)  y = Gemm(f, k, b)",
                result="float[1,5]",
                more=", float[8,5] k, float[5] b",
            ),
            {"p": (-1.0, 1.0), "f": (-1.0, 1.0)},
            ["QLinearConv", "QLinearGlobalAveragePool", "Flatten", "QGemm"],
            id="classifier's head",
        ),
        pytest.param(
            conv_net(
                f"a = Conv{PADS}(x, u)  r = Reshape(a, s)  t = Transpose<perm = [0,2,1,3,4]>(r)  b = Reshape(t, z) "
                f"y = Conv{PADS}(b, v)",
                more=", int64[5] s = {1, 2, 4, 8, 8}, int64[4] z = {1, 8, 8, 8}",
            ),
            {},
            ["QLinearConv", "Reshape", "Reshape", "QLinearConv"],
            id="channel shuffle",
        ),
        pytest.param(
            net(
                f"""g ({IMAGE} x) => ({IMAGE} y) <float[8,1,3,3] u, float[8,8,1,1] v> {{
                a = Conv<pads = [1,1,1,1], group = 8>(x, u)  r = Relu(a)  y = Conv(r, v) }}"""
            ),
            {"r": POSITIVE},
            ["QLinearConv"] * 2,
            id="depthwise separable",
        ),
        pytest.param(
            net(f"g ({IMAGE} x) => ({IMAGE} y) <float[8,4,3,3] u> {{ y = Conv<pads = [1,1,1,1], group = 2>(x, u) }}"),
            {},
            ["QLinearConv"],
            id="grouped",
        ),
        pytest.param(
            conv_net(f"a = Conv{PADS}(x, u)  b = Conv{PADS}(a, v)  c = Conv{PADS}(a, u)  y = Add(b, c)"),
            {},
            ["QLinearConv"] * 3 + ["QLinearAdd"],
            id="two readers of one tensor",
        ),
        pytest.param(
            net("g (float[2,16] x) => (float[2,8] y) <float[16,8] u> { y = MatMul(x, u) }"),
            {},
            ["MatMulIntegerToFloat"],
            id="matrix product that answers in float",
        ),
        pytest.param(
            net(
                "g (float[2,9] x) => (float[2,8] y) <float[9,8] u, float[8,8] v> { a = MatMul(x, u) y = MatMul(a, v) }"
            ),
            {},
            ["QLinearMatMul", "MatMulIntegerToFloat"],
            id="matrix products in a row",
        ),
    ],
)
def test_runs_in_int8(model: onnx.ModelProto, ranges: dict[str, tuple[float, float]], expected: list[str]) -> None:
    given = Ranges(**ranges)
    result = quantized(model, given)
    assert sorted(runs_as(result)) == sorted(expected)
    assert unfused(model, given) == {}
    assert sqnr(model, result, feed_for(model)) > 20


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_form_of_the_weights_runs_in_int8(bits: int, per_channel: bool) -> None:
    from graphopt.targets.schema import Int8Rules

    model = conv_net(f"a = Conv{PADS}(x, u)  y = Relu(a)")
    rules = Int8Rules(weight_bits=bits, per_channel=per_channel)
    assert runs_as(quantized(model, Ranges(y=POSITIVE), rules=rules)) == ["QLinearConv"]


def test_a_range_below_zero_keeps_the_relu_and_the_convolution_in_float() -> None:
    """The Relu is not implied by the range, so that it stands between the Conv and its quantizer."""
    model = conv_net(f"a = Conv{PADS}(x, u)  y = Relu(a)")
    found = unfused(model, Ranges(y=(-1.0, 8.0)))
    assert list(found) == ["Conv(a)"]
    assert "Conv" in found["Conv(a)"]


def test_a_range_beyond_the_clip_is_cut_to_it_so_that_the_convolution_runs_in_int8() -> None:
    model = conv_net(f"a = Conv{PADS}(x, u)  y = Clip(a, low, high)", more=", float low = {0}, float high = {6}")
    assert list(unfused(model, Ranges(y=(0.0, 9.0)))) == []


def without(placement: Placement, tensor: str) -> Placement:
    parameters = {name: found for name, found in placement.parameters.items() if name != tensor}
    return Placement(placement.int8, parameters, placement.weights, placement.bias)


def test_a_convolution_that_is_not_followed_by_a_quantizer_is_named() -> None:
    """LeakyRelu straight after Conv: ONNX Runtime merges them, in float."""
    model = conv_net(f"a = Conv{PADS}(x, u)  l = LeakyRelu(a)  y = Conv{PADS}(l, v)")
    units = units_of(model)
    chosen = [unit.index for unit in units.all]
    placement = without(place(units, chosen, Ranges(), U8), "a")
    marked = write(model, units, placement, U8, mark=MARK)
    assert list(left_in_float(marked, units, chosen)) == [0]


def test_only_units_meant_for_int8_are_named() -> None:
    model = conv_net(f"a = Conv{PADS}(x, u)  y = Conv{PADS}(a, v)")
    units = units_of(model)
    marked = write(model, units, place(units, [1], Ranges(), U8), U8, mark=MARK)
    assert left_in_float(marked, units, [1]) == {}
    assert list(left_in_float(marked, units, [0, 1])) == [0]


def test_a_convolution_left_in_float_between_two_in_int8_runs_in_float() -> None:
    model = conv_net(f"a = Conv{PADS}(x, u)  b = Conv{PADS}(a, v)  y = Conv{PADS}(b, u)")
    assert runs_as(quantized(model, wanted=lambda name: name != "Conv(b)")) == ["QLinearConv", "Conv", "QLinearConv"]


def test_marks_change_nothing_but_names() -> None:
    model = conv_net(f"a = Conv{PADS}(x, u)  y = Conv{PADS}(a, v)")
    plain, marked = quantized(model), quantized(model, mark=MARK)
    assert [node.name for node in marked.graph.node if node.op_type == "Conv"] == [f"{MARK}0", f"{MARK}1"]
    for one, other in zip(plain.graph.node, marked.graph.node, strict=True):
        assert (one.op_type, list(one.input), list(one.output)) == (
            other.op_type,
            list(other.input),
            list(other.output),
        )


def test_tensors_named_like_those_that_are_written_do_not_hide_a_unit() -> None:
    """``a_float`` is what the writer would call the float form of ``a``."""
    model = conv_net(f"a_float = Conv{PADS}(x, u)  r = Relu(a_float)  a = Conv{PADS}(r, v)  y = Relu(a)")
    assert sorted(unfused(model, Ranges(r=(-1.0, 8.0), y=(-1.0, 8.0)))) == ["Conv(a)", "Conv(a_float)"]
