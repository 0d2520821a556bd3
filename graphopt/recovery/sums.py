"""Layers whose output goes straight into an Add: what they would have to give for the sum to be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.recovery.layers import Array, Layer, affine
from graphopt.recovery.net import Net


@dataclass(frozen=True)
class Sum:
    """An Add behind a layer, with or without a BatchNormalization between.

    Attributes:
        name: the tensor that the Add writes.
        operand: the tensor that it adds to the layer's.
        factor: what the BatchNormalization multiplies each channel by; 1 where there is none.
        shift: what it adds then; 0 where there is none.
    """

    name: str
    operand: str
    factor: Array
    shift: Array


def sum_behind(net: Net, layer: Layer) -> Sum | None:
    """Find the Add that a layer goes straight into, if its other operand is computed before the layer."""
    factor, shift = np.ones(layer.outputs, np.float32), np.zeros(layer.outputs, np.float32)
    name = layer.name
    for _ in range(2):
        readers = net.readers.get(name, ())
        if len(readers) != 1 or name in net.outputs or len(net.steps[readers[0]]) != 1:
            return None
        (node,) = net.steps[readers[0]]
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Add":
            operand = node.input[1] if node.input[0] == name else node.input[0]
            producer = net.producer.get(operand)
            if operand == name or operand in net.constants or (producer is not None and producer > layer.step):
                return None
            return Sum(node.output[0], operand, factor, shift)
        if node.op_type != "BatchNormalization" or any(each not in net.constants for each in node.input[1:5]):
            return None
        factor, shift = affine(net, node)
        name = node.output[0]
    return None
