"""Recurrent layers: they read the channels of their sequence; their own state stays whole."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.channels.fields import axes_of
from graphopt.channels.tracer import Tracer, named


def recurrent(tracer: Tracer, node: gs.Node) -> None:
    """LSTM, GRU, RNN: the weight of the input is [directions, gates * hidden, channels]."""
    source = node.inputs[0]
    why = f"{named(node)} runs along that axis"
    for tensor in node.inputs[3:]:
        tracer.trace.pin(tensor, f"{named(node)} reads them as state or lengths")
    weight = tracer.shape(node.inputs[1])
    for each in tracer.fields(source):
        over = tracer.without(each, [0, 1], why)
        if over is None:
            continue
        labels = tracer.vector(over, 2, why)
        if weight is None or axes_of(over) != {2}:
            tracer.trace.labels.pin(labels, f"the shapes of {named(node)} are not known")
        else:
            tracer.read(node, 1, 2, labels)
