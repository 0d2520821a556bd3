"""Lower the version of the default operator set to the highest that the target takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport, Skip


@dataclass(frozen=True)
class LowerOpset:
    """Lower the version of the default operator set to the highest that the target takes."""

    name: ClassVar[str] = "lower_opset"
    summary: ClassVar[str] = "lower the operator set version to what the target takes"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        highest = context.hardware.opset[1]
        if graph.opset <= highest:
            return PassReport(0)
        return PassReport(0, (Skip(f"opset {graph.opset}", f"the target takes {highest} at most"),))
