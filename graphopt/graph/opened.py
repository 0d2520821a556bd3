"""graphsurgeon's graph, with room for what is remembered of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from graphopt.graph.header import Header
    from graphopt.graph.shapes import Known


class OpenGraph(gs.Graph):  # type: ignore[misc]
    """The outermost graph of a model opened for editing.

    Attributes:
        known: the types inferred so far; see ``graphopt.graph.shapes``.
        header: everything of the model but its operators.
        source: the model that was opened, as it was.
        source_bytes: its size, once somebody has asked.
    """

    known: Known | None = None
    header: Header | None = None
    source: onnx.ModelProto | None = None
    source_bytes: int | None = None
