"""Remove what changes nothing: unused nodes, nodes that pass their input on, and duplicate weights.

1. A node none of whose outputs reaches a graph output goes, in subgraphs too. Inputs and outputs of graphs stay.
2. ``y = NoOp(x)`` goes and its readers read ``x``. No-ops: Identity, inference Dropout with an unread mask, Cast to the
   same type, Reshape, Flatten, Squeeze, Unsqueeze and Expand to the same shape, Transpose in order, Pad by nothing,
   Slice of everything, Tile by 1, Concat, Sum, Max, Min and Mean of one input, Split into one, and adding 0 or
   multiplying by 1. ``no_ops`` has the rules. Where ``y`` is a graph output, the producer of ``x`` writes ``y``.
3. Initializers of equal dtype, shape and bytes become one.

Never worth less than what it costs: no option, always exact.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    remove_unused,
    replace_uses,
    shape_of,
    size_of,
    sole_producer,
    take_over,
    types_of,
    values_of,
)
from graphopt.graph.values import dtype_of
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.no_ops import Knowledge, is_no_op, needs_types


@dataclass(frozen=True)
class EliminateDead:
    """Remove unused nodes, nodes that pass their input on unchanged, and duplicate weights."""

    name: ClassVar[str] = "eliminate_dead"
    summary: ClassVar[str] = "remove unused nodes, no-ops and duplicate weights"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        unused = remove_unused(graph)
        index = Index(graph)
        removed, skipped = _bypass(index)
        # What only a no-op read (the target shape of a Reshape) is unused now.
        unused += remove_unused(graph)
        merged, saved = _merge_duplicates(index)
        return PassReport(
            changes=unused + sum(removed.values()) + merged,
            skipped=tuple(skipped),
            details={
                "unused_nodes": unused,
                "no_ops": dict(sorted(removed.items())),
                "duplicate_weights": merged,
                "duplicate_bytes": saved,
            },
        )


def _bypass(index: Index) -> tuple[Counter[str], list[Skip]]:
    """Take no-ops out of all graphs; return how many of each operator, and those left with why."""
    nodes = [(node, graph) for graph in index.graphs for node in graph.nodes]
    typed = any(needs_types(node) for node, _ in nodes)
    known = Knowledge(index.graph.opset, types_of(index.graph, distinct=True) if typed else {})
    # Decided on the graph as it was: an edit must not change what the rules see.
    found = [(node, graph) for node, graph in nodes if is_no_op(node, known)]
    removed: Counter[str] = Counter()
    skipped: list[Skip] = []
    dead: list[gs.Node] = []
    for node, graph in found:
        reason = _why_not(index, node, graph)
        if reason is not None:
            skipped.append(Skip(node.name or node.outputs[0].name, f"{node.op} {reason}"))
            continue
        source, target = node.inputs[0], node.outputs[0]
        if index.is_output(target):
            index.drop([node])
            take_over(index, source, target)
        else:
            replace_uses(index, target, source)
            dead.append(node)
        removed[node.op] += 1
    index.drop(dead)
    index.finish()
    return removed, skipped


def _why_not(index: Index, node: gs.Node, graph: gs.Graph) -> str | None:
    """Why a node that passes its input on must stay; None if it can go."""
    if any(output.outputs or index.is_output(output) for output in node.outputs[1:]):
        return "has a second output that is read"
    source, target = node.inputs[0], node.outputs[0]
    if not index.is_output(target):
        return None
    producer = sole_producer(source)
    if producer is None:
        return "hands an input or a constant straight to a graph output"
    if index.is_output(source):
        return "hands one graph output to another"
    if index.home(producer) is not graph:
        return "hands a value from outside to an output of a subgraph"
    return None


def _merge_duplicates(index: Index) -> tuple[int, int]:
    """Let readers of equal constants read one of them; return how many were merged and their bytes.

    Only a constant that the outermost graph reads is kept as the one: every subgraph sees it.
    """
    kept: dict[int, gs.Constant] = {}
    candidates: dict[int, gs.Constant] = {}
    for graph in index.graphs:
        for node in graph.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and not index.is_output(tensor):
                    candidates[id(tensor)] = tensor
                    if graph is index.graph:
                        kept[id(tensor)] = tensor
    by_form: dict[tuple[Any, ...], list[gs.Constant]] = {}
    for tensor in candidates.values():
        by_form.setdefault((dtype_of(tensor), shape_of(tensor)), []).append(tensor)
    merged = saved = 0
    for alike in by_form.values():
        if len(alike) < 2:
            continue
        first_of: dict[bytes, gs.Constant] = {}
        for tensor in alike:
            digest = _digest(tensor)
            if digest is None:
                continue
            if digest in first_of:
                replace_uses(index, tensor, first_of[digest])
                merged, saved = merged + 1, saved + size_of(tensor)
            elif id(tensor) in kept:
                first_of[digest] = tensor
    index.finish()
    return merged, saved


def _digest(tensor: gs.Constant) -> bytes | None:
    values = values_of(tensor)
    if values is None or values.dtype == object:
        return None
    return hashlib.sha256(values.tobytes()).digest()
