"""Random graphs as exporters might write them: layers of all attributes, data movement, shared weights, dead branches.

A ``Builder`` keeps tensors of shape (N, C, H, W) with an open N, adds nodes drawn from ``STEPS`` and remembers sizes;
what is drawn decides everything, so that hypothesis can shrink a failure to the few nodes that matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

Draw = Callable[[Any], Any]
Size = tuple[int, int, int]


@dataclass
class Builder:
    """A graph in the making; ``draw`` gives one value of a hypothesis strategy."""

    draw: Draw
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    flat: dict[str, int] = field(default_factory=dict)

    def name(self, prefix: str = "t") -> str:
        return f"{prefix}{len(self.nodes)}_{len(self.weights)}"

    def weight(self, *shape: int, positive: bool = False) -> str:
        """Half of the time one that is there already, if it has the shape."""
        alike = [name for name, value in self.weights.items() if value.shape == shape and value.dtype == np.float32]
        alike = [name for name in alike if name.startswith("positive") == positive]
        if alike and self.draw(st.booleans()):
            return self.draw(st.sampled_from(alike))
        name = f"{'positive' if positive else 'w'}{len(self.weights)}"
        rng = np.random.default_rng(len(self.weights))
        values = rng.uniform(0.5, 1.5, shape)
        self.weights[name] = (values if positive else values * rng.choice([-1, 1], shape)).astype(np.float32)
        return name

    def integers(self, values: Sequence[int]) -> str:
        name = f"i{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def add(self, op: str, inputs: Sequence[str], size: Size | None = None, outputs: int = 1, **attrs: Any) -> str:
        name = self.name()
        names = [name, *(f"{name}_{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n_{name}", **attrs))
        if size is not None:
            self.sizes[name] = size
        return name

    def any(self) -> tuple[str, Size]:
        """Mostly one of the newest tensors, so that graphs are deep."""
        names = list(self.sizes)
        name = names[self.draw(st.integers(max(0, len(names) - 3), len(names) - 1))]
        return name, self.sizes[name]

    def alike(self, size: Size) -> str:
        return self.draw(st.sampled_from([name for name, other in self.sizes.items() if other == size]))


def conv(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    group = b.draw(st.sampled_from([g for g in (1, 2, 4, channels) if channels % g == 0]))
    outputs = group * b.draw(st.integers(1, max(1, 8 // group)))
    kernel = [b.draw(st.integers(1, 3)) for _ in range(2)]
    dilations = [b.draw(st.integers(1, 2)) for _ in range(2)]
    strides = [b.draw(st.integers(1, 2)) for _ in range(2)]
    mode = b.draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attrs: dict[str, Any] = {"group": group, "strides": strides}
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if mode == "NOTSET":
        pads = [b.draw(st.integers(0, 2)) for _ in range(4)]
        attrs |= {"pads": pads, "dilations": dilations}
        total = [pads[0] + pads[2], pads[1] + pads[3]]
        size = [(s + p - r) // t + 1 for s, p, r, t in zip((height, width), total, reach, strides, strict=True)]
    elif mode == "VALID":
        attrs |= {"auto_pad": mode, "dilations": dilations}
        size = [(s - r) // t + 1 for s, r, t in zip((height, width), reach, strides, strict=True)]
    else:
        attrs |= {"auto_pad": mode}
        size = [-(-s // t) for s, t in zip((height, width), strides, strict=True)]
    if min(size) < 1:
        return
    inputs = [x, b.weight(outputs, channels // group, *kernel)]
    if b.draw(st.booleans()):
        inputs.append(b.weight(outputs))
    b.add("Conv", inputs, (outputs, size[0], size[1]), **attrs)


def conv_transpose(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    if height > 12 or width > 12:
        return
    group = b.draw(st.sampled_from([g for g in (1, channels) if channels % g == 0]))
    stride = b.draw(st.integers(1, 2))
    inputs = [x, b.weight(channels, 2, 2, 2)]
    if b.draw(st.booleans()):
        inputs.append(b.weight(2 * group))
    size = (2 * group, (height - 1) * stride + 2, (width - 1) * stride + 2)
    b.add("ConvTranspose", inputs, size, group=group, strides=[stride, stride])


def normalization(b: Builder) -> None:
    x, size = b.any()
    scale, shift, mean = (b.weight(size[0]) for _ in range(3))
    b.add("BatchNormalization", [x, scale, shift, mean, b.weight(size[0], positive=True)], size)


ACTIVATIONS = (
    "Relu", "Sigmoid", "LeakyRelu", "HardSigmoid", "Tanh", "Neg", "Identity", "Clip", "swish", "hardswish",
)  # fmt: skip


def activation(b: Builder) -> None:
    x, size = b.any()
    kind = b.draw(
        st.sampled_from(
            ["Relu", "Sigmoid", "LeakyRelu", "HardSigmoid", "Tanh", "Neg", "Identity", "Clip", "swish", "hardswish"]
        )
    )
    if kind == "Clip":
        low, high = b.name("low"), b.name("high")
        b.weights[low], b.weights[high] = np.float32(b.draw(st.integers(-1, 0))), np.float32(b.draw(st.integers(1, 6)))
        b.add("Clip", [x, low, high], size)
    elif kind == "swish":
        b.add("Mul", [b.add("Sigmoid", [x]), x], size)
    elif kind == "hardswish":
        b.weights.update(three=np.float32(3), zero=np.float32(0), six=np.float32(6))
        clipped = b.add("Clip", [b.add("Add", [x, "three"]), "zero", "six"])
        b.add("Div", [b.add("Mul", [x, clipped]), "six"], size)
    else:
        b.add(kind, [x], size)


def arithmetic(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    op = b.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
    shape = b.draw(st.sampled_from([(), (1,), (channels, 1, 1), (1, channels, 1, 1), (width,), (height, width)]))
    operands = [x, b.weight(*shape, positive=True)]
    if op != "Div" and b.draw(st.booleans()):
        operands.reverse()
    b.add(op, operands, (channels, height, width))


def join(b: Builder) -> None:
    x, size = b.any()
    op = b.draw(st.sampled_from(["Add", "Mul", "Sub", "Sum", "Max", "Concat", "stack"]))
    others = [b.alike(size) for _ in range(b.draw(st.integers(1, 2)))]
    channels, height, width = size
    if op in {"Concat", "stack"}:
        b.add(
            "Concat", [x, *others], (channels * (1 + len(others)), height, width), axis=b.draw(st.sampled_from([1, -3]))
        )
    else:
        b.add(op, [x, *(others if op in {"Sum", "Max"} else others[:1])], size)


def split(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    if channels < 2:
        return
    first = b.draw(st.integers(1, channels - 1))
    if b.draw(st.booleans()):
        name = b.add("Split", [x, b.integers([first, channels - first])], (first, height, width), 2, axis=1)
        b.sizes[f"{name}_1"] = (channels - first, height, width)
        return
    axes, starts, ends = b.integers([1]), b.integers([0]), b.integers([first])
    b.add("Slice", [x, starts, ends, axes], (first, height, width))
    far = b.integers([b.draw(st.sampled_from([channels, 2**31, 2**63 - 1]))])
    b.add("Slice", [x, ends, far, axes], (channels - first, height, width))


def shuffle(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    groups = b.draw(st.sampled_from([g for g in (1, 2, 3, 4) if channels % g == 0]))
    kind = b.draw(st.sampled_from(["five", "flat", "gather", "halves"]))
    size = (channels, height, width)
    if kind == "five":
        split_up = b.add("Reshape", [x, b.integers([0, groups, channels // groups, height, width])])
        moved = b.add("Transpose", [split_up], perm=[0, 2, 1, 3, 4])
        b.add("Reshape", [moved, b.integers([0, -1, height, width])], size)
    elif kind == "flat":
        split_up = b.add("Reshape", [x, b.integers([-1, groups, channels // groups, height * width])])
        moved = b.add("Transpose", [split_up], perm=[0, 2, 1, 3])
        b.add("Reshape", [moved, b.integers([-1, channels, height, width])], size)
    elif kind == "gather":
        order = np.arange(channels).reshape(groups, -1).T.ravel()
        b.add("Gather", [x, b.integers(order.tolist())], size, axis=1)
    elif channels % 2 == 0:
        half = b.integers([channels // 2, channels // 2])
        name = b.add("Split", [x, half], None, 2, axis=1)
        b.add("Concat", [f"{name}_1", name], size, axis=1)


def transposes(b: Builder) -> None:
    """A stretch in another order of axes, as TensorFlow's exporters write it."""
    x, (channels, height, width) = b.any()
    there = b.add("Transpose", [x], perm=[0, 2, 3, 1])
    kind = b.draw(st.sampled_from(["none", "relu", "bias", "pad", "concat", "matmul"]))
    size = [height, width, channels]
    if kind == "relu":
        there = b.add("Relu", [there])
    elif kind == "bias":
        there = b.add("Add", [there, b.weight(channels)])
    elif kind == "pad":
        there = b.add("Pad", [there, b.integers([0, 1, 0, 0, 0, 0, 1, 0])])
        size = [height + 1, width + 1, channels]
    elif kind == "concat":
        there = b.add("Concat", [there, there], axis=3)
        size[2] *= 2
    elif kind == "matmul":
        there = b.add("MatMul", [there, b.weight(channels, 4)])
        size[2] = 4
    if b.draw(st.integers(0, 3)):
        b.add("Transpose", [there], (size[2], size[0], size[1]), perm=[0, 3, 1, 2])
    else:
        b.add("Transpose", [there], (size[1], size[2], size[0]), perm=[0, 2, 3, 1])


