"""Put subgraphs that run exactly once in the place of the node that holds them.

1. ``If`` with a constant condition becomes the nodes of the branch that is taken; the other branch goes. So does one
   whose other branch makes the graph fail: see ``impossible_branches``.
2. ``Loop`` that runs once (trip count 1, condition true or left out) becomes the nodes of its body, with 0 for the
   number of the iteration; each output that would be stacked gets an Unsqueeze.
3. ``Loop`` that never runs (trip count 0 or condition false) hands its initial values on, unless a stacked output is
   read: that would be empty, of a shape nobody states.
4. Nested ones likewise, from the outside in, in bodies of other Loops and Scans too. Conditions that are computed
   from constants are for ``fold_constants``.

Tensors keep the outer names; inner ones are renamed only where another tensor has theirs. Functions of the model are
expanded before a graph is opened: see ``graphopt.model.inlining``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    add_node,
    constant,
    is_op,
    replace_uses,
    set_input,
    shape_of,
    values_of,
    variable,
    walk,
)
from graphopt.model.inlining import inline_functions
from graphopt.passes.base import Context, PassReport
from graphopt.passes.no_ops.knowledge import Knowledge
from graphopt.passes.subgraphs.impossible_branches import impossible_branches
from graphopt.passes.subgraphs.splicing import Splicer


@dataclass(frozen=True)
class Inline:
    """Inline branches whose condition is fixed, loops that run once or never, and functions.

    Attributes:
        functions: whether calls of the model's own functions are expanded, so that other passes see into them. That
            happens before the graph is opened.
    """

    name: ClassVar[str] = "inline"
    summary: ClassVar[str] = "inline functions and branches whose condition is fixed"
    exact: ClassVar[bool] = True

    functions: bool = True

    def prepare(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model with its functions expanded, the very model where there is nothing to expand."""
        return inline_functions(model) if self.functions else model

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        graphs = tuple(walk(graph))
        if len(graphs) == 1:
            return PassReport(changes=0)
        found = [(node, home) for home in graphs for node in home.nodes if is_op(node, "If", "Loop")]
        settled = impossible_branches(graphs, Knowledge(graph)) if graph.opset >= 7 else []
        if not settled and not any(_branch(node) is not None or _trips(node) is not None for node, _ in found):
            return PassReport(changes=0)
        splicer = Splicer(Index(graph))
        for node, taken in settled:
            set_input(splicer.index, node, 0, constant(splicer.index, f"{node.name}_taken", np.array(taken)))
        counts = {"branches": 0, "loops": 0, "settled": len(settled)}
        homes: dict[int, gs.Graph] = {}
        # Outer nodes come first; what was inside a branch that is gone reads nothing any more.
        for node, first_home in found:
            home = homes.get(id(node), first_home)
            body = _branch(node)
            if body is not None and _can_hand_on(node, body.outputs, graph.opset):
                homes.update((id(inner), home) for inner in body.nodes if inner.op in {"If", "Loop"})
                splicer.splice(node, body, home, list(node.outputs))
                counts["branches"] += 1
                continue
            trips, body = _trips(node), node.attrs.get("body")
            if trips is None or not isinstance(body, gs.Graph) or not _can_unroll(splicer, node, body, graph, trips):
                continue
            if trips:
                homes.update((id(inner), home) for inner in body.nodes if inner.op in {"If", "Loop"})
                _run_once(splicer, node, body, home)
            else:
                _skip(splicer, node, home)
            counts["loops"] += 1
        splicer.index.finish()
        return PassReport(changes=sum(counts.values()), details=counts)


def _branch(node: gs.Node) -> gs.Graph | None:
    """The branch that an If always takes; None if that is open, and for other nodes."""
    if node.op != "If" or len(node.inputs) != 1:
        return None
    condition = values_of(node.inputs[0])
    if condition is None or condition.size != 1:
        return None
    body = node.attrs.get("then_branch" if condition.item() else "else_branch")
    return body if isinstance(body, gs.Graph) and len(body.outputs) == len(node.outputs) else None


