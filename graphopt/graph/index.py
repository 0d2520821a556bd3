"""What a pass asks about a graph, gathered once, and the verbs that edit it.

graphsurgeon compares nodes and tensors by value; everything here goes by identity. A pass makes an ``Index``, collects
its matches, edits with the verbs, and calls ``finish`` at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.graph.making import new_constant, new_node, new_variable, read_inputs
from graphopt.graph.opened import OpenGraph
from graphopt.graph.order import detach, toposort, walk


class Index:
    """Names, graph outputs and homes of nodes of a graph and its subgraphs.

    Attributes:
        graph: the outermost graph.
        graphs: it and all its subgraphs, outer before inner.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self.graphs: tuple[gs.Graph, ...] = tuple(walk(graph))
        self._counters: dict[str, int] = {}
        self._dropped: dict[int, gs.Node] = {}
        self._edited: dict[int, gs.Graph] = {}
        self._outputs: dict[int, gs.Tensor] = {id(tensor): tensor for each in self.graphs for tensor in each.outputs}

    @cached_property
    def _names(self) -> set[str]:
        """All names in use; gathered when the first new one is wanted."""
        names: set[str] = set()
        for each in self.graphs:
            names.update(tensor.name for tensor in each.inputs)
            names.update(tensor.name for tensor in each.outputs)
            for node in each.nodes:
                names.add(node.name)
                names.update([tensor.name for tensor in node.inputs])
                names.update([tensor.name for tensor in node.outputs])
        return names

    @cached_property
    def _homes(self) -> dict[int, tuple[gs.Node, gs.Graph]]:
        """Where nodes of subgraphs stand; all others stand in the outermost graph."""
        return {id(node): (node, each) for each in self.graphs[1:] for node in each.nodes}

    def fresh_name(self, prefix: str) -> str:
        """Return a name that no tensor and no node of any graph has or had: ``prefix``, or it with a number.

        A name that is remembered by what was inferred for it must not come to mean something else.
        """
        name = prefix
        known = self.graph.known if isinstance(self.graph, OpenGraph) else None
        while not name or name in self._names or (known is not None and known.types.knows(name)):
            count = self._counters.get(prefix, 0) + 1
            self._counters[prefix] = count
            name = f"{prefix}_{count}"
        self._names.add(name)
        return name

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor is an output of the model or of a subgraph."""
        return id(tensor) in self._outputs

    def home(self, node: gs.Node) -> gs.Graph:
        """The graph that the node stands in."""
        found = self._homes.get(id(node))
        return self.graph if found is None else found[1]

    def is_dropped(self, node: gs.Node) -> bool:
        """Whether the node was dropped since the index was made."""
        return id(node) in self._dropped

    def add(self, node: gs.Node, home: gs.Graph | None = None) -> None:
        """Take a new node in; ``finish`` puts it in order."""
        home = self.graph if home is None else home
        if home is self.graph:
            self._homes.pop(id(node), None)  # it may have come out of a subgraph
        else:
            self._homes[id(node)] = (node, home)
        home.nodes.append(node)
        self._edited[id(home)] = home

    def drop(self, nodes: Sequence[gs.Node]) -> None:
        """Cut nodes from their tensors at once; ``finish`` takes them out of the lists."""
        for node in nodes:
            home = self.home(node)
            self._dropped[id(node)] = node
            self._edited[id(home)] = home
        detach(nodes)

    def touch(self, home: gs.Graph) -> None:
        """Note that the graph's edges changed, so that ``finish`` sorts it."""
        self._edited[id(home)] = home

    def set_outputs(self, home: gs.Graph, outputs: Sequence[gs.Tensor]) -> None:
        """Replace the outputs of a graph; their names must stay what they were."""
        for tensor in home.outputs:
            self._outputs.pop(id(tensor), None)
        home.outputs = list(outputs)
        for each in self.graphs:
            self._outputs.update((id(tensor), tensor) for tensor in each.outputs)

    def finish(self) -> None:
        """Take dropped nodes out and sort every graph that was edited."""
        for home in self._edited.values():
            if self._dropped:
                home.nodes[:] = [node for node in home.nodes if id(node) not in self._dropped]
            toposort(home)
        self._edited.clear()


def sole_producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes the tensor; None for inputs and constants."""
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def consumers(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that read the tensor, each once, those in subgraphs included."""
    return list({id(node): node for node in tensor.outputs}.values())


