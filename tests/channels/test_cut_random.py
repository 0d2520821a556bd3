"""Random channels cut out of random nets: the answers are those of the original with the channels at zero.

``GRAPHOPT_EXAMPLES=2000 pytest tests/channels/test_cut_random.py`` looks further.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
import random_graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from random_graphs import Builder, random_feed
from support import assert_same, outputs

from graphopt import channels
from graphopt.graph import verify

EXAMPLES = int(os.environ.get("GRAPHOPT_EXAMPLES", "30"))
EVERY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def widen(b: Builder) -> None:
    """A convolution to more channels than the others have, so that there is something to choose from."""
    x, (channels, height, width) = b.any()
    count = b.draw(st.sampled_from([4, 6, 8, 12]))
    b.add("Conv", [x, b.weight(count, channels, 1, 1)], (count, height, width))


def squeeze_and_excitation(b: Builder) -> None:
    x, size = b.any()
    pooled = b.add("GlobalAveragePool", [x])
    inner = b.add("Relu", [b.add("Conv", [pooled, b.weight(4, size[0], 1, 1), b.weight(4)])])
    gate = b.add("Sigmoid", [b.add("Conv", [inner, b.weight(size[0], 4, 1, 1), b.weight(size[0])])])
    b.add("Mul", [x, gate], size)


def residual(b: Builder) -> None:
    x, size = b.any()
    inner = b.add("Relu", [b.add("Conv", [x, b.weight(6, size[0], 3, 3), b.weight(6)], pads=[1, 1, 1, 1])])
    b.add("Add", [b.add("Conv", [inner, b.weight(size[0], 6, 1, 1)]), x], size)


def depthwise(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    times = b.draw(st.integers(1, 2))
    weight = b.weight(channels * times, 1, 3, 3)
    b.add("Conv", [x, weight], (channels * times, height, width), group=channels, pads=[1, 1, 1, 1])


def grouped_and_shuffled(b: Builder) -> None:
    """ShuffleNet's bottleneck: two grouped convolutions with a shuffle between them."""
    x, (channels, height, width) = b.any()
    groups = b.draw(st.sampled_from([2, 3]))
    count = groups * b.draw(st.sampled_from([2, 4, 6]))
    if channels % groups:
        x = b.add("Conv", [x, b.weight(count, channels, 1, 1)])
        channels = count
    first = b.add("Conv", [x, b.weight(count, channels // groups, 1, 1)], group=groups)
    if b.draw(st.booleans()):
        up = b.add("Reshape", [first, b.integers([0, groups, count // groups, height, width])])
        moved = b.add("Transpose", [up], perm=[0, 2, 1, 3, 4])
        first = b.add("Reshape", [moved, b.integers([0, -1, height, width])])
    else:
        order = np.arange(count).reshape(groups, -1).T.ravel()
        first = b.add("Gather", [first, b.integers(order.tolist())], axis=1)
    first = b.add("Conv", [first, b.weight(count, 1, 1, 1)], group=count)
    b.add("Conv", [first, b.weight(count, count // groups, 1, 1)], (count, height, width), group=groups)


def resize(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    if max(height, width) > 12:
        return
    size = (channels, 2 * height, 2 * width)
    if b.draw(st.booleans()):
        b.weights[scales := b.name("scales")] = np.array([1, 1, 2, 2], np.float32)
        b.add("Resize", [x, "", scales], size, mode="nearest")
    else:
        shape = b.add("Shape", [x])
        kept = b.add("Slice", [shape, b.integers([0]), b.integers([2]), b.integers([0])])
        b.add("Resize", [x, "", "", b.add("Concat", [kept, b.integers(size[1:])], axis=0)], size, mode="nearest")


def pixel_shuffle(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    if channels % 4 == 0 and max(height, width) < 10:
        mode = b.draw(st.sampled_from(["CRD", "DCR"]))
        b.add("DepthToSpace", [x], (channels // 4, 2 * height, 2 * width), blocksize=2, mode=mode)
    elif height % 2 == 0 and width % 2 == 0:
        b.add("SpaceToDepth", [x], (channels * 4, height // 2, width // 2), blocksize=2)


def layer_norm_mlp(b: Builder) -> None:
    """ConvNeXt's block: channels last, LayerNormalization, two matrix products, a scale, a residual."""
    x, size = b.any()
    last = b.add("Transpose", [x], perm=[0, 2, 3, 1])
    if b.opset >= 17:
        last = b.add("LayerNormalization", [last, b.weight(size[0]), b.weight(size[0])], axis=-1)
    wide = b.add("Add", [b.add("MatMul", [last, b.weight(size[0], 10)]), b.weight(10)])
    wide = b.add("MatMul", [b.add("Tanh", [wide]), b.weight(10, size[0])])
    back = b.add("Transpose", [b.add("Mul", [wide, b.weight(size[0])])], perm=[0, 3, 1, 2])
    b.add("Add", [x, back], size)


def group_norm(b: Builder) -> None:
    """As exporters write it before opset 18: InstanceNormalization of reshaped groups."""
    x, (channels, height, width) = b.any()
    groups = b.draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
    flat = b.add("Reshape", [x, b.integers([0, groups, -1])])
    normal = b.add("InstanceNormalization", [flat, b.weight(groups), b.weight(groups)])
    whole = b.add("Reshape", [normal, b.integers([-1, channels, height, width])])
    b.add("Mul", [whole, b.weight(channels, 1, 1)], (channels, height, width))


def channel_padding(b: Builder) -> None:
    """The shortcut of the first ResNets: strided, and padded with channels of zeros."""
    x, (channels, height, width) = b.any()
    before, behind = b.draw(st.integers(0, 2)), b.draw(st.integers(0, 2))
    pads = b.integers([0, before, 0, 0, 0, behind, 0, 0])
    b.add("Pad", [x, pads], (channels + before + behind, height, width))


STEPS = (
    widen, widen, squeeze_and_excitation, residual, depthwise, grouped_and_shuffled, resize, pixel_shuffle,
    layer_norm_mlp, group_norm, channel_padding, *random_graphs.STEPS,
)  # fmt: skip


def random_net(draw: Callable[..., object], steps: int) -> onnx.ModelProto:
    """A net whose outputs are computed by convolutions, so that the channels before them can be cut."""
    b = Builder(draw, draw(st.sampled_from([13, 15, 17])))
    b.sizes["x"] = (draw(st.sampled_from([1, 3])), draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    channels, height, width = b.sizes["x"]
    widen(b)
    for _ in range(steps):
        draw(st.sampled_from(STEPS))(b)
    names = [name for name in b.sizes if name != "x"]
    ends = dict.fromkeys([names[-1], *(draw(st.sampled_from(names)) for _ in range(draw(st.integers(0, 1))))])
    made = []
    for name in ends:
        count = b.sizes[name][0]
        made.append(b.add("Conv", [name, b.weight(2, count, 1, 1)], (2, *b.sizes[name][1:])))
    made += list(b.flat)[:1]
    shapes = {name: ["N", *(b.sizes.get(name) or (b.flat[name],))] for name in made}
    graph = helper.make_graph(
        b.nodes,
        "random",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", channels, height, width])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in b.weights.items()],
    )
    net = helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=8)
    net.metadata_props.append(onnx.StringStringEntryProto(key="sizes", value=f"{height},{width}"))
    return net


@EVERY
@given(data=st.data())
def test_random_channels_of_random_nets(data: st.DataObject) -> None:
    net = random_net(data.draw, data.draw(st.integers(1, 10), label="layers"))
    verify(net)
    untouched = net.SerializeToString(deterministic=True)
    found = channels.dependency_groups(net)
    for seed in range(3):
        selection = channels.random_selection(found, seed, 0.7)
        smaller = channels.cut(found, selection).model
        masked = channels.mask(found, selection)
        verify(smaller)
        for batch in (1, 3):
            fed = random_feed(net, batch)
            assert_same(outputs(masked, fed), outputs(smaller, fed), rtol=1e-4)
        assert len(smaller.graph.node) <= 2 * len(net.graph.node)
    assert net.SerializeToString(deterministic=True) == untouched
