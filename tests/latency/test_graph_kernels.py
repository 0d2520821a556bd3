"""Which kernels a runtime launches for a graph."""

from __future__ import annotations

import time

import onnx
import pytest
from support import model

from graphopt.errors import ModelError
from graphopt.latency.kernels import Kernel, kernels

BLOCK = """block (float[1,8,16,16] x) => (float[1,8,16,16] y)
<float[8,8,3,3] w, float[8] b, float[8] scale, float[8] bias, float[8] mean, float[8] variance> {
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    n = BatchNormalization(c, scale, bias, mean, variance)
    r = Relu(n)
    y = Add(r, x)
}"""


def launched(proto: onnx.ModelProto, *, fused: bool, **how: object) -> list[Kernel]:
    return kernels(proto, fused=fused, **how)  # type: ignore[arg-type]


def heads(proto: onnx.ModelProto, **how: object) -> list[str]:
    return [kernel.name for kernel in launched(proto, fused=True, **how)]


def test_an_eager_runtime_launches_every_operator_and_the_bias() -> None:
    found = launched(model(BLOCK), fused=False)
    assert [kernel.name for kernel in found] == ["c", "n", "r", "y"]
    assert [[work.kind for work in kernel.works] for kernel in found] == [
        ["dense_kxk", "bias"], ["normalization"], ["elementwise"], ["elementwise"],
    ]  # fmt: skip
    elements = 8 * 16 * 16
    convolution, bias = found[0].works
    assert convolution.macs == elements * 8 * 9
    assert convolution.activation_bytes == 2 * elements * 4
    assert convolution.weight_bytes == (8 * 8 * 9 + 8) * 4
    assert (convolution.in_channels, convolution.out_channels, convolution.window) == (8, 8, 9)
    assert bias.activation_bytes == 2 * elements * 4
    assert found[3].works[0].activation_bytes == 3 * elements * 4


def test_an_engine_runs_a_block_in_one_kernel() -> None:
    (kernel,) = launched(model(BLOCK), fused=True)
    assert kernel.nodes == ("c", "n", "r", "y")
    assert kernel.works[0].activation_bytes == 2 * 8 * 16 * 16 * 4  # x is read once, y is written


def test_a_tensor_that_others_read_ends_a_kernel() -> None:
    proto = model("""fork (float[1,8,16,16] x) => (float[1,8,16,16] y, float[1,8,16,16] z)
    <float[8,8,1,1] w, float[8,8,1,1] v> { c = Conv(x, w)  y = Relu(c)  z = Conv(c, v) }""")
    assert heads(proto) == ["c", "y", "z"]
    output = model("""out (float[1,8,16,16] x) => (float[1,8,16,16] c, float[1,8,16,16] y)
    <float[8,8,1,1] w> { c = Conv(x, w)  y = Relu(c) }""")
    assert heads(output) == ["c", "y"]


def test_only_one_addition_is_fused_and_the_later_convolution_takes_it() -> None:
    proto = model("""two (float[1,8,16,16] x) => (float[1,8,16,16] z)
    <float[8,8,1,1] w, float[8,8,1,1] v> { a = Conv(x, w)  b = Conv(x, v)  y = Add(b, a)  z = Add(y, x) }""")
    assert [kernel.nodes for kernel in launched(proto, fused=True)] == [("a",), ("b", "y"), ("z",)]


def test_a_gate_of_the_layers_own_output_is_fused() -> None:
    swish = model("""swish (float[1,8,16,16] x) => (float[1,8,16,16] y) <float[8,8,1,1] w>
    { c = Conv(x, w)  s = Sigmoid(c)  y = Mul(c, s) }""")
    assert heads(swish) == ["c"]
    squeeze = model("""squeeze (float[1,8,16,16] x) => (float[1,8,16,16] y) <float[8,8,1,1] w, float[8,8,1,1] v>
    { c = Conv(x, w)  p = GlobalAveragePool(c)  e = Conv(p, v)  s = Sigmoid(e)  y = Mul(c, s) }""")
    found = launched(squeeze, fused=True)
    assert [kernel.nodes for kernel in found] == [("c",), ("p",), ("e", "s"), ("y",)]
    assert [kernel.works[0].kind for kernel in found] == ["pointwise", "pooling", "pointwise", "broadcast"]
    assert found[1].works[0].window == 256


def test_concat_is_written_in_place_once() -> None:
    proto = model("""dense (float[1,8,16,16] x) => (float[1,24,16,16] z)
    <float[8,8,1,1] w, float[8,8,1,1] v, float[8,16,1,1] u>
    { a = Conv(x, w)  b = Conv(x, v)  y = Concat<axis=1>(a, b)  d = Conv(y, u)  z = Concat<axis=1>(y, d) }""")
    assert [kernel.name for kernel in launched(proto, fused=False)] == ["a", "b", "y", "d", "z"]
    assert heads(proto) == ["a", "b", "d"]
    twice = model("""twice (float[1,8,16,16] x) => (float[1,16,16,16] y, float[1,16,16,16] z)
    <float[8,8,1,1] w, float[8,8,1,1] v>
    { a = Conv(x, w)  b = Conv(x, v)  y = Concat<axis=1>(a, b)  z = Concat<axis=1>(b, a) }""")
    assert heads(twice) == ["a", "b", "z"]


