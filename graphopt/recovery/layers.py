"""Which parts of a net are linear in constant weights, and their weights in one common form.

Every such layer computes, at each position of its output, ``x @ W + b``: ``x`` holds the values that a filter sees
there. In the common form the weights are [groups, inputs of a filter, filters of a group], whatever the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.recovery.net import Net

Array: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = Literal["convolution", "transposed", "gemm", "matmul", "normalization"]


@dataclass(frozen=True)
class Layer:
    """A node that is linear in constants, with the Add of its bias.

    Attributes:
        name: the tensor it writes; also names the layer.
        kind: how its positions are laid out.
        step: the step of the net that holds the node.
        bias_step: the step that adds the bias, where that is another node.
        input: the tensor it reads.
        groups: number of groups.
        unknowns: inputs of a filter (channels of a group times taps).
        outputs: filters in all.
    """

    name: str
    kind: Kind
    step: int
    bias_step: int | None
    input: str
    groups: int
    unknowns: int
    outputs: int

    @property
    def channel_axis(self) -> int:
        """Axis of the output that holds the filters."""
        return -1 if self.kind in ("gemm", "matmul") else 1


@dataclass(frozen=True)
class Weights:
    """Weights in the common form: ``matrix`` [groups, unknowns, filters of a group], ``bias`` [filters], float32."""

    matrix: Array
    bias: Array


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values."""
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def find_layers(net: Net) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Find the layers of a net in the order of its steps.

    Returns:
        the layers, and for nodes that are of the right operator but cannot be refitted: output tensor -> why.
    """
    layers: list[Layer] = []
    refused: dict[str, str] = {}
    uses: dict[int, int] = {}
    for number, (node,) in enumerate(net.steps):
        if node.domain not in ("", "ai.onnx"):
            continue
        found = _layer(net, number, node)
        if isinstance(found, str):
            refused[node.output[0]] = found
        elif found is not None:
            layers.append(found)
            if found.kind != "normalization":
                weight = id(net.constants[node.input[1]])
                uses[weight] = uses.get(weight, 0) + 1
    for layer in list(layers):
        name = net.steps[layer.step][0].input[1]
        count = uses.get(id(net.constants[name]), 1)
        # A copy of a normalization's few numbers costs nothing; one of a matrix would make the model larger.
        if count > 1 and layer.kind != "normalization":
            refused[layer.name] = f"its weights '{name}' are those of {count} layers"
            layers.remove(layer)
    return tuple(layers), refused


def _layer(net: Net, number: int, node: onnx.NodeProto) -> Layer | str | None:
    """The layer that a node makes, why it is none, or None where it is of another kind altogether."""
    overridable = [name for name in node.input[1:] if name in net.overridable]
    if overridable and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"):
        return f"a caller may feed '{overridable[0]}'"
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(net, number, node)
    if node.op_type in ("Gemm", "MatMul"):
        return _matrix(net, number, node)
    if node.op_type == "BatchNormalization":
        return _normalization(net, number, node)
    return None


def _convolution(net: Net, number: int, node: onnx.NodeProto) -> Layer | str:
    if node.input[1] not in net.constants:
        return "its weights are computed"
    if len(node.input) > 2 and node.input[2] and node.input[2] not in net.constants:
        return "its bias is computed"
    shape = tuple(net.constants[node.input[1]].dims)
    groups = int(attributes(node).get("group", 1))
    taps = int(np.prod(shape[2:]))
    name, data = node.output[0], node.input[0]
    if node.op_type == "Conv":
        return Layer(name, "convolution", number, None, data, groups, shape[1] * taps, shape[0])
    return Layer(name, "transposed", number, None, data, groups, shape[0] // groups * taps, shape[1] * groups)


def _matrix(net: Net, number: int, node: onnx.NodeProto) -> Layer | str | None:
    if node.input[1] not in net.constants:
        return None if node.input[0] not in net.constants else "its weights are on the left"
    shape = tuple(net.constants[node.input[1]].dims)
    if len(shape) != 2:
        return "its weights are not a matrix"
    if node.op_type == "Gemm":
        if len(node.input) > 2 and node.input[2]:
            bias = net.constants.get(node.input[2])
            if bias is None:
                return "its bias is computed"
            if np.prod(bias.dims, dtype=int) not in (1, bias.dims[-1] if bias.dims else 1):
                return "its bias differs from row to row"
        inputs, outputs = reversed(shape) if attributes(node).get("transB", 0) else shape
        return Layer(node.output[0], "gemm", number, None, node.input[0], 1, inputs, outputs)
    added = _added_bias(net, node.output[0], shape[1])
    name = node.output[0] if added is None else net.steps[added][0].output[0]
    return Layer(name, "matmul", number, added, node.input[0], 1, *shape)


def _added_bias(net: Net, tensor: str, width: int) -> int | None:
    """The step that adds a constant vector to the tensor, where nothing else reads the tensor."""
    readers = net.readers.get(tensor, ())
    if len(readers) != 1 or tensor in net.outputs:
        return None
    (node,) = net.steps[readers[0]]
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or node.input[0] == node.input[1]:
        return None
    other = net.constants.get(node.input[1] if node.input[0] == tensor else node.input[0])
    if other is None or not other.dims or other.dims[-1] != width or np.prod(other.dims) != width:
        return None
    return readers[0]


def _normalization(net: Net, number: int, node: onnx.NodeProto) -> Layer | str | None:
    given = attributes(node)
    if any(name not in net.constants for name in node.input[1:5]):
        return "its parameters are computed"
    if given.get("training_mode", 0) or not given.get("spatial", 1) or sum(1 for name in node.output if name) > 1:
        return "it computes statistics of its own"
    channels = int(net.constants[node.input[1]].dims[0])
    return Layer(node.output[0], "normalization", number, None, node.input[0], channels, 1, channels)


def read_weights(net: Net, layer: Layer) -> Weights:
    """Read the weights of a layer into the common form."""
    node = net.steps[layer.step][0]
    if layer.kind == "normalization":
        scale, shift = affine(net, node)
        return Weights(scale.reshape(-1, 1, 1), shift)
    values = net.values(node.input[1]).astype(np.float32)
    zeros = np.zeros(layer.outputs, dtype=np.float32)
    if layer.kind == "matmul":
        bias = zeros
        if layer.bias_step is not None:
            adder = net.steps[layer.bias_step][0]
            bias = net.values(adder.input[1 if adder.input[0] == node.output[0] else 0]).astype(np.float32).reshape(-1)
        return Weights(values[None], bias)
    given = attributes(node)
    bias = net.values(node.input[2]).astype(np.float32) if len(node.input) > 2 and node.input[2] else zeros
    if layer.kind == "gemm":
        matrix = values.T if given.get("transB", 0) else values
        bias = np.broadcast_to(bias.reshape(-1), zeros.shape) * np.float32(given.get("beta", 1.0))
        return Weights((matrix * np.float32(given.get("alpha", 1.0)))[None], bias)
    if layer.kind == "convolution":  # [filters, channels of a group, taps] -> [groups, taps and channels, filters]
        split = values.reshape(layer.groups, layer.outputs // layer.groups, values.shape[1], -1)
        return Weights(split.transpose(0, 3, 2, 1).reshape(layer.groups, layer.unknowns, -1), bias)
    split = values.reshape(layer.groups, values.shape[0] // layer.groups, values.shape[1], -1)
    return Weights(split.transpose(0, 3, 1, 2).reshape(layer.groups, layer.unknowns, -1), bias)


def write_weights(net: Net, layer: Layer, weights: Weights) -> None:
    """Give a layer other weights; it keeps its name, and the constants it read before stay as they were."""
    node = onnx.NodeProto()
    node.CopyFrom(net.steps[layer.step][0])
    if layer.kind == "normalization":
        _write_normalization(net, node, weights)
        net.replace(layer.step, [node])
        return
    old = net.values(node.input[1])
    bias = weights.bias.astype(old.dtype)
    if layer.kind == "matmul":
        node.input[1] = net.add_constant(f"{node.input[1]}_refit", weights.matrix[0].astype(old.dtype))
        _write_added_bias(net, layer, node, bias)
        return
    named = node.input[2] if len(node.input) > 2 and node.input[2] else f"{layer.name}_bias"
    node.input[1] = net.add_constant(
        f"{node.input[1]}_refit", _unfold(layer, node, weights, old.shape).astype(old.dtype)
    )
    del node.input[2:]
    node.input.append(net.add_constant(f"{named}_refit", bias))
    for attribute in [each for each in node.attribute if each.name in ("alpha", "beta")]:
        node.attribute.remove(attribute)
    net.replace(layer.step, [node])


def _unfold(layer: Layer, node: onnx.NodeProto, weights: Weights, shape: tuple[int, ...]) -> Array:
    if layer.kind == "gemm":
        matrix: Array = weights.matrix[0]
        return matrix.T if attributes(node).get("transB", 0) else matrix
    taps, filters = int(np.prod(shape[2:])), layer.outputs // layer.groups
    split = weights.matrix.reshape(layer.groups, taps, -1, filters)
    order = (0, 3, 2, 1) if layer.kind == "convolution" else (0, 2, 3, 1)
    return split.transpose(order).reshape(shape)


def _write_added_bias(net: Net, layer: Layer, node: onnx.NodeProto, bias: Array) -> None:
    if layer.bias_step is not None:
        adder = onnx.NodeProto()
        adder.CopyFrom(net.steps[layer.bias_step][0])
        slot = 1 if adder.input[0] == node.output[0] else 0
        adder.input[slot] = net.add_constant(f"{adder.input[slot]}_refit", bias)
        net.replace(layer.step, [node])
        net.replace(layer.bias_step, [adder])
        return
    inner = net.fresh_name(f"{layer.name}_product")
    node.output[0] = inner
    added = net.add_constant(f"{layer.name}_bias_refit", bias)
    adder = onnx.helper.make_node("Add", [inner, added], [layer.name], name=net.fresh_name(f"{node.name}_bias"))
    net.replace(layer.step, [node, adder])


def affine(net: Net, node: onnx.NodeProto) -> tuple[Array, Array]:
    """What a BatchNormalization multiplies each channel by, and what it adds then."""
    scale, shift, mean, variance = (net.values(name).astype(np.float64) for name in node.input[1:5])
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    return factor.astype(np.float32), (shift - mean * factor).astype(np.float32)


def _write_normalization(net: Net, node: onnx.NodeProto, weights: Weights) -> None:
    old = net.values(node.input[1])
    mean, variance = (net.values(name).astype(np.float64) for name in node.input[3:5])
    factor = weights.matrix.reshape(-1).astype(np.float64)
    scale = factor * np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    node.input[1] = net.add_constant(f"{node.input[1]}_refit", scale.astype(old.dtype))
    node.input[2] = net.add_constant(f"{node.input[2]}_refit", (weights.bias + mean * factor).astype(old.dtype))
