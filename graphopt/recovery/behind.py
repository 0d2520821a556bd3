"""What a layer's output goes into: what it would have to give for that to be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from graphopt.recovery.layers import Array, Layer, affine
from graphopt.recovery.net import Net


@dataclass(frozen=True)
class Behind:
    """A BatchNormalization and an Add behind a layer, as far as they are there and nothing else reads it.

    Attributes:
        factor: what the BatchNormalization multiplies each channel by; 1 where there is none.
        shift: what it adds then; 0 where there is none.
        sum: the tensor that the Add writes; None where there is no Add.
        operand: the tensor that it adds to the layer's.
    """

    factor: Array
    shift: Array
    sum: str | None = None
    operand: str | None = None


def behind(net: Net, layer: Layer) -> Behind:
    """Find what a layer goes into. An Add counts if its other operand is computed before the layer."""
    factor, shift = np.ones(layer.outputs, np.float32), np.zeros(layer.outputs, np.float32)
    name = layer.name
    reader = _only_reader(net, name)
    if reader is not None and reader.op_type == "BatchNormalization":
        if any(each not in net.constants for each in reader.input[1:5]) or len(reader.output) > 1:
            return Behind(factor, shift)
        factor, shift = affine(net, reader)
        name = reader.output[0]
        reader = _only_reader(net, name)
    if reader is not None and reader.op_type == "Add":
        other = reader.input[1] if reader.input[0] == name else reader.input[0]
        if other == name or other in net.constants or net.producer.get(other, -1) > layer.step:
            return Behind(factor, shift)
        return Behind(factor, shift, reader.output[0], other)
    return Behind(factor, shift)


def _only_reader(net: Net, name: str) -> onnx.NodeProto | None:
    readers = net.readers.get(name, ())
    if len(readers) != 1 or name in net.outputs or len(net.steps[readers[0]]) != 1:
        return None
    (node,) = net.steps[readers[0]]
    return node if node.domain in ("", "ai.onnx") else None
