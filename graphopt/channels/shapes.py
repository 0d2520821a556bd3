"""One concrete shape for every tensor of an opened graph, and the values of the small tensors that hold sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.graph import skeleton
from graphopt.graph.cost.shapes import use_standard_operators
from graphopt.graph.cost.sizes import infer

_Choice: TypeAlias = tuple[int, tuple[int, ...]]

# Sizes tried for open dimensions: of the first axis, and of the others one after the other. They differ from each
# other and from what channels usually count, so that a reshape does not take one for the other.
_TRIED: tuple[_Choice, ...] = (
    (3, (96, 160, 224, 352)),
    (1, (96, 160, 224, 352)),
    (1, (224, 224, 224, 224)),
    (1, (32, 32, 32, 32)),
    (1, (640, 640, 640, 640)),
    (1, (1, 1, 1, 1)),
)

# Operators that sizes are computed with, and how many of them at most for one value.
_COMPUTES = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand",
        "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min",
        "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd",
        "ReduceSum", "Reshape", "Round", "ScatterND", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose",
        "Unsqueeze", "Where",
    }
)  # fmt: skip
_MOST_STEPS = 500


class SizeValues:
    """Values of tensors that are computed from constants and shapes alone, by name; computed when asked for."""

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._model = model
        self._shapes = shapes
        self._known: dict[str, npt.NDArray[Any] | None] = {}

    @cached_property
    def _producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self._model.graph.node for name in node.output if name}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, node in enumerate(self._model.graph.node) for name in node.output if name}

    @cached_property
    def _constants(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self._model.graph.initializer}

    def get(self, name: str) -> npt.NDArray[Any] | None:
        """The value; None where it takes more than constants and shapes."""
        if name not in self._known:
            self._known[name] = self._compute(name)
        return self._known[name]

    def _compute(self, name: str) -> npt.NDArray[Any] | None:
        """Run what leads to the tensor, from shapes on; None where it is more than sizes."""
        from onnx.reference import ReferenceEvaluator

        if name in self._constants:
            return np.asarray(onnx.numpy_helper.to_array(self._constants[name]))
        steps: dict[str, onnx.NodeProto] = {}
        given: dict[str, onnx.TensorProto] = {}
        pending = [name]
        while pending:
            wanted = pending.pop()
            node = self._producers.get(wanted)
            if wanted in self._constants:
                given[wanted] = self._constants[wanted]
            elif node is not None and node.op_type in {"Shape", "Size"} and node.input[0] in self._shapes:
                given[wanted] = onnx.numpy_helper.from_array(_shape_value(node, self._shapes[node.input[0]]), wanted)
            elif node is None or node.op_type not in _COMPUTES or node.domain or len(steps) == _MOST_STEPS:
                return None
            elif node.output[0] not in steps:
                steps[node.output[0]] = node
                pending.extend(one for one in node.input if one)
        nodes = [steps[one] for one in sorted(steps, key=lambda one: self._places.get(one, 0))]
        graph = onnx.helper.make_graph(nodes, "sizes", [], [onnx.ValueInfoProto(name=name)], list(given.values()))
        opsets = self._model.opset_import
        try:
            alone = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=self._model.ir_version)
            results: Any = ReferenceEvaluator(alone).run(None, {})
        except Exception:  # an operator that the reference does not know; its value stays unknown
            return None
        return np.asarray(results[0])


def _shape_value(node: onnx.NodeProto, shape: Sequence[int]) -> npt.NDArray[np.int64]:
    if node.op_type == "Size":
        return np.asarray(np.prod(shape, dtype=np.int64))
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.asarray(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], dtype=np.int64)


class Concrete:
    """What is known of the tensors of a graph for one size of input, by name.

    Attributes:
        shapes: shapes without open dimensions; other tensors are left out.
        is_open: whether sizes had to be chosen, so that no size may be taken for a fact.
    """

    def __init__(self, template: onnx.ModelProto, given: Mapping[str, Sequence[int]], choice: _Choice) -> None:
        self._template = template
        self._given = given
        self._choice = choice
        model = onnx.ModelProto.FromString(template.SerializeToString())
        self.is_asked, self.is_open = _fix_inputs(model.graph, given, *choice)
        fixed = onnx.ModelProto.FromString(model.SerializeToString()) if self.is_open else model
        try:
            self.shapes = dict(_known(infer(fixed).graph))
        except ModelError:
            self.shapes = {}
        self.missing = sum(name not in self.shapes for node in model.graph.node for name in node.output if name)
        self._values = SizeValues(model, self.shapes)

    @cached_property
    def _other(self) -> Concrete:
        """The same for other sizes."""
        batch, sizes = self._choice
        others = (batch + 2, tuple(size + 64 for size in sizes)), (batch + 2, sizes), (batch, sizes)
        tried = (Concrete(self._template, self._given, choice) for choice in others)
        return next(one for one in tried if one.missing <= self.missing)

    def value(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a small tensor that is computed from sizes; None where it depends on sizes that are open."""
        found, holds = self.entries(name)
        return found if found is not None and holds.all() else None

    def entries(self, name: str) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.bool_]]:
        """The value of a small tensor computed from sizes, and which entries hold for any size of the input."""
        found = self._values.get(name)
        if found is None or not self.is_asked:
            return found, np.ones(() if found is None else found.shape, dtype=bool)
        other = self._other._values.get(name)
        same = other is not None and other.shape == found.shape
        return found, np.asarray(found == other) if same else np.zeros(found.shape, dtype=bool)


