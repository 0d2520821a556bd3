"""Cancel transposes and move them to the borders of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class CancelTransposes:
    """Cancel transposes and move them to the borders of the graph."""

    name: ClassVar[str] = "cancel_transposes"
    summary: ClassVar[str] = "cancel transposes and move them to the borders of the graph"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        return PassReport(changes=0)