def _trips(node: gs.Node) -> int | None:
    """0 or 1 if a Loop always runs as often; None if it may run more, and for other nodes."""
    if node.op != "Loop" or len(node.inputs) < 2:
        return None
    limit, condition = (_scalar(tensor) for tensor in node.inputs[:2])
    if (limit is not None and limit < 1) or (condition is not None and not condition):
        return 0
    return 1 if limit == 1 and (condition or node.inputs[1].is_empty()) else None


def _scalar(tensor: gs.Tensor) -> int | None:
    values = None if tensor.is_empty() else values_of(tensor)
    return None if values is None or values.size != 1 else int(values.item())


def _can_hand_on(node: gs.Node, results: Sequence[gs.Tensor], opset: int) -> bool:
    """Whether an Identity, should it be needed, takes all that is handed on."""
    return opset >= 16 or all(
        isinstance(tensor, gs.Constant) or tensor.type == "tensor_type" for tensor in (*node.outputs, *results)
    )


def _can_unroll(splicer: Splicer, node: gs.Node, body: gs.Graph, graph: gs.Graph, trips: int) -> bool:
    """Whether a Loop can be replaced by its body, or by its initial values."""
    states = len(node.inputs) - 2
    if len(body.inputs) != states + 2 or len(body.outputs) != len(node.outputs) + 1 or len(node.outputs) < states:
        return False
    if any(tensor.is_empty() for tensor in node.inputs[2:]) or not _can_hand_on(node, body.outputs, graph.opset):
        return False
    if not trips:
        return not any(tensor.outputs or splicer.index.is_output(tensor) for tensor in node.outputs[states:])
    if any(shape_of(tensor) not in {None, (), (1,)} for tensor in body.inputs[:2]):
        return False
    # What is fed must mean the same wherever it is read.
    pairs = zip(body.inputs[2:], node.inputs[2:], strict=True)
    return not any(splicer.is_hidden(fed, inner.outputs, body) for inner, fed in pairs)


def _run_once(splicer: Splicer, node: gs.Node, body: gs.Graph, home: gs.Graph) -> None:
    index = splicer.index
    states = len(node.inputs) - 2
    given = [
        constant(index, f"{inner.name}_value", np.full([1] * len(shape_of(inner) or ()), value))
        for inner, value in zip(body.inputs[:2], (np.int64(0), np.bool_(True)), strict=True)
    ]
    bound = {id(inner): fed for inner, fed in zip(body.inputs, [*given, *node.inputs[2:]], strict=True)}
    for inner in body.inputs:
        replace_uses(index, inner, bound[id(inner)])
    body.outputs = [bound.get(id(tensor), tensor) for tensor in body.outputs]
    stacked = list(node.outputs[states:])
    single = [variable(index, f"{tensor.name}_single") for tensor in stacked]
    splicer.splice(node, body, home, [None, *node.outputs[:states], *single])
    for whole, part in zip(stacked, single, strict=True):
        _stack(index, part, whole, home)


def _stack(index: Index, part: gs.Tensor, whole: gs.Tensor, home: gs.Graph) -> None:
    """Write ``whole`` as the only one of its kind, stacked along a new first axis."""
    if whole.is_empty():
        return
    if index.graph.opset < 13:
        add_node(index, "Unsqueeze", [part], [whole], {"axes": [0]}, prefix=f"{whole.name}_stack", home=home)
    else:
        axes = constant(index, f"{whole.name}_axes", np.zeros(1, np.int64))
        add_node(index, "Unsqueeze", [part, axes], [whole], prefix=f"{whole.name}_stack", home=home)


def _skip(splicer: Splicer, node: gs.Node, home: gs.Graph) -> None:
    pairs = list(zip(node.inputs[2:], node.outputs, strict=False))
    splicer.index.drop([node])
    splicer.index.touch(home)
    for initial, target in pairs:
        if not target.is_empty():
            splicer.hand_on(initial, target, home)
