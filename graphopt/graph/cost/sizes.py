"""Computes the tensors that hold sizes where ONNX's shape inference cannot: paddings, targets of Reshape and Resize.

Exporters write them as little graphs of Shape, Gather, Concat and arithmetic, which have a value as soon as the input's
shape has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.errors import ModelError

SMALL = 1024  # elements; tensors of sizes are far smaller

_COMPUTES_SIZES = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Flatten",
    "Floor", "Gather", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min",
    "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum",
    "Reshape", "Round", "ScatterND", "Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip

Array = npt.NDArray[Any]


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the shapes that can be known; it is changed: tensors of sizes become initializers.

    Raises ``ModelError`` where the graph contradicts itself.
    """
    typed = _infer_once(model)
    if _complete(typed):
        return typed
    known = _stored(model)
    if _hand_down(model.graph, known):
        typed = _infer_once(model)
    while fresh := _compute(model, typed, known):
        known.update(fresh)
        kept = [node for node in model.graph.node if not (node.output and set(node.output) <= fresh.keys())]
        model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in fresh.items())
        rest = onnx.GraphProto(node=kept)
        del model.graph.node[:]
        model.graph.node.MergeFrom(rest.node)
        _hand_down(model.graph, fresh)
        typed = _infer_once(model)
        if _complete(typed):
            break
    return typed


def _stored(model: onnx.ModelProto) -> dict[str, Array]:
    """The values of small initializers and Constant nodes."""
    tensors = [tensor for tensor in model.graph.initializer if prod(tensor.dims) <= SMALL]
    values: dict[str, Array] = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain == "":
            values.update(_constant(node, model))
    return values


def _hand_down(graph: onnx.GraphProto, known: Mapping[str, Array]) -> bool:
    """Store in bodies the sizes that they read from graphs around them, whose values inference does not see in there.

    Returns whether there were any.
    """
    found = False
    pending = [graph]
    while pending:
        outer = pending.pop()
        for body in (a.g for node in outer.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
            pending.append(body)
            own = {value.name for value in (*body.input, *body.initializer)}
            own.update(name for node in body.node for name in node.output)
            read = {name for node in body.node for name in node.input} - own
            wanted = sorted(read.intersection(known))
            body.initializer.extend(onnx.numpy_helper.from_array(known[name], name) for name in wanted)
            found |= bool(wanted)
    return found


def _infer_once(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelError(f"shapes cannot be inferred: {str(error).strip().splitlines()[0]}") from error


def _complete(typed: onnx.ModelProto) -> bool:
    values = {value.name: value for value in (*typed.graph.value_info, *typed.graph.output)}
    names = (name for node in typed.graph.node for name in node.output if name)
    return all(name in values and _fixed_shape(values[name]) is not None for name in names)


def _fixed_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _compute(model: onnx.ModelProto, typed: onnx.ModelProto, known: Mapping[str, Array]) -> dict[str, Array]:
    """The values that are not in ``known`` yet and can be computed from it and from known shapes."""
    graph = typed.graph
    shapes: dict[str, tuple[int, ...] | None] = {}
    declared = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    outputs = {value.name for value in graph.output}
    values = dict(known)
    fresh: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type not in _COMPUTES_SIZES or node.domain != "" or outputs.intersection(node.output):
            continue
        if all(not name or name in known for name in node.output):
            continue
        if node.op_type in ("Shape", "Size") and _shape_of(node.input[0], declared, shapes) is not None:
            feeds = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]] or ())}
        elif all(not name or name in values for name in node.input):
            feeds = {name: values[name] for name in node.input if name}
        else:
            continue
        result = _evaluate(node, feeds, model)
        values.update(result)
        fresh.update(result)
    return fresh


def _shape_of(
    name: str, declared: Mapping[str, onnx.ValueInfoProto], found: dict[str, tuple[int, ...] | None]
) -> tuple[int, ...] | None:
    """The fixed shape of a tensor, each looked up once."""
    if name not in found:
        found[name] = _fixed_shape(declared[name]) if name in declared else None
    return found[name]


def _constant(node: onnx.NodeProto, model: onnx.ModelProto) -> dict[str, Array]:
    """The value of a Constant node; nothing where it is large."""
    if len(node.attribute) == 1 and node.attribute[0].name == "value":
        tensor = node.attribute[0].t
        return {node.output[0]: onnx.numpy_helper.to_array(tensor)} if prod(tensor.dims) <= SMALL else {}
    return _evaluate(node, {}, model)


def _evaluate(node: onnx.NodeProto, feeds: Mapping[str, Array], model: onnx.ModelProto) -> dict[str, Array]:
    """The outputs of one node; nothing where they are large or the node does not accept its inputs."""
    from onnx.reference import ReferenceEvaluator

    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    names = [name for name in node.output if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = onnx.helper.make_graph([node], "sizes", inputs, outputs)
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        found = ReferenceEvaluator(alone).run(None, dict(feeds))
    except Exception:  # an invalid node; counting goes on without its value, and says which size is unknown
        return {}
    small = all(isinstance(value, np.ndarray | np.generic) and value.size <= SMALL for value in found)
    return {name: np.asarray(value) for name, value in zip(names, found, strict=True)} if small else {}
