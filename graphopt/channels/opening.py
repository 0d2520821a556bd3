"""A model opened again with the channels that are to go marked in it."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.channels.balance import check_selection
from graphopt.channels.filled import Fills, open_spread
from graphopt.channels.finding import group_classes
from graphopt.channels.groups import Dependencies, Selection
from graphopt.channels.surgery.narrowing import Narrowing, narrow
from graphopt.channels.trace import Trace
from graphopt.channels.tracing import trace_graph
from graphopt.graph import WorkGraph


@dataclass(frozen=True)
class Table:
    """A model opened for surgery: nothing is edited yet."""

    work: WorkGraph
    trace: Trace
    narrowing: Narrowing
    fills: Fills


def opened(dependencies: Dependencies, selection: Selection) -> Table | None:
    """Open the model and trace it again; None where nothing is selected.

    Raises:
        UsageError: the selection cannot be cut; see ``check_selection``.
    """
    chosen = check_selection(dependencies, selection)
    if not chosen:
        return None
    work, fills = open_spread(dependencies.model)
    trace = trace_graph(work.gs, dependencies.shapes)
    classes = group_classes(trace)
    cut = [int(each) for number, positions in chosen.items() for each in classes[number][positions]]
    return Table(work, trace, narrow(trace, frozenset(cut)), fills)
