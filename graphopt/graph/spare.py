"""How far a model has shrunk while it was edited: what a pass may spend without making the file larger."""

from __future__ import annotations

import math

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.exporting import LARGE_BYTES, without_weights
from graphopt.graph.header import WorkGraph
from graphopt.graph.importing import import_graph
from graphopt.graph.opened import OpenGraph
from graphopt.graph.order import walk
from graphopt.graph.values import numpy_dtype, size_of

_MEASURED_BYTES = 16_000_000


def spare_bytes(graph: gs.Graph) -> int:
    """Bytes by which the file would be smaller than the one that was opened; negative where it would be larger.

    0 for a part of a model, which was never a file. Linear, and as dear as opening and writing the graph: ask once.
    """
    if not isinstance(graph, OpenGraph) or graph.header is None or graph.source is None:
        return 0
    if graph.source_bytes is None:
        graph.source_bytes = _source_bytes(graph.source)
    return graph.source_bytes - _file_bytes(WorkGraph(graph, graph.header))


def _source_bytes(model: onnx.ModelProto) -> int:
    """The size of the model as it was opened; of a large one without the weights that nothing reads."""
    stored = sum(math.prod(t.dims) * numpy_dtype(t.data_type, t.name).itemsize for t in model.graph.initializer)
    # To tell its size protobuf writes the whole message.
    return int(model.ByteSize()) if stored <= _MEASURED_BYTES else _file_bytes(import_graph(model))


def _file_bytes(work: WorkGraph) -> int:
    """The size of the model as a file, give or take what large weights take beside their values."""
    weights = {
        id(tensor): size_of(tensor)
        for each in walk(work.gs)
        for node in each.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }
    large = sum(size for size in weights.values() if size > LARGE_BYTES)
    return large + int(without_weights(work).ByteSize())
