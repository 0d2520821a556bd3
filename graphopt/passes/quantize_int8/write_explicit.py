"""Write Q/DQ on the inputs of integer operators only, weights included; biases stay in float.

::

    before   x -> Conv(w, b) -> Relu -> y
    after    x -> Q -> DQ -> Conv -> Relu -> y         and   w -> Q -> DQ ──┘

Zero points are written out: without one, QuantizeLinear makes uint8 (ONNX operator spec). Each layer gets Q/DQ of its
own for its weights, also where layers share them: runtimes look for a pair that is read by nobody else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.model.fresh import fresh
from graphopt.passes.quantize_int8.naming import constant
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.units import Role, Unit, Units
from graphopt.passes.quantize_int8.weights import quantized_weight
from graphopt.passes.quantize_int8.write import assembled, names_of
from graphopt.targets.schema import Int8Rules


def write_explicit(
    model: onnx.ModelProto,
    units: Units,
    placement: Placement,
    rules: Int8Rules,
    readers: Mapping[str, Sequence[int]],
    *,
    answers: bool = False,
) -> onnx.ModelProto:
    """Return a copy of ``model`` with Q/DQ on the edges ``readers``; ``model`` is left as it is.

    Args:
        model: float model, opset 13 or later.
        units: its units.
        placement: what runs in int8, and the scale of every tensor in ``readers``.
        rules: how weights are written.
        readers: tensor -> units that read it quantized.
        answers: whether those of them that are outputs of the graph are answered quantized as well.
    """
    writer = _Writer(units, placement, rules, readers, names_of(model.graph), units.graph_outputs if answers else ())
    for name in units.graph_inputs:
        writer.quantize(name)
    for unit in units.all:
        writer.emit(unit)
        for name in unit.outputs:
            writer.quantize(name)
    return assembled(model, writer.nodes, writer.initializers)


class _Writer:
    """Emits nodes in graph order; holds what has been written so far."""

    def __init__(
        self,
        units: Units,
        placement: Placement,
        rules: Int8Rules,
        readers: Mapping[str, Sequence[int]],
        names: set[str],
        answers: Collection[str],
    ) -> None:
        self.units = units
        self.placement = placement
        self.rules = rules
        self.names = names
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._readers = readers
        self._read_by: dict[int, list[str]] = {}
        for name, indexes in readers.items():
            for index in indexes:
                self._read_by.setdefault(index, []).append(name)
        self._dequantized: dict[str, str] = {}
        self._answers = {name for name in answers if name in readers and name in units.producer}

    def emit(self, unit: Unit) -> None:
        """Write one unit, with the Q/DQ of its weights before it."""
        nodes = [onnx.NodeProto() for _ in unit.nodes]
        for copy, original in zip(nodes, unit.nodes, strict=True):
            copy.CopyFrom(original)
        moved = {name: self._dequantized[name] for name in self._read_by.get(unit.index, ())}
        for position, name in enumerate(nodes[0].input):
            nodes[0].input[position] = moved.get(name, name)
        if unit.index in self.placement.int8 and unit.role is Role.HEAVY:
            self._quantize_weights(unit, nodes[0])
        for position, name in enumerate(nodes[-1].output):
            if name in self._answers:
                nodes[-1].output[position] = fresh(self.names, f"{name}_float")
                self._dequantized[name] = nodes[-1].output[position]
        self.nodes.extend(nodes)

    def quantize(self, name: str) -> None:
        """Write Q and DQ after tensor ``name`` where it is read quantized."""
        if name not in self._readers:
            return
        parameters = self.placement.parameters[name]
        scale = constant(self.names, self.initializers, f"{name}_scale", np.array(parameters.scale, np.float32))
        zero_point = constant(self.names, self.initializers, f"{name}_zero_point", parameters.zero_point_array)
        if name in self._answers:
            quantized = self._node("QuantizeLinear", [self._dequantized[name], scale, zero_point], f"{name}_quantized")
            self._node("DequantizeLinear", [quantized, scale, zero_point], name, answer=True)
            self._dequantized[name] = name
            return
        self._dequantized[name] = self._pair(name, scale, zero_point)

    def _quantize_weights(self, unit: Unit, node: onnx.NodeProto) -> None:
        name = unit.node.input[1]
        tensor = self.units.constants.get(name)
        if tensor is None:
            return
        weight = self.placement.weights.get(unit.index) or quantized_weight(
            unit, self.units, self.rules, np.float32(1.0), None
        )
        axis = weight.axis if weight.scale.ndim else None
        scale = constant(self.names, self.initializers, f"{name}_scale", weight.scale)
        zero_point = constant(
            self.names, self.initializers, f"{name}_zero_point", np.zeros(weight.scale.shape, np.int8)
        )
        if self.rules.weight_nodes:
            node.input[1] = self._pair(name, scale, zero_point, axis)
        else:
            integers = constant(self.names, self.initializers, f"{name}_quantized", weight.integers)
            node.input[1] = self._node("DequantizeLinear", [integers, scale, zero_point], f"{name}_dequantized", axis)
        bias = self.placement.bias.get(unit.index)
        if bias is not None and unit.node.op_type != "MatMul":
            self._set_bias(node, name, bias.astype(np.float32))

    def _set_bias(self, node: onnx.NodeProto, weight: str, bias: npt.NDArray[np.float32]) -> None:
        name = node.input[2] if len(node.input) > 2 and node.input[2] else f"{weight}_bias"
        shape = self.units.constants[name].dims if name in self.units.constants else bias.shape
        corrected = constant(self.names, self.initializers, f"{name}_corrected", bias.reshape(tuple(shape)))
        if len(node.input) > 2:
            node.input[2] = corrected
        else:
            node.input.append(corrected)

    def _pair(self, name: str, scale: str, zero_point: str, axis: int | None = None) -> str:
        quantized = self._node("QuantizeLinear", [name, scale, zero_point], f"{name}_quantized", axis)
        return self._node("DequantizeLinear", [quantized, scale, zero_point], f"{name}_dequantized", axis)

    def _node(
        self, operator: str, inputs: list[str], output: str, axis: int | None = None, *, answer: bool = False
    ) -> str:
        output = output if answer else fresh(self.names, output)
        node = onnx.helper.make_node(operator, inputs, [output], name=fresh(self.names, f"{output}_{operator}"))
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        self.nodes.append(node)
        return output
