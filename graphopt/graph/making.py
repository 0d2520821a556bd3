"""Making graphsurgeon's objects in bulk: what its constructors do, without their checks of every assignment.

Its ``Tensor.__setattr__`` looks for lists to keep in step on each of five assignments a tensor, and its lists are
filled by generic code. That is half the time of opening a large model, and all of it is known to be unnecessary for
an object that is just being made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.util.misc import SynchronizedList

from graphopt.graph.values import Shape


def new_variable(name: str, dtype: Any = None, shape: Shape | None = None, kind: str = "tensor_type") -> gs.Variable:
    """Make a tensor that is computed or fed; the empty name stands for an optional one that is left out."""
    tensor: gs.Variable = gs.Variable.__new__(gs.Variable)
    tensor.__dict__.update(
        name=name,
        inputs=_synchronized(tensor, "outputs"),
        outputs=_synchronized(tensor, "inputs"),
        dtype=dtype,
        shape=shape,
        type=kind,
    )
    return tensor


def new_constant(name: str, values: Any) -> gs.Constant:
    """Make a constant of an array or of values still stored."""
    tensor: gs.Constant = gs.Constant.__new__(gs.Constant)
    tensor.__dict__.update(
        name=name,
        inputs=_synchronized(tensor, "outputs"),
        outputs=_synchronized(tensor, "inputs"),
        _values=values,
        data_location=None,
        _export_dtype=None,
    )
    return tensor


def new_node(
    op: str, name: str, attrs: dict[str, Any], outputs: Sequence[gs.Tensor], domain: str | None = None
) -> gs.Node:
    """Make a node that reads nothing yet; see ``read_inputs``."""
    node: gs.Node = gs.Node.__new__(gs.Node)
    written = _synchronized(node, "inputs")
    list.extend(written, outputs)
    for tensor in outputs:
        list.append(tensor.inputs, node)
    node.__dict__.update(
        op=op, name=name, attrs=attrs, inputs=_synchronized(node, "outputs"), outputs=written, domain=domain
    )
    return node


def read_inputs(node: gs.Node, inputs: Sequence[gs.Tensor]) -> None:
    """Let a new node read tensors."""
    list.extend(node.inputs, inputs)
    for tensor in inputs:
        list.append(tensor.outputs, node)


def _synchronized(owner: gs.Node | gs.Tensor, field: str) -> SynchronizedList:
    made: SynchronizedList = SynchronizedList.__new__(SynchronizedList)
    made.__dict__.update(parent_obj=owner, field_name=field)
    return made


def dismantle(root: gs.Graph) -> None:
    """Take a graph that is needed no more apart, so that it is freed at once.

    Nodes, tensors and their lists all refer to each other: Python's collector would have to walk over millions of
    objects to find that out, a quarter of the time spent on a graph of 100,000 nodes.
    """
    pending = [root]
    while pending:
        graph = pending.pop()
        for node in graph.nodes:
            if node.attrs:
                pending.extend(value for value in node.attrs.values() if isinstance(value, gs.Graph))
            tensors = [*node.inputs, *node.outputs]
            node.__dict__.clear()
            for tensor in tensors:
                tensor.__dict__.clear()
        graph.nodes.clear()
