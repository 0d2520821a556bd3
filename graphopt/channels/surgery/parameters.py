"""Parameters lose the slices of channels that are cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Indices
from graphopt.channels.surgery.narrowing import Surgery
from graphopt.channels.trace import ParameterUse
from graphopt.graph import is_op, values_of

# Their parameters are padded back to full width; see ``normalization``.
_PADDED = ("LayerNormalization", "RMSNormalization")


def slice_parameters(surgery: Surgery) -> None:
    """Cut every parameter that has slices of channels that go."""
    removed: dict[tuple[int, int], tuple[gs.Node, dict[int, npt.NDArray[np.bool_]]]] = {}
    there = {id(node) for node in surgery.index.graph.nodes}
    for use in surgery.trace.uses:
        if id(use.node) not in there:
            continue  # nobody needed it, or it lay inside a shuffle
        gone = surgery.is_cut(use.labels)
        if not gone.any() or is_op(use.node, *_PADDED) or is_in_blocks(use):
            continue
        axes = removed.setdefault((id(use.node), use.input), (use.node, {}))[1]
        axes[use.axis] = axes[use.axis] | gone if use.axis in axes else gone
    for (_, slot), (node, axes) in removed.items():
        values = surgery.values(node, slot)
        for axis, gone in sorted(axes.items()):
            values = np.take(values, kept_indices(gone), axis=axis)
        surgery.put(node, slot, values)


def is_in_blocks(use: ParameterUse) -> bool:
    """Whether the constant has other channels at the same index in each block of a grouped convolution."""
    values = values_of(use.node.inputs[use.input])
    return values is not None and values.shape[use.axis] != len(use.labels)


def kept_indices(gone: npt.NDArray[np.bool_]) -> Indices:
    """Indices of what does not go."""
    return np.flatnonzero(~gone)
