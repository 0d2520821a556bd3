"""A model as a list of steps that can be run piece by piece and whose layers can be given other weights.

Nothing of the model it was made of is ever written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphopt.model import initializers_are_constants, raise_ir_version
from graphopt.model.fresh import fresh

# What is executed as one: a node, or the nodes that replaced it.
Step = tuple[onnx.NodeProto, ...]


class Net:
    """Nodes in order, and the constants that they read.

    Attributes:
        model: the model it was made of.
        steps: its nodes, in an order in which they can be run; a step may be replaced by ``replace``.
        constants: initializers and the values of Constant nodes, by name; so are copies of them by Identity.
        producer: tensor -> the step that computes it.
        overridable: constants that a caller may replace by feeding them.
        inputs: names of the tensors that a caller feeds.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.steps: list[Step] = [(node,) for node in model.graph.node]
        self.producer: dict[str, int] = {}
        # From IR version 4 on a caller may feed an initializer that is listed as an input (onnx/docs/IR.md, 'Graphs').
        self.overridable = frozenset(
            value.name
            for value in model.graph.input
            if value.name in self.constants and not initializers_are_constants(model)
        )
        self._new: list[onnx.TensorProto] = []
        self._names = set(self.constants) | {value.name for value in model.graph.input}
        for number, (node,) in enumerate(self.steps):
            self._names.update(node.output)
            value = constant_value(node)
            if value is None and node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
                value = self.constants.get(node.input[0])  # exporters write equal tensors once
            if value is not None:
                self.constants[node.output[0]] = value
                continue
            self.producer.update((name, number) for name in node.output if name)
        self.inputs = tuple(value.name for value in model.graph.input if value.name not in self.constants)
        self.outputs = frozenset(value.name for value in model.graph.output)
        self.readers = _readers(self)

    def values(self, name: str) -> npt.NDArray[Any]:
        """Values of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def add_constant(self, prefix: str, values: npt.NDArray[Any]) -> str:
        """Add a constant under a name that no other tensor has, and return the name."""
        name = self.fresh_name(prefix)
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self.constants[name] = tensor
        self._new.append(tensor)
        return name

    def fresh_name(self, prefix: str) -> str:
        """Return a name that nothing has yet."""
        return fresh(self._names, prefix, first=1)

    def replace(self, step: int, nodes: Sequence[onnx.NodeProto]) -> None:
        """Let other nodes compute what the step computes: they must write the same names."""
        self.steps[step] = tuple(nodes)
        for node in nodes:
            self.producer.update((name, step) for name in node.output if name)

    def to_model(self) -> onnx.ModelProto:
        """Write the net as a model; constants that were replaced and that nothing reads any more are left out."""
        model = self._with_all_constants()
        read = set(self.outputs)
        nodes: list[onnx.NodeProto] = []
        for step in reversed(self.steps):
            for node in reversed(step):
                if node.output[0] in self.constants and node.output[0] not in read and node.output[0] in self.readers:
                    continue
                nodes.append(node)
                read.update(reads((node,)))
        model.graph.node.extend(reversed(nodes))
        constants = list(model.graph.initializer)
        del model.graph.initializer[:]
        model.graph.initializer.extend(
            tensor for tensor in constants if tensor.name in read or tensor.name not in self.readers
        )
        return model

    def _with_all_constants(self) -> onnx.ModelProto:
        """The model without its nodes, with the constants of before and the new ones."""
        model = onnx.ModelProto()
        _copy_fields(self.model, model, "graph")
        _copy_fields(self.model.graph, model.graph, "node")
        model.graph.initializer.extend(self._new)
        if self._new:
            raise_ir_version(model, 4)
        return model


def _copy_fields(source: Any, result: Any, left_out: str) -> None:
    """Copy all fields of a protobuf message but one."""
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if field.is_repeated:
            getattr(result, field.name).extend(value)
        elif field.message_type is not None:
            getattr(result, field.name).CopyFrom(value)
        else:
            setattr(result, field.name, value)


def constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node that holds one."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            value = onnx.TensorProto()
            value.CopyFrom(attribute.t)
            value.name = node.output[0]
            return value
    return None


def reads(step: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Names that the nodes read from outside themselves, those that their subgraphs capture included; each once."""
    names: dict[str, None] = {}
    written: set[str] = set()
    for node in step:
        names.update((name, None) for name in node.input if name and name not in written)
        names.update((name, None) for name in _captured(node) if name not in written)
        written.update(node.output)
    return tuple(names)


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that subgraphs of a node may take from outside: all that they read and do not define themselves."""
    pending = [graph for attribute in node.attribute for graph in _graphs(attribute)]
    defined: set[str] = set()
    used: list[str] = []
    while pending:
        graph = pending.pop()
        defined.update(value.name for value in graph.input)
        defined.update(tensor.name for tensor in graph.initializer)
        used.extend(value.name for value in graph.output)
        for inner in graph.node:
            used.extend(inner.input)
            defined.update(inner.output)
            pending.extend(each for attribute in inner.attribute for each in _graphs(attribute))
    yield from (name for name in used if name and name not in defined)


def _graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _readers(net: Net) -> Mapping[str, tuple[int, ...]]:
    readers: dict[str, list[int]] = {}
    for number, step in enumerate(net.steps):
        for name in reads(step):
            readers.setdefault(name, []).append(number)
    return {name: tuple(numbers) for name, numbers in readers.items()}
