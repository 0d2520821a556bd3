"""The graph layer: an ONNX model opened with onnx-graphsurgeon's classes, and safe verbs to edit it.

``import_graph`` and ``export_graph`` are the way in and out; nothing of the model is lost between them and the
caller's model is never written to. In between, passes ask an ``Index`` and edit with its verbs. Only this package
knows graphsurgeon's sharp edges: use neither its importer and exporter, nor ``layer``, ``toposort``, ``cleanup``,
``copy``, nor ``==`` on its objects.
"""

from onnx_graphsurgeon.logger import G_LOGGER

from graphopt.graph.exporting import export_graph, export_part, skeleton
from graphopt.graph.header import Header, WorkGraph
from graphopt.graph.importing import import_graph
from graphopt.graph.index import (
    Index,
    add_node,
    constant,
    consumers,
    drop_node,
    replace_uses,
    set_input,
    set_output,
    sole_consumer,
    sole_producer,
    take_over,
    trim_inputs,
    variable,
)
from graphopt.graph.making import dismantle
from graphopt.graph.order import detach, reads_of, remove_unused, subgraphs_of, toposort, walk
from graphopt.graph.shapes import TensorType, forget_types, infer_again, infer_shapes, infer_types, types_of
from graphopt.graph.spare import spare_bytes
from graphopt.graph.values import (
    Shape,
    dtype_of,
    is_constant,
    is_op,
    onnx_dtype,
    shape_of,
    size_of,
    values_of,
)
from graphopt.graph.verification import verify

# graphsurgeon prints its log to standard output, which belongs to the command line's results.
G_LOGGER.severity = G_LOGGER.CRITICAL

__all__ = [
    "Header",
    "Index",
    "Shape",
    "TensorType",
    "WorkGraph",
    "add_node",
    "constant",
    "consumers",
    "detach",
    "dismantle",
    "drop_node",
    "dtype_of",
    "export_graph",
    "export_part",
    "forget_types",
    "import_graph",
    "infer_again",
    "infer_shapes",
    "infer_types",
    "is_constant",
    "is_op",
    "onnx_dtype",
    "reads_of",
    "remove_unused",
    "replace_uses",
    "set_input",
    "set_output",
    "shape_of",
    "size_of",
    "skeleton",
    "sole_consumer",
    "sole_producer",
    "spare_bytes",
    "subgraphs_of",
    "take_over",
    "toposort",
    "trim_inputs",
    "types_of",
    "values_of",
    "variable",
    "verify",
    "walk",
]
