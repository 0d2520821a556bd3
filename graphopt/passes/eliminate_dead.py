"""Remove what changes nothing: unused nodes, nodes that pass a value on, and duplicate weights.

1. A node none of whose outputs reaches a graph output goes, in subgraphs too. Inputs and outputs of graphs stay.
2. ``y = NoOp(x)`` goes and its readers read ``x``. ``no_ops`` has the rules, from Identity to Not of Not. Where ``y``
   is a graph output, the producer of ``x`` writes ``y``.
3. Nodes that stay are spared what serves nothing: results that nobody reads, empty pieces of a Concat, a Cast that
   lost nothing before another. ``trimming`` has the rules.
4. Initializers of equal dtype, shape and bytes become one; those that nothing reads go.

Never worth less than what it costs: no option, always exact.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, consumers, replace_uses, size_of, sole_producer, take_over, walk
from graphopt.graph.opened import OpenGraph
from graphopt.graph.shapes import forget_types
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.no_ops.duplicates import find_duplicates
from graphopt.passes.no_ops.knowledge import Knowledge
from graphopt.passes.no_ops.rules import RULES, passed_on
from graphopt.passes.no_ops.trimming import find_trims
from graphopt.passes.no_ops.unused import sweep


@dataclass(frozen=True)
class EliminateDead:
    """Remove unused nodes, nodes that pass a value on unchanged, and duplicate weights."""

    name: ClassVar[str] = "eliminate_dead"
    summary: ClassVar[str] = "remove unused nodes, no-ops and duplicate weights"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        tally = _Tally()
        known: Knowledge | None = Knowledge(graph)
        while known is not None:
            known = _round(graph, known, tally)
        merged, saved = _merge_duplicates(graph)
        unread = _forget_unread(graph)
        return PassReport(
            changes=unread + tally.unused + sum(tally.no_ops.values()) + sum(tally.trimmed.values()) + merged,
            skipped=tuple(tally.skipped),
            details={
                "unused_nodes": tally.unused,
                "unused_weights": unread,
                "no_ops": dict(sorted(tally.no_ops.items())),
                "trimmed": dict(sorted(tally.trimmed.items())),
                "duplicate_weights": merged,
                "duplicate_bytes": saved,
            },
        )


@dataclass
class _Tally:
    """What has been done so far, over all rounds; ``skipped`` is what the last one left alone."""

    unused: int = 0
    no_ops: Counter[str] = field(default_factory=Counter)
    trimmed: Counter[str] = field(default_factory=Counter)
    skipped: list[Skip] = field(default_factory=list)


def _round(graph: gs.Graph, known: Knowledge, tally: _Tally) -> Knowledge | None:
    """Sweep, trim and take no-ops out once; return what is known for the next round, None if none is needed."""
    graphs = tuple(walk(graph))
    swept = sweep(graphs)
    tally.unused += swept
    if swept:
        graphs = tuple(walk(graph))
    index: Index | None = None
    trims = find_trims(graphs, known)
    if trims:
        index = Index(graph)
        for kind, edit in trims:
            edit(index)
            tally.trimmed[kind] += 1
    removed, learned = 0, False
    tally.skipped.clear()
    dead: list[gs.Node] = []
    # Judged one after another on the graph as it is by then, so that a chain goes at once. Types stay true meanwhile.
    for node, home in ((node, each) for each in graphs for node in tuple(each.nodes) if node.op in RULES):
        source = passed_on(node, known)
        if source is None:
            continue
        index = index or Index(graph)
        reason = _why_not(index, node, source, home, known)
        if reason is not None:
            tally.skipped.append(Skip(node.name or node.outputs[0].name, f"{node.op} {reason}"))
            continue
        target = node.outputs[0]
        learned = learned or _tells_more(source, target, known)
        if index.is_output(target):
            index.drop([node])
            take_over(index, source, target)
        else:
            replace_uses(index, target, source)
            dead.append(node)
        tally.no_ops[node.op] += 1
        removed += 1
    if index is not None:
        index.drop(dead)
        index.finish()
    if not trims and not removed:
        return None
    return Knowledge(graph) if learned and forget_types(graph) else known


def _forget_unread(graph: gs.Graph) -> int:
    """Count the weights that nothing read when the model was opened, once: they are left out when it is written.

    Without this a model with nothing else to do would come back as it is, and ship them for ever.
    """
    if not isinstance(graph, OpenGraph) or graph.header is None:
        return 0
    count = len(graph.header.unread)
    graph.header.unread.clear()
    return count


def _why_not(index: Index, node: gs.Node, source: gs.Tensor, home: gs.Graph, known: Knowledge) -> str | None:
    """Why a node that passes ``source`` on must stay; None if it can go."""
    if any(output.outputs or index.is_output(output) for output in node.outputs[1:]):
        return "has a second output that is read"
    target = node.outputs[0]
    if known.ambiguous and _may_be_hidden(index, node, source, home, known):
        return "hands on a value whose name means another one where it is read"
    if not index.is_output(target):
        return None
    producer = sole_producer(source)
    if producer is None:
        return "hands an input or a constant straight to a graph output"
    if index.is_output(source):
        return "hands one graph output to another"
    if index.home(producer) is not home:
        return "hands a value from outside to an output of a subgraph"
    return None


def _may_be_hidden(index: Index, node: gs.Node, source: gs.Tensor, home: gs.Graph, known: Knowledge) -> bool:
    """Whether a reader might see another tensor of the name that it is given to read."""
    if source.name not in known.ambiguous and node.outputs[0].name not in known.ambiguous:
        return False
    if not any(tensor is source for tensor in node.inputs):
        return True
    readers = [*node.outputs[0].outputs, *(source.outputs if index.is_output(node.outputs[0]) else ())]
    return any(index.home(reader) is not home for reader in readers)


def _tells_more(source: gs.Tensor, target: gs.Tensor, known: Knowledge) -> bool:
    """Whether readers of a value that was passed on learn its shape only now."""
    if not known.has_types:
        return False
    after, before = known.shape(source), known.shape(target)
    return after is not None and (before is None or before != after)


def _merge_duplicates(graph: gs.Graph) -> tuple[int, int]:
    """Let readers of equal constants read one of them; return how many were merged and their bytes."""
    pairs = find_duplicates(tuple(walk(graph)))
    for tensor, first in pairs:
        for node in consumers(tensor):
            for slot, read in enumerate(node.inputs):
                if read is tensor:
                    list.__setitem__(node.inputs, slot, first)
                    list.append(first.outputs, node)
        list.clear(tensor.outputs)
    return len(pairs), sum(size_of(tensor) for tensor, _ in pairs)
