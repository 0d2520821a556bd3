"""Remove channel shuffles by permuting weights, or make each one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class FuseChannelShuffle:
    """Remove channel shuffles by permuting weights, or make each one operator."""

    name: ClassVar[str] = "fuse_channel_shuffle"
    summary: ClassVar[str] = "remove channel shuffles by permuting weights, or make each one operator"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        return PassReport(changes=0)
