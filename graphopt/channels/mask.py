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
        values = np.array(surgery.values(use.node, use.input))
        np.moveaxis(values, use.axis, 0)[gone] = _zeros(use.node, use.input, values, use.axis, gone)
        surgery.put(use.node, use.input, values)
    for node in table.work.gs.nodes:
        if is_convolution(node) and groups_of(node) > 1:
            _mask_blocks(surgery, node)
    surgery.index.finish()
    remove_unused(table.work.gs)  # nodes that held constants
    surgery.keep_names()
    return export_graph(table.work)


def _zeros(
    node: gs.Node, slot: int, values: npt.NDArray[Any], axis: int, gone: npt.NDArray[np.bool_]
) -> npt.NDArray[Any]:
    """What stands for zero: 0, or the zero point of stored integers."""
    if not is_op(node, "DequantizeLinear") or len(node.inputs) < 3 or node.inputs[2].is_empty():
        return np.zeros((), dtype=values.dtype)
    points = values_of(node.inputs[2])
    if points is None or points.size == 1:
        return np.zeros((), dtype=values.dtype) if points is None else points.reshape(())
    shape = [1] * values.ndim
    shape[int(node.attrs.get("axis", 1)) % values.ndim] = points.size
    whole = np.broadcast_to(points.reshape(shape), values.shape)
    return np.asarray(np.moveaxis(whole, axis, 0)[gone])


def _mask_blocks(surgery: Surgery, node: gs.Node) -> None:
    """Zero what a grouped convolution reads of channels that go, or, transposed, what it writes."""
    tensor = node.outputs[0] if node.op == "ConvTranspose" else node.inputs[0]
    kept = surgery.kept(tensor, 1)
    if kept is None:
        return
    groups, width = groups_of(node), surgery.shape(tensor)[1]
    holder, slot = holder_of(node)
    values = np.array(surgery.values(holder, slot))
    gone = np.ones(width, dtype=bool)
    gone[kept] = False
    rows = len(values) // groups
    for channel in np.flatnonzero(gone):
        block, inside = divmod(int(channel), width // groups)
        part = values[rows * block : rows * (block + 1), inside : inside + 1]
        part[:] = _zeros(holder, slot, part, 0, np.ones(len(part), dtype=bool))
    surgery.put(holder, slot, values)
