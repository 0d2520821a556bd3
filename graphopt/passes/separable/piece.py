"""A convolution alone, with what the runtime merges into it, as it is and in each separable form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt.errors import UnsupportedModelError
from graphopt.graph import infer_types
from graphopt.passes.separable.factors import Factors, Form, Geometry
from graphopt.passes.separable.write import Layout, write

# Per-channel scales need 13; no operator used here changed since. ONNX Runtime's time does not depend on it.
OPSET, IR_VERSION = 17, 8


@dataclass(frozen=True)
class Piece:
    """A convolution and what ONNX Runtime merges into it.

    Attributes:
        node: a Conv or ConvTranspose; of it the operator and the attributes count.
        weight: shape of its weights.
        bias: whether it has a bias.
        input: shape of what it reads.
        residual: whether its output goes straight into an Add with a tensor of its shape.
        activation: whether a Relu or Clip follows, after the Add if there is one.
    """

    node: onnx.NodeProto
    weight: tuple[int, ...]
    bias: bool
    input: tuple[int, ...]
    residual: bool = False
    activation: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What decides its time."""
        given = sorted(self.node.attribute, key=lambda each: each.name)
        attributes = tuple(each.SerializeToString(deterministic=True) for each in given)
        sizes = self.weight, self.bias, self.input, self.residual, self.activation
        return self.node.op_type, attributes, *sizes


def alone(piece: Piece) -> onnx.ModelProto:
    """Return a model of just a piece, with random weights; the convolution writes ``y``.

    Raises:
        UnsupportedModelError: the sizes do not fit each other.
    """
    rng = np.random.default_rng(0)
    node = onnx.NodeProto(op_type=piece.node.op_type, name="piece", attribute=piece.node.attribute)
    node.input.extend(["x", "w", "b"][: 3 if piece.bias else 2])
    node.output.append("y")
    constants = [numpy_helper.from_array(rng.standard_normal(piece.weight, dtype=np.float32), "w")]
    if piece.bias:
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        filters = piece.weight[0] if node.op_type == "Conv" else piece.weight[1] * groups
        constants.append(numpy_helper.from_array(rng.standard_normal(filters, dtype=np.float32), "b"))
    model = model_of([node], {"x": piece.input}, "y", constants)
    shape = known_shapes(model).get("y")
    if shape is None:
        raise UnsupportedModelError(f"the sizes of {piece.node.name or piece.node.output[0]} do not fit each other")
    nodes, inputs = [node], {"x": piece.input}
    if piece.residual:
        nodes.append(helper.make_node("Add", [nodes[-1].output[0], "other"], ["sum"]))
        inputs["other"] = shape
    if piece.activation:
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["activated"]))
    return model_of(nodes, inputs, nodes[-1].output[0], constants)


def separated_alone(piece: Piece, geometry: Geometry, form: Form, rank: int, layout: Layout) -> onnx.ModelProto:
    """Return a model of just a piece in a form, with random weights."""
    return write(alone(piece), {"y": some_factors(geometry, form, rank)}, {"y": layout})


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, ...]],
    output: str,
    constants: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    """Return a small model of nodes, with inputs of known shapes and one output."""
    graph = helper.make_graph(
        nodes,
        "piece",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        initializer=constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def some_factors(geometry: Geometry, form: Form, rank: int) -> Factors:
    """Random factors of a form: their sizes decide the time."""
    rng = np.random.default_rng(0)
    groups, channels, filters = geometry.groups, geometry.channels, geometry.filters
    head = geometry.kernel[0]
    first, second = {
        "depthwise_first": ((channels, geometry.taps), (channels, filters)),
        "pointwise_first": ((channels, filters), (filters, geometry.taps)),
        "spatial": ((channels, head), (filters, geometry.taps // head)),
    }[form]
    return Factors(
        form,
        geometry,
        rng.standard_normal((groups, rank, *first), dtype=np.float32),
        rng.standard_normal((groups, rank, *second), dtype=np.float32),
    )


def known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose sizes are all known."""
    known: dict[str, tuple[int, ...]] = {}
    for name, found in infer_types(model).items():
        sizes = [size for size in found.shape or () if isinstance(size, int)]
        if found.shape is not None and len(sizes) == len(found.shape):
            known[name] = tuple(sizes)
    return known
