"""Weights that a file does not hold but fills in, by ConstantOfShape: spread out to trace, written back after a cut."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    WorkGraph,
    add_node,
    constant,
    drop_node,
    import_graph,
    is_constant,
    is_op,
    replace_uses,
    set_input,
    values_of,
    variable,
)
from graphopt.graph.making import new_constant

# Name of a constant -> the attributes of the ConstantOfShape that made it.
Fills: TypeAlias = Mapping[str, dict[str, Any]]

# Elements of the largest tensor that is spread out.
LARGEST = 1 << 29


def open_spread(model: onnx.ModelProto) -> tuple[WorkGraph, Fills]:
    """Open a model with tensors that are filled in as constants, which take no memory until they are cut."""
    work = import_graph(model)
    fills: dict[str, dict[str, Any]] = {}
    nodes = [node for node in work.gs.nodes if is_op(node, "ConstantOfShape") and is_constant(node.inputs[0])]
    if not nodes:
        return work, fills
    index = Index(work.gs)
    for node in nodes:
        sizes, result = values_of(node.inputs[0]), node.outputs[0]
        if sizes is None or index.is_output(result) or not 1 < prod(map(int, sizes)) <= LARGEST:
            continue
        fills[result.name] = dict(node.attrs)
        value = node.attrs.get("value")
        stored = np.zeros(1, np.float32) if value is None else np.asarray(value.values)
        # The constant takes over the name along with the meaning.
        replace_uses(index, result, new_constant(result.name, np.broadcast_to(stored.reshape(()), tuple(sizes))))
        drop_node(index, node)
    index.finish()
    return work, fills


def write_back(graph: gs.Graph, fills: Fills) -> None:
    """Fill constants of these names in again: cut or not, they hold one value throughout."""
    if not fills:
        return
    index = Index(graph)
    made: dict[int, gs.Tensor] = {}
    for node in list(graph.nodes):
        for slot, tensor in enumerate(list(node.inputs)):
            if not isinstance(tensor, gs.Constant) or tensor.name not in fills:
                continue
            if id(tensor) not in made:
                sizes = constant(index, f"{tensor.name}_sizes", np.array(tensor.shape, np.int64))
                made[id(tensor)] = variable(index, tensor.name)
                attrs = fills[tensor.name]
                add_node(index, "ConstantOfShape", [sizes], [made[id(tensor)]], attrs, prefix=f"{tensor.name}_fill")
            set_input(index, node, slot, made[id(tensor)])
    index.finish()
