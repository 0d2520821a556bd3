"""How far a model has shrunk while it was edited: what a pass may spend without making the file larger."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.graph.exporting import LARGE_BYTES, without_weights
from graphopt.graph.header import WorkGraph
from graphopt.graph.opened import OpenGraph
from graphopt.graph.order import walk
from graphopt.graph.values import size_of


def spare_bytes(graph: gs.Graph) -> int:
    """Bytes by which the file would be smaller than the one that was opened; negative where it would be larger.

    0 where the size of the opened file is not known: a part of a model, or one above 2 GB. Linear, and as dear as
    writing the graph: ask once.
    """
    if not isinstance(graph, OpenGraph) or graph.header is None or graph.file_bytes is None:
        return 0
    weights = {
        id(tensor): size_of(tensor)
        for each in walk(graph)
        for node in each.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }
    large = sum(size for size in weights.values() if size > LARGE_BYTES)
    return int(graph.file_bytes - large - without_weights(WorkGraph(graph, graph.header)).ByteSize())
