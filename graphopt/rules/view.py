"""A model prepared for checks: who writes and reads each tensor, constants, shapes and types. Read only.

Built once for all rules, in time linear in the size of the graph. Bodies of If, Loop and Scan are part of it, and they
see the tensors around them; functions of the model are expanded where they are called. Nothing here trusts the model:
what is missing, contradictory or of the wrong kind is None or empty, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnx.shape_inference

from graphopt.graph.cost.shapes import use_standard_operators
from graphopt.model.skeleton import copy_model
from graphopt.model.walk import subgraphs

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int | str | None, ...]

# Bytes up to which a tensor goes along to shape inference: sizes, axes and scales are far smaller.
_SMALL = 16 * 1024
_DEFAULT_DOMAINS = ("", "ai.onnx")
_A = onnx.AttributeProto
_BODIES = ("then_branch", "else_branch", "body")
_ONE_VALUE = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


@dataclass(eq=False, slots=True)
class Tensor:
    """A tensor: where it comes from and who reads it.

    Attributes:
        name: its name.
        producer: the node that writes it.
        readers: the nodes that read it, in graph order, those of bodies inside included; once for each input.
        stored: the initializer it is, or the value of the Constant node that writes it.
        is_input: whether the caller feeds it.
        is_output: whether the graph or body returns it.
    """

    name: str
    producer: Node | None = None
    readers: list[Node] = field(default_factory=list)
    stored: onnx.TensorProto | None = None
    is_input: bool = False
    is_output: bool = False


@dataclass(eq=False, slots=True)
class Node:
    """A node.

    Attributes:
        op: operator; ``domain::Operator`` outside ONNX's own domain.
        name: its name, else that of its first output.
        inputs: None where an optional input is left out.
        outputs: None where an optional output is left out.
        attributes: as stored.
        depth: how many If, Loop or Scan nodes surround it.
    """

    op: str
    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    attributes: Mapping[str, onnx.AttributeProto]
    depth: int = 0

    def input(self, index: int) -> Tensor | None:
        """The input at a position, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int = 0) -> Tensor | None:
        """The output at a position, None where it is left out."""
        return self.outputs[index] if index < len(self.outputs) else None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute; ``default`` where it is absent or of another kind."""
        found = self.attributes.get(name)
        return int(found.i) if found is not None and found.type == _A.INT else default

    def number(self, name: str, default: float) -> float:
        """A float attribute; ``default`` where it is absent or of another kind."""
        found = self.attributes.get(name)
        return float(found.f) if found is not None and found.type == _A.FLOAT else default

    def text(self, name: str, default: str) -> str:
        """A text attribute; ``default`` where it is absent or of another kind."""
        found = self.attributes.get(name)
        return found.s.decode("utf-8", "replace") if found is not None and found.type == _A.STRING else default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers; None where it is absent or of another kind."""
        found = self.attributes.get(name)
        return tuple(found.ints) if found is not None and found.type == _A.INTS else None


@dataclass(frozen=True)
class Input:
    """A declared input of the model.

    Attributes:
        name: its name.
        shape: None where not even the rank is declared.
        is_tensor: False for sequences, maps and optionals.
    """

    name: str
    shape: Shape | None
    is_tensor: bool


