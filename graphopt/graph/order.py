"""Walking, sorting and sweeping a graph: iterative, and linear in the number of nodes and edges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_graphsurgeon as gs

from graphopt.errors import ModelError


def walk(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yield the graph, then its nested subgraphs (If, Loop, Scan bodies), each before those inside it."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        found = [v for node in current.nodes if node.attrs for v in node.attrs.values() if isinstance(v, gs.Graph)]
        pending.extend(reversed(found))


def subgraphs_of(node: gs.Node) -> Iterator[gs.Graph]:
    """Yield the subgraphs of one node, nested ones included."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield from walk(value)


def reads_of(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield the tensors that a node reads: its inputs, and what its subgraphs read, captured or their own."""
    yield from node.inputs
    for subgraph in subgraphs_of(node):
        for inner in subgraph.nodes:
            yield from inner.inputs
        yield from subgraph.outputs


def toposort(graph: gs.Graph) -> None:
    """Sort the nodes of this graph (not of its subgraphs) so that each comes after the producers of what it reads.

    Nodes keep their order as far as they can: a valid order is left as it is, a node that stands too late moves to
    just before its first reader. Tensors captured by a node's subgraphs count as read by it.

    Raises:
        ModelError: the nodes form a cycle; names one of them.
    """
    if _is_sorted(graph):
        return
    here = {id(node) for node in graph.nodes}
    done: set[int] = set()
    open_now: set[int] = set()
    order: list[gs.Node] = []
    for start in graph.nodes:
        if id(start) in done:
            continue
        stack = [(start, _producers(start, here))]
        open_now.add(id(start))
        while stack:
            node, producers = stack[-1]
            waiting = next((producer for producer in producers if id(producer) not in done), None)
            if waiting is None:
                stack.pop()
                open_now.discard(id(node))
                done.add(id(node))
                order.append(node)
            elif id(waiting) in open_now:
                raise ModelError(f"node '{waiting.name}' ({waiting.op}) needs its own result: the graph has a cycle")
            else:
                open_now.add(id(waiting))
                stack.append((waiting, _producers(waiting, here)))
    graph.nodes[:] = order


def _is_sorted(graph: gs.Graph) -> bool:
    """Whether no node reads what one after it (or itself) writes; most edits leave it so."""
    later = {id(node) for node in graph.nodes}
    for node in graph.nodes:
        for tensor in reads_of(node) if node.attrs else node.inputs:
            for producer in tensor.inputs:
                if id(producer) in later:
                    return False
        later.discard(id(node))
    return True


def _producers(node: gs.Node, here: set[int]) -> Iterator[gs.Node]:
    return (producer for tensor in reads_of(node) for producer in tensor.inputs if id(producer) in here)


def remove_unused(graph: gs.Graph) -> int:
    """Remove nodes that no graph output depends on, in the graph and its subgraphs; return how many.

    Inputs and outputs of all graphs stay, and so do nodes without any output.
    """
    # Innermost first: a dead node of a subgraph must not keep an outer one alive.
    return sum(_sweep(subgraph) for subgraph in reversed(list(walk(graph))))


def _sweep(graph: gs.Graph) -> int:
    here = {id(node) for node in graph.nodes}
    pending = [node for node in graph.nodes if not any(tensor.name for tensor in node.outputs)]
    pending += [node for tensor in graph.outputs for node in tensor.inputs if id(node) in here]
    alive = {id(node) for node in pending}
    while pending:
        node = pending.pop()
        for tensor in reads_of(node) if node.attrs else node.inputs:
            for producer in tensor.inputs:
                if id(producer) in here and id(producer) not in alive:
                    alive.add(id(producer))
                    pending.append(producer)
    dead = [node for node in graph.nodes if id(node) not in alive]
    if dead:
        graph.nodes[:] = [node for node in graph.nodes if id(node) in alive]
        detach(dead)
    return len(dead)


def detach(nodes: Iterable[gs.Node]) -> None:
    """Cut the nodes, and the nodes of their subgraphs, from all tensors; in time linear in the edges touched.

    graphsurgeon's own ``clear`` compares nodes by value, which is quadratic for a tensor with many readers.
    """
    every: list[gs.Node] = []
    for node in nodes:
        every.append(node)
        if node.attrs:
            every.extend(inner for subgraph in subgraphs_of(node) for inner in subgraph.nodes)
    gone = {id(node) for node in every}
    seen: set[int] = set()
    for node in every:
        for tensor in node.inputs:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                _keep(tensor.outputs, gone)
                _keep(tensor.inputs, gone)
        for tensor in node.outputs:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                _keep(tensor.outputs, gone)
                _keep(tensor.inputs, gone)
    for node in every:
        list.clear(node.inputs)
        list.clear(node.outputs)


def _keep(uses: list[gs.Node], gone: set[int]) -> None:
    """Take the nodes that are gone out of a list of uses."""
    if len(uses) == 1:
        if id(uses[0]) in gone:
            list.clear(uses)
        return
    kept = [node for node in uses if id(node) not in gone]
    if len(kept) < len(uses):
        list.clear(uses)
        list.extend(uses, kept)
