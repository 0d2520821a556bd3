"""Raise the operator set version, where asked to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class RaiseOpset:
    """Raise the operator set version, where asked to."""

    name: ClassVar[str] = "raise_opset"
    summary: ClassVar[str] = "raise the operator set version, where asked to"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        return PassReport(changes=0)
