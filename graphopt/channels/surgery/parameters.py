"""Parameters lose the slices of channels that are cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Indices
from graphopt.channels.surgery.narrowing import Surgery
from graphopt.channels.surgery.weights import is_blocked
from graphopt.graph import is_op

# Their parameters are padded back to full width; see ``normalization``.
_PADDED = ("LayerNormalization", "RMSNormalization")


def slice_parameters(surgery: Surgery) -> None:
    """Cut every parameter that has slices of channels that go."""
    removed: dict[tuple[int, int], tuple[gs.Node, dict[int, npt.NDArray[np.bool_]]]] = {}
    for use in surgery.trace.uses:
        gone = surgery.is_cut(use.labels)
        if not gone.any() or is_op(use.node, *_PADDED) or (is_blocked(use.node) and use.axis == 1):
            continue
        axes = removed.setdefault((id(use.node), use.input), (use.node, {}))[1]
        axes[use.axis] = axes[use.axis] | gone if use.axis in axes else gone
    for (_, slot), (node, axes) in removed.items():
        values = surgery.values(node, slot)
        for axis, gone in sorted(axes.items()):
            values = np.take(values, kept_indices(gone), axis=axis)
        surgery.put(node, slot, values)


def kept_indices(gone: npt.NDArray[np.bool_]) -> Indices:
    """Indices of what does not go."""
    return np.flatnonzero(~gone)
