"""Channels cut out of a model."""

from __future__ import annotations

import onnx

from graphopt.channels.filled import write_back
from graphopt.channels.groups import Cut, Dependencies, Selection
from graphopt.channels.opening import opened
from graphopt.channels.surgery import operate
from graphopt.graph import dismantle, export_graph


def cut(dependencies: Dependencies, selection: Selection) -> Cut:
    """Cut channels out of a model: filters that write them, slices of weights that read them, and all in between.

    Args:
        dependencies: what ``dependency_groups`` found; its model is not touched.
        selection: group number -> positions in the group of the channels to cut.

    Returns:
        the smaller model, valid ONNX with the inputs and outputs of the original, and what remains of each tensor.
        It answers what ``mask`` of the same selection answers.

    Raises:
        UsageError: the selection cannot be cut: a group that would keep too few channels, or a grouped convolution
            whose blocks would become unequal; the message names it.
    """
    table = opened(dependencies, selection)
    if table is None:
        copy = onnx.ModelProto()
        copy.CopyFrom(dependencies.model)
        return Cut(copy, {})
    operate(table.trace, table.narrowing)
    write_back(table.work.gs, table.fills)
    model = export_graph(table.work)
    kept = {
        tensor.name: dict(table.narrowing.of(tensor))
        for node in table.work.gs.nodes
        for tensor in node.outputs
        if table.narrowing.of(tensor)
    }
    dismantle(table.work.gs)
    return Cut(model, kept)
