"""What filters see: times the weights it is what ONNX Runtime computes, for every way to lay out a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.recovery.columns import arranged, columns, positions_shape
from graphopt.recovery.layers import find_layers, read_weights
from graphopt.recovery.net import Net
from tests import support

ATTRIBUTES = st.fixed_dictionaries(
    {
        "strides": st.lists(st.integers(1, 3), min_size=2, max_size=2),
        "dilations": st.lists(st.integers(1, 2), min_size=2, max_size=2),
        "group": st.sampled_from([1, 2, 4]),
    },
    optional={"pads": st.lists(st.integers(0, 2), min_size=4, max_size=4)},
)


def check(proto: onnx.ModelProto, rtol: float = 2e-5) -> None:
    """The one layer of a model that is nothing else, computed from its columns at every position."""
    net = Net(proto)
    (layer,), refused = find_layers(net)
    assert not refused
    fed = support.feeds(proto)
    wanted = support.outputs(proto, fed)[layer.name]
    x = fed[layer.input]
    sizes = positions_shape(net, layer, x.shape)
    every = np.arange(int(np.prod(sizes)))
    weights = read_weights(net, layer)
    seen = columns(net, layer, x.shape, arranged(net, layer, x), every)
    assert seen.shape == (layer.groups, len(every), layer.unknowns)
    assert seen.dtype == np.float32
    given_ = seen @ weights.matrix + weights.bias.reshape(layer.groups, 1, -1)
    flat = given_.transpose(1, 0, 2).reshape(*sizes, layer.outputs)
    support.assert_same({"y": wanted}, {"y": np.moveaxis(flat, -1, layer.channel_axis)}, rtol=rtol)


def node(op: str, weights: tuple[int, ...], rank: int, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """One convolution over 7, 9 and 5 places."""
    sizes = ",".join(str(size) for size in (7, 9, 5)[:rank])
    filters = weights[0] if op == "Conv" else weights[1] * attributes.get("group", 1)
    shape = ",".join(map(str, weights))
    declared = f"<float[{shape}] w, float[{filters}] b>"
    proto = support.model(
        f"g (float[2,8,{sizes}] x) => (float y) {declared} {{ y = {op}(x, w{', b' if bias else ''}) }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.node[0].attribute.extend(onnx.helper.make_attribute(*pair) for pair in attributes.items())
    return proto


@settings(derandomize=True, deadline=None, max_examples=40)
@given(ATTRIBUTES, st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]), st.booleans())
def test_convolution(attributes: dict[str, Any], auto_pad: str, bias: bool) -> None:
    if auto_pad != "NOTSET":
        attributes = {**attributes, "auto_pad": auto_pad}
        attributes.pop("pads", None)
        attributes["dilations"] = [1, 1]  # ONNX Runtime pads as if there were none
    check(node("Conv", (8, 8 // attributes["group"], 3, 2), 2, bias, **attributes))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(ATTRIBUTES, st.lists(st.integers(0, 1), min_size=2, max_size=2), st.booleans())
def test_transposed_convolution(attributes: dict[str, Any], extra: list[int], bias: bool) -> None:
    attributes["output_padding"] = [min(one, step - 1) for one, step in zip(extra, attributes["strides"], strict=True)]
    check(node("ConvTranspose", (8, 3, 3, 2), 2, bias, **attributes))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_transposed_convolution_that_pads_by_itself(auto_pad: str) -> None:
    check(node("ConvTranspose", (8, 3, 3, 3), 2, auto_pad=auto_pad, strides=[2, 2]))


def test_transposed_convolution_with_a_given_output_shape() -> None:
    check(node("ConvTranspose", (8, 3, 3, 3), 2, output_shape=[14, 18], strides=[2, 2]))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("rank", [1, 3])
def test_one_and_three_axes(op: str, rank: int) -> None:
    check(node(op, (8, 4, 3, 2, 2)[: 2 + rank], rank, group=2, pads=[1, 0, 1, 1, 1, 0][: 2 * rank]))


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_depthwise_with_a_multiplier(op: str) -> None:
    check(node(op, (16, 1, 3, 3) if op == "Conv" else (8, 2, 3, 3), 2, group=8))


GEMM = "g (float[{x}] x) => (float[5,3] y) <float[{w}] w, float[{c}] c> {{ y = Gemm<{given}>(x, w, c) }}"


@pytest.mark.parametrize(
    ("x", "w", "c", "attributes"),
    [
        ("5,4", "4,3", "3", "alpha=0.5, beta=2.0"),
        ("5,4", "3,4", "1,3", "transB=1"),
        ("4,5", "4,3", "1", "transA=1"),
        ("4,5", "3,4", "3", "transA=1, transB=1, alpha=3.0"),
    ],
)
def test_gemm(x: str, w: str, c: str, attributes: str) -> None:
    check(support.model(GEMM.format(x=x, w=w, c=c, given=attributes)))


def test_gemm_without_bias() -> None:
    check(support.model("g (float[5,4] x) => (float[5,3] y) <float[4,3] w> { y = Gemm(x, w) }"))


@pytest.mark.parametrize("add", ["Add(m, b)", "Add(b, m)"])
def test_matrix_product_and_its_bias(add: str) -> None:
    text = "g (float[2,5,4] x) => (float[2,5,3] y) <float[4,3] w, float[1,3] b> { m = MatMul(x, w) y = ADD }"
    check(support.model(text.replace("ADD", add)))


def test_matrix_product_without_bias() -> None:
    check(support.model("g (float[2,5,4] x) => (float[2,5,3] y) <float[4,3] w> { y = MatMul(x, w) }"))


@pytest.mark.parametrize("shape", ["2,4,3,3", "2,4"])
def test_normalization(shape: str) -> None:
    check(
        support.model(
            f"g (float[{shape}] x) => (float[{shape}] y) <float[4] s, float[4] b, float[4] mean, float[4] variance>"
            " { y = BatchNormalization<epsilon=0.1>(x, s, b, mean, variance) }"
        )
    )
