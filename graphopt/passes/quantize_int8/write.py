"""Write a Q/DQ graph: which tensors are quantized follows from which units run in int8.

::

    before   x -> Conv -> Relu -> y
    after    x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> y       (weights and bias behind a DQ of their own)

A tensor is quantized where a unit in int8 reads it, or where a unit in int8 makes it and needs an integer output to be
replaced by ONNX Runtime. The dequantized tensor of a unit in int8 keeps the tensor's name, so that graph outputs and
subgraphs read the same name as before; a tensor from a unit in float keeps its name itself, and only readers in int8
are moved to the dequantized one.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.model.fresh import fresh
from graphopt.passes.quantize_int8 import hard_swish
from graphopt.passes.quantize_int8.naming import constant
from graphopt.passes.quantize_int8.numbers import quantize_bias
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.units import FLOAT_DOMAINS, Role, Unit, Units
from graphopt.passes.quantize_int8.weights import quantized_weight, unit_bias
from graphopt.targets.schema import Int8Rules


def write(
    model: onnx.ModelProto, units: Units, placement: Placement, rules: Int8Rules, *, mark: str = ""
) -> onnx.ModelProto:
    """Return a copy of ``model`` with Q/DQ nodes as ``placement`` says; ``model`` is left as it is.

    With ``mark`` the node of every unit is renamed to it and the unit's index, to be found again in another graph.
    """
    writer = _Writer(units, placement, rules, names_of(model.graph), mark)
    for name in units.graph_inputs:
        if name in placement.parameters:
            writer.quantize(name, name)
    for unit in units.all:
        writer.emit(unit)
    return assembled(model, _read(writer.nodes, model), writer.initializers)


def _read(nodes: list[onnx.NodeProto], model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Leave out what nothing reads: where all readers are in float, each may have a DequantizeLinear of its own."""
    read = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    read |= _read_in_subgraphs(nodes)
    return [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in read]


def assembled(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]
) -> onnx.ModelProto:
    """Return a model like ``model`` with other nodes, those of its initializers that they read, and new ones."""
    graph = model.graph
    result = onnx.ModelProto()
    result.CopyFrom(onnx.ModelProto(ir_version=model.ir_version))
    for field in model.DESCRIPTOR.fields:
        if field.name != "graph" and (field.is_repeated or model.HasField(field.name)):
            if field.is_repeated:
                getattr(result, field.name).extend(getattr(model, field.name))
            elif field.message_type is None:
                setattr(result, field.name, getattr(model, field.name))
            else:
                getattr(result, field.name).CopyFrom(getattr(model, field.name))
    target = result.graph
    target.name, target.doc_string = graph.name, graph.doc_string
    target.input.extend(graph.input)
    target.output.extend(graph.output)
    target.metadata_props.extend(graph.metadata_props)
    target.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    used |= _read_in_subgraphs(nodes)
    target.initializer.extend(tensor for tensor in graph.initializer if tensor.name in used)
    target.initializer.extend(initializers)
    made = {name for node in nodes for name in node.output}
    target.value_info.extend(value for value in graph.value_info if value.name in made)
    return result


