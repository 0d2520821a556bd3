"""Following channels through an opened graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from graphopt.channels.resolving import resolve
from graphopt.channels.rules import JOINS, RULES, sizes
from graphopt.channels.shapes import Values, concrete_shapes
from graphopt.channels.trace import Trace
from graphopt.channels.tracer import Tracer, named
from graphopt.graph import is_constant, reads_of, subgraphs_of

_STANDARD = frozenset({None, "", "ai.onnx"})
# Operators of other domains that do what the standard one of that name does, and activations.
_KNOWN_ELSEWHERE = {
    "com.microsoft": frozenset({"DequantizeLinear", "FusedConv", "Gelu", "QuantizeLinear", "QuickGelu"})
}


def trace_graph(graph: gs.Graph, shapes: Mapping[str, Sequence[int]] | None = None) -> Trace:
    """Follow the channels of all layers through a graph; nothing in it is changed.

    The nodes must be sorted. Labels are numbered in the order of the graph, so that the same graph gives the same
    classes each time.

    Args:
        graph: the outermost graph of an opened model.
        shapes: shapes of inputs by name, for open dimensions; any that the model accepts will do.
    """
    concrete = concrete_shapes(graph, shapes)
    values = Values(concrete)
    trace = Trace(graph, {}, values=values)
    tracer = Tracer(trace, values, graph.opset, concrete.is_open)
    for node in graph.nodes:
        for tensor in (*node.inputs, *node.outputs):
            if is_constant(tensor):
                trace.shapes[id(tensor)] = _constant_shape(tensor, concrete.shapes)
            elif tensor.name in concrete.shapes:
                trace.shapes[id(tensor)] = concrete.shapes[tensor.name]
    for node in graph.nodes:
        _apply(tracer, node)
    for tensor in graph.outputs:
        trace.pin(tensor, f"they are the graph's output '{tensor.name}'")
        sizes.pin(tracer, tensor, f"their number is the graph's output '{tensor.name}'")
    resolve(tracer)
    return trace


def _constant_shape(tensor: gs.Tensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if isinstance(tensor, gs.Constant):
        return tuple(int(size) for size in tensor.shape)
    return shapes.get(tensor.name, ())


def _apply(tracer: Tracer, node: gs.Node) -> None:
    if any(id(tensor) in tracer.sizes for tensor in node.inputs):
        if sizes.carry(tracer, node):
            return
        sizes.freeze(tracer, node)
    rule = RULES.get(node.op)
    known = node.domain in _STANDARD or node.op in _KNOWN_ELSEWHERE.get(node.domain, ())
    if rule is None or not known:
        _wall(tracer, node)
    elif any(tracer.fields(tensor) for tensor in node.inputs) or node.op in WRITERS:
        rule(tracer, node)
        if node.op not in JOINS:
            for tensor in node.inputs[1:]:
                if not tracer.is_fixed(tensor):
                    tracer.trace.pin(tensor, f"{named(node)} reads them as a parameter")


WRITERS = frozenset(
    {"Conv", "ConvInteger", "ConvTranspose", "FusedConv", "Gemm", "MatMul", "QLinearConv", "Shape", "Size"}
)


def _wall(tracer: Tracer, node: gs.Node) -> None:
    """Nothing is known of what an operator does: all that it reads stays."""
    has_bodies = any(True for _ in subgraphs_of(node))
    why = (
        f"the body of {named(node)} reads them"
        if has_bodies
        else f"operator {node.op} is not understood: {named(node)}"
    )
    for tensor in reads_of(node) if has_bodies else node.inputs:
        tracer.trace.pin(tensor, why)
        sizes.pin(tracer, tensor, why)
