"""float16 where values allow it: what stays float32, where Casts stand, and what simulates a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import context, feeds, initializer, model, ops, outputs

from graphopt import runtime
from graphopt.errors import UsageError
from graphopt.graph import verify
from graphopt.passes.base import Candidate, Context, Declined
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.targets import load_target
from graphopt.targets.schema import Device

HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
# Products are dear in float32, launches free: whatever may run in float16 does, however small it is here.
DEVICE = Device("8.7", 8, {"float32": 1e-5, "float16": 16.0, "int8": 33.0}, 100.0, 8.0, 0.0)
Feed = dict[str, np.ndarray[Any, Any]]


def taking_half(samples: Sequence[Feed] | None = None, *, device: Device | None = DEVICE, **facts: Any) -> Context:
    """A context of a device with float16 whose runtime computes in the types of the graph."""
    hardware = replace(
        context().hardware, precisions=("float32", "float16"), strongly_typed=True, device=device, **facts
    )
    return replace(context(), hardware=hardware, calibration=samples, selection=samples)


def converted(
    proto: onnx.ModelProto, samples: Sequence[Feed] | None = None, one: ConvertFloat16 | None = None, **facts: Any
) -> Candidate:
    """The first candidate: valid, loadable, and with the interface it had."""
    given = taking_half(samples if samples is not None else [feeds(proto, seed=seed) for seed in range(2)], **facts)
    candidate = next((one or ConvertFloat16()).candidates(proto, given))
    verify(candidate.model)
    outputs(candidate.model, feeds(candidate.model))
    assert candidate.simulation is not None
    verify(candidate.simulation)
    return candidate


def reasons(candidate: Candidate) -> dict[str, str]:
    return {skip.where: skip.reason for skip in candidate.report.skipped}


def input_types(proto: onnx.ModelProto) -> dict[str, set[int]]:
    """Types of the float tensors that each node reads, by the node's name."""
    types = {info.name: info.type.tensor_type.elem_type for info in (*proto.graph.input, *proto.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare)
    types |= {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    return {
        node.name: {types[name] for name in node.input if types.get(name) in (HALF, SINGLE)}
        for node in proto.graph.node
    }


PLAIN = """g (float[N,4,8,8] x) => (float[N,3] y) <float[8,4,3,3] w, float[8] b, float[8,3] v, float[3] c> {
  [conv] a = Conv<pads = [1, 1, 1, 1]>(x, w, b)  [relu] r = Relu(a)  [pool] p = GlobalAveragePool(r)
  [flat] f = Flatten(p)  [gemm] y = Gemm(f, v, c) }"""


def test_one_cast_in_and_one_out() -> None:
    candidate = converted(model(PLAIN))
    assert ops(candidate.model) == ["Cast", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm", "Cast"]
    assert all(tensor.data_type == HALF for tensor in candidate.model.graph.initializer)
    interface = (*candidate.model.graph.input, *candidate.model.graph.output)
    assert [info.type.tensor_type.elem_type for info in interface] == [SINGLE, SINGLE]
    assert candidate.report.changes == 5
    assert candidate.report.details["casts"] == 2
    assert candidate.report.details["sqnr_db"] > 50


def test_the_file_is_half_as_large() -> None:
    proto = model("g (float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }")
    assert converted(proto).model.ByteSize() < 0.6 * proto.ByteSize()


def test_inputs_and_outputs_in_float16_where_asked_to() -> None:
    candidate = converted(model(PLAIN), one=ConvertFloat16(keep_io=False))
    assert "Cast" not in ops(candidate.model)
    interface = (*candidate.model.graph.input, *candidate.model.graph.output)
    assert [info.type.tensor_type.elem_type for info in interface] == [HALF, HALF]


def test_without_samples_what_can_be_told_from_the_graph() -> None:
    candidate = next(ConvertFloat16().candidates(model(PLAIN), taking_half(None)))
    assert ops(candidate.model)[0] == "Cast"
    assert "sqnr_db" not in candidate.report.details


def as_computed_in_float16(proto: onnx.ModelProto, fed: Feed) -> list[Any]:
    """onnx's own evaluator computes every node in the type that the graph says."""
    with np.errstate(all="ignore"):
        return list(onnx.reference.ReferenceEvaluator(proto).run(None, fed))


SIMULATED = {
    "plain": PLAIN,
    "overflow in between": """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v, float big = {3000}> {
      a = MatMul(x, w)  b = Mul(a, big)  y = MatMul(b, v) }""",
    "shared by both precisions": """g (float[2,4] x) => (float[2,4] y, float[2,4] z) <float[4,4] w> {
      a = MatMul(x, w)  i = CumSum(a, one)  b = Relu(a)  y = Add(b, i)  z = MatMul(a, w) }""",
    "branches": """g (float[N,4,6,6] x) => (float[N,8,3,3] y) <float[4,4,1,1] w, float[4,4,1,1] v> {
      a = Conv(x, w)  b = Conv(x, v)  s = Sigmoid(b)  m = Mul(a, s)  c = Concat<axis = 1>(m, b)
      y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c) }""",
}


@pytest.mark.parametrize("name", SIMULATED)
def test_the_simulation_answers_as_float16_arithmetic_does(name: str) -> None:
    """ONNX Runtime's CPU provider would not: it leaves out the rounding between two nodes."""
    text = SIMULATED[name].replace("<float[4,4] w>", "<float[4,4] w, int64 one = {1}>")
    proto = model(text)
    candidate = next(ConvertFloat16().candidates(proto, taking_half(None)))
    assert candidate.simulation is not None
    fed = feeds(proto, batch=2)
    if name == "overflow in between":
        fed["x"] *= 30
    found = outputs(candidate.simulation, fed)
    wanted = as_computed_in_float16(candidate.model, fed)
    for reference, (key, values) in zip(wanted, found.items(), strict=True):
        finite = np.isfinite(reference)
        assert np.array_equal(finite, np.isfinite(values)), key
        scale = np.abs(reference[finite]).max(initial=1e-3)
        np.testing.assert_allclose(values[finite], reference[finite], atol=4e-3 * scale)
    if name == "overflow in between":
        assert not np.isfinite(found["y"]).all()


def test_what_onnx_runtime_makes_of_float16_is_no_judge() -> None:
    """The reason for the simulation; should this fail one day, it is needed no more."""
    text = """g (float[4] x) => (float[4] y) <float16 big, float16 small> {
      h = Cast<to = 10>(x)  a = Mul(h, big)  b = Mul(a, small)  y = Cast<to = 1>(b) }"""
    proto = model(text, big=1000.0, small=0.001)
    fed = {"x": np.array([1, 50, 100, 1000], np.float32)}
    assert np.isfinite(outputs(proto, fed)["y"]).all()
    assert not np.isfinite(as_computed_in_float16(proto, fed)[0]).all()


TWO = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v, float factor = {%s}> {
  [first] a = MatMul(x, w)  [scale] b = %s(a, factor)  [second] c = MatMul(b, v)  [back] y = Div(c, factor) }"""


def test_values_that_float16_does_not_hold_stay_float32() -> None:
    candidate = converted(model(TWO % ("20000", "Mul")))
    why = reasons(candidate)
    assert {"scale", "second", "back"} == why.keys()
    assert "reaches" in why["scale"]
    assert input_types(candidate.model)["first"] == {HALF}
    assert input_types(candidate.model)["second"] == {SINGLE}


def test_headroom_is_left_for_values_that_calibration_did_not_show() -> None:
    proto = model(TWO % ("5000", "Mul"))
    assert "second" in reasons(converted(proto))
    assert not reasons(converted(proto, one=ConvertFloat16(headroom=1)))


def test_values_too_small_for_float16_stay_float32() -> None:
    candidate = converted(model(TWO % ("0.000001", "Mul")))
    assert "becomes" in reasons(candidate)["scale"]
    assert "too small" in reasons(candidate)["second"]


def test_small_values_among_larger_ones_do_no_harm() -> None:
    proto = model("g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { [first] y = MatMul(x, w) }")
    fed = {"x": np.array([[1, 1e-6, -1e-7, 2], [0, 1e-8, 1, 1]], np.float32)}
    assert not reasons(converted(proto, [fed]))


def test_weights_that_float16_does_not_hold() -> None:
    for value, reason in ((1e5, "reaches 1e+05"), (1e-7, "too small")):
        proto = model("g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v> { [first] a = MatMul(x, w)"
                      "  [second] y = MatMul(a, v) }", w=np.full((4, 4), value))  # fmt: skip
        fed = {"x": np.ones((2, 4), np.float32) * (1e-5 if value > 1 else 1e7)}
        assert reason in reasons(converted(proto, [fed]))["first"]


def test_bounds_beyond_its_range_saturate() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { a = MatMul(x, w)  y = Clip(a, low, high) }"
    proto = model(text.replace("w>", "w, float low = {-3e38}, float high = {3e38}>"))
    candidate = converted(proto)
    assert not reasons(candidate)
    bounds = [tensor for tensor in candidate.model.graph.initializer if not tensor.dims]
    assert sorted(float(onnx.numpy_helper.to_array(each)) for each in bounds) == [-65504, 65504]


def test_divisors_must_not_become_subnormal() -> None:
    proto = model("g (float[N,4] x, float[N,4] d) => (float[N,4] y) <float[4,4] w> { a = MatMul(x, w)"
                  "  [ratio] y = Div(a, d) }")  # fmt: skip
    fed = {"x": np.full((1, 4), 1e-3, np.float32), "d": np.array([[1, 2, 1e-5, 1]], np.float32)}
    assert "falls to 1e-05" in reasons(converted(proto, [fed]))["ratio"]


def test_long_sums_stay_float32() -> None:
    text = """g (float[N,2,%d,64] x) => (float[N,2,1,1] y) <float[2,2,1,1] w> {
      a = Conv(x, w)  [mean] y = GlobalAveragePool(a) }"""
    assert "mean" not in reasons(converted(model(text % 32)))
    assert "it adds up 4096 values" in reasons(converted(model(text % 64)))["mean"]


def test_means_of_large_values_stay_float32() -> None:
    proto = model("g (float[N,2,30,30] x) => (float[N,2,1,1] y) <float[2,2,1,1] w> { a = Conv(x, w)"
                  "  [mean] y = GlobalAveragePool(a) }", w=np.ones((2, 2, 1, 1)))  # fmt: skip
    assert (
        "the sum behind its mean" in reasons(converted(proto, [{"x": np.full((1, 2, 30, 30), 20, np.float32)}]))["mean"]
    )


STAYS = {
    "counts": ("(float[N,4] x) => (float[N,4] y, float[R] r)",
               "y = MatMul(x, w)  [odd] r = Range(zero, five, one)", "it counts"),
    "order": ("(float[N,4] x) => (float[N,2] y, int64[N,2] i)", "a = MatMul(x, w)  [odd] y, i = TopK(a, two)",
              "its order may change"),
    "running sums": ("(float[N,4] x) => (float[N,4] y)", "a = MatMul(x, w)  [odd] y = CumSum(a, axis)",
                     "one after the other"),
    "sizes": ("(float[N,4] x) => (float[N,4] y, int64[2] z)",
              "y = MatMul(x, w)  s = Shape(x)  f = Cast<to = 1>(s)  [odd] h = Mul(f, five)  z = Cast<to = 7>(h)",
              "whole numbers are made of what it computes"),
}  # fmt: skip
CONSTANTS = "float[4,4] w, float zero = {0}, float five = {5}, float one = {1}, int64[1] two = {2}, int64 axis = {1}"


@pytest.mark.parametrize("case", STAYS)
def test_positions_and_counts_stay_float32(case: str) -> None:
    head, body, reason = STAYS[case]
    proto = model(f"g {head} <{CONSTANTS}> {{ {body} }}")
    read = {tensor for node in proto.graph.node for tensor in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    assert reason in reasons(converted(proto))["odd"]


def test_scales_and_coordinates_stay_float32() -> None:
    text = """g (float[1,2,4,4] x, float[1,5,5,2] g) => (float[1,2,1,1] y)
      <float[2,2,1,1] w, float[4] twice = {1, 1, 2, 2}> {
      c = Conv(x, w)  [sample] s = GridSample(c, g)  [resize] r = Resize(s, , twice)  y = GlobalMaxPool(r) }"""
    candidate = converted(model(text))
    types = input_types(candidate.model)
    assert types["sample"] == {HALF, SINGLE}
    assert types["resize"] == {HALF, SINGLE}
    assert candidate.report.details["casts"] == 2


def test_a_constant_that_both_precisions_read_is_there_twice() -> None:
    text = """g (float[N,4] x) => (float[N,4] y, float[N,4] z) <float[4,4] w, int64 axis = {1}> {
      a = MatMul(x, w)  b = CumSum(x, axis)  [single] z = MatMul(b, w)  y = Relu(a) }"""
    candidate = converted(model(text), one=ConvertFloat16(exclude="single"))
    assert initializer(candidate.model, "w").dtype == np.float32
    assert initializer(candidate.model, "w_float16").dtype == np.float16


def test_a_tensor_is_cast_once_whoever_reads_it() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v, float[4,4] u, int64 axis = {1}> {
      a = MatMul(x, w)  b = CumSum(a, axis)  c = CumSum<reverse = 1>(a, axis)  d = MatMul(x, v)  e = MatMul(d, u)
      f = Add(b, c)  g = Add(e, a)  h = Add(f, g)  y = Relu(h) }"""
    candidate = converted(model(text))
    casts = [node for node in candidate.model.graph.node if node.op_type == "Cast"]
    assert len({node.input[0] for node in casts}) == len(casts)
    made = {node.output[0] for node in casts}
    assert not any(node.input[0] in made for node in casts), "a Cast of a Cast"


def test_an_island_that_saves_less_than_its_casts_stays_float32() -> None:
    slow_launches = replace(DEVICE, launch_us=50.0, peak_tops={"float32": 2.0, "float16": 16.0})
    text = """g (float[1,4] x) => (float[1,4] y) <float[4,4] w, int64 axis = {1}> {
      b = CumSum(x, axis)  [matmul] c = MatMul(b, w)  [island] a = Relu(c)  y = CumSum(a, axis) }"""
    proto = model(text)
    with pytest.raises(Declined, match="no convolution or matrix product"):
        converted(proto, device=slow_launches)
    assert not {"island", "matmul"} & reasons(converted(proto)).keys()


def test_nodes_in_subgraphs_keep_their_interface() -> None:
    text = """g (float[2,4] x, bool go) => (float[2,4] y) <float[4,4] w, float[4,4] v> {
      a = MatMul(x, w)
      y = If (go) <then_branch = t () => (float[2,4] p) { b = Relu(a)  p = MatMul(b, v) },
                   else_branch = e () => (float[2,4] q) { q = Neg(a) }> }"""
    proto = model(text)
    fed = {"x": np.ones((2, 4), np.float32), "go": np.array(True)}
    candidate = converted(proto, [fed])
    then = next(
        attribute.g for attribute in candidate.model.graph.node[-1].attribute if attribute.name == "then_branch"
    )
    assert [node.op_type for node in then.node] == ["Relu", "MatMul", "Cast"]
    assert np.allclose(outputs(candidate.model, fed)["y"], outputs(proto, fed)["y"], rtol=1e-2, atol=1e-2)
    assert candidate.simulation is not None
    assert np.allclose(outputs(candidate.simulation, fed)["y"], outputs(proto, fed)["y"], rtol=1e-2, atol=1e-2)


def test_loops_carry_float32() -> None:
    text = """g (int64 n, float[2,4] x) => (float[2,4] y) <float[4,4] w, bool on = {1}> {
      y = Loop (n, on, x) <body = b (int64 i, bool c, float[2,4] s) => (bool d, float[2,4] t)
        { d = Identity(c)  m = MatMul(s, w)  t = Tanh(m) }> }"""
    proto = model(text)
    fed = {"n": np.array(3), "x": np.ones((2, 4), np.float32)}
    candidate = converted(proto, [fed])
    assert np.allclose(outputs(candidate.model, fed)["y"], outputs(proto, fed)["y"], atol=2e-2)


def test_nodes_that_say_what_type_they_make() -> None:
    text = """g (float[2,4] x) => (float[2,4] y) <float[4,4] w> {
      a = MatMul(x, w)  s = Shape(a)  z = ConstantOfShape<value = float[1] {2}>(s)  b = Add(a, z)
      c = Cast<to = 1>(s)  e = EyeLike<dtype = 1>(a)  d = Add(b, e)  y = Relu(d) }"""
    candidate = converted(model(text))
    assert not {"z", "e"} & reasons(candidate).keys()
    assert Counter(ops(candidate.model))["Cast"] == 2


def test_casts_that_were_there_go_where_both_sides_are_float16_now() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float16[4,4] v> {
      a = MatMul(x, w)  h = Cast<to = 10>(a)  b = MatMul(h, v)  c = Cast<to = 1>(b)  y = MatMul(c, w) }"""
    candidate = converted(model(text))
    assert ops(candidate.model) == ["Cast", "MatMul", "MatMul", "MatMul", "Cast"]


QUANTIZED = """g (float[N,4] x) => (float[N,3] y) <float[4,3] w, float sx, float[3] sw,
    int8 zx = {0}, int8[3] zw = {0, 0, 0}, float[3,3] v> {
  [qx] a = QuantizeLinear(x, sx, zx)  [dx] b = DequantizeLinear(a, sx, zx)
  [qw] c = QuantizeLinear<axis = 1>(w, sw, zw)  [dw] d = DequantizeLinear<axis = 1>(c, sw, zw)
  [int8] e = MatMul(b, d)  [relu] f = Relu(e)  [float] y = MatMul(f, v) }"""


def quantized(opset: int) -> onnx.ModelProto:
    text = QUANTIZED.replace("float sx,", "float sx = {0.02},").replace(
        "float[3] sw,", "float[3] sw = {0.011, 0.012, 0.013},"
    )
    return model(text, opset=opset, ir_version=9)


def test_int8_stays_int8_and_its_scales_become_float16() -> None:
    proto = quantized(19)
    candidate = converted(proto)
    types = input_types(candidate.model)
    assert types["int8"] == types["float"] == types["dw"] == types["dx"] == {HALF}
    assert types["qw"] == {SINGLE}, "weights are rounded to integers from float32"
    assert types["qx"] == {SINGLE}, "the input comes in float32"
    integers = [
        node.op_type for node in candidate.model.graph.node if "Quantize" in node.op_type or "Dequ" in node.op_type
    ]
    assert len(integers) == 4
    assert ops(candidate.model).count("Cast") == 1


JOINED = """g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[4,4,3,3] w, float s = {0.0203}, int8 z = {0},
    float[8,8,1,1] v, float huge = {100000.0}, float tiny = {0.00001}> {
  [qx] a = QuantizeLinear(x, s, z)  [dx] b = DequantizeLinear(a, s, z)
  [half] c = Conv<pads = [1, 1, 1, 1]>(b, w)  k = Concat<axis = 1>(c, x)
  [qk] d = QuantizeLinear(k, s, z)  [dk] e = DequantizeLinear(d, s, z)
  [up] f = Mul(e, huge)  [down] g = Mul(f, tiny)  [last] y = Conv(g, v) }"""


def test_one_scale_stays_one_where_only_some_of_its_readers_are_float16() -> None:
    """What a Concat joins would be requantized, and integers read with another step than they were written with."""
    proto = model(JOINED, opset=19, ir_version=9)
    candidate = converted(proto)
    types = input_types(candidate.model)
    assert types["dx"] == {HALF}
    assert types["dk"] == {SINGLE}, "what it feeds leaves the range of float16"
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in candidate.model.graph.initializer}
    pairs = [node for node in candidate.model.graph.node if "quantizeLinear" in node.op_type.replace("Q", "q")]
    assert {float(constants[node.input[1]]) for node in pairs} == {float(np.float16(0.0203))}


def test_scales_of_channels_that_are_all_but_zero_do_not_become_zero() -> None:
    """A runtime refuses a scale of 0; 2^-14 is the smallest that float16 holds in full."""
    proto = quantized(19)
    scales = next(tensor for tensor in proto.graph.initializer if tensor.name == "sw")
    scales.CopyFrom(onnx.numpy_helper.from_array(np.array([0.011, 1e-9, 0.013], np.float32), "sw"))
    candidate = converted(proto)
    assert input_types(candidate.model)["int8"] == {HALF}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in candidate.model.graph.initializer}
    weights = [node for node in candidate.model.graph.node if node.name in ("qw", "dw")]
    assert [constants[node.input[1]][1] for node in weights] == [2.0**-14, 2.0**-14]


def test_scales_too_small_for_float16_keep_their_layer_in_float32() -> None:
    proto = quantized(19)
    scales = next(tensor for tensor in proto.graph.initializer if tensor.name == "sw")
    scales.CopyFrom(onnx.numpy_helper.from_array(np.array([1e-7, 1e-8, 2e-7], np.float32), "sw"))
    candidate = converted(proto)
    assert "too small" in reasons(candidate)["dw"]
    assert input_types(candidate.model)["int8"] == {SINGLE}


def test_before_opset_19_scales_are_float32_and_so_are_the_layers_that_read_them() -> None:
    """A Cast between DequantizeLinear and the layer would hide the layer from a runtime that looks for int8."""
    candidate = converted(quantized(17))
    types = input_types(candidate.model)
    assert types["int8"] == {SINGLE}
    assert types["float"] == {HALF}


def test_a_runtime_that_chooses_types_gets_the_graph_as_it_is() -> None:
    proto = model(PLAIN)
    weakly = replace(taking_half([feeds(proto)]), hardware=replace(taking_half().hardware, strongly_typed=False))
    candidate = next(ConvertFloat16().candidates(proto, weakly))
    assert candidate.model is proto
    assert candidate.simulation is not None
    assert candidate.report.details["written"] == "runtime option"
    always = next(ConvertFloat16(write="always").candidates(proto, weakly))
    assert ops(always.model)[0] == "Cast"


def test_a_runtime_that_chooses_types_knows_where_float16_pays() -> None:
    """The pass tells where it may be used: no Cast costs more than it saves, scales of integers do not matter."""
    tiny = model("g (float[N,2] x) => (float[N,2] y) <float[2,2] w> { y = MatMul(x, w) }")
    nano = load_target("jetson-nano").hardware
    found = next(ConvertFloat16().candidates(tiny, replace(taking_half([feeds(tiny)]), hardware=nano)))
    assert found.report.details["float16_nodes"] == 1
    integers = quantized(17)
    found = next(ConvertFloat16().candidates(integers, replace(taking_half([feeds(integers)]), hardware=nano)))
    assert found.report.details["keep_float32"] == []
    assert not found.report.skipped
    simulated = found.simulation
    assert simulated is not None
    makers = {name: node.op_type for node in simulated.graph.node for name in node.output}
    read = [{makers.get(name) for name in node.input} for node in simulated.graph.node if node.op_type == "MatMul"]
    assert {"DequantizeLinear"} in read, "integer kernels read the integers themselves"


def test_a_runtime_that_chooses_types_is_told_of_operators_that_float16_spoils() -> None:
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w, int64 axis = {1}> {
      [product] a = MatMul(x, w)  [sum] y = CumSum(a, axis) }"""
    proto = model(text)
    weakly = replace(taking_half([feeds(proto)]), hardware=replace(taking_half().hardware, strongly_typed=False))
    assert next(ConvertFloat16().candidates(proto, weakly)).report.details["keep_float32"] == ["sum"]


def test_declined_where_the_runtime_cannot_be_told_of_single_nodes() -> None:
    """trtexec knows --layerPrecisions from TensorRT 8.4 on, and stops at it before."""
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w, int64 axis = {1}> {
      [product] a = MatMul(x, w)  [sum] y = CumSum(a, axis) }"""
    proto = model(text)
    nano = replace(taking_half([feeds(proto)]), hardware=load_target("jetson-nano").hardware)
    with pytest.raises(Declined, match=r"1 node must stay in float32 \(sum: .* cannot be told of single layers"):
        next(ConvertFloat16().candidates(proto, nano))
    xavier = replace(nano, hardware=load_target("jetson-agx-xavier").hardware)
    assert next(ConvertFloat16().candidates(proto, xavier)).report.details["keep_float32"] == ["sum"]


def test_a_runtime_that_chooses_types_is_told_by_names_that_the_model_has() -> None:
    """Nodes without a name get one, without characters that part the list; names that were there stay."""
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w, int64 axis = {1}> {
      a = MatMul(x, w)  b = CumSum(a, axis)  [mine] c = CumSum(b, axis)  y = MatMul(c, w) }"""
    proto = model(text)
    proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = "sum:0"
    proto.graph.node[3].name = "sum_0"
    weakly = replace(taking_half([feeds(proto)]), hardware=replace(taking_half().hardware, strongly_typed=False))
    candidate = next(ConvertFloat16().candidates(proto, weakly))
    assert candidate.report.details["keep_float32"] == ["sum_0_2", "mine"]
    assert [node.name for node in candidate.model.graph.node] == ["", "sum_0_2", "mine", "sum_0"]
    assert not proto.graph.node[1].name, "the model that was given is not edited"


def test_gentler_candidates_leave_the_noisiest_nodes_in_float32() -> None:
    """``a - b`` cancels: what float16 leaves of the two is mostly noise."""
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w, float[8,8] v, float[8,8] u> {
      [a] a = MatMul(x, w)  [b] b = MatMul(x, v)  [minus] c = Sub(a, b)  [last] y = MatMul(c, u) }"""
    weights = np.eye(8) * 1.0
    proto = model(text, w=weights, v=weights * 1.0001)
    given = taking_half([feeds(proto, batch=16)])
    found = list(ConvertFloat16().candidates(proto, given))
    assert len(found) > 1
    assert "minus" in reasons(found[1])
    noise = [candidate.report.details["sqnr_db"] for candidate in found]
    assert noise == sorted(noise)
    assert noise[-1] > noise[0] + 10


def test_declined_where_the_target_has_no_float16() -> None:
    with pytest.raises(Declined, match="does not compute in float16"):
        next(ConvertFloat16().candidates(model(PLAIN), context()))


@pytest.mark.parametrize(("options", "reason"), [({"headroom": 0.5}, "at least 1"), ({"samples": 0}, "one sample"),
                                                 ({"write": "no"}, "one of auto")])  # fmt: skip
def test_options_are_checked(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ConvertFloat16(**options)


def test_excluded_nodes_must_exist() -> None:
    with pytest.raises(UsageError, match="there is no node 'nobody'"):
        converted(model(PLAIN), one=ConvertFloat16(exclude="nobody"))


def test_the_same_bytes_each_time() -> None:
    proto = model(PLAIN)
    first, second = (converted(proto).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


STEPS = ("Relu", "Sigmoid", "MatMul", "CumSum", "Neg", "Add", "Concat")


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12))
def test_random_nets_of_both_precisions(steps: list[tuple[str, int, int]]) -> None:
    """Wherever the border runs: the model is valid, is loaded, and answers as the simulation does."""
    names, body = ["x"], ["[first] t0 = MatMul(x, w)"]
    names.append("t0")
    for number, (op, left, right) in enumerate(steps, 1):
        first, second = names[left % len(names)], names[right % len(names)]
        name = f"t{number}"
        form = {
            "MatMul": f"{name} = MatMul({first}, w)",
            "CumSum": f"{name} = CumSum({first}, axis)",
            "Add": f"{name} = Add({first}, {second})",
            "Concat": f"c{number} = Concat<axis = 0>({first}, {second})  {name} = ReduceMax<axes = [0]>(c{number})",
        }.get(op, f"{name} = {op}({first})")
        body.append(form)
        names.append(name)
    head = "g (float[1,4] x) => (float[1,4] y, float[1,4] t0) <float[4,4] w, int64 axis = {1}>"
    proto = model(f"{head} {{ {' '.join(body)}  y = Tanh({names[-1]}) }}", opset=13, w=np.eye(4) * 0.5)
    candidate = next(ConvertFloat16().candidates(proto, taking_half(None)))
    verify(candidate.model)
    runtime.session(candidate.model)
    fed = feeds(proto)
    assert candidate.simulation is not None
    wanted, found = as_computed_in_float16(candidate.model, fed), outputs(candidate.simulation, fed)
    for reference, values in zip(wanted, found.values(), strict=True):
        np.testing.assert_allclose(values, reference, rtol=2e-2, atol=1e-2)
