"""Which graph a constant is declared in, and whether every name means in its graph what it should.

A name is unique within its graph; sibling subgraphs (the branches of an If) may use one name for different tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import onnx_graphsurgeon as gs

from graphopt.errors import PassError
from graphopt.graph.header import Header
from graphopt.graph.order import walk

Constants = Mapping[int, Sequence[gs.Constant]]


def owned_constants(root: gs.Graph, header: Header) -> Constants:
    """``id`` of a graph -> the constants to declare in it, in order of first use; unused ones go."""
    owned: dict[int, list[gs.Constant]] = {}
    seen: set[int] = set()
    for graph in walk(root):
        for tensor in _read_in(graph):
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                seen.add(id(tensor))
                owner = header.owners[id(tensor)][1] if id(tensor) in header.owners else root
                owned.setdefault(id(owner), []).append(tensor)
    return owned


def innermost_constants(root: gs.Graph) -> Constants:
    """As ``owned_constants`` where nothing tells the owners: each in the innermost graph that encloses all its uses."""
    graphs = list(walk(root))
    if len(graphs) == 1:
        every = {id(tensor): tensor for tensor in _read_in(root) if isinstance(tensor, gs.Constant)}
        return {id(root): list(every.values())}
    parents: dict[int, gs.Graph] = {}
    depths = {id(root): 0}
    homes: dict[int, tuple[gs.Constant, gs.Graph]] = {}
    for graph in graphs:
        for node in graph.nodes:
            for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
                parents[id(body)], depths[id(body)] = graph, depths[id(graph)] + 1
        for tensor in _read_in(graph):
            if isinstance(tensor, gs.Constant):
                first, second = homes[id(tensor)][1] if id(tensor) in homes else graph, graph
                while first is not second:
                    if depths[id(first)] < depths[id(second)]:
                        first, second = second, first
                    first = parents[id(first)]
                homes[id(tensor)] = (tensor, first)
    placed: dict[int, list[gs.Constant]] = {}
    for constant, home in homes.values():
        placed.setdefault(id(home), []).append(constant)
    return placed


def check_names(root: gs.Graph, constants: Constants) -> None:
    """Check that a graph, once written, is wired as it is now: by then tensors are told apart by name alone.

    Raises:
        PassError: two tensors of one graph have one name, or a node would read another tensor than it does, since a
            graph between it and its own has the name too.
    """
    pending: list[tuple[gs.Graph, tuple[Mapping[str, gs.Tensor], ...]]] = [(root, ())]
    while pending:
        graph, outer = pending.pop()
        names: dict[str, gs.Tensor] = {}
        written = (tensor for node in graph.nodes for tensor in node.outputs if not tensor.is_empty())
        for tensor in chain(graph.inputs, constants.get(id(graph), ()), written):
            if names.setdefault(tensor.name, tensor) is not tensor:
                raise PassError(f"the edited graph holds two tensors named '{tensor.name}'")
        scopes = (names, *outer)
        for tensor in _read_in(graph):
            meant = next((scope[tensor.name] for scope in scopes if tensor.name in scope), tensor)
            if meant is not tensor and not tensor.is_empty():
                raise PassError(f"'{tensor.name}' names two tensors of the edited graph where only one can be seen")
        pending.extend(
            (value, scopes) for node in graph.nodes for value in node.attrs.values() if isinstance(value, gs.Graph)
        )


def _read_in(graph: gs.Graph) -> Iterator[gs.Tensor]:
    return chain((tensor for node in graph.nodes for tensor in node.inputs), graph.outputs)
