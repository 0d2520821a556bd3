"""Larger batches of models whose batch is fixed: copies of the model side by side.

What a model with a fixed batch of 1 costs for a batch of 16 cannot be had by changing its input: exporters write the
batch into targets of Reshape and into tables of positions, too. The work is known all the same: whatever is computed
from the inputs is there 16 times, and the weights once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx

from graphopt.errors import UsageError

if TYPE_CHECKING:
    from graphopt.graph.cost.shapes import Scope

_RECURRENCES = {"RNN", "GRU", "LSTM"}
# What they return depends on their input's size only.
_SIZES = {"Shape", "Size"}


def copies_for(graph: onnx.GraphProto, given: Mapping[str, Sequence[int]], batch: int) -> int:
    """How many copies of a model side by side make a batch of ``batch``.

    1 where the batch is the model's own: a first axis is dynamic and takes it, or ``batch`` is 1 and so says nothing.

    Raises:
        UsageError: every first axis is fixed and ``batch`` is no multiple of it, or inputs differ in theirs.
    """
    if batch == 1:
        return 1
    constant = {tensor.name for tensor in graph.initializer}
    first: dict[str, int] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in constant or not dims:
            continue
        if value.name in given:
            first[value.name] = given[value.name][0] if given[value.name] else 0
        elif dims[0].HasField("dim_value") and dims[0].dim_value > 0:
            first[value.name] = dims[0].dim_value
        else:
            return 1
    if not first:
        return 1
    sizes = set(first.values())
    if len(sizes) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in first.items())
        raise UsageError(f"no batch of {batch}: the first axes of the inputs are fixed and differ ({shown})")
    (own,) = sizes
    if own < 1 or batch % own:
        raise UsageError(f"no batch of {batch}: the model's batch is fixed at {own}; give a multiple of it")
    return batch // own


def side_by_side(graphs: Sequence[Scope], inputs: Collection[str], copies: int) -> None:
    """Make the shapes in ``graphs`` those of ``copies`` of the model, which share their weights.

    The first axis of every tensor that is computed from an input's values becomes ``copies`` times as long; what is
    computed from sizes and constants alone stays. Where the batch is not the first axis inside, single sizes are not
    those of a graph that somebody could run, but the number of elements, on which work and traffic rest, is right. Only
    recurrences, which take as many turns as there are steps, keep their first axis, and their second becomes longer.
    """
    varying: set[str] = set()
    for scope in graphs:
        if not scope.inner:
            varying.update(name for name in inputs if name not in scope.constants)
    for scope in graphs:
        for node in scope.nodes:
            if node.op_type in _SIZES:
                continue
            # Inside a body everything that is not constant is taken to vary: what runs there is fed from outside.
            if scope.inner or not varying.isdisjoint(node.input) or _has_body(node):
                varying.update(name for name in node.output if name)
    batch_axis = {name: axis for scope in graphs for node in scope.nodes for name, axis in _behind_steps(node)}
    for scope in graphs:
        own = getattr(scope.shapes, "maps", [scope.shapes])[0]
        for name, shape in own.items():
            if name not in varying or name in scope.constants or not shape:
                continue
            axis = batch_axis.get(name, 0)
            size = shape[axis] if axis < len(shape) else None
            if size is not None:
                own[name] = (*shape[:axis], size * copies, *shape[axis + 1 :])


def _behind_steps(node: onnx.NodeProto) -> Iterator[tuple[str, int]]:
    """What a recurrence reads and writes with the steps before the batch, and where the batch is."""
    if node.op_type in _RECURRENCES and not any(a.name == "layout" and a.i == 1 for a in node.attribute):
        yield node.input[0], 1
        yield from zip(node.output, (2, 1, 1), strict=False)


def _has_body(node: onnx.NodeProto) -> bool:
    return any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
