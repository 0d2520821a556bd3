"""Lower the version of the default operator set to the highest that the target takes.

::

    before   opset 20:  Squeeze(x, axes) -> ReduceMean(axes) -> Split<num_outputs>      TensorRT 8.2 takes opset 13
    after    opset 13:  Squeeze(x, axes) -> ReduceMean<axes> -> Split

Every node is carried over version by version, backwards: an input that used to be an attribute becomes one, a default
that changed is spelled out, an attribute that says what was always so goes. ``opset_lowering`` has the list; for the
rest the schemas must prove that the older operator takes the node, its types included. Operators that did not exist
are written out first (``write_out``).

All or nothing: where nodes cannot be carried over exactly, the operator set stays as it is, and the report names each
of them and why. The IR version goes down to the one that came with the highest operator set the target takes, as
runtimes refuse newer ones. Nodes of other domains may be functions of the model, whose bodies have operator sets of
their own: they wait until ``inline`` has taken them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import walk
from graphopt.graph.opened import OpenGraph
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.opset_lowering import lower
from graphopt.passes.opset_nodes import carry_out, plan

# Initializers need not be inputs from this IR version on (onnx/docs/IR.md); local functions came with the other.
_OLDEST_IR = 4
_FUNCTIONS_IR = 8


@dataclass(frozen=True)
class LowerOpset:
    """Lower the version of the default operator set to the highest that the target takes."""

    name: ClassVar[str] = "lower_opset"
    summary: ClassVar[str] = "lower the operator set version to what the target takes"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        highest, before = context.hardware.opset[1], graph.opset
        changes, details, skipped = 0, {}, list[Skip]()
        if before > highest:
            found, skipped = plan(graph, lambda state: lower(state, before, highest), f"lowered to opset {highest}")
            if skipped:
                return PassReport(0, tuple(skipped))
            converted = carry_out(graph, found, highest)
            changes += 1 + converted
            details = {"opset": f"lowered from {before} to {highest}", "converted_nodes": converted}
        wanted = _ir_version(graph, highest)
        if (graph.ir_version or 0) > wanted:
            details["ir_version"] = f"lowered from {graph.ir_version} to {wanted}"
            for home in walk(graph):
                home.ir_version = wanted
            changes += 1
        return PassReport(changes, tuple(skipped), details)


def _ir_version(graph: gs.Graph, highest: int) -> int:
    """The IR version that came with the highest operator set that the target takes."""
    imported = [onnx.helper.make_opsetid("", highest)]
    header = graph.header if isinstance(graph, OpenGraph) else None
    least = _FUNCTIONS_IR if header is not None and header.model.functions else _OLDEST_IR
    return max(least, int(onnx.helper.find_min_ir_version_for(imported, ignore_unknown=True)))
