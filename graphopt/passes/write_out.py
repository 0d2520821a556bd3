"""Write operators that the target does not take as simpler ones.

::

    before   x -> HardSwish -> y                          TensorRT 8.4 imports no HardSwish
    after    x -> HardSigmoid(1/6, 1/2) -> Mul(x) -> y

Which operators these are the target says: those on its lists (``written_out``, ``refused_operators``), and those that
came with an operator set above the highest it takes (``lower_opset`` carries over the rest). A simpler form that holds
an operator on the list is written out in turn. ``writing_out`` has the forms; an operator without one, or a node for
which the form does not hold (sizes that are not known, say), stays and is reported.

Passes that recognise activations and normalizations make none that the target does not take, so that they and this one
may run in any order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, is_op, types_of, walk
from graphopt.passes.accepted import unwanted
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.writing_out.draft import CannotWriteError, Draft, Made
from graphopt.passes.writing_out.forms import FORMS, is_unwanted


@dataclass(frozen=True)
class WriteOut:
    """Write operators that the target does not take as simpler ones."""

    name: ClassVar[str] = "write_out"
    summary: ClassVar[str] = "write operators that the target does not take as simpler ones"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        highest, listed = context.hardware.opset[1], unwanted(context.hardware)
        counts: Counter[str] = Counter()
        while True:
            found, skipped = _round(graph, highest, listed)
            if not found:
                break
            counts += found
        return PassReport(sum(counts.values()), tuple(skipped), dict(sorted(counts.items())))


def _round(graph: gs.Graph, highest: int, listed: frozenset[str]) -> tuple[Counter[str], list[Skip]]:
    """Write out every operator that can be seen now; return how many of each kind, and what was left alone."""
    if not listed and graph.opset <= highest:
        return Counter(), []
    types = types_of(graph)
    every = [node for home in walk(graph) for node in home.nodes]
    nodes = [node for node in every if is_unwanted(node, graph.opset, highest, listed, types)]
    counts: Counter[str] = Counter()
    skipped: list[Skip] = []
    written: list[gs.Node] = []
    index = Index(graph)
    made: Made = {}
    for node in nodes:
        draft = Draft(node, graph.opset, types, index)
        reason = _draft(draft)
        if reason:
            where = str(node.name or next((tensor.name for tensor in node.outputs if not tensor.is_empty()), node.op))
            skipped.append(Skip(where, f"the target does not take {node.op}, and {reason}"))
            continue
        draft.write(made)
        counts[node.op] += 1
        written.append(node)
    index.drop(written)
    index.finish()
    return counts, skipped


def _draft(draft: Draft) -> str:
    """Draft the simpler form of a node; why there is none, empty where there is one."""
    form = FORMS.get(draft.node.op) if is_op(draft.node, draft.node.op) else None
    if form is None:
        return "there is no simpler form of it"
    try:
        form(draft)
    except CannotWriteError as error:
        return f"it cannot be written as simpler operators: {error}"
    return ""
