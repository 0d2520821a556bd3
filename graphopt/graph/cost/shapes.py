"""Every tensor's shape for one concrete size of input, from the structure alone.

Weights are never copied: ONNX's shape inference sees a skeleton in which large initializers are declared as inputs of
the same shape. Operators of ONNX Runtime's own domain, which ONNX's inference does not know, stand in the skeleton as
the standard operator that has the same rule.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias, TypeVar

import onnx
import onnx.inliner

from graphopt.errors import UsageError
from graphopt.graph.cost.batches import copies_for, side_by_side
from graphopt.graph.cost.sizes import SMALL, infer

T = TypeVar("T")
Shape: TypeAlias = tuple[int | None, ...]

STANDARD_DOMAINS = ("", "ai.onnx")

# com.microsoft operator -> the standard operator with the same shape rule, and the inputs that it takes.
# Source: onnxruntime/docs/ContribOperators.md.
_SAME_SHAPE_RULE: dict[str, tuple[str, tuple[int, ...] | slice]] = {
    "BiasGelu": ("Identity", (0,)),
    "DequantizeLinear": ("Identity", (0,)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "FastGelu": ("Identity", (0,)),
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "Gelu": ("Identity", (0,)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "QGemm": ("Gemm", (0, 3)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearConv": ("QLinearConv", (0, 1, 2, 3, 4, 5, 6, 7, 8)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QuantizeLinear": ("Identity", (0,)),
    "QuickGelu": ("Identity", (0,)),
    "SkipLayerNormalization": ("Identity", (0,)),
}
_ATTRIBUTES_NOT_IN_STANDARD = {"activation", "activation_params", "channels_last", "activation_alpha"}


@dataclass(frozen=True)
class Constant:
    """Shape and ``onnx.TensorProto`` data type of an initializer or a Constant node's value."""

    shape: tuple[int, ...]
    dtype: int
    stored: int


@dataclass(frozen=True)
class Scope:
    """One graph (the main one, or a body of If, Loop, Scan) with what is visible in it, outer graphs included.

    Attributes:
        nodes: the graph's own nodes, in their order.
        inner: whether this is a body and not the main graph.
        shapes: tensor name -> shape; unknown tensors are absent, unknown dimensions None.
        dtypes: tensor name -> ``onnx.TensorProto`` data type, where known.
        constants: tensor name -> initializer or Constant.
        producers: tensor name -> node.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inner: bool
    shapes: MutableMapping[str, Shape]
    dtypes: MutableMapping[str, int]
    constants: MutableMapping[str, Constant]
    producers: MutableMapping[str, onnx.NodeProto]


def scopes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None, batch: int = 1) -> list[Scope]:
    """The main graph and all bodies inside it, with shapes inferred for one concrete size of input.

    ``shapes`` fixes the named inputs; of the others, a dynamic first axis becomes ``batch`` and every other dynamic
    axis stays unknown, unless it carries the symbol of an axis that is known. Where no first axis is dynamic and a
    ``batch`` is asked for that is not the model's own, shapes are those of copies of the model side by side (see
    ``side_by_side``). Functions of the model are inlined. Raises ``UsageError`` for an unknown input name, a shape that
    contradicts the model, or a batch that it cannot have.
    """
    given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    copies = copies_for(model.graph, given, batch)
    skeleton = _skeleton(model)
    if skeleton.functions:
        skeleton = onnx.inliner.inline_local_functions(skeleton)
    symbols = _symbols(model.graph, given, batch)
    _fix_inputs(skeleton, _input_shapes(model.graph, given, symbols, batch))
    _fix_symbols(skeleton, symbols)
    inferred = _infer(skeleton)
    stored = _constants(model.graph)
    result: list[Scope] = []
    root: tuple[onnx.GraphProto, onnx.GraphProto, Scope | None] = (skeleton.graph, inferred.graph, None)
    pending = [root]
    while pending:
        graph, typed, outer = pending.pop()
        scope = Scope(
            nodes=tuple(graph.node),
            inner=outer is not None,
            shapes=_within(_declared_shapes(typed), outer.shapes if outer else None),
            dtypes=_within(_declared_types(typed), outer.dtypes if outer else None),
            constants=_within(_constants(graph) if outer else stored, outer.constants if outer else None),
            producers=_within(
                {name: node for node in graph.node for name in node.output}, outer.producers if outer else None
            ),
        )
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS:
                scope.constants[node.output[0]] = _constant_value(node)
        for name, constant in scope.constants.items():
            scope.shapes.setdefault(name, constant.shape)
            scope.dtypes.setdefault(name, constant.dtype)
        result.append(scope)
        bodies = zip(_bodies(graph), _bodies(typed), strict=True)
        pending.extend((body, typed_body, scope) for body, typed_body in bodies)
    if copies > 1:
        side_by_side(result, [value.name for value in model.graph.input], copies)
    return result


def _within(own: dict[str, T], outer: MutableMapping[str, T] | None) -> MutableMapping[str, T]:
    """What a graph holds, with what the graphs around it hold behind; a plain dict, which is fast, where none is."""
    return own if outer is None else ChainMap(own, outer)


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the values of large initializers: these become inputs of the same type."""
    # From IR 4 on an initializer need not be an input, too.
    skeleton = onnx.ModelProto(ir_version=max(4, model.ir_version))
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name or "graph"
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(model.graph, field))
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if prod(tensor.dims) <= SMALL and not external:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return skeleton


def _declared_inputs(graph: onnx.GraphProto) -> dict[str, onnx.TensorShapeProto]:
    constant = {tensor.name for tensor in graph.initializer}
    return {
        value.name: value.type.tensor_type.shape
        for value in graph.input
        if value.name not in constant and value.type.tensor_type.HasField("shape")
    }


