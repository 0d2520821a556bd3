"""A graphsurgeon graph written as an ONNX model, with everything that import set aside put back."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import PassError, UnsupportedModelError
from graphopt.graph.attributes import attribute_types, write_attribute, write_tensor
from graphopt.graph.header import GraphExtras, Header, WorkGraph, copy_fields
from graphopt.graph.importing import described
from graphopt.graph.values import StoredSparse, dtype_of, onnx_dtype, shape_of, size_of

_SKELETON_BYTES = 4096


def export_graph(work: WorkGraph) -> onnx.ModelProto:
    """Write the edited graph as a model.

    Operator set versions come from the graph: ``graph.opset`` for the default domain, ``graph.import_domains`` for
    the others; a domain that nodes use and nothing imports is added at version 1. The IR version never falls; it
    rises to 4 (initializers need not be inputs) and, where a pass raised an operator set, to what that needs.
    Weights not edited are copied byte for byte. The order of nodes is that of ``graph.nodes``: sort before.

    Raises:
        PassError: two tensors of one name, a bug of the pass that made them.
        UnsupportedModelError: an attribute value that has no protobuf form.
    """
    return _export(work.gs, work.header, weights=True)


def skeleton(graph: gs.Graph) -> onnx.ModelProto:
    """Write the graph for inspection only: large weights of the outermost graph become inputs.

    Small enough to hand to onnx whatever the size of the model. No declared type but those of the graph inputs and
    of non-tensors is taken over, so that inference does not trust what an exporter claimed.
    """
    return _export(graph, Header(onnx.ModelProto()), weights=False)


def _export(root: gs.Graph, header: Header, *, weights: bool) -> onnx.ModelProto:
    model = onnx.ModelProto()
    copy_fields(header.model, model, frozenset({"opset_import", "ir_version"}))
    model.producer_name, model.producer_version = root.producer_name or "", root.producer_version or ""
    used: set[str] = set()
    constants = _owned(root, header)
    pending = [(root, model.graph)]
    while pending:
        graph, proto = pending.pop()
        extras = header.graphs.get(id(graph)) or GraphExtras(graph, onnx.GraphProto(), {}, {})
        copy_fields(extras.shell, proto, frozenset())
        proto.name, proto.doc_string = graph.name or "", graph.doc_string or ""
        if not graph.doc_string:
            proto.ClearField("doc_string")
        for node in graph.nodes:
            used.add(node.domain or "")
            pending.extend(_write_node(proto.node.add(), node, header, graph.opset))
        _write_tensors(proto, graph, extras, constants.get(id(graph), []), weights=weights or graph is not root)
        _keep_annotations(proto)
    _write_versions(model, root, used, header)
    return model


def _owned(root: gs.Graph, header: Header) -> dict[int, list[gs.Constant]]:
    """``id`` of a graph -> the constants to declare in it, in order of first use; unused ones go."""
    owned: dict[int, list[gs.Constant]] = {}
    seen: set[int] = set()
    pending = [root]
    while pending:
        graph = pending.pop()
        groups = [node.inputs for node in graph.nodes] + [graph.outputs]
        for tensor in (tensor for group in groups for tensor in group):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                owner = header.owners[id(tensor)][1] if id(tensor) in header.owners else root
                owned.setdefault(id(owner), []).append(tensor)
        pending.extend(
            value for node in reversed(graph.nodes) for value in node.attrs.values() if isinstance(value, gs.Graph)
        )
    return owned


def _write_node(
    proto: onnx.NodeProto, node: gs.Node, header: Header, opset: int
) -> list[tuple[gs.Graph, onnx.GraphProto]]:
    """Write one node; return its subgraphs with the (still empty) protos they belong in."""
    proto.op_type = node.op
    if node.name:
        proto.name = node.name
    if node.domain:
        proto.domain = node.domain
    proto.input.extend(tensor.name for tensor in node.inputs)
    proto.output.extend(tensor.name for tensor in node.outputs)
    subgraphs: list[tuple[gs.Graph, onnx.GraphProto]] = []
    known = attribute_types(node.op, node.domain or "", opset) if node.attrs else {}
    for name, value in node.attrs.items():
        attribute = proto.attribute.add()
        if isinstance(value, gs.Graph):
            attribute.name, attribute.type = name, onnx.AttributeProto.GRAPH
            attribute.g.SetInParent()
            subgraphs.append((value, attribute.g))
        else:
            write_attribute(attribute, name, value, known, f"node '{node.name}' ({node.op})")
    extras = header.nodes.get(id(node))
    if extras is not None:
        copy_fields(extras.shell, proto, frozenset())
        for attribute in proto.attribute:
            if attribute.name in extras.attribute_docs:
                attribute.doc_string = extras.attribute_docs[attribute.name]
    return subgraphs


def _write_tensors(
    proto: onnx.GraphProto, graph: gs.Graph, extras: GraphExtras, constants: list[gs.Constant], *, weights: bool
) -> None:
    names: dict[str, gs.Tensor] = {}
    for tensor in graph.inputs:
        _claim(names, tensor)
        _write_info(proto.input.add(), tensor, extras, strict=weights)
        if tensor.name in extras.defaults:
            proto.initializer.add().CopyFrom(extras.defaults[tensor.name])
    for constant in constants:
        _claim(names, constant)
        _write_constant(proto, constant, extras, weights=weights)
    shown = {id(tensor) for tensor in graph.outputs}
    for tensor in (tensor for node in graph.nodes for tensor in node.outputs if not tensor.is_empty()):
        _claim(names, tensor)
        declared = tensor.name in extras.infos or tensor.dtype is not None
        if declared and weights and id(tensor) not in shown:
            _write_info(proto.value_info.add(), tensor, extras)
    for tensor in graph.outputs:
        if weights:
            _write_info(proto.output.add(), tensor, extras)
        else:
            proto.output.add(name=tensor.name)


def _write_constant(proto: onnx.GraphProto, constant: gs.Constant, extras: GraphExtras, *, weights: bool) -> None:
    if isinstance(constant._values, StoredSparse):
        sparse = proto.sparse_initializer.add()
        sparse.CopyFrom(constant._values.tensor)
        sparse.values.name = constant.name
    elif weights or size_of(constant) <= _SKELETON_BYTES:
        write_tensor(proto.initializer.add(), constant)
    else:
        _write_info(proto.input.add(), constant, extras)


def _claim(names: dict[str, gs.Tensor], tensor: gs.Tensor) -> None:
    if names.setdefault(tensor.name, tensor) is not tensor:
        raise PassError(f"the edited graph holds two tensors named '{tensor.name}'")


def _write_info(target: onnx.ValueInfoProto, tensor: gs.Tensor, extras: GraphExtras, *, strict: bool = True) -> None:
    """Declare a tensor, as it was declared before unless its type was edited since."""
    original = extras.infos.get(tensor.name)
    kind = "tensor_type" if isinstance(tensor, gs.Constant) else tensor.type
    if original is not None:
        target.CopyFrom(original)
        if described(original) == (kind, dtype_of(tensor), shape_of(tensor)):
            return
        target.ClearField("type")
    target.name = tensor.name
    if kind != "tensor_type" and not strict:
        return
    if kind != "tensor_type":
        raise UnsupportedModelError(f"tensor '{tensor.name}' is a {kind.removesuffix('_type')} that was not declared")
    dtype, shape = dtype_of(tensor), shape_of(tensor)
    if dtype is None:
        return
    target.type.tensor_type.elem_type = onnx_dtype(dtype)
    if shape is None:
        return
    target.type.tensor_type.shape.SetInParent()
    for size in shape:
        dim = target.type.tensor_type.shape.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        elif size is not None and size >= 0:
            dim.dim_value = int(size)


def _keep_annotations(proto: onnx.GraphProto) -> None:
    """Drop the quantization annotations of tensors that are no more, or whose parameters are no more."""
    if not proto.quantization_annotation:
        return
    alive = {tensor.name for group in (proto.initializer, proto.input) for tensor in group}
    alive.update(name for node in proto.node for name in node.output)
    kept = [
        note
        for note in proto.quantization_annotation
        if note.tensor_name in alive and all(entry.value in alive for entry in note.quant_parameter_tensor_names)
    ]
    if len(kept) < len(proto.quantization_annotation):
        copies = [onnx.TensorAnnotation.FromString(note.SerializeToString()) for note in kept]
        proto.ClearField("quantization_annotation")
        proto.quantization_annotation.extend(copies)


def _write_versions(model: onnx.ModelProto, root: gs.Graph, used: set[str], header: Header) -> None:
    versions = {entry.domain: entry.version for entry in root.import_domains or []}
    if "" in versions or "" in used or not versions:
        versions[""] = root.opset
    for domain in sorted(used):
        versions.setdefault(domain, 1)
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)
    before = {entry.domain: entry.version for entry in header.model.opset_import}
    model.ir_version = max(root.ir_version or 0, 4)
    if versions.get("") != before.get("") and not root.ir_version:
        model.ir_version = onnx.IR_VERSION
    elif versions.get("") != before.get("") and "" in versions:
        needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", versions[""])])
        model.ir_version = max(model.ir_version, needed)
