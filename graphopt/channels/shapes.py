"""One concrete shape for every tensor of an opened graph, and the values of the small tensors that hold sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.graph import skeleton
from graphopt.graph.cost.sizes import infer

# Sizes tried for open dimensions: of the first axis, and of the others one after the other. They differ from each
# other and from what channels usually count, so that a reshape does not take one for the other.
_TRIED: tuple[tuple[int, tuple[int, ...]], ...] = (
    (3, (96, 160, 224, 352)),
    (1, (96, 160, 224, 352)),
    (1, (224, 224, 224, 224)),
    (1, (32, 32, 32, 32)),
    (1, (640, 640, 640, 640)),
    (1, (1, 1, 1, 1)),
)


@dataclass(frozen=True)
class Concrete:
    """What is known of the tensors of a graph for one size of input, by name.

    Attributes:
        shapes: shapes without open dimensions; other tensors are left out.
        values: values of small tensors that are computed from sizes.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


def concrete_shapes(graph: gs.Graph, given: Mapping[str, Sequence[int]] | None = None) -> Concrete:
    """Infer one concrete shape for every tensor.

    Args:
        graph: the outermost graph; its subgraphs are left out.
        given: shapes of inputs by name. Open dimensions of the others get sizes for which most tensors have a shape.
    """
    template = skeleton(graph)
    best = Concrete()
    fewest: int | None = None
    for batch, sizes in _TRIED:
        model = onnx.ModelProto.FromString(template.SerializeToString())
        is_open = _fix_inputs(model.graph, given or {}, batch, sizes)
        try:
            typed = infer(model)
        except ModelError:
            continue
        found = dict(_known(typed.graph))
        missing = sum(name not in found for node in model.graph.node for name in node.output if name)
        if fewest is None or missing < fewest:
            fewest = missing
            best = Concrete(found, {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer})
        if not missing or not is_open:
            break
    return best


def _fix_inputs(graph: onnx.GraphProto, given: Mapping[str, Sequence[int]], batch: int, sizes: Sequence[int]) -> bool:
    """Give every open dimension of an input a size, symbols the same one everywhere; return whether any was open."""
    symbols: dict[str, int] = {}
    for info in graph.input:
        for dim, wanted in zip(info.type.tensor_type.shape.dim, given.get(info.name, ()), strict=False):
            if dim.dim_param:
                symbols[dim.dim_param] = wanted
            dim.dim_value = wanted
    any_open = False
    left = iter(sizes)
    for info in graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            any_open = True
            size = symbols.get(dim.dim_param, 0) or (batch if axis == 0 else next(left, sizes[-1]))
            if dim.dim_param:
                symbols[dim.dim_param] = size
            dim.dim_value = size
    return any_open


def _known(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)
    for info in (*graph.input, *graph.value_info, *graph.output):
        declared = info.type.tensor_type
        if declared.HasField("shape") and all(dim.HasField("dim_value") for dim in declared.shape.dim):
            yield info.name, tuple(dim.dim_value for dim in declared.shape.dim)


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has."""
    return int(np.prod(shape, dtype=np.int64))
