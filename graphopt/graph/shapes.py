"""Shapes and dtypes of all tensors, as ONNX's own inference finds them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from graphopt.graph.exporting import skeleton
from graphopt.graph.importing import described, import_graph
from graphopt.graph.values import Shape, onnx_dtype


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor: ONNX element type (0 unknown) and shape (None: rank unknown)."""

    dtype: int
    shape: Shape | None


def infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shape of every tensor whose rank is known, by name: an integer, a symbol's name or None an axis.

    Works for models of any size: large weights never reach the inference. What an exporter declared for tensors
    between inputs and outputs is not trusted; graph inputs are.
    """
    return {name: found.shape for name, found in infer_types(model).items() if found.shape is not None}


def infer_types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Dtype and shape of every tensor of which anything is known, by name; see ``infer_shapes``."""
    return types_of(import_graph(model).gs)


def types_of(graph: gs.Graph, *, distinct: bool = False) -> dict[str, TensorType]:
    """Dtype and shape of every tensor of an opened graph, by name, subgraphs included.

    A name that stands for different tensors in sibling subgraphs is left out. Inference goes on past nodes that it
    does not understand; a graph that it cannot treat at all yields only what constants and inputs say.

    Args:
        graph: the outermost graph.
        distinct: give every open dimension of every input a symbol of its own, so that equal symbols prove equal
            sizes even where callers do not keep to the declared ones.
    """
    model = skeleton(graph)
    if distinct:
        _separate_symbols(model.graph)
    # What inputs and weights say is worth having even where inference gives up.
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        model = onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)
    found: dict[str, TensorType] = {}
    ambiguous: set[str] = set()
    pending = [model.graph]
    while pending:
        proto = pending.pop()
        own: dict[str, TensorType] = {}
        for tensor in proto.initializer:
            own[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
        for group in (proto.value_info, proto.output, proto.input):
            for info in group:
                kind, dtype, shape = described(info)
                if kind == "tensor_type" and dtype is not None:
                    own[info.name] = TensorType(onnx_dtype(dtype), shape)
        ambiguous.update(name for name in own if name in found)
        found.update(own)
        pending.extend(
            attribute.g
            for node in proto.node
            for attribute in node.attribute
            if attribute.type == onnx.AttributeProto.GRAPH
        )
    for name in ambiguous:
        del found[name]
    return found


def _separate_symbols(proto: onnx.GraphProto) -> None:
    for info in proto.input:
        if not info.type.HasField("tensor_type"):
            continue
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") != "dim_value" or dim.dim_value < 0:
                dim.dim_param = f"{info.name}@{axis}"
