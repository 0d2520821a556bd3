"""An ONNX model opened as a graphsurgeon graph, with nothing lost.

The graph is built here from graphsurgeon's classes rather than by its importer, which loses doc strings and metadata,
drops attributes, turns inputs that have a default value into constants, and shares the caller's protobuf lists.

Two deliberate normalisations: the domain ``ai.onnx`` becomes the default one that it is an alias of; and below IR
version 4, where every initializer had to be listed as an input, initializers are no inputs (as in ONNX Runtime).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError, UnsupportedModelError
from graphopt.graph.attributes import attribute_types, read_attribute
from graphopt.graph.header import GraphExtras, Header, NodeExtras, WorkGraph, copy_fields
from graphopt.graph.making import new_constant, new_node, new_variable, read_inputs
from graphopt.graph.opened import OpenGraph
from graphopt.graph.values import Shape, StoredSparse, StoredValues, numpy_dtype

_GRAPH_BODY = frozenset({"node", "initializer", "sparse_initializer", "input", "output", "value_info", "name"})
_NODE_BODY = frozenset({"input", "output", "name", "op_type", "domain", "attribute"})
_ALIASES = {"ai.onnx": ""}
_Body: TypeAlias = tuple[gs.Graph, onnx.GraphProto]


@dataclass(frozen=True)
class _Scope:
    """The tensors of one graph by name, and the scope around it."""

    outer: _Scope | None
    tensors: dict[str, gs.Tensor] = field(default_factory=dict)

    def find(self, name: str) -> gs.Tensor | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.tensors:
                return scope.tensors[name]
            scope = scope.outer
        return None


def import_graph(model: onnx.ModelProto) -> WorkGraph:
    """Open ``model`` for editing.

    The model is never written to, but its weights stay referenced: do not edit it while the graph is in use.

    Raises:
        ModelError: a tensor that nothing produces, or that two nodes produce.
        UnsupportedModelError: something that can be neither carried nor represented; names the node.
    """
    shell = onnx.ModelProto()
    copy_fields(model, shell, frozenset({"graph", "opset_import"}))
    for imported in model.opset_import:
        shell.opset_import.add(domain=_ALIASES.get(imported.domain, imported.domain), version=imported.version)
    for function in model.functions:
        if _ALIASES.get(function.domain, function.domain) == "":
            raise UnsupportedModelError(f"function '{function.name}' of the model redefines a standard operator")
    header = Header(shell)
    opset = next((entry.version for entry in shell.opset_import if entry.domain == ""), 1)
    root = _empty_graph(model.graph, shell, opset, OpenGraph)
    pending: list[tuple[gs.Graph, onnx.GraphProto, _Scope | None]] = [(root, model.graph, None)]
    while pending:
        graph, proto, outer = pending.pop()
        pending.extend(_fill(graph, proto, outer, header))
    shown = {id(tensor) for extras in header.graphs.values() for tensor in extras.graph.outputs}
    constants = (constant for constant, _ in header.owners.values())
    header.unread.extend(each.name for each in constants if not each.outputs and id(each) not in shown)
    root.header = header
    root.source = model
    return WorkGraph(root, header)


def _empty_graph(
    proto: onnx.GraphProto, model: onnx.ModelProto, opset: int, kind: type[gs.Graph] = gs.Graph
) -> gs.Graph:
    domains = [onnx.helper.make_opsetid(entry.domain, entry.version) for entry in model.opset_import]
    return kind(
        name=proto.name,
        doc_string=proto.doc_string,
        opset=opset,
        import_domains=domains,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        ir_version=model.ir_version,
    )


def _fill(
    graph: gs.Graph, proto: onnx.GraphProto, outer: _Scope | None, header: Header
) -> list[tuple[gs.Graph, onnx.GraphProto, _Scope]]:
    """Build one graph; return the subgraphs found, still empty."""
    scope = _Scope(outer)
    extras = _declare(graph, proto, scope, header)
    infos = extras.infos
    nodes: list[gs.Node] = []
    for node_proto in proto.node:
        outputs = [_output(name, scope, infos, node_proto) for name in node_proto.output]
        domain = _ALIASES.get(node_proto.domain, node_proto.domain) or None
        nodes.append(new_node(node_proto.op_type, node_proto.name, {}, outputs, domain))
    bodies: list[_Body] = []
    # A second walk, so that a node may read what a later one writes: some exporters do not sort.
    for node, node_proto in zip(nodes, proto.node, strict=True):
        read_inputs(node, [_input(name, scope, node_proto) for name in node_proto.input])
        if node_proto.attribute:
            bodies += _read_attributes(node, node_proto, header.model, graph.opset)
        _keep_extras(node, node_proto, header)
    graph.nodes = nodes
    for info in proto.output:
        tensor = scope.find(info.name)
        if tensor is None:
            raise ModelError(f"output '{info.name}' of graph '{proto.name}' is produced by nothing")
        graph.outputs.append(tensor)
    return [(body, body_proto, scope) for body, body_proto in bodies]


def _declare(graph: gs.Graph, proto: onnx.GraphProto, scope: _Scope, header: Header) -> GraphExtras:
    """Declare inputs and initializers; note everything that graphsurgeon has no place for."""
    shell = onnx.GraphProto()
    copy_fields(proto, shell, _GRAPH_BODY | {"doc_string"})
    infos = {info.name: info for group in (proto.value_info, proto.output, proto.input) for info in group}
    extras = GraphExtras(graph, shell, infos, {})
    header.graphs[id(graph)] = extras
    stored = {tensor.name: tensor for tensor in proto.initializer}
    fixed = set(stored) | {tensor.values.name for tensor in proto.sparse_initializer}
    for info in proto.input:
        if info.name in fixed and (header.model.ir_version < 4 or info.name not in stored):
            continue
        if info.name in scope.tensors:
            raise ModelError(f"graph '{proto.name}' has two inputs named '{info.name}'")
        if info.name in stored:
            extras.defaults[info.name] = stored.pop(info.name)
        scope.tensors[info.name] = _variable(info.name, infos)
        graph.inputs.append(scope.tensors[info.name])
    constants = [new_constant(name, StoredValues(tensor)) for name, tensor in stored.items()]
    constants += [new_constant(sparse.values.name, StoredSparse(sparse)) for sparse in proto.sparse_initializer]
    for constant in constants:
        scope.tensors[constant.name] = constant
        header.owners[id(constant)] = (constant, graph)
    return extras


def _read_attributes(node: gs.Node, proto: onnx.NodeProto, model: onnx.ModelProto, opset: int) -> list[_Body]:
    """Fill ``node.attrs``; return its subgraphs, still empty."""
    bodies: list[_Body] = []
    known = attribute_types(node.op, node.domain or "", opset) if proto.attribute else {}
    for attribute in proto.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
            body = _empty_graph(attribute.g, model, opset)
            node.attrs[attribute.name] = body
            bodies.append((body, attribute.g))
        else:
            node.attrs[attribute.name] = read_attribute(attribute, known, _where(proto))
    return bodies


def _keep_extras(node: gs.Node, proto: onnx.NodeProto, header: Header) -> None:
    """Note what graphsurgeon has no place for in a node."""
    if not proto.attribute and all(field.name in _NODE_BODY for field, _ in proto.ListFields()):
        return
    shell = onnx.NodeProto()
    copy_fields(proto, shell, _NODE_BODY)
    docs = {attribute.name: attribute.doc_string for attribute in proto.attribute if attribute.doc_string}
    if docs or shell.ByteSize():
        header.nodes[id(node)] = NodeExtras(node, shell, docs)


def _output(name: str, scope: _Scope, infos: dict[str, onnx.ValueInfoProto], node: onnx.NodeProto) -> gs.Variable:
    if not name:
        return new_variable("")
    if name in scope.tensors:
        raise ModelError(f"{_where(node)} writes tensor '{name}', which something else already holds")
    variable = _variable(name, infos)
    scope.tensors[name] = variable
    return variable


def _input(name: str, scope: _Scope, node: onnx.NodeProto) -> gs.Tensor:
    if not name:
        return new_variable("")
    tensor = scope.find(name)
    if tensor is None:
        raise ModelError(f"{_where(node)} reads tensor '{name}', which nothing produces")
    return tensor


def _variable(name: str, infos: dict[str, onnx.ValueInfoProto]) -> gs.Variable:
    info = infos.get(name)
    if info is None or not info.type.WhichOneof("value"):
        return new_variable(name)
    kind, dtype, shape = described(info)
    return new_variable(name, dtype, shape, kind)


def described(info: onnx.ValueInfoProto) -> tuple[str, object, Shape | None]:
    """Kind, numpy dtype and shape that a declaration states; only for tensors are dtype and shape told."""
    kind = info.type.WhichOneof("value") or "tensor_type"
    if kind != "tensor_type":
        return kind, None, None
    tensor = info.type.tensor_type
    dtype = numpy_dtype(tensor.elem_type, info.name) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return kind, dtype, None
    return kind, dtype, tuple(_dimension(dim) for dim in tensor.shape.dim)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    which = dim.WhichOneof("value")
    if which == "dim_value":
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None if which == "dim_param" else None


def _where(node: onnx.NodeProto) -> str:
    name = node.name or next((f"-> {output}" for output in node.output if output), "unnamed")
    return f"node '{name}' ({node.op_type})"
