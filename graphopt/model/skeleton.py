"""A copy of a model without its large tensors, for tools that take the whole model as one protobuf.

The checker, the version converter and protobuf itself stop at 2 GB and copy all weights several times; none of
them needs the weights' values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import onnx
from onnx import AttributeProto

from graphopt.model.tensors import is_external, stored_bytes
from graphopt.model.walk import sparse_tensors

SMALL = 16 * 1024
"""Bytes up to which a tensor stays in the skeleton. Shapes, axes and scales, whose values matter, are far smaller."""

Replace: TypeAlias = Callable[[onnx.TensorProto], onnx.TensorProto | None]
_Body: TypeAlias = onnx.GraphProto | onnx.FunctionProto


def copy_model(model: onnx.ModelProto, replace: Replace) -> onnx.ModelProto:
    """Copy ``model``, each tensor for which ``replace`` returns a tensor replaced by it.

    Covers initializers and TENSOR attributes wherever they are; sparse tensors and the defaults of function attributes
    are copied whole. Memory: the copy without what was replaced.
    """
    copy = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name not in ("graph", "functions", "training_info"):
            copy_field(copy, field.name, value)
    pending: list[tuple[_Body, _Body]] = [(model.graph, copy.graph)]
    pending += [(function, copy.functions.add()) for function in model.functions]
    for info in model.training_info:
        copied = copy.training_info.add()
        for field, value in info.ListFields():
            if field.name not in ("initialization", "algorithm"):
                copy_field(copied, field.name, value)
        pending += [(info.initialization, copied.initialization), (info.algorithm, copied.algorithm)]
    while pending:
        source, target = pending.pop()
        for field, value in source.ListFields():
            if field.name not in ("initializer", "node"):
                copy_field(target, field.name, value)
        if isinstance(source, onnx.GraphProto) and isinstance(target, onnx.GraphProto):
            for tensor in source.initializer:
                target.initializer.add().CopyFrom(replace(tensor) or tensor)
        for node in source.node:
            pending += _copy_node(node, target.node.add(), replace)
    return copy


def _copy_node(
    source: onnx.NodeProto, target: onnx.NodeProto, replace: Replace
) -> list[tuple[onnx.GraphProto, onnx.GraphProto]]:
    """Copy one node; return the pairs of subgraphs that remain to be copied."""
    if all(
        attribute.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.TENSOR)
        for attribute in source.attribute
    ):
        target.CopyFrom(source)
        return []
    pending = []
    for field, value in source.ListFields():
        if field.name != "attribute":
            copy_field(target, field.name, value)
    for attribute in source.attribute:
        kind = attribute.type
        if kind not in (AttributeProto.GRAPH, AttributeProto.GRAPHS, AttributeProto.TENSOR):
            target.attribute.add().CopyFrom(attribute)
            continue
        copied = target.attribute.add()
        skipped = {AttributeProto.GRAPH: "g", AttributeProto.GRAPHS: "graphs", AttributeProto.TENSOR: "t"}[kind]
        for field, value in attribute.ListFields():
            if field.name != skipped:
                copy_field(copied, field.name, value)
        if kind == AttributeProto.TENSOR and attribute.HasField("t"):
            copied.t.CopyFrom(replace(attribute.t) or attribute.t)
        elif kind == AttributeProto.GRAPH and attribute.HasField("g"):
            copied.g.SetInParent()
            pending.append((attribute.g, copied.g))
        elif kind == AttributeProto.GRAPHS:
            pending += [(graph, copied.graphs.add()) for graph in attribute.graphs]
    return pending


def external_reference(tensor: onnx.TensorProto, **entries: object) -> onnx.TensorProto:
    """An external tensor with the name, type, shape and documentation of ``tensor``, and ``entries`` as its data."""
    reference = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for field, value in tensor.ListFields():
        if field.name in ("name", "data_type", "dims", "doc_string", "metadata_props"):
            copy_field(reference, field.name, value)
    for key, value in entries.items():
        reference.external_data.add(key=key, value=str(value))
    return reference


def for_checker(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy in which large and external tensors have no elements: structurally valid, and small."""
    copy = copy_model(model, _emptied)
    for sparse in sparse_tensors(copy):
        values, indices = _emptied(sparse.values), _emptied(sparse.indices)
        if values or indices:
            sparse.values.CopyFrom(values or _without_elements(sparse.values))
            sparse.indices.CopyFrom(indices or _without_elements(sparse.indices))
    for info in (*copy.graph.input, *copy.graph.output):
        # The checker wants a shape where exporters leave it open; runtimes do not. A scalar will do: none is compared.
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()
    return copy


def _emptied(tensor: onnx.TensorProto) -> onnx.TensorProto | None:
    if not is_external(tensor) and stored_bytes(tensor) <= SMALL:
        return None
    return _without_elements(tensor)


def _without_elements(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0])


def copy_field(target: object, name: str, value: object) -> None:
    """Copy one protobuf field: scalar, message, or repeated."""
    present = getattr(target, name)
    if hasattr(present, "MergeFrom"):  # a message or a repeated field, neither of which can be assigned
        present.MergeFrom(value)
    else:
        setattr(target, name, value)
