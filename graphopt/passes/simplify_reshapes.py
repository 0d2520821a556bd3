"""Merge chains of reshapes, slices and other movements of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class SimplifyReshapes:
    """Merge chains of reshapes, slices and other movements of data."""

    name: ClassVar[str] = "simplify_reshapes"
    summary: ClassVar[str] = "merge chains of reshapes, slices and other movements of data"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        return PassReport(changes=0)
