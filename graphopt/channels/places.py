"""Where channels show in a traced graph, by class and by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.fields import axes_of
from graphopt.channels.groups import Indices
from graphopt.channels.labels import Field
from graphopt.channels.trace import ParameterUse, Trace
from graphopt.channels.tracer import named


@dataclass(frozen=True)
class Place:
    """Where classes show: a parameter or a tensor, and the axis; ``classes`` of each index, 0 where it stays.

    Attributes:
        key: position among all places.
        use: the parameter; None for a tensor.
        tensor: the tensor.
        axis: its axis.
        classes: class of each index along the axis.
    """

    key: int
    use: ParameterUse | None
    tensor: gs.Tensor
    axis: int
    classes: Field


def places_of(trace: Trace) -> Iterator[Place]:
    """All places where a channel that can be cut shows: parameters first, then tensors in the order of the graph."""
    key = 0
    for use in trace.uses:
        classes = trace.labels.free(use.labels)
        if classes.any():
            yield Place(key, use, use.node.inputs[use.input], use.axis, classes)
            key += 1
    for node in trace.graph.nodes:
        for tensor in node.outputs:
            for each in trace.of(tensor):
                for axis in sorted(axes_of(each)):
                    free = trace.labels.free(each)
                    vector = np.moveaxis(free, axis, 0).reshape(free.shape[axis], -1)
                    if vector.any() and (vector[:, :1] == vector).all():
                        yield Place(key, None, tensor, axis, vector[:, 0])
                        key += 1


@dataclass(frozen=True)
class Numbering:
    """The group of each class and its position there; -1 for classes of no group.

    Attributes:
        classes: the classes of each group.
        group: group by class.
        position: position in the group by class.
    """

    classes: Sequence[Indices]
    group: Indices
    position: Indices

    @classmethod
    def of(cls, classes: Sequence[Indices], labels: int) -> Numbering:
        """Number the classes of each group; ``labels`` is how many labels there are."""
        group = np.full(labels, -1, dtype=np.int64)
        position = np.zeros(labels, dtype=np.int64)
        for number, values in enumerate(classes):
            group[values] = number
            position[values] = np.arange(len(values))
        return cls(classes, group, position)

    def indices(self, classes: Field) -> Iterator[tuple[int, Indices]]:
        """For each group that occurs in a vector of classes its indices there, [channels, of each]."""
        groups = self.group[classes]
        for number in np.unique(groups).tolist():
            if number < 0:
                continue
            found = np.flatnonzero(groups == number)
            positions = self.position[classes[found]]
            values, counts = np.unique(positions, return_counts=True)
            if len(values) == len(self.classes[number]) and (counts == counts[0]).all():
                order = np.argsort(positions, kind="stable")
                yield number, found[order].reshape(len(values), -1)

    def groups(self, classes: Field) -> list[int]:
        """The groups that occur in a vector of classes."""
        return [number for number in np.unique(self.group[classes]).tolist() if number >= 0]


def coupling_graph(trace: Trace, places: Sequence[Place], where: Numbering) -> nx.Graph:
    """Tensors and parameters that channels run through; edges are the operators that connect them."""
    graph = nx.Graph()
    tensors: dict[int, list[tuple[tuple[str, str, int], frozenset[int]]]] = {}
    for place in places:
        if place.use is None:
            node = ("tensor", place.tensor.name, place.axis)
            tensors.setdefault(id(place.tensor), []).append((node, frozenset(where.groups(place.classes))))
            graph.add_node(node)
    for place in places:
        if place.use is None:
            continue
        node = ("parameter", place.tensor.name, place.axis)
        groups = frozenset(where.groups(place.classes))
        graph.add_node(node)
        at = place.use.node
        for tensor in at.inputs if place.use.role == "reads" else at.outputs:
            for other, theirs in tensors.get(id(tensor), ()):
                if groups & theirs:
                    graph.add_edge(node, other, why=named(at))
    for at in trace.graph.nodes:
        read = [found for tensor in at.inputs for found in tensors.get(id(tensor), ())]
        for tensor in at.outputs if read else ():
            for node, groups in tensors.get(id(tensor), ()):
                for other, theirs in read:
                    if groups & theirs:
                        graph.add_edge(other, node, why=named(at))
    return graph
