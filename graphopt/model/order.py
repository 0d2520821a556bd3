"""Bring nodes into an order in which every value is computed before it is used."""

from __future__ import annotations

import heapq

import onnx

from graphopt.errors import InvalidModelError
from graphopt.model.walk import Body, label, subgraphs


def sort_nodes(body: Body) -> bool:
    """Sort the nodes of one body in place where they are out of order; True if something moved.

    Stable: among the nodes that are ready, the one that stood first comes first (Kahn's algorithm with a heap), so a
    body already in order keeps its order. Values that a subgraph captures count as inputs of its node.

    Raises:
        InvalidModelError: the nodes form a cycle; names one of them.
    """
    nodes = body.proto.node
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for output in node.output:
            if output:
                producer.setdefault(output, index)
    needs = [{producer[name] for name in used_names(node) if name in producer} for node in nodes]
    if all(before < index for index, earlier in enumerate(needs) for before in earlier):
        return False

    consumers: list[list[int]] = [[] for _ in nodes]
    for index, earlier in enumerate(needs):
        for before in earlier:
            consumers[before].append(index)
    missing = [len(earlier) for earlier in needs]
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for later in consumers[index]:
            missing[later] -= 1
            if missing[later] == 0:
                heapq.heappush(ready, later)
    if len(order) < len(nodes):
        stuck = next(index for index, count in enumerate(missing) if count)
        raise InvalidModelError(f"the nodes of {body.where} form a cycle through node {label(nodes[stuck])}")
    ordered = [nodes[index] for index in order]
    copies = [onnx.NodeProto() for _ in ordered]
    for copy, node in zip(copies, ordered, strict=True):
        copy.CopyFrom(node)
    del nodes[:]
    nodes.extend(copies)
    return True


def used_names(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, through its subgraphs too; the empty name of an absent input is left out."""
    names = set(node.input)
    pending = [graph for _, graph in subgraphs(node)]
    while pending:
        graph = pending.pop()
        names.update(output.name for output in graph.output)
        for inner in graph.node:
            names.update(inner.input)
            pending += [nested for _, nested in subgraphs(inner)]
    names.discard("")
    return names
