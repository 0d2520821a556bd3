"""Visit every graph, node and tensor of a model: main graph, training graphs, functions and subgraphs at any depth.

Iterative, so that a deep model cannot exhaust Python's stack. Attributes are judged by their declared type; the
checker, which always runs on what is walked here, refuses an attribute whose content and type disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import AttributeProto


@dataclass(frozen=True)
class Body:
    """A list of nodes and where it stands.

    Attributes:
        proto: the graph, or the function.
        where: words for messages, e.g. ``subgraph 'then_branch' of node 'if_1'``.
        depth: how many If, Loop or Scan nodes surround it.
        function: the function it belongs to; None outside functions.
    """

    proto: onnx.GraphProto | onnx.FunctionProto
    where: str
    depth: int = 0
    function: onnx.FunctionProto | None = None


def bodies(model: onnx.ModelProto) -> Iterator[Body]:
    """Yield the main graph, then training graphs and functions, each before the subgraphs inside it."""
    roots = [Body(model.graph, "the graph")]
    for info in model.training_info:
        roots += [Body(info.initialization, "training initialization"), Body(info.algorithm, "training algorithm")]
    for function in model.functions:
        roots.append(Body(function, f"function {function.domain}::{function.name}", 0, function))
    stack = roots[::-1]
    while stack:
        body = stack.pop()
        yield body
        stack += [
            Body(graph, f"subgraph {attribute!r} of node {label(node)}", body.depth + 1, body.function)
            for node in body.proto.node
            for attribute, graph in subgraphs(node)
        ][::-1]


def subgraphs(node: onnx.NodeProto) -> list[tuple[str, onnx.GraphProto]]:
    """Graphs that the node holds in its attributes, with the attribute's name."""
    found: list[tuple[str, onnx.GraphProto]] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append((attribute.name, attribute.g))
        elif attribute.type == AttributeProto.GRAPHS:
            found += [(attribute.name, graph) for graph in attribute.graphs]
    return found


def attribute_tensors(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    """Tensors directly in an attribute (not those of subgraphs)."""
    if attribute.type == AttributeProto.TENSOR:
        return [attribute.t]
    if attribute.type == AttributeProto.TENSORS:
        return list(attribute.tensors)
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return [attribute.sparse_tensor.values, attribute.sparse_tensor.indices]
    if attribute.type == AttributeProto.SPARSE_TENSORS:
        return [part for sparse in attribute.sparse_tensors for part in (sparse.values, sparse.indices)]
    return []


def tensors(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, str]]:
    """Yield every stored tensor and where it is: initializers, sparse parts, attributes and attribute defaults."""
    for body in bodies(model):
        if isinstance(body.proto, onnx.GraphProto):
            for tensor in body.proto.initializer:
                yield tensor, f"initializer {tensor.name!r} of {body.where}"
            for sparse in body.proto.sparse_initializer:
                for part in (sparse.values, sparse.indices):
                    yield part, f"sparse initializer {sparse.values.name!r} of {body.where}"
        else:
            for default in body.proto.attribute_proto:
                for tensor in attribute_tensors(default):
                    yield tensor, f"default of attribute {default.name!r} of {body.where}"
        for node in body.proto.node:
            for attribute in node.attribute:
                for tensor in attribute_tensors(attribute):
                    yield tensor, f"attribute {attribute.name!r} of node {label(node)}"


def sparse_tensors(model: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Yield sparse initializers and the sparse tensors in attributes of nodes."""
    for body in bodies(model):
        if isinstance(body.proto, onnx.GraphProto):
            yield from body.proto.sparse_initializer
        for node in body.proto.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.SPARSE_TENSOR:
                    yield attribute.sparse_tensor
                yield from attribute.sparse_tensors


def label(node: onnx.NodeProto) -> str:
    """Name of a node for messages: its own, else that of its first output; with the operator."""
    name = node.name or next((output for output in node.output if output), "")
    domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
    return f"{name!r} ({domain}{node.op_type})"