class Values(Mapping[str, npt.NDArray[Any]]):
    """``Concrete.value`` as a mapping; iterating tells nothing."""

    def __init__(self, concrete: Concrete) -> None:
        self._concrete = concrete

    def entries(self, name: str) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.bool_]]:
        """The value, None where it is not computed from sizes alone; which entries hold for any size of the input."""
        return self._concrete.entries(name)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        found = self._concrete.value(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def concrete_shapes(graph: gs.Graph, given: Mapping[str, Sequence[int]] | None = None) -> Concrete:
    """Infer one concrete shape for every tensor.

    Args:
        graph: the outermost graph; its subgraphs are left out.
        given: shapes of inputs by name. Open dimensions of the others get sizes for which most tensors have a shape.
    """
    template = skeleton(graph)
    use_standard_operators(template.graph)
    best: Concrete | None = None
    for choice in _TRIED:
        found = Concrete(template, given or {}, choice)
        if best is None or found.missing < best.missing:
            best = found
        if not best.missing or not best.is_asked:
            break
    assert best is not None
    return best


def _fix_inputs(
    graph: onnx.GraphProto, given: Mapping[str, Sequence[int]], batch: int, sizes: Sequence[int]
) -> tuple[bool, bool]:
    """Give every open dimension of an input a size, symbols the same one everywhere.

    Returns:
        whether any size had to be chosen, and whether any was open.
    """
    symbols: dict[str, int] = {}
    asked = is_open = False
    for info in graph.input:
        for dim, wanted in zip(info.type.tensor_type.shape.dim, given.get(info.name, ()), strict=False):
            is_open |= not dim.dim_value
            if dim.dim_param:
                symbols[dim.dim_param] = wanted
            dim.dim_value = wanted
    left = iter(sizes)
    for info in graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            is_open = True
            size = symbols.get(dim.dim_param, 0)
            if not size:
                asked = True
                size = batch if axis == 0 else next(left, sizes[-1])
            if dim.dim_param:
                symbols[dim.dim_param] = size
            dim.dim_value = size
    return asked, is_open


def _known(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)
    for info in (*graph.input, *graph.value_info, *graph.output):
        declared = info.type.tensor_type
        if declared.HasField("shape") and all(dim.HasField("dim_value") for dim in declared.shape.dim):
            yield info.name, tuple(dim.dim_value for dim in declared.shape.dim)
