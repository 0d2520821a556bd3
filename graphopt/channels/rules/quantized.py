"""Quantized operators: the layers that they stand for, with scales and zero points beside the weights."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.fields import along
from graphopt.channels.tracer import Tracer, named


def scaled(tracer: Tracer, node: gs.Node) -> None:
    """QuantizeLinear and DequantizeLinear: one scale for all, or one for each channel, which follows it.

    Zero stays zero through the pair. A quantized tensor counts as zero where it holds its zero point.
    """
    source = node.inputs[0]
    if tracer.is_fixed(source):
        return
    size = tracer.shape(source)
    for each in tracer.fields(source):
        for slot in (1, 2):
            if len(node.inputs) <= slot or node.inputs[slot].is_empty():
                continue
            shape = tracer.shape(node.inputs[slot])
            if shape is None or size is None or len(shape) > 1:
                tracer.trace.labels.pin(each, f"{named(node)} has a scale for each block")
            elif np.prod(shape) > 1:
                axis = int(node.attrs.get("axis", 1)) % len(size)
                if each.shape[axis] > 1:
                    labels = tracer.vector(each, axis, f"{named(node)} has one scale for them")
                    if not tracer.assign(node, slot, along(labels, 0, 1), "follows"):
                        tracer.trace.labels.pin(labels, f"a scale of {named(node)} is computed")
    tracer.put(node.outputs[0], tracer.fields(source), zero=tracer.is_zero(source))


def dynamic(tracer: Tracer, node: gs.Node) -> None:
    """DynamicQuantizeLinear: the range always holds zero, so that zeroed channels do not change it."""
    source = node.inputs[0]
    if not tracer.is_zero(source):
        tracer.pin_inputs(node, f"{named(node)} takes the range of them, and they are not zero once zeroed")
        return
    tracer.put(node.outputs[0], tracer.fields(source), zero=True)
