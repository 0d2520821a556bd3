"""Cut a graph into units: the smallest pieces that run in one precision.

A unit is one node, or a heavy node with the Relu or Clip after it, which int8 absorbs into the range of its output.
Each unit has a role that says how int8 treats it, or a reason why it must stay in float. Operator facts are ONNX
Runtime's: which DQ -> operator -> Q groups its CPU provider replaces (onnxruntime, qdq_selector_action_transformer).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx
from onnx import numpy_helper

FLOAT_DOMAINS = ("", "ai.onnx")


class Role(Enum):
    """How int8 treats a unit."""

    HEAVY = "heavy"  # Conv, Gemm, MatMul with constant weights: what int8 is for
    ELEMENTWISE = "elementwise"  # has an int8 form of its own, with a range of its own for every tensor
    CONCAT = "concat"  # moves data; may requantize
    MOVEMENT = "movement"  # moves or picks data: output has the input's quantization
    FLOAT = "float"  # stays in float


# Data movement and selection: operator -> data inputs. The output's values are a subset of the input's.
MOVEMENT = {
    "DepthToSpace": 1,
    "Expand": 1,
    "Flatten": 1,
    "Gather": 1,
    "MaxPool": 1,
    "Reshape": 1,
    "Resize": 1,
    "Slice": 1,
    "Split": 1,
    "Squeeze": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}
ELEMENTWISE = {
    "Add": 2,
    "AveragePool": 1,
    "GlobalAveragePool": 1,
    "HardSwish": 1,  # written as a Clip and a Mul (hard_swish.py)
    "LeakyRelu": 1,
    "Mul": 2,
    "Sigmoid": 1,
}
HEAVY = {"Conv": 1, "Gemm": 1, "MatMul": 2}
ABSORBED = ("Relu", "Clip")
QUANTIZED_ALREADY = "what it reads is quantized already"


@dataclass(frozen=True)
class Unit:
    """One piece that runs in one precision.

    Attributes:
        index: position in the order of the graph.
        node: the node that gives the unit its name and role.
        activation: the Relu or Clip that int8 absorbs, if any.
        role: how int8 treats it.
        inputs: activation tensors that it reads and int8 would quantize.
        outputs: tensors that it gives to others.
        reason: for a FLOAT unit that one might expect in int8, why it cannot be; else empty.
    """

    index: int
    node: onnx.NodeProto
    activation: onnx.NodeProto | None
    role: Role
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reason: str = ""

    @property
    def name(self) -> str:
        """Name for reports: the node's, or its operator and output where it has none."""
        return self.node.name or f"{self.node.op_type}({self.node.output[0]})"

    @property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """The unit's nodes in order."""
        return (self.node,) if self.activation is None else (self.node, self.activation)


@dataclass(frozen=True)
class Units:
    """The units of a graph and who reads whom.

    Attributes:
        all: units in graph order.
        producer: tensor name -> index of the unit that makes it; graph inputs and initializers are absent.
        consumers: tensor name -> indexes of the units that read it, through any of their inputs.
        constants: initializers by name (with their data).
        graph_outputs: names of the graph's outputs.
        graph_inputs: names of the graph's inputs that must be fed.
    """

    all: tuple[Unit, ...]
    producer: Mapping[str, int]
    consumers: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, onnx.TensorProto]
    graph_outputs: frozenset[str]
    graph_inputs: tuple[str, ...]


