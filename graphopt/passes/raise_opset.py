"""Raise the version of the default operator set, where asked to or the target wants it (``write_opset``).

``--option raise_opset.to=20`` lets the passes after it use operators that came later: HardSwish (14),
LayerNormalization (17), Mish (18), Gelu (20), RMSNormalization (23). Every node is carried over version by version: an
attribute that became an input becomes a constant, a default that changed is spelled out, an operator that was renamed
gets its new name. ``opset_steps`` has the list; for what is not on it, the schemas must prove that nothing changed.

All or nothing: where one node cannot be carried over exactly, the operator set stays as it is, and the report names
the node and why. Never lowered, never above what the target takes. Nodes of other domains may be functions of the
model, whose bodies have operator sets of their own: they wait until ``inline`` has taken them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.opset_nodes import carry_out, plan
from graphopt.passes.opset_steps import carry

_OLDEST = 7


@dataclass(frozen=True)
class RaiseOpset:
    """Raise the version of the default operator set.

    Attributes:
        to: the version wanted; 0 takes what the target wants older models raised to, which most leave as they are.
    """

    name: ClassVar[str] = "raise_opset"
    summary: ClassVar[str] = "raise the operator set version, where asked to or the target wants it"
    exact: ClassVar[bool] = True

    to: int = 0

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        highest = context.hardware.opset[1]
        wanted = min(self.to or context.hardware.write_opset or 0, highest)
        skipped = [Skip(f"opset {self.to}", f"the target takes {highest} at most")] if self.to > highest else []
        if wanted <= graph.opset:
            return PassReport(0, tuple(skipped))
        if graph.opset < _OLDEST:
            skipped.append(Skip(f"opset {graph.opset}", f"operators before opset {_OLDEST} are not converted"))
            return PassReport(0, tuple(skipped))
        before = graph.opset
        found, refused = plan(graph, lambda state: carry(state, before, wanted), f"raised to opset {wanted}")
        if refused:
            return PassReport(0, (*skipped, *refused))
        changed = carry_out(graph, found, wanted)
        details = {"opset": f"raised from {before} to {wanted}", "converted_nodes": changed}
        return PassReport(1 + changed, tuple(skipped), details)