class View:
    """A model as checks see it.

    Attributes:
        nodes: all nodes, each before those of its bodies.
        tensors: all tensors, in the order in which they are first seen.
        inputs: what the caller feeds; initializers that are listed as inputs are left out.
        opset: version of ONNX's own operators, 0 where none is imported.
        domains: versions of the other domains that are imported.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Input, ...]
    opset: int
    domains: Mapping[str, int]

    def __init__(self, model: onnx.ModelProto) -> None:
        versions = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = max((versions.get(domain, 0) for domain in _DEFAULT_DOMAINS), default=0)
        self.domains = {name: version for name, version in versions.items() if name not in _DEFAULT_DOMAINS}
        self.model = _expanded(model) if model.functions else model
        built = _build(self.model.graph)
        self.nodes, self.tensors, self._bodies = tuple(built.nodes), tuple(built.tensors), built.bodies
        given = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(
            Input(info.name, _declared_shape(info), info.type.WhichOneof("value") in (None, "tensor_type"))
            for info in model.graph.input
            if info.name not in given
        )
        self._values: dict[Tensor, Array | None] = {}

    def shape(self, tensor: Tensor | None) -> Shape | None:
        """Shape by ONNX's inference: an integer, a symbol or None an axis; None where the rank is unknown."""
        if tensor is None:
            return None
        if tensor.stored is not None:
            return tuple(tensor.stored.dims)
        found = self._types.get(tensor)
        return found[1] if found else None

    def dtype(self, tensor: Tensor | None) -> int:
        """``onnx.TensorProto`` data type; 0 where it is unknown."""
        if tensor is None:
            return 0
        if tensor.stored is not None:
            return int(tensor.stored.data_type)
        found = self._types.get(tensor)
        return found[0] if found else 0

    def is_constant(self, tensor: Tensor | None) -> bool:
        """Whether the model fixes the value: an initializer or a Constant, with Casts and Identities behind it."""
        return self.constant_root(tensor) is not None

    def constant_root(self, tensor: Tensor | None) -> Tensor | None:
        """The initializer or Constant that ``tensor`` is a Cast or Identity of; None where there is none."""
        for _ in range(8):
            if tensor is None or tensor.stored is not None:
                return tensor
            node = tensor.producer
            if node is not None and node.op == "Constant":
                return tensor
            if node is None or node.op not in ("Cast", "Identity"):
                return None
            tensor = node.input(0)
        return None

    def is_fixed(self, tensor: Tensor | None) -> bool:
        """Whether the model fixes the value: a constant, or computed from constants alone."""
        return tensor is not None and tensor in self._fixed

    def values(self, tensor: Tensor | None) -> Array | None:
        """Values of a constant as stored; None where they are not fixed by the model or not loaded."""
        root = self.constant_root(tensor)
        if root is None:
            return None
        if root not in self._values:
            self._values[root] = _values(root)
        return self._values[root]

    @cached_property
    def _fixed(self) -> frozenset[Tensor]:
        """All tensors that follow from constants alone, whatever the order of the nodes."""
        pending = {node: sum(1 for tensor in node.inputs if tensor is not None) for node in self.nodes}
        found = [tensor for tensor in self.tensors if tensor.stored is not None and tensor.producer is None]
        found += [tensor for node in self.nodes if node.op == "Constant" for tensor in node.outputs if tensor]
        fixed = set(found)
        while found:
            for node in found.pop().readers:
                pending[node] -= 1
                if pending[node] or any(name in node.attributes for name in _BODIES):
                    continue
                fresh = [tensor for tensor in node.outputs if tensor is not None and tensor not in fixed]
                fixed.update(fresh)
                found += fresh
        return frozenset(fixed)

    @cached_property
    def _types(self) -> Mapping[Tensor, tuple[int, Shape | None]]:
        """Type and shape by tensor; empty where inference finds nothing."""
        skeleton = copy_model(self.model, _without_values)
        use_standard_operators(skeleton.graph)
        try:
            typed = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True)
        except Exception:  # a broken model, for which onnx raises what it likes; declared types are all there is
            typed = skeleton
        if len(bodies := list(_bodies(typed.graph))) != len(self._bodies):
            return {}
        types: dict[Tensor, tuple[int, Shape | None]] = {}
        for scope, graph in zip(self._bodies, bodies, strict=True):
            for info in (*graph.output, *graph.value_info, *graph.input):
                if info.type.HasField("tensor_type") and (tensor := scope.get(info.name)) is not None:
                    types[tensor] = (info.type.tensor_type.elem_type, _declared_shape(info))
        return types


@dataclass
class _Building:
    nodes: list[Node]
    tensors: list[Tensor]
    bodies: list[dict[str, Tensor]]