def find_units(model: onnx.ModelProto, dtypes: Mapping[str, int] | None = None) -> Units:
    """Cut the main graph of ``model`` into units.

    Args:
        model: float model, opset 13 or later, sorted.
        dtypes: element type (TensorProto code) by tensor name where known; non-float tensors keep units in float.
    """
    graph = model.graph
    # An initializer that is listed as an input too is a default that callers may override (ONNX IR spec, since IR 4).
    inputs = {value.name for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    graph_outputs = frozenset(value.name for value in graph.output)
    readers: dict[str, list[onnx.NodeProto]] = {}
    captured: set[str] = set()
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
        captured |= _captured(node)
    absorbed: dict[int, onnx.NodeProto] = {}
    taken: set[int] = set()
    for node in graph.node:
        following = readers.get(node.output[0], []) if node.output else []
        if (
            node.op_type in ("Conv", "Add", "Gemm", "MatMul")
            and len(following) == 1
            and following[0].op_type in ABSORBED
            and following[0].domain in FLOAT_DOMAINS
            and node.output[0] not in graph_outputs
            and node.output[0] not in captured
            and _clips_at_constants(following[0], constants)
        ):
            absorbed[id(node)] = following[0]
            taken.add(id(following[0]))
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    units: list[Unit] = []
    for node in graph.node:
        if id(node) not in taken:
            units.append(_unit(len(units), node, absorbed.get(id(node)), constants, dequantized, dtypes or {}))
    producer = {name: unit.index for unit in units for name in unit.outputs}
    consumers: dict[str, list[int]] = {}
    for unit in units:
        names = dict.fromkeys(name for node in unit.nodes for name in (*node.input, *_captured(node)) if name)
        for name in names:
            consumers.setdefault(name, []).append(unit.index)
    return Units(
        tuple(units),
        producer,
        {name: tuple(found) for name, found in consumers.items()},
        constants,
        graph_outputs,
        tuple(value.name for value in graph.input if value.name not in constants),
    )


def _unit(
    index: int,
    node: onnx.NodeProto,
    activation: onnx.NodeProto | None,
    constants: Mapping[str, onnx.TensorProto],
    dequantized: Container[str],
    dtypes: Mapping[str, int],
) -> Unit:
    outputs = tuple(name for name in (activation or node).output if name)
    role = Role.FLOAT
    inputs: tuple[str, ...] = ()
    reason = ""
    operator = node.op_type
    if node.domain not in FLOAT_DOMAINS:
        return Unit(index, node, activation, role, inputs, outputs)
    if operator in HEAVY:
        role, inputs = Role.HEAVY, tuple(name for name in node.input[: HEAVY[operator]] if name not in constants)
        reason = _why_not_heavy(node, constants)
    elif operator == "ConvTranspose":
        reason = "ONNX Runtime's CPU provider has no int8 kernel for ConvTranspose"
    elif operator in ELEMENTWISE:
        role, inputs = Role.ELEMENTWISE, tuple(node.input[: ELEMENTWISE[operator]])
        reason = _why_not_elementwise(node, constants)
    elif operator == "Concat":
        role, inputs = Role.CONCAT, tuple(node.input)
        reason = "one of its inputs is constant" if any(name in constants for name in inputs) else ""
    elif operator in MOVEMENT:
        role, inputs = Role.MOVEMENT, tuple(node.input[: MOVEMENT[operator]])
        reason = _why_not_movement(node, constants)
    if role in (Role.HEAVY, Role.ELEMENTWISE) and any(name in dequantized for name in node.input):
        reason = QUANTIZED_ALREADY
    involved = (*inputs, *outputs)
    if role is not Role.FLOAT and not reason:
        if not inputs:
            reason = "all its inputs are constant"
        elif any(dtypes.get(name, onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT for name in involved):
            reason = "it does not work on float32"
    if reason:
        role = Role.FLOAT
        inputs = ()
    return Unit(index, node, activation, role, inputs, outputs, reason)


def _why_not_heavy(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str:
    if node.op_type == "MatMul":
        if node.input[0] in constants:
            return "its first operand is constant"
        weight = constants.get(node.input[1])
        if weight is not None and len(weight.dims) != 2:
            return "its constant operand is not a matrix"
        if weight is None:
            return ""
        return "" if weight.data_type == onnx.TensorProto.FLOAT else "its weights are not float32"
    if node.input[0] in constants:
        return "its input is constant"
    weight = constants.get(node.input[1])
    if weight is None:
        return "its weights are computed at run time"
    if weight.data_type != onnx.TensorProto.FLOAT:
        return "its weights are not float32"
    if len(node.input) > 2 and node.input[2]:
        bias = constants.get(node.input[2])
        if bias is None:
            return "its bias is computed at run time"
        columns = int(weight.dims[0]) if node.op_type == "Conv" or _integer(node, "transB") else int(weight.dims[1])
        if node.op_type == "Gemm" and (not bias.dims or bias.dims[-1] != columns or np.prod(bias.dims) != columns):
            return "its bias is not one value per output column"
    if node.op_type == "Gemm":
        if _integer(node, "transA"):
            return "it transposes its input"
        if _number(node, "alpha", 1.0) != 1.0 or _number(node, "beta", 1.0) != 1.0:
            return "it scales by alpha or beta"
    return ""


def _why_not_elementwise(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str:
    if any(name in constants for name in node.input[: ELEMENTWISE[node.op_type]]):
        return "one of its operands is constant"
    if node.op_type == "AveragePool" and _integer(node, "ceil_mode"):
        return "it rounds its output size up"
    return ""


def _why_not_movement(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str:
    if node.input[0] in constants:
        return "its input is constant"
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        return "its indices are used"
    if node.op_type == "Resize" and _text(node, "mode", "nearest") == "cubic":
        return "cubic interpolation leaves the range of its input"
    return ""


def _clips_at_constants(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether the activation keeps 0 and cuts at known values, so that a quantized range can stand for it."""
    if node.op_type == "Relu":
        return True
    bounds = [name for name in node.input[1:3] if name]
    if any(name not in constants for name in bounds):
        return False
    low, high = clip_bounds(node, constants)
    return low <= 0.0 <= high and low < high


def clip_bounds(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> tuple[float, float]:
    """Return the interval that a Relu or Clip (opset 11 and later form) cuts to."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [float("-inf"), float("inf")]
    for position in (1, 2):
        if len(node.input) > position and node.input[position]:
            bounds[position - 1] = float(numpy_helper.to_array(constants[node.input[position]]).reshape(()))
    return bounds[0], bounds[1]


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the node's subgraphs read from outside (an over-estimate: every name read anywhere in them)."""
    names: set[str] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        for attribute in current.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                pending.extend(body.node)
                names.update(name for inner in body.node for name in inner.input)
                names.update(value.name for value in body.output)
    return names


def _integer(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((int(found.i) for found in node.attribute if found.name == name), default)


def _number(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((float(found.f) for found in node.attribute if found.name == name), default)


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    return next((found.s.decode() for found in node.attribute if found.name == name), default)
