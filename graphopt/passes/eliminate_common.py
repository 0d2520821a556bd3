"""Compute equal expressions once, and cut one tensor with one Split.

1. Nodes of one operator, with equal attributes and equal inputs, compute the same: readers of the later one read the
   first. Operands of Add, Mul and the like may be swapped; short constants are equal where their bytes are. A node of
   a subgraph gives way to an equal one outside that is computed before.
2. Sibling Slices that take a tensor apart become one Split: see ``common_slices``.

Left alone: random operators, nodes with subgraphs, operators of other domains and functions; two equal results that
are both graph outputs, and outputs of subgraphs that are computed outside (each output needs a node that writes it).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, replace_uses, set_output, walk
from graphopt.graph.opened import OpenGraph
from graphopt.passes.base import Context, PassReport
from graphopt.passes.expressions.common_slices import find_partitions, split_once
from graphopt.passes.expressions.keys import expression_key, may_repeat
from graphopt.passes.no_ops.knowledge import Knowledge


@dataclass(frozen=True)
class EliminateCommon:
    """Compute equal expressions once, and cut one tensor with one Split."""

    name: ClassVar[str] = "eliminate_common"
    summary: ClassVar[str] = "compute equal expressions once, and cut one tensor with one Split"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        if graph.opset < 7:  # Dropout was random then, and broadcasting a matter of attributes
            return PassReport(changes=0)
        search = _Search(graph, Knowledge(graph))
        search.run()
        slices, splits = _split(graph, search.known)
        return PassReport(
            changes=search.merged + slices,
            details={"merged": search.merged, "slices": slices, "splits": splits},
        )


def _split(graph: gs.Graph, known: Knowledge) -> tuple[int, int]:
    """Replace Slices that take tensors apart; return how many, and by how many Splits."""
    slices = splits = 0
    while True:
        partitions = find_partitions(tuple(walk(graph)), known)
        if partitions:
            index = Index(graph)
            split_once(index, partitions)
            index.finish()
        slices += sum(len(pieces) for _, pieces in partitions)
        splits += len(partitions)
        # Inference does not see into subgraphs from outside: there a Split may tell what Slices did not.
        if all(home is graph for home, _ in partitions):
            return slices, splits
        if isinstance(graph, OpenGraph):
            graph.known = None
        known = Knowledge(graph)


@dataclass
class _Search:
    """One walk over a graph and its subgraphs in order, with the expressions that can be seen from each node.

    Attributes:
        graph: the outermost graph.
        known: names and types.
        merged: how many nodes gave way so far.
        index: made when the first one does.
        table: the first node that computes an expression, and where it stands.
        open: ``id`` of each graph on the way down -> its expressions in the table.
        alias: ``id`` of a tensor that gave way, or took over -> that of the equal one that stands in keys.
        constants: keys of short constants.
        visited: ``id`` of the nodes passed by so far.
        dead: the nodes that gave way; held so that an ``id`` stays its own.
    """

    graph: gs.Graph
    known: Knowledge
    merged: int = 0
    index: Index | None = None
    table: dict[Hashable, tuple[gs.Node, gs.Graph]] = field(default_factory=dict)
    open: dict[int, list[Hashable]] = field(default_factory=dict)
    alias: dict[int, int] = field(default_factory=dict)
    constants: dict[int, Hashable] = field(default_factory=dict)
    visited: set[int] = field(default_factory=set)
    dead: list[gs.Node] = field(default_factory=list)

    def run(self) -> None:
        self._visit(self.graph)
        if self.index is not None:
            self.index.drop(self.dead)
            self.index.finish()

    def _visit(self, home: gs.Graph) -> None:
        # Calls go as deep as graphs are nested, which protobuf bounds.
        mine = self.open.setdefault(id(home), [])
        for node in tuple(home.nodes):
            if node.attrs:
                bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
                for body in bodies:
                    self._visit(body)
                if bodies:
                    continue
            self.visited.add(id(node))
            if _is_read_elsewhere(node) and may_repeat(node):
                key = expression_key(node, self.alias, self.constants)
                first = self.table.setdefault(key, (node, home))
                if first[0] is node:
                    mine.append(key)
                elif self._merge(*first, node, home):
                    self.merged += 1
        # What a subgraph computes cannot be seen from outside.
        for key in self.open.pop(id(home)):
            del self.table[key]

    def _merge(self, first: gs.Node, first_home: gs.Graph, node: gs.Node, home: gs.Graph) -> bool:
        """Let ``first`` compute what ``node`` does, if that can be; return whether it does."""
        index = self.index = self.index or Index(self.graph)
        pairs = [
            (slot, kept, gone)
            for slot, (kept, gone) in enumerate(zip(first.outputs, node.outputs, strict=True))
            if not gone.is_empty()
        ]
        ambiguous = self.known.ambiguous
        for _, kept, gone in pairs:
            if index.is_output(gone) and (index.is_output(kept) or home is not first_home):
                return False
            # In another graph than its own a name may mean something else.
            stays, readers = (gone, kept.outputs) if index.is_output(gone) else (kept, gone.outputs)
            if stays.name in ambiguous and any(index.home(reader) is not first_home for reader in readers):
                return False
        for slot, kept, gone in pairs:
            self.alias[id(gone)] = self.alias.get(id(kept), id(kept))
            alone = kept.outputs[0] if len(kept.outputs) == 1 else None
            if index.is_output(gone):
                list.clear(gone.inputs)
                replace_uses(index, kept, gone)
                set_output(index, first, slot, gone)
            else:
                replace_uses(index, gone, kept)
            if alone is not None and id(alone) in self.visited:
                self._note(alone, index.home(alone))
        self.dead.append(node)
        return True

    def _note(self, node: gs.Node, home: gs.Graph) -> None:
        """Enter a node that was passed by, since nothing else read what it reads; now something does."""
        mine = self.open.get(id(home))
        if mine is None or not may_repeat(node):
            return
        key = expression_key(node, self.alias, self.constants)
        if key not in self.table:
            self.table[key] = (node, home)
            mine.append(key)


def _is_read_elsewhere(node: gs.Node) -> bool:
    """Whether another node reads everything that this one does, but for constants: else none can be equal to it."""
    for tensor in node.inputs:
        if len(tensor.outputs) < 2 and tensor.name and not isinstance(tensor, gs.Constant):
            return False
    return True
