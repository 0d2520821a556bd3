"""Builds the nodes and tensors of a view from a model's graph, in time linear in its size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

from graphopt.model.walk import subgraphs
from graphopt.rules.parts import Node, Tensor

DEFAULT_DOMAINS = ("", "ai.onnx")
_A = onnx.AttributeProto


@dataclass
class Building:
    """What is built so far.

    Attributes:
        nodes: each before those of its bodies.
        tensors: in the order in which they are first seen.
        bodies: the tensors of each graph by name, in the order of ``bodies``.
    """

    nodes: list[Node]
    tensors: list[Tensor]
    bodies: list[dict[str, Tensor]]


def build(root: onnx.GraphProto) -> Building:
    """Return the nodes and tensors of a graph and of the bodies inside it."""
    built = Building([], [], [])
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


def _declare(graph: onnx.GraphProto, own: dict[str, Tensor], built: Building) -> None:
    for info in graph.input:
        _new(info.name, own, built).is_input = True
    for stored in graph.initializer:
        tensor = own.get(stored.name) or _new(stored.name, own, built)
        tensor.stored, tensor.is_input = stored, False
    for sparse in graph.sparse_initializer:
        dense = declaration(sparse.values.name, sparse.values.data_type, sparse.dims)
        (own.get(dense.name) or _new(dense.name, own, built)).stored = dense
    for proto in graph.node:
        for name in proto.output:
            if name and name not in own:
                _new(name, own, built)


def _new(name: str, own: dict[str, Tensor], built: Building) -> Tensor:
    tensor = own[name] = Tensor(name)
    built.tensors.append(tensor)
    return tensor


def _find(name: str, scopes: tuple[dict[str, Tensor], ...], built: Building) -> Tensor:
    for scope in scopes:
        if name in scope:
            return scope[name]
    return _new(name, scopes[0], built)


def _node(proto: onnx.NodeProto, scopes: tuple[dict[str, Tensor], ...], depth: int, built: Building) -> Node:
    own = scopes[0]
    node = Node(
        op=proto.op_type if proto.domain in DEFAULT_DOMAINS else f"{proto.domain}::{proto.op_type}",
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


def bodies(root: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield graphs in the order in which ``build`` takes them."""
    stack = [root]
    while stack:
        graph = stack.pop()
        yield graph
        stack += [body for proto in graph.node for _, body in subgraphs(proto)][::-1]


def declaration(name: str, data_type: int, dims: Iterable[int]) -> onnx.TensorProto:
    """A tensor whose values are elsewhere; made field by field, so that no weights are copied on the way."""
    return onnx.TensorProto(name=name, data_type=data_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)


def declare_dense(root: onnx.GraphProto) -> None:
    """Declare sparse initializers as dense ones without values, in place: shape inference knows no others."""
    for graph in bodies(root):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(declaration(sparse.values.name, sparse.values.data_type, sparse.dims))
        del graph.sparse_initializer[:]
