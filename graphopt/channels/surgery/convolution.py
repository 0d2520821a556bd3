"""Grouped and depthwise convolutions: number of blocks, and weights whose blocks lose channels of their own."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Indices
from graphopt.channels.surgery.narrowing import Surgery, described
from graphopt.channels.surgery.weights import groups_of, holder_of, is_depthwise
from graphopt.errors import UsageError


def narrow_convolution(surgery: Surgery, node: gs.Node) -> None:
    """Adjust a convolution in blocks to what remains of the channels it reads and writes.

    Depthwise: there are as many blocks as channels. Otherwise blocks stay, each with the inputs that remain to it.

    Raises:
        UsageError: blocks of different sizes remain.
    """
    groups = groups_of(node)
    if groups == 1:
        return
    if is_depthwise(node) and surgery.kept(node.inputs[0], 1) is not None:
        node.attrs["group"] = surgery.size(node.inputs[0], 1)
        return
    read = _blocks(surgery, node, node.inputs[0])
    written = _blocks(surgery, node, node.outputs[0])
    # Along the second axis of its weight a convolution has the inputs of one block, a transposed one the outputs.
    tensor, blocks = (node.outputs[0], written) if node.op == "ConvTranspose" else (node.inputs[0], read)
    if surgery.kept(tensor, 1) is None:
        return
    holder, slot = holder_of(node)
    weight = surgery.values(holder, slot)
    rows = len(weight) // groups
    parts = [
        np.take(weight[rows * number : rows * (number + 1)], inside, axis=1) for number, inside in enumerate(blocks)
    ]
    surgery.put(holder, slot, np.concatenate(parts))


def _blocks(surgery: Surgery, node: gs.Node, tensor: gs.Tensor) -> Indices:
    """The channels that remain of each block, counted from its first, [blocks, channels]."""
    groups, kept = groups_of(node), surgery.remaining(tensor, 1)
    width = surgery.shape(tensor)[1] // groups
    counts = np.bincount(kept // width, minlength=groups)
    if counts.min() != counts.max() or not counts[0]:
        raise UsageError(
            f"{described(node)} treats its channels in {groups} blocks, each of which must keep as many as the others"
            f" and at least one; this selection leaves {counts.tolist()} of '{tensor.name}'"
        )
    return np.asarray(kept.reshape(groups, -1) % width)
