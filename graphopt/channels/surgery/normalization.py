"""Normalization whose statistics run over channels that are cut: their number counts, so zeros take their place."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Indices
from graphopt.channels.surgery.narrowing import Surgery, integers
from graphopt.graph import add_node, constant, set_input, set_output, variable


def narrow_group_normalization(surgery: Surgery, node: gs.Node) -> None:
    """Whole groups of channels go, so that there are fewer of them."""
    data = node.inputs[0]
    width = surgery.shape(data)[1] // int(node.attrs["num_groups"])
    node.attrs["num_groups"] = surgery.size(data, 1) // width


def narrow_layer_normalization(surgery: Surgery, node: gs.Node) -> None:
    """Normalize over as many elements as before, zeros in place of what was cut.

    Before: LayerNormalization. After: Pad (zeros behind) -> LayerNormalization -> Slice. The statistics are those of
    the net in which the channels are zeros, to the last bit but for the order of the sum.
    """
    data, result = node.inputs[0], node.outputs[0]
    rank = len(surgery.shape(data))
    first = int(node.attrs.get("axis", -1)) % rank
    kept = {axis: indices for axis, indices in surgery.narrowing.of(data).items() if axis >= first}
    if not kept:
        return
    index = surgery.index
    pads = [0] * (2 * rank)
    for axis, indices in kept.items():
        pads[rank + axis] = surgery.shape(data)[axis] - len(indices)
    padded, normal = variable(index, f"{data.name}_padded"), variable(index, f"{result.name}_padded")
    inputs = [data, constant(index, f"{data.name}_pads", integers(pads))]
    add_node(index, "Pad", inputs, [padded], prefix=padded.name)
    set_input(index, node, 0, padded)
    set_output(index, node, 0, normal)
    axes = sorted(kept)
    bounds = [[0] * len(axes), [len(kept[axis]) for axis in axes], axes]
    inputs = [normal, *(constant(index, f"{result.name}_kept", integers(values)) for values in bounds)]
    add_node(index, "Slice", inputs, [result], prefix=f"{result.name}_kept")
    for slot in range(1, len(node.inputs)):
        if not node.inputs[slot].is_empty():
            _pad_parameter(surgery, node, slot, rank, kept)


def _pad_parameter(surgery: Surgery, node: gs.Node, slot: int, rank: int, kept: dict[int, Indices]) -> None:
    """What is kept of a scale or bias first, as in the data, and zeros behind."""
    values = surgery.values(node, slot)
    for axis, indices in kept.items():
        own = axis - rank + values.ndim
        if own < 0 or values.shape[own] == 1:
            continue
        taken = np.take(values, indices, axis=own)
        behind = [(0, values.shape[own] - len(indices)) if other == own else (0, 0) for other in range(values.ndim)]
        values = np.pad(taken, behind)
    surgery.put(node, slot, values)