class _Writer:
    """Emits nodes in graph order; holds what has been written so far."""

    def __init__(self, units: Units, placement: Placement, rules: Int8Rules, names: set[str], mark: str) -> None:
        self.mark = mark
        self.units = units
        self.placement = placement
        self.rules = rules
        self.names = names
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._dequantized: dict[str, str] = {}
        self._quantized: dict[str, str] = {}
        self._weights: dict[tuple[str, int, bytes], str] = {}

    def emit(self, unit: Unit) -> None:
        """Write one unit, with the quantizers of its weights before it and of its outputs after it."""
        in_int8 = unit.index in self.placement.int8
        nodes = [onnx.NodeProto() for _ in unit.nodes]
        for copy, original in zip(nodes, unit.nodes, strict=True):
            copy.CopyFrom(original)
        if self.mark:
            nodes[0].name = f"{self.mark}{unit.index}"
        if not in_int8:
            self._keep_in_float(unit, nodes[0])
        if in_int8:
            for position, name in enumerate(nodes[0].input):
                if name in unit.inputs and name in self._dequantized:
                    nodes[0].input[position] = self._dequantized[name]
            if unit.role is Role.HEAVY:
                self._quantize_constants(unit, nodes[0])
            elif unit.node.op_type == "HardSwish":
                self._gate(unit, nodes[0])
        renamed: dict[str, str] = {}
        for name in unit.outputs:
            if name in self.placement.parameters and in_int8:
                renamed[name] = fresh(self.names, f"{name}_float")
        last = nodes[-1]
        for position, name in enumerate(last.output):
            last.output[position] = renamed.get(name, name)
        self.nodes.extend(nodes)
        for name in unit.outputs:
            if name in self.placement.parameters:
                self.quantize(name, renamed.get(name, name))

    def quantize(self, name: str, source: str) -> None:
        """Write Q and DQ for tensor ``name``, whose float form is called ``source``."""
        parameters = self.placement.parameters[name]
        scale = constant(self.names, self.initializers, f"{name}_scale", np.array(parameters.scale, np.float32))
        zero_point = constant(self.names, self.initializers, f"{name}_zero_point", parameters.zero_point_array)
        quantized = fresh(self.names, f"{name}_quantized")
        dequantized = name if source != name else fresh(self.names, f"{name}_dequantized")
        self._node("QuantizeLinear", [source, scale, zero_point], quantized)
        self._node("DequantizeLinear", [quantized, scale, zero_point], dequantized)
        self._dequantized[name] = dequantized
        self._quantized[name] = quantized

    def _keep_in_float(self, unit: Unit, node: onnx.NodeProto) -> None:
        """Give a layer in float that reads a tensor from int8 a DequantizeLinear of its own, its scale by channel.

        Between DequantizeLinear and QuantizeLinear of one scale, ONNX Runtime (WeightBiasQuantization, since 1.21)
        rounds a layer's weights itself, to one scale for all channels, and runs it in int8: what was left in float for
        speed or accuracy would be neither. A scale for each channel, all the same, says the same and keeps it away.
        """
        channels = _input_channels(unit, self.units)
        name = unit.node.input[0] if unit.node.input else ""
        if not channels or self._dequantized.get(name) != name:
            return
        parameters = self.placement.parameters[name]
        zero_point = parameters.zero_point_array
        inputs = [
            self._quantized[name],
            constant(self.names, self.initializers, f"{name}_scale", np.full(channels, parameters.scale, np.float32)),
            constant(
                self.names, self.initializers, f"{name}_zero_point", np.full(channels, zero_point, zero_point.dtype)
            ),
        ]
        own = fresh(self.names, f"{name}_dequantized")
        self._node("DequantizeLinear", inputs, own).attribute.append(onnx.helper.make_attribute("axis", 1))
        node.input[0] = own

    def _gate(self, unit: Unit, node: onnx.NodeProto) -> None:
        """Make a HardSwish the product of its input and its gate, where the input's integers can tell the gate."""
        name = unit.inputs[0]
        parameters = self.placement.parameters[name]
        gate = hard_swish.gate(parameters)
        if gate is None:
            return
        inputs = [
            self._quantized[name],
            constant(self.names, self.initializers, f"{name}_gate_low", np.array(gate.low, parameters.dtype)),
            constant(self.names, self.initializers, f"{name}_gate_high", np.array(gate.high, parameters.dtype)),
        ]
        clipped = fresh(self.names, f"{name}_gate_quantized")
        self._node("Clip", inputs, clipped)
        scale = constant(self.names, self.initializers, f"{name}_gate_scale", np.array(gate.scale, np.float32))
        zero_point = constant(
            self.names, self.initializers, f"{name}_gate_zero_point", np.array(gate.low, parameters.dtype)
        )
        opened = fresh(self.names, f"{name}_gate")
        self._node("DequantizeLinear", [clipped, scale, zero_point], opened)
        node.op_type = "Mul"
        node.input.append(opened)

    def _quantize_constants(self, unit: Unit, node: onnx.NodeProto) -> None:
        original = unit.node
        if len(original.input) < 2 or original.input[1] not in self.units.constants:
            return
        weight_name = original.input[1]
        input_scale = self.placement.parameters[unit.inputs[0]].scale
        bias = unit_bias(unit, self.units)
        corrected = self.placement.bias.get(unit.index)
        if corrected is not None:
            bias = corrected
        weight = self.placement.weights.get(unit.index) or quantized_weight(
            unit, self.units, self.rules, input_scale, bias
        )
        # Scale and axis decide the integers, so that layers which share weights share these too.
        key = (weight_name, weight.axis, weight.scale.tobytes())
        if key not in self._weights:
            self._weights[key] = self._dequantize(weight_name, weight.integers, weight.scale, weight.axis)
        node.input[1] = self._weights[key]
        if bias is None:
            return
        if original.op_type == "MatMul":
            raise ValueError(f"MatMul '{unit.name}' cannot take a bias")
        integers, scale = quantize_bias(bias, input_scale, weight.scale)
        bias_name = original.input[2] if len(original.input) > 2 and original.input[2] else f"{weight_name}_bias"
        dequantized = self._dequantize(bias_name, integers, scale, 0)
        if len(node.input) > 2:
            node.input[2] = dequantized
        else:
            node.input.append(dequantized)

    def _dequantize(
        self,
        name: str,
        integers: npt.NDArray[np.int8] | npt.NDArray[np.int32],
        scale: npt.NDArray[np.float32],
        axis: int,
    ) -> str:
        inputs = [
            constant(self.names, self.initializers, f"{name}_quantized", integers),
            constant(self.names, self.initializers, f"{name}_scale", scale),
            constant(self.names, self.initializers, f"{name}_zero_point", np.zeros(scale.shape, integers.dtype)),
        ]
        output = fresh(self.names, f"{name}_dequantized")
        node = self._node("DequantizeLinear", inputs, output)
        if scale.ndim:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        return output

    def _node(self, operator: str, inputs: list[str], output: str) -> onnx.NodeProto:
        node = onnx.helper.make_node(operator, inputs, [output], name=fresh(self.names, f"{output}_{operator}"))
        self.nodes.append(node)
        return node


