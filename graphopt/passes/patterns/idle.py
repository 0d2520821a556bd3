"""Dropping matched nodes together with what fed only them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_graphsurgeon as gs

from graphopt.graph import Index


def drop_with_idle(index: Index, nodes: Iterable[gs.Node]) -> None:
    """Drop the nodes, then the nodes before them whose outputs nothing reads any more.

    All of one depth go at once, so that a tensor which thousands of matches share is cleaned up once. Nodes with
    subgraphs stay; they are for ``eliminate_dead`` to judge.
    """
    doomed = list({id(node): node for node in nodes}.values())
    while doomed:
        before = {id(node): node for gone in doomed for tensor in gone.inputs for node in tensor.inputs}
        index.drop(doomed)
        doomed = [node for node in before.values() if not index.is_dropped(node) and _is_idle(index, node)]


def _is_idle(index: Index, node: gs.Node) -> bool:
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return False
    return not any(tensor.outputs or index.is_output(tensor) for tensor in node.outputs)
