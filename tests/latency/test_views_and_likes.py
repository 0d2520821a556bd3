"""What exporters write in several ways, or leave in although it does nothing, is priced by what runtimes do."""

from __future__ import annotations

import onnx
import pytest
from latency_devices import EAGER, ENGINE, board
from support import model

from graphopt.latency import estimate
from graphopt.latency.kernels import Kernel, kernels


def works(text: str, *, fused: bool, **how: int) -> list[Kernel]:
    return kernels(model(text, opset=17), fused=fused, **how)


def ms(text: str | onnx.ModelProto, *, fused: bool) -> float:
    proto = text if isinstance(text, onnx.ModelProto) else model(text)
    return estimate(proto, board(ENGINE if fused else EAGER)).ms


@pytest.mark.parametrize("node", ["Identity(x)", "Dropout(x)", "Cast<to=1>(x)"])
def test_what_exporters_leave_in_costs_an_eager_runtime_nothing(node: str) -> None:
    plain = "plain (float[1,8,4,4] x) => (float[1,8,4,4] y) { y = Relu(x) }"
    longer = f"longer (float[1,8,4,4] x) => (float[1,8,4,4] y) {{ d = {node}  y = Relu(d) }}"
    assert ms(longer, fused=False) == ms(plain, fused=False)
    assert len(works(longer.replace("to=1", "to=10"), fused=False)) == (2 if "Cast" in node else 1)


@pytest.mark.parametrize(
    "node",
    [
        pytest.param("Slice(c, zeros, eight, one)", id="a slice of everything"),
        pytest.param("Expand(c, shape)", id="an expansion to its own size"),
        pytest.param("Pad(c, none)", id="padding of nothing"),
        pytest.param("Concat<axis=1>(c)", id="a concatenation of one"),
        pytest.param("Transpose<perm=[0,2,1,3]>(c)", id="a transposition of axes of size 1"),
    ],
)
def test_an_engine_drops_what_gives_its_input_back(node: str) -> None:
    proto = model(
        f"""same (float[1,8,1,1] x) => (float[1,8,1,1] y)
        <float[8,8,1,1] w, int64[1] zeros, int64[1] eight, int64[1] one, int64[4] shape, int64[8] none>
        {{ c = Conv(x, w)  s = {node}  y = Relu(s) }}""",
        zeros=[0], eight=[8], one=[1], shape=[1, 8, 1, 1], none=[0] * 8,
    )  # fmt: skip
    (kernel,) = kernels(proto, fused=True)
    assert {"c", "s", "y"} == set(kernel.nodes)


def test_a_part_is_read_and_not_the_whole() -> None:
    text = """part (float[1,64,8,8] x) => (float[1,8,8,8] y) <int64[1] zero, int64[1] eight, int64[1] one>
    { y = Slice(x, zero, eight, one) }"""
    (kernel,) = kernels(model(text, zero=[0], eight=[8], one=[1]), fused=True)
    assert kernel.works[0].activation_bytes == 2 * 8 * 64 * 4


def test_an_engine_takes_as_long_for_a_split_as_for_its_slices() -> None:
    head = "halves (float[1,64,8,8] x) => (float[1,64,8,8] y)"
    split = model(f"{head} {{ a, b = Split<axis=1>(x)  t = Tanh(a)  y = Concat<axis=1>(b, t) }}", opset=13)
    slices = model(
        f"""{head} <int64[1] zero, int64[1] half, int64[1] all, int64[1] one>
        {{ a = Slice(x, zero, half, one)  b = Slice(x, half, all, one)  t = Tanh(a)  y = Concat<axis=1>(b, t) }}""",
        zero=[0], half=[32], all=[64], one=[1],
    )  # fmt: skip
    assert ms(split, fused=True) == pytest.approx(ms(slices, fused=True), rel=1e-6)


def test_the_mean_over_planes_is_global_pooling() -> None:
    head = "squeeze (float[1,64,14,14] x) => (float[1,64,1,1] y)"
    pooled, mean = f"{head} {{ y = GlobalAveragePool(x) }}", f"{head} {{ y = ReduceMean<axes=[2,3]>(x) }}"
    assert works(pooled, fused=False)[0].works == works(mean, fused=False)[0].works
    channels = "last (float[1,14,14,64] x) => (float[1,14,14,1] y) { y = ReduceMean<axes=[3]>(x) }"
    assert works(channels, fused=False)[0].works[0].kind == "reduction"


def test_winograd_is_for_square_windows_without_gaps() -> None:
    def helped(shape: str, attributes: str, operator: str = "Conv", rest: str = "") -> float:
        text = f"""window (float[1,8,20,20] x) => (float[1,8,20,20] y) <float[8,8,{shape}] w, float[1,18,20,20] o>
        {{ y = {operator}<{attributes}>(x, w{rest}) }}"""
        return float(kernels(model(text, opset=19), fused=False)[0].works[0].winograd)

    assert helped("3,3", "pads=[1,1,1,1]") == 1
    assert helped("3,3", "pads=[2,2,2,2], dilations=[2,2]") == 0
    assert helped("1,9", "pads=[0,4,0,4]") == 0
    assert helped("3,3", "pads=[1,1,1,1]", "DeformConv", ", o") == 0


def test_a_transposed_depthwise_convolution_fills_no_tensor_cores() -> None:
    text = """up (float[1,64,16,16] x) => (float[1,64,32,32] y) <float[64,{n},4,4] w>
    {{ y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], group={g}>(x, w) }}"""
    (depthwise,), (dense,) = (works(text.format(n=n, g=g), fused=True) for n, g in ((1, 64), (64, 1)))
    assert (depthwise.works[0].kind, dense.works[0].kind) == ("depthwise", "transposed")


LSTM = """sequence (float[1,{x}] x) => (float[1,{y}] y)
<float[1,16,8] w, float[1,16,4] r, int64[3] a, int64[2] flat> {{
    t = Reshape(x, a)
    h = LSTM<hidden_size=4, layout={layout}>(t, w, r)
    y = Reshape(h, flat)
}}"""


@pytest.mark.parametrize("layout", [0, 1])
def test_a_recurrence_launches_kernels_for_each_step_whatever_the_batch(layout: int) -> None:
    shape = [1, 50, 8] if layout else [50, 1, 8]
    proto = model(LSTM.format(x=400, y=200, layout=layout), a=shape, flat=[1, 200])
    one, many = (kernels(proto, fused=True, batch=batch)[0].works[0] for batch in (1, 8))
    assert (one.launches, many.launches) == (50, 50)
    assert many.macs == 8 * one.macs == 8 * 50 * 16 * (8 + 4)
    assert many.activation_bytes == 8 * one.activation_bytes
