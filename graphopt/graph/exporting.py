"""A graphsurgeon graph written as an ONNX model, with everything that import set aside put back."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import UnsupportedModelError
from graphopt.graph.attributes import attribute_types, write_attribute, write_tensor
from graphopt.graph.header import GraphExtras, Header, WorkGraph, copy_fields
from graphopt.graph.importing import described
from graphopt.graph.scopes import check_names, innermost_constants, owned_constants
from graphopt.graph.values import StoredSparse, dtype_of, onnx_dtype, shape_of, size_of

# Constants above this size are left out of skeletons.
LARGE_BYTES = 4096


def export_graph(work: WorkGraph) -> onnx.ModelProto:
    """Write the edited graph as a model.

    Operator set versions come from the graph: ``graph.opset`` for the default domain, ``graph.import_domains`` for
    the others; a domain that nodes use and nothing imports is added at version 1. The IR version never falls; it
    rises to 4 (initializers need not be inputs) and, where a pass raised an operator set, to what that needs.
    Weights not edited are copied byte for byte. The order of nodes is that of ``graph.nodes``: sort before.

    Raises:
        PassError: two tensors of one name where only one can be seen, a bug of the pass that made them.
        UnsupportedModelError: an attribute value that has no protobuf form.
    """
    return _export(work.gs, work.header, types=True, weights=True)


def without_weights(work: WorkGraph) -> onnx.ModelProto:
    """Write the whole model but its large weights, which become inputs: valid exactly if the model is."""
    return _export(work.gs, work.header, types=True, weights=False)


def skeleton(graph: gs.Graph) -> onnx.ModelProto:
    """Write the graph for inspection only: large weights become inputs, in subgraphs mere declarations.

    Small enough to hand to onnx whatever the size of the model. No declared type but those of the graph inputs is
    taken over, so that inference does not trust what an exporter claimed.
    """
    return _export(graph, Header(onnx.ModelProto()), types=False, weights=False)


def skeleton_of(nodes: Sequence[gs.Node], graph: gs.Graph) -> onnx.ModelProto:
    """Write some nodes of an opened graph for inspection only; what they read from the others is left undeclared."""
    return _export(_part(nodes, [], graph), Header(onnx.ModelProto()), types=False, weights=False)


def export_part(nodes: Sequence[gs.Node], outputs: Sequence[gs.Tensor], graph: gs.Graph) -> onnx.ModelProto:
    """Write some nodes of an opened graph as a model without inputs, and without declared types.

    The nodes must be sorted and read constants and each other only; ``graph`` gives the operator set versions.
    """
    return _export(_part(nodes, outputs, graph), Header(onnx.ModelProto()), types=False, weights=True)


def _part(nodes: Sequence[gs.Node], outputs: Sequence[gs.Tensor], graph: gs.Graph) -> gs.Graph:
    return gs.Graph(
        nodes=list(nodes),
        outputs=list(outputs),
        name="part",
        opset=graph.opset,
        import_domains=graph.import_domains,
        ir_version=graph.ir_version,
    )


def _export(root: gs.Graph, header: Header, *, types: bool, weights: bool) -> onnx.ModelProto:
    model = onnx.ModelProto()
    copy_fields(header.model, model, frozenset({"opset_import", "ir_version"}))
    for name in ("producer_name", "producer_version"):
        model.ClearField(name)
        if getattr(root, name):
            setattr(model, name, getattr(root, name))
    used: set[str] = set()
    constants = owned_constants(root, header) if types else innermost_constants(root)
    if types:
        check_names(root, constants)
    pending = [(root, model.graph)]
    while pending:
        graph, proto = pending.pop()
        extras = header.graphs.get(id(graph)) or GraphExtras(graph, onnx.GraphProto(), {}, {})
        copy_fields(extras.shell, proto, frozenset())
        proto.name = graph.name or ""
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        for node in graph.nodes:
            used.add(node.domain or "")
            pending.extend(_write_node(proto.node.add(), node, header, graph.opset))
        _write_inputs(proto, graph, extras, types=types, outermost=graph is root)
        for constant in constants.get(id(graph), []):
            # Only the outermost graph may have further inputs; inference is content with a declaration.
            elsewhere = proto.input if graph is root else None if types else proto.value_info
            _write_constant(proto, constant, extras, None if weights else elsewhere)
        _write_results(proto, graph, extras, types=types)
        _keep_annotations(proto)
    _write_versions(model, root, used, header)
    return model


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


def _write_inputs(
    proto: onnx.GraphProto, graph: gs.Graph, extras: GraphExtras, *, types: bool, outermost: bool
) -> None:
    for tensor in graph.inputs:
        if types or (outermost and tensor.type == "tensor_type"):
            _write_info(proto.input.add(), tensor, extras)
        else:
            proto.input.add(name=tensor.name)
        if tensor.name in extras.defaults:
            proto.initializer.add().CopyFrom(extras.defaults[tensor.name])


def _write_results(proto: onnx.GraphProto, graph: gs.Graph, extras: GraphExtras, *, types: bool) -> None:
    if not types:
        for tensor in graph.outputs:
            proto.output.add(name=tensor.name)
        return
    for tensor in graph.outputs:
        _write_info(proto.output.add(), tensor, extras)
    shown = {id(tensor) for tensor in graph.outputs}
    for tensor in (tensor for node in graph.nodes for tensor in node.outputs if not tensor.is_empty()):
        # Nothing needs a declaration that was not there, and the file is to get no larger.
        if id(tensor) not in shown and tensor.name in extras.infos:
            _write_info(proto.value_info.add(), tensor, extras)


def _write_constant(
    proto: onnx.GraphProto,
    constant: gs.Constant,
    extras: GraphExtras,
    elsewhere: MutableSequence[onnx.ValueInfoProto] | None,
) -> None:
    """Write an initializer; a large one only as a declaration ``elsewhere``, if that is given."""
    if isinstance(constant._values, StoredSparse):
        sparse = proto.sparse_initializer.add()
        sparse.CopyFrom(constant._values.tensor)
        sparse.values.name = constant.name
    elif elsewhere is None or size_of(constant) <= LARGE_BYTES:
        write_tensor(proto.initializer.add(), constant)
    else:
        info = onnx.ValueInfoProto()
        _write_info(info, constant, extras)
        elsewhere.append(info)


def _write_info(target: onnx.ValueInfoProto, tensor: gs.Tensor, extras: GraphExtras) -> None:
    """Declare a tensor, as it was declared before unless its type was edited since."""
    original = extras.infos.get(tensor.name)
    kind = "tensor_type" if isinstance(tensor, gs.Constant) else tensor.type
    if original is not None:
        target.CopyFrom(original)
        if described(original) == (kind, dtype_of(tensor), shape_of(tensor)):
            return
        target.ClearField("type")
    target.name = tensor.name
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
