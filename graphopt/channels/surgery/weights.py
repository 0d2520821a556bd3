"""Convolutions in blocks: which they are, and where their weights lie."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.graph import is_constant, is_op, sole_producer, values_of

_CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv")


def is_convolution(node: gs.Node) -> bool:
    """Whether a node is a convolution of any kind."""
    return is_op(node, *_CONVOLUTIONS) or (node.domain == "com.microsoft" and node.op == "FusedConv")


def weight_slot(node: gs.Node) -> int:
    """Which input of a convolution is its weight."""
    return 3 if node.op == "QLinearConv" else 1


def groups_of(node: gs.Node) -> int:
    """The number of blocks of channels that a convolution treats apart."""
    return int(node.attrs.get("group", 1))


def is_depthwise(node: gs.Node) -> bool:
    """Whether each block of a convolution reads one channel."""
    groups = groups_of(node)
    holder, slot = holder_of(node)
    weight = values_of(holder.inputs[slot])
    if groups == 1 or weight is None:
        return False
    return bool(weight.shape[0] == groups) if node.op == "ConvTranspose" else bool(weight.shape[1] == 1)


def holder_of(node: gs.Node) -> tuple[gs.Node, int]:
    """The node and the input that hold the weight of a convolution as a constant: a DequantizeLinear, or itself."""
    slot = weight_slot(node)
    while not is_constant(node.inputs[slot]):
        producer = sole_producer(node.inputs[slot])
        if producer is None or not is_op(producer, "Cast", "DequantizeLinear", "Identity"):
            break
        node, slot = producer, 0
    return node, slot