def _symbols(graph: onnx.GraphProto, given: Mapping[str, tuple[int, ...]], batch: int) -> dict[str, int]:
    """The sizes that the inputs' shapes give to named axes.

    Raises ``UsageError`` for an unknown input name or a shape that contradicts the model.
    """
    declared = _declared_inputs(graph)
    constant = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constant]
    if unknown := sorted(set(given) - set(names)):
        raise UsageError(f"the model has no input named {unknown[0]!r}; its inputs are {', '.join(names) or 'none'}")
    symbols: dict[str, int] = {}
    for name, shape in given.items():
        if name not in declared:
            continue
        dims = declared[name].dim
        fixed = [_size(dim) for dim in dims]
        if len(fixed) != len(shape) or any(f is not None and f != s for f, s in zip(fixed, shape, strict=True)):
            shown = ",".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)
            raise UsageError(f"input {name!r} has the shape [{shown}]; {list(shape)} contradicts it")
        symbols.update((dim.dim_param, size) for dim, size in zip(dims, shape, strict=True) if dim.dim_param)
    for shape_proto in declared.values():
        if shape_proto.dim and shape_proto.dim[0].dim_param:
            symbols.setdefault(shape_proto.dim[0].dim_param, batch)
    return symbols


def _input_shapes(
    graph: onnx.GraphProto, given: Mapping[str, tuple[int, ...]], symbols: Mapping[str, int], batch: int
) -> dict[str, Shape]:
    result: dict[str, Shape] = {}
    for name, shape_proto in _declared_inputs(graph).items():
        result[name] = given.get(name) or tuple(
            symbols.get(dim.dim_param, batch if axis == 0 and not dim.dim_param else None)
            if _size(dim) is None
            else _size(dim)
            for axis, dim in enumerate(shape_proto.dim)
        )
    return {**given, **result}


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """A declared size; None where it is open, which some exporters write as a negative number."""
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def _fix_inputs(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:
    for value in model.graph.input:
        if value.name not in shapes:
            continue
        tensor = value.type.tensor_type
        tensor.shape.Clear()
        for size in shapes[value.name]:
            dim = tensor.shape.dim.add()
            if size is not None:
                dim.dim_value = size


def _fix_symbols(model: onnx.ModelProto, symbols: Mapping[str, int]) -> None:
    """Write the sizes of named axes where the exporter noted the names inside the graph.

    Some shapes are known only so: PyTorch's exporter writes ``as_strided`` as arithmetic on indices, which has no
    shape until it is computed.
    """
    for value in model.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]


def _infer(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    known = onnx.ModelProto()
    known.CopyFrom(skeleton)
    use_standard_operators(known.graph)
    return infer(known)


def use_standard_operators(root: onnx.GraphProto) -> None:
    """Put standard operators with the same shape rule in the place of those that ONNX's inference does not know."""
    pending = [root]
    while pending:
        graph = pending.pop()
        for node in graph.node:
            if node.domain == "com.microsoft" and node.op_type in _SAME_SHAPE_RULE:
                _use_standard_operator(node, *_SAME_SHAPE_RULE[node.op_type])
            elif node.domain in STANDARD_DOMAINS and node.op_type == "GroupNormalization":
                _use_standard_operator(node, "Identity", (0,))
        pending.extend(_bodies(graph))


def _use_standard_operator(node: onnx.NodeProto, operator: str, taken: tuple[int, ...] | slice) -> None:
    inputs = list(node.input)
    kept = inputs[taken] if isinstance(taken, slice) else [inputs[i] for i in taken if i < len(inputs)]
    attributes = [attribute for attribute in node.attribute if attribute.name not in _ATTRIBUTES_NOT_IN_STANDARD]
    if operator in ("Identity", "MatMul", "Add", "Mul"):
        attributes = []
    outputs = list(node.output)[:1]
    name = node.name
    node.CopyFrom(onnx.NodeProto(name=name, op_type=operator, input=kept, output=outputs, attribute=attributes))


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                yield from attribute.graphs


def _declared_shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    constants: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return constants | {
        value.name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if (tensor := value.type.tensor_type).HasField("shape")
    }


def _declared_types(graph: onnx.GraphProto) -> dict[str, int]:
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return constants | {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type
    }


def _constants(graph: onnx.GraphProto) -> dict[str, Constant]:
    result = {t.name: Constant(tuple(t.dims), t.data_type, prod(t.dims)) for t in graph.initializer}
    for sparse in graph.sparse_initializer:
        values = sparse.values
        result[values.name] = Constant(tuple(sparse.dims), values.data_type, prod(values.dims))
    return result


def _constant_value(node: onnx.NodeProto) -> Constant:
    for attribute in node.attribute:
        if attribute.name == "value":
            shape = tuple(attribute.t.dims)
            return Constant(shape, attribute.t.data_type, prod(shape))
        if attribute.name == "sparse_value":
            sparse = attribute.sparse_tensor
            return Constant(tuple(sparse.dims), sparse.values.data_type, prod(sparse.values.dims))
        if attribute.name == "value_floats":
            return Constant((len(attribute.floats),), onnx.TensorProto.FLOAT, len(attribute.floats))
        if attribute.name == "value_float":
            return Constant((), onnx.TensorProto.FLOAT, 1)
        if attribute.name == "value_ints":
            return Constant((len(attribute.ints),), onnx.TensorProto.INT64, len(attribute.ints))
    return Constant((), onnx.TensorProto.INT64, 1)
