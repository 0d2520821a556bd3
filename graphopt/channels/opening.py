"""A model opened again with the channels that are to go marked in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.balance import check_selection
from graphopt.channels.groups import Dependencies, Group, Indices, Selection
from graphopt.channels.surgery.narrowing import Narrowing, narrow
from graphopt.channels.trace import ParameterUse, Trace
from graphopt.channels.tracing import trace_graph
from graphopt.errors import PassError
from graphopt.graph import WorkGraph, import_graph


@dataclass(frozen=True)
class Table:
    """A model opened for surgery: nothing is edited yet."""

    work: WorkGraph
    trace: Trace
    narrowing: Narrowing


def opened(dependencies: Dependencies, selection: Selection) -> Table | None:
    """Open the model and trace it again; None where nothing is selected.

    Raises:
        UsageError: the selection cannot be cut; see ``check_selection``.
    """
    chosen = check_selection(dependencies, selection)
    if not chosen:
        return None
    work = import_graph(dependencies.model)
    trace = trace_graph(work.gs)
    return Table(work, trace, narrow(trace, _classes(dependencies, trace, chosen)))


def _classes(dependencies: Dependencies, trace: Trace, chosen: Mapping[int, Indices]) -> frozenset[int]:
    """The classes of labels that are the chosen channels."""
    uses: dict[tuple[str, str, int, int], ParameterUse] = {}
    for use in trace.uses:
        uses[name_of(use.node), use.node.inputs[use.input].name, use.input, use.axis] = use
    tensors = {tensor.name: tensor for node in trace.graph.nodes for tensor in node.outputs}
    classes: set[int] = set()
    for number, positions in chosen.items():
        group = dependencies[number]
        for member in group.members:
            found = uses.get((member.node, member.parameter, member.input, member.axis))
            if found is not None:
                picked = found.labels[member.indices[positions, 0]]
                break
        else:
            picked = _labels_of(trace, tensors, group)[positions]
        classes.update(trace.labels.find(int(label)) for label in picked)
    return frozenset(classes)


def _labels_of(trace: Trace, tensors: Mapping[str, gs.Tensor], group: Group) -> Indices:
    """One label for each channel of a group, read off a tensor."""
    for each in group.tensors:
        for field in trace.of(tensors[each.tensor]) if each.tensor in tensors else ():
            if field.shape[each.axis] > 1:
                rows = np.moveaxis(field, each.axis, 0).reshape(field.shape[each.axis], -1)
                return np.asarray(rows[each.indices[:, 0], 0])
    raise PassError(f"group {group.number} ({group.name}) is not found again in its model")


def name_of(node: gs.Node) -> str:
    """What a node is called in plans: its name, or its first output where it has none."""
    return str(node.name or node.outputs[0].name)
