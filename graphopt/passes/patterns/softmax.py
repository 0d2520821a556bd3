"""Softmax written as ``exp(x - max(x)) / sum(exp(x - max(x)))`` along one axis."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, is_op, sole_producer, values_of
from graphopt.passes.patterns.idle import drop_with_idle
from graphopt.passes.patterns.scalar_terms import Terms

_RUNS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}


def worth_a_look(node: gs.Node) -> bool:
    """Whether the node could end a softmax: a Div of an Exp by a ReduceSum; cheap."""
    if node.op != "Div" or len(node.inputs) != 2:
        return False
    above, below = node.inputs[0].inputs, node.inputs[1].inputs
    return bool(above) and bool(below) and above[0].op == "Exp" and below[0].op == "ReduceSum"


def fuse_softmax(index: Index, terms: Terms, nodes: Iterable[gs.Node]) -> int:
    """Write every spelled-out softmax that ends at one of ``nodes`` as one operator; return how many."""
    dead: list[gs.Node] = []
    for node in nodes:
        found = _read(index, terms, node)
        if found is None:
            continue
        source, axis = found
        target, home = node.outputs[0], index.home(node)
        prefix = f"{node.name or target.name}_softmax"
        add_node(index, "Softmax", [source], [target], {"axis": axis}, prefix=prefix, home=home)
        dead.append(node)
    drop_with_idle(index, dead)
    return len(dead)


def _read(index: Index, terms: Terms, node: gs.Node) -> tuple[gs.Tensor, int] | None:
    """What the softmax is taken of, and along which axis."""
    exponential, total = sole_producer(node.inputs[0]), sole_producer(node.inputs[1])
    if not is_op(node, "Div") or exponential is None or not is_op(exponential, "Exp") or total is None:
        return None
    if not is_op(total, "ReduceSum") or total.inputs[0] is not node.inputs[0]:
        return None
    shifted = sole_producer(exponential.inputs[0])
    if shifted is None or not is_op(shifted, "Sub"):
        return None
    source, greatest = shifted.inputs[0], sole_producer(shifted.inputs[1])
    if greatest is None or not is_op(greatest, "ReduceMax") or greatest.inputs[0] is not source:
        return None
    homes = {id(index.home(member)) for member in (node, exponential, total, shifted, greatest)}
    known = terms.types.get(source.name)
    if len(homes) != 1 or known is None or known.shape is None or known.dtype not in _RUNS:
        return None
    rank, opset = len(known.shape), index.graph.opset
    axis = reduced_axis(total, rank, opset, since=13)
    if axis is None or axis != reduced_axis(greatest, rank, opset, since=18):
        return None
    # Below opset 13 Softmax runs over all axes from the one given on.
    return (source, axis) if opset >= 13 or axis == rank - 1 else None


def reduced_axis(node: gs.Node, rank: int, opset: int, since: int) -> int | None:
    """The one axis that a Reduce operator with ``keepdims`` runs along; ``since``: its opset with axes as an input."""
    axes = reduced_axes(node, rank, opset, since)
    return axes[0] if axes is not None and len(axes) == 1 else None


def reduced_axes(node: gs.Node, rank: int, opset: int, since: int) -> list[int] | None:
    """The axes that a Reduce operator with ``keepdims`` runs along, from 0 up; None where they are not fixed."""
    if node.attrs.get("keepdims", 1) != 1:
        return None
    axes: list[int] | None = node.attrs.get("axes")
    if opset >= since:
        given = values_of(node.inputs[1]) if len(node.inputs) > 1 and not node.inputs[1].is_empty() else None
        axes = None if given is None else [int(axis) for axis in np.atleast_1d(given)]
    if not axes or any(not -rank <= axis < rank for axis in axes):
        return None
    return sorted({axis % rank for axis in axes})
