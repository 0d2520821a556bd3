"""Inline functions and branches whose condition is fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class Inline:
    """Inline functions and branches whose condition is fixed."""

    name: ClassVar[str] = "inline"
    summary: ClassVar[str] = "inline functions and branches whose condition is fixed"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        return PassReport(changes=0)