def _input_channels(unit: Unit, units: Units) -> int:
    """Return the channels (axis 1 of the input) of a layer with constant weights that has an int8 form; else 0."""
    node = unit.node
    weight = units.constants.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None or node.domain not in FLOAT_DOMAINS:
        return 0
    attributes = {found.name: int(found.i) for found in node.attribute if found.name in ("group", "transA", "transB")}
    if node.op_type == "Conv":
        return int(weight.dims[1]) * attributes.get("group", 1)
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    if node.op_type == "Gemm" and not attributes.get("transA", 0):
        return int(weight.dims[1 if attributes.get("transB", 0) else 0])
    return 0


def names_of(graph: onnx.GraphProto) -> set[str]:
    """Return every name that the graph uses, inside its subgraphs too."""
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    for node in graph.node:
        names.update(node.input)
        names.update(node.output)
        names.add(node.name)
    return names | _read_in_subgraphs(graph.node)


def _read_in_subgraphs(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    names: set[str] = set()
    pending = [attribute for node in nodes for attribute in node.attribute]
    while pending:
        attribute = pending.pop()
        bodies = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
        for body in bodies:
            names.update(tensor.name for tensor in body.initializer)
            names.update(value.name for value in (*body.input, *body.output))
            for node in body.node:
                names.update((*node.input, *node.output))
                pending.extend(node.attribute)
    return names