def pooling(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    kind = b.draw(st.sampled_from(["MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean"]))
    if kind == "GlobalAveragePool":
        b.add(kind, [x], (channels, 1, 1))
    elif kind == "ReduceMean":
        b.add(kind, [x], (channels, 1, 1), axes=b.draw(st.sampled_from([[2, 3], [-1, -2]])))
    elif min(height, width) >= 2:
        pads = [b.draw(st.integers(0, 1)) for _ in range(4)]
        size = (channels, height + pads[0] + pads[2] - 1, width + pads[1] + pads[3] - 1)
        attrs = {"count_include_pad": b.draw(st.integers(0, 1))} if kind == "AveragePool" else {}
        b.add(kind, [x], size, kernel_shape=[2, 2], pads=pads, **attrs)


def padding(b: Builder) -> None:
    x, (channels, height, width) = b.any()
    top, left, bottom, right = (b.draw(st.integers(0, 2)) for _ in range(4))
    pads = b.integers([0, 0, top, left, 0, 0, bottom, right])
    inputs = [x, pads]
    if b.draw(st.booleans()):
        b.weights[value := b.name("value")] = np.float32(b.draw(st.sampled_from([0.0, 1.0])))
        inputs.append(value)
    mode = b.draw(st.sampled_from(["constant", "constant", "edge"]))
    b.add(
        "Pad",
        inputs if mode == "constant" else inputs[:2],
        (channels, height + top + bottom, width + left + right),
        mode=mode,
    )


def movement(b: Builder) -> None:
    """Shape-only operators that come back to where they began, and some that compute the way."""
    x, (channels, height, width) = b.any()
    size = (channels, height, width)
    kind = b.draw(st.sampled_from(["flatten", "shape", "squeeze", "expand", "cast", "tile", "wide"]))
    if kind == "flatten":
        b.add("Reshape", [b.add("Flatten", [x]), b.integers([-1, *size])], size)
    elif kind == "shape":
        batch = b.add("Slice", [b.add("Shape", [x]), b.integers([0]), b.integers([1])])
        target = b.add("Concat", [batch, b.integers([channels, height * width])], axis=0)
        flat = b.add("Reshape", [x, target])
        whole = b.add("Concat", [batch, b.integers(size)], axis=0)
        b.add("Reshape", [b.add("Relu", [flat]) if b.draw(st.booleans()) else flat, whole], size)
    elif kind == "squeeze":
        axes = b.integers([2])
        b.add("Squeeze", [b.add("Unsqueeze", [x, axes]), axes], size)
    elif kind == "expand":
        b.add("Expand", [x, b.integers([1, 1, height, width])], size)
    elif kind == "cast":
        b.add("Cast", [b.add("Cast", [x], to=onnx.TensorProto.DOUBLE)], size, to=onnx.TensorProto.FLOAT)
    elif kind == "tile":
        b.add("Tile", [x, b.integers([1, 2, 1, 1])], (2 * channels, height, width))
    elif width % 2 == 0:
        wide = b.add("Reshape", [x, b.integers([0, 0, height, width // 2, 2])])
        b.add("Reshape", [wide, b.integers([0, 0, -1, 1])], (channels, height * width, 1))


def head(b: Builder) -> None:
    """A flattened end: Gemm, or MatMul with Add."""
    x, (channels, height, width) = b.any()
    count = channels * height * width
    if count > 400:
        return
    flat = b.add("Flatten", [x])
    if b.draw(st.booleans()):
        name = b.add("Gemm", [flat, b.weight(3, count), b.weight(3)], transB=1)
    else:
        name = b.add("Add", [b.add("MatMul", [flat, b.weight(count, 3)]), b.weight(3)])
    b.flat[name] = 3


STEPS = (
    conv, conv, conv, normalization, activation, activation, arithmetic, arithmetic, join, join, split, shuffle,
    transposes, pooling, padding, movement, conv_transpose, head,
)  # fmt: skip


def random_graph(draw: Draw, steps: int) -> onnx.ModelProto:
    """A valid model of about so many layers, with one to three outputs and whatever is left over unread.

    Height and width are declared open now and then, though sizes inside may demand those that ``random_feed`` gives.
    """
    builder = Builder(draw, draw(st.sampled_from([13, 15, 17])))
    builder.sizes["x"] = (draw(st.sampled_from([1, 2, 4, 6])), draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    channels, height, width = builder.sizes["x"]
    for _ in range(steps):
        draw(st.sampled_from(STEPS))(builder)
    made = [name for name in (*builder.sizes, *builder.flat) if name != "x"]
    if not made:
        made = [builder.add("Relu", ["x"], builder.sizes["x"])]
    chosen = dict.fromkeys([made[-1], *(draw(st.sampled_from(made)) for _ in range(draw(st.integers(0, 2))))])
    declared = ["H", "W"] if draw(st.integers(0, 3)) == 3 else [height, width]
    fed = onnx.StringStringEntryProto(key="sizes", value=f"{height},{width}")
    shapes = {name: ["N", *(builder.sizes.get(name) or (builder.flat[name],))] for name in chosen}
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(
        builder.nodes,
        "random",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", channels, *declared])],
        outputs,
        [numpy_helper.from_array(np.asarray(values), name) for name, values in builder.weights.items()],
    )
    imports = [helper.make_opsetid("", builder.opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    model.metadata_props.append(fed)
    return model


def random_feed(model: onnx.ModelProto, batch: int) -> Mapping[str, np.ndarray[Any, Any]]:
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    dims = [batch, channels, *map(int, model.metadata_props[0].value.split(","))]
    return {"x": np.random.default_rng(batch).normal(size=dims).astype(np.float32)}