def sole_consumer(index: Index, tensor: gs.Tensor) -> gs.Node | None:
    """The one node that reads the tensor, once, in the graph that produces it; None if there is any other use."""
    if len(tensor.outputs) != 1 or index.is_output(tensor):
        return None
    consumer = tensor.outputs[0]
    producer = sole_producer(tensor)
    if producer is not None and index.home(producer) is not index.home(consumer):
        return None
    return consumer


def constant(index: Index, prefix: str, values: npt.NDArray[Any]) -> gs.Constant:
    """Make a new constant. Constants are never edited or renamed: they may belong to the caller or be shared."""
    return new_constant(index.fresh_name(prefix), np.asarray(values))


def variable(index: Index, prefix: str, like: gs.Tensor | None = None) -> gs.Variable:
    """Make a new tensor, with dtype and shape of ``like``."""
    if like is None:
        return new_variable(index.fresh_name(prefix))
    shape = None if like.shape is None else tuple(like.shape)
    return new_variable(index.fresh_name(prefix), like.dtype, shape)


def add_node(
    index: Index,
    op: str,
    inputs: Sequence[gs.Tensor],
    outputs: Sequence[gs.Tensor],
    attrs: Mapping[str, Any] | None = None,
    *,
    prefix: str,
    domain: str | None = None,
    home: gs.Graph | None = None,
) -> gs.Node:
    """Make a node named after ``prefix`` and take it into ``home`` (the outermost graph unless told)."""
    node = new_node(op, index.fresh_name(prefix), dict(attrs or {}), outputs, domain)
    read_inputs(node, inputs)
    index.add(node, home)
    return node


def drop_node(index: Index, node: gs.Node) -> None:
    """Cut a node, and the nodes of its subgraphs, from all tensors."""
    index.drop([node])


def set_input(index: Index, node: gs.Node, slot: int, tensor: gs.Tensor) -> None:
    """Let the node read ``tensor`` at one input; appends where ``slot`` is the number of inputs."""
    if slot < len(node.inputs):
        _unlink(node.inputs[slot].outputs, node)
        list.__setitem__(node.inputs, slot, tensor)
    else:
        list.append(node.inputs, tensor)
    list.append(tensor.outputs, node)
    index.touch(index.home(node))


def trim_inputs(index: Index, node: gs.Node, count: int) -> None:
    """Let the node read its first ``count`` inputs only."""
    while len(node.inputs) > count:
        _unlink(node.inputs[-1].outputs, node)
        list.pop(node.inputs)
    index.touch(index.home(node))


def set_output(index: Index, node: gs.Node, slot: int, tensor: gs.Tensor) -> None:
    """Let the node write ``tensor`` at one output; appends where ``slot`` is the number of outputs."""
    if slot < len(node.outputs):
        _unlink(node.outputs[slot].inputs, node)
        list.__setitem__(node.outputs, slot, tensor)
    else:
        list.append(node.outputs, tensor)
    list.append(tensor.inputs, node)
    index.touch(index.home(node))


def replace_uses(index: Index, old: gs.Tensor, new: gs.Tensor) -> int:
    """Let every reader of ``old`` read ``new``, those in subgraphs included; return how many nodes changed.

    An output of the model or of a subgraph keeps its tensor, for its name is part of the interface; see
    ``take_over``.
    """
    readers = consumers(old)
    for node in readers:
        for slot, tensor in enumerate(node.inputs):
            if tensor is old:
                list.__setitem__(node.inputs, slot, new)
                list.append(new.outputs, node)
        index.touch(index.home(node))
    list.clear(old.outputs)
    return len(readers)


def take_over(index: Index, source: gs.Tensor, target: gs.Tensor) -> None:
    """Let the producer of ``source`` write ``target`` instead, and the readers of ``source`` read it.

    This is how a node that only passes a value on to an output is removed: drop it, then let the output take over.
    ``source`` must have a producer and be no output itself.
    """
    producer = sole_producer(source)
    if producer is None or index.is_output(source):
        raise ValueError(f"tensor '{source.name}' cannot be taken over: it is an input, a constant or an output")
    slot = next(slot for slot, tensor in enumerate(producer.outputs) if tensor is source)
    replace_uses(index, source, target)
    set_output(index, producer, slot, target)


def _unlink(uses: list[gs.Node], node: gs.Node) -> None:
    """Remove one mention of ``node``, by identity; quick when edits go in the order of the graph."""
    for position, other in enumerate(uses):
        if other is node:
            list.__delitem__(uses, position)
            return
