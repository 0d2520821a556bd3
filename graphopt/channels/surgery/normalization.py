"""Normalization whose statistics run over channels that are cut: their number counts, so zeros take their place."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.surgery.narrowing import Kept, Surgery, integers
from graphopt.graph import add_node, constant, set_input, set_output, values_of, variable


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


def _pad_parameter(surgery: Surgery, node: gs.Node, slot: int, rank: int, kept: Kept) -> None:
    """What is kept of a scale or bias first, as in the data, and zeros behind."""
    parameter = node.inputs[slot]
    values = values_of(parameter)
    size = surgery.shape(parameter) if values is None else values.shape
    axes = {axis - rank + len(size): indices for axis, indices in kept.items() if axis - rank + len(size) >= 0}
    axes = {axis: indices for axis, indices in axes.items() if size[axis] > 1}
    behind = [size[axis] - len(axes[axis]) if axis in axes else 0 for axis in range(len(size))]
    if values is not None:
        for axis, indices in axes.items():
            values = np.take(values, indices, axis=axis)
        surgery.put(node, slot, np.pad(values, [(0, count) for count in behind]))
        return
    # Computed from a constant, which was cut with the others.
    index = surgery.index
    padded = variable(index, f"{parameter.name}_padded")
    pads = constant(index, f"{parameter.name}_pads", integers([0] * len(size) + behind))
    add_node(index, "Pad", [parameter, pads], [padded], prefix=padded.name)
    set_input(index, node, slot, padded)