def _build(root: onnx.GraphProto) -> _Building:
    built = _Building([], [], [])
    stack: list[tuple[onnx.GraphProto, tuple[dict[str, Tensor], ...], int]] = [(root, (), 0)]
    while stack:
        graph, outer, depth = stack.pop()
        own: dict[str, Tensor] = {}
        built.bodies.append(own)
        _declare(graph, own, built)
        for proto in graph.node:
            node = _node(proto, (own, *outer), depth, built)
            built.nodes.append(node)
        for info in graph.output:
            _find(info.name, (own, *outer), built).is_output = True
        inner = [body for proto in graph.node for _, body in subgraphs(proto)]
        stack += [(body, (own, *outer), depth + 1) for body in inner[::-1]]
    return built


def _declare(graph: onnx.GraphProto, own: dict[str, Tensor], built: _Building) -> None:
    for info in graph.input:
        _new(info.name, own, built).is_input = True
    for stored in graph.initializer:
        tensor = own.get(stored.name) or _new(stored.name, own, built)
        tensor.stored, tensor.is_input = stored, False
    for sparse in graph.sparse_initializer:
        dense = _declaration(sparse.values.name, sparse.values.data_type, sparse.dims)
        (own.get(dense.name) or _new(dense.name, own, built)).stored = dense
    for proto in graph.node:
        for name in proto.output:
            if name and name not in own:
                _new(name, own, built)


def _new(name: str, own: dict[str, Tensor], built: _Building) -> Tensor:
    tensor = own[name] = Tensor(name)
    built.tensors.append(tensor)
    return tensor


def _find(name: str, scopes: tuple[dict[str, Tensor], ...], built: _Building) -> Tensor:
    for scope in scopes:
        if name in scope:
            return scope[name]
    return _new(name, scopes[0], built)


def _node(proto: onnx.NodeProto, scopes: tuple[dict[str, Tensor], ...], depth: int, built: _Building) -> Node:
    own = scopes[0]
    node = Node(
        op=proto.op_type if proto.domain in _DEFAULT_DOMAINS else f"{proto.domain}::{proto.op_type}",
        name=str(proto.name or next((name for name in proto.output if name), "")),
        inputs=tuple(_find(name, scopes, built) if name else None for name in proto.input),
        outputs=tuple(own[name] if name else None for name in proto.output),
        attributes={attribute.name: attribute for attribute in proto.attribute},
        depth=depth,
    )
    for tensor in node.inputs:
        if tensor is not None:
            tensor.readers.append(node)
    for tensor in node.outputs:
        if tensor is not None and tensor.producer is None:
            tensor.producer = node
            if node.op == "Constant" and (value := node.attributes.get("value")) and value.type == _A.TENSOR:
                tensor.stored = value.t
    return node


def _bodies(root: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield graphs in the order in which ``_build`` takes them."""
    stack = [root]
    while stack:
        graph = stack.pop()
        yield graph
        stack += [body for proto in graph.node for _, body in subgraphs(proto)][::-1]


def _values(tensor: Tensor) -> Array | None:
    stored = tensor.stored
    try:
        if stored is not None:
            external = stored.data_location == onnx.TensorProto.EXTERNAL
            return None if external else np.asarray(onnx.numpy_helper.to_array(stored))
        attributes = tensor.producer.attributes if tensor.producer is not None else {}
        for name, dtype in _ONE_VALUE.items():
            if name in attributes:
                return np.asarray(onnx.helper.get_attribute_value(attributes[name]), dtype=dtype)
    except Exception:  # data that does not fit the declared shape or type: the checker's to tell
        return None
    return None


def _without_values(tensor: onnx.TensorProto) -> onnx.TensorProto | None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) * 8 > _SMALL:
        return _declaration(tensor.name, tensor.data_type, tensor.dims)
    return None


def _declaration(name: str, data_type: int, dims: Iterable[int]) -> onnx.TensorProto:
    """A tensor whose values are elsewhere; made field by field, so that no weights are copied on the way."""
    return onnx.TensorProto(name=name, data_type=data_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)


def _expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions written out, large constants without values; as it is where that fails."""
    try:
        return onnx.inliner.inline_local_functions(copy_model(model, _without_values))
    except Exception:  # functions that call each other in circles, or miss what they call: the checker's to tell
        return model


def _declared_shape(info: onnx.ValueInfoProto) -> Shape | None:
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in info.type.tensor_type.shape.dim
    )
