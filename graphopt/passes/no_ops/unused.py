"""Sweep out what no output depends on, by counting readers: one look at each node where all are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from graphopt.graph import detach, subgraphs_of


def sweep(graphs: Sequence[gs.Graph]) -> int:
    """Remove nodes none of whose outputs is read or is the output of a graph; return how many.

    Inputs and outputs of all graphs stay, and so do nodes without any output.

    Args:
        graphs: a graph and all its subgraphs.
    """
    shown = Counter(id(tensor) for graph in graphs for tensor in graph.outputs)
    pending = [node for graph in graphs for node in graph.nodes if _is_unused(node, shown, {})]
    if not pending:
        return 0
    # Lists of readers are only cut at the end: one at a time, a tensor with many readers would cost their square.
    lost: Counter[int] = Counter()
    gone: dict[int, gs.Node] = {}
    dead: list[gs.Node] = []
    while pending:
        node = pending.pop()
        if id(node) in gone:
            continue
        dead.append(node)
        gone[id(node)] = node
        released = list(node.inputs)
        for body in subgraphs_of(node) if node.attrs else ():
            for inner in body.nodes:
                if id(inner) not in gone:
                    gone[id(inner)] = inner
                    released += inner.inputs
            for tensor in body.outputs:
                shown[id(tensor)] -= 1
                lost[id(tensor)] -= 1  # it is released, but was no reader
                released.append(tensor)
        for tensor in released:
            lost[id(tensor)] += 1
            pending += [
                producer for producer in tensor.inputs if id(producer) not in gone and _is_unused(producer, shown, lost)
            ]
    detach(dead)
    for graph in graphs:
        if any(id(node) in gone for node in graph.nodes):
            graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]
    return len(dead)


def _is_unused(node: gs.Node, shown: Mapping[int, int], lost: Mapping[int, int]) -> bool:
    named = False
    for tensor in node.outputs:
        if len(tensor.outputs) > lost.get(id(tensor), 0) or shown.get(id(tensor), 0) > 0:
            return False
        named = named or bool(tensor.name)
    return named
