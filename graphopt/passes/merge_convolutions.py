"""Merge parallel and consecutive convolutions into one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class MergeConvolutions:
    """Merge parallel and consecutive convolutions into one."""

    name: ClassVar[str] = "merge_convolutions"
    summary: ClassVar[str] = "merge parallel and consecutive convolutions into one"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        return PassReport(changes=0)