SHAPED = """shaped (float[N,8,4,4] x) => (float[N,10] y) <float[128,10] w, int64[1] rest> {
    zero = Constant<value = int64 {0}>()
    axes = Constant<value = int64[1] {0}>()
    size = Shape(x)
    first = Gather(size, zero)
    row = Unsqueeze(first, axes)
    target = Concat<axis=0>(row, rest)
    flat = Reshape(x, target)
    y = MatMul(flat, w)
}"""


def test_arithmetic_on_shapes_and_renaming_is_no_work() -> None:
    proto = model(SHAPED, rest=[-1])
    (kernel,) = launched(proto, fused=True, batch=4)
    assert (kernel.name, kernel.works[0].macs) == ("y", 4 * 128 * 10)
    view, product = launched(proto, fused=False, batch=4)
    assert [work.kind for work in view.works] == ["view"]
    assert product.works[0].kind == "fully_connected"


def test_a_model_for_one_image_is_priced_for_a_batch() -> None:
    fixed, open_ = model(BLOCK), model(BLOCK.replace("float[1,8", "float[N,8"))
    for fused in (False, True):
        assert launched(fixed, fused=fused, batch=16) == launched(open_, fused=fused, batch=16)


QUANTIZED = """int8 (float[1,16,8,8] x) => (float[1,16,8,8] y)
<float scale, int8 zero, int8[16,16,1,1] w, float[16] scales, int8[16] zeros, float[16] b> {
    q = QuantizeLinear(x, scale, zero)
    d = DequantizeLinear(q, scale, zero)
    v = DequantizeLinear<axis=0>(w, scales, zeros)
    c = Conv(d, v, b)
    y = Relu(c)
}"""


def test_a_convolution_behind_dequantizers_is_an_integer_kernel() -> None:
    (kernel,) = launched(model(QUANTIZED), fused=True, precision="float16")
    assert (kernel.name, kernel.works[0].precision) == ("c", "int8")
    assert kernel.works[0].weight_bytes == pytest.approx(16 * 16, rel=0.2)
    # The input is read as integers, the output is written in the runtime's float type.
    assert kernel.works[0].activation_bytes == 16 * 64 * (1 + 2)


def test_a_float_weight_keeps_the_convolution_in_float() -> None:
    weight_only = QUANTIZED.replace("Conv(d, v, b)", "Conv(x, v, b)")
    (kernel,) = launched(model(weight_only), fused=True)
    assert kernel.works[0].precision == "float32"


def test_float16_halves_the_traffic() -> None:
    for proto, precision in ((model(BLOCK), "float16"), (model(BLOCK.replace("float[", "float16[")), "float32")):
        (kernel,) = launched(proto, fused=True, precision=precision)
        assert kernel.works[0].precision == "float16"
        assert kernel.works[0].activation_bytes == 2 * 8 * 16 * 16 * 2


def test_an_unknown_size_is_an_error_that_names_the_node() -> None:
    proto = model("open (float[1,8,H,W] x) => (float[1,8,H,W] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match=r"node 'y' \(Relu\): the shape of .* is \[1,8,\?,\?\]"):
        launched(proto, fused=True)
    assert launched(proto, fused=True, shapes={"x": (1, 8, 4, 4)})[0].works[0].outputs == 128


def test_bodies_are_priced_too() -> None:
    proto = model("""branch (float[1,8] x, bool c) => (float[1,8] y) <float[8,8] w> {
        y = If(c) <then_branch = g () => (float[1,8] a) { a = MatMul(x, w) },
                   else_branch = h () => (float[1,8] b) { b = Relu(x) }>
    }""")
    assert sorted(heads(proto)) == ["a", "b"]


def test_sibling_bodies_may_use_one_name_for_different_tensors() -> None:
    proto = model("""branch (float[1,8] x, bool c) => (float[1,8] y) <float[8] w, float[8] v> {
        y = If(c) <then_branch = g () => (float[1,8] a) { t = Mul(w, v)  a = Add(x, t) },
                   else_branch = h () => (float[1,8] b) { t = Relu(x)  b = Exp(t) }>
    }""")
    assert sorted(kernel.name for kernel in launched(proto, fused=False)) == ["a", "b", "t"]


def test_work_grows_with_the_size_of_the_graph_alone() -> None:
    """Thousands of readers of one tensor, and a node that reads thousands, take a moment each."""
    readers = "\n".join(f"r{i} = Relu(c)" for i in range(4000))
    proto = model(f"""wide (float[1,4,2,2] x) => (float[1,4,2,2] y) <float[4,4,1,1] w> {{
        c = Conv(x, w)
        {readers}
        y = Sum({", ".join(f"r{i}" for i in range(4000))})
    }}""")
    started = time.thread_time()
    assert len(launched(proto, fused=True)) == 4002
    assert time.thread_time() - started < 3
