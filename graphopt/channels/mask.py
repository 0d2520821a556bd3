"""The original with channels zeroed: what a model with these channels cut must answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Dependencies, Selection
from graphopt.channels.opening import opened
from graphopt.channels.surgery.narrowing import Surgery
from graphopt.channels.surgery.parameters import is_in_blocks
from graphopt.channels.surgery.weights import groups_of, holder_of, is_convolution
from graphopt.graph import Index, export_graph, is_op, remove_unused, values_of

# Inputs that a zero would break, or that mean something else than a factor or a term: what they scale is zero anyway.
_LEFT_ALONE = {
    "BatchNormalization": frozenset({4}),
    "DequantizeLinear": frozenset({1, 2}),
    "Div": frozenset({1}),
    "Mod": frozenset({1}),
    "Pow": frozenset({1}),
    "QuantizeLinear": frozenset({1, 2}),
}


def mask(dependencies: Dependencies, selection: Selection) -> onnx.ModelProto:
    """Zero all parameters of some channels in the original model, which keeps its size.

    Args:
        dependencies: what ``dependency_groups`` found.
        selection: group number -> positions in the group of the channels.

    Returns:
        a new model; it answers what the model with these channels cut out answers.

    Raises:
        UsageError: the selection cannot be cut; see ``cut``.
    """
    table = opened(dependencies, selection)
    if table is None:
        copy = onnx.ModelProto()
        copy.CopyFrom(dependencies.model)
        return copy
    surgery = Surgery(Index(table.work.gs), table.trace, table.narrowing)
    for use in table.trace.uses:
        gone = surgery.is_cut(use.labels)
        if not gone.any() or is_in_blocks(use):
            continue
        if is_op(use.node, use.node.op) and use.input in _LEFT_ALONE.get(use.node.op, ()):
            continue
        values = surgery.values(use.node, use.input)
        where = np.moveaxis(np.zeros(values.shape, dtype=bool), use.axis, -1) | gone
        surgery.put(use.node, use.input, _zeroed(use.node, values, np.moveaxis(where, -1, use.axis)))
    for node in table.work.gs.nodes:
        if is_convolution(node) and groups_of(node) > 1:
            _mask_blocks(surgery, node)
    surgery.index.finish()
    remove_unused(table.work.gs)  # nodes that held constants
    surgery.keep_names()
    return export_graph(table.work)


def _zeroed(node: gs.Node, values: npt.NDArray[Any], where: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The values with what stands for zero at some places: 0, or the zero point of stored integers."""
    zero: npt.NDArray[Any] = np.zeros((), dtype=values.dtype)
    if is_op(node, "DequantizeLinear") and len(node.inputs) > 2:
        points = values_of(node.inputs[2])
        if points is not None and points.size > 1:
            shape = [1] * values.ndim
            shape[int(node.attrs.get("axis", 1)) % values.ndim] = points.size
            zero = points.reshape(shape)
        elif points is not None:
            zero = points.reshape(())
    return np.asarray(np.where(where, zero, values))


def _mask_blocks(surgery: Surgery, node: gs.Node) -> None:
    """Zero what a grouped convolution reads of channels that go, or, transposed, what it writes."""
    tensor = node.outputs[0] if node.op == "ConvTranspose" else node.inputs[0]
    kept = surgery.kept(tensor, 1)
    if kept is None:
        return
    groups, width = groups_of(node), surgery.shape(tensor)[1]
    holder, slot = holder_of(node)
    values = surgery.values(holder, slot)
    gone = np.ones(width, dtype=bool)
    gone[kept] = False
    # One row of ``gone`` for each block, repeated for the rows of the weight that belong to it.
    inside = np.repeat(gone.reshape(groups, -1), len(values) // groups, axis=0)
    where = np.broadcast_to(inside.reshape(*inside.shape, *[1] * (values.ndim - 2)), values.shape)
    surgery.put(holder, slot, _zeroed(holder, values, where))
