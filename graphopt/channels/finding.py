"""Groups of channels alike, out of a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import networkx as nx
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.channels.fields import axes_of
from graphopt.channels.groups import Balance, Dependencies, Fixed, Group, Indices, Member, TensorAxis
from graphopt.channels.labels import Field
from graphopt.channels.trace import ParameterUse, Trace
from graphopt.channels.tracer import REACHED, name_of, named
from graphopt.channels.tracing import trace_graph
from graphopt.graph import import_graph, is_constant, is_op
from graphopt.model import ModelSource, load

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "QLinearConv", "ConvInteger"})


@dataclass(frozen=True)
class _Place:
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


def dependency_groups(model: ModelSource, shapes: Mapping[str, Sequence[int]] | None = None) -> Dependencies:
    """Find which channels of a model must be cut together, which of them are alike, and what cannot be cut and why.

    Args:
        model: path, bytes or ModelProto; it is not changed.
        shapes: shapes of inputs by name, for open dimensions. Any that the model accepts will do.
    """
    proto = model if isinstance(model, onnx.ModelProto) else load(model)
    trace = trace_graph(import_graph(proto).gs, shapes)
    return replace(dependencies_of(trace, proto), shapes=shapes)


def group_classes(trace: Trace) -> list[Indices]:
    """The classes of each group, in the order of the groups and of their channels."""
    return _grouped(list(_places(trace)))


def _places(trace: Trace) -> Iterator[_Place]:
    key = 0
    for use in trace.uses:
        classes = trace.labels.free(use.labels)
        if classes.any():
            yield _Place(key, use, use.node.inputs[use.input], use.axis, classes)
            key += 1
    for node in trace.graph.nodes:
        for tensor in node.outputs:
            for each in trace.of(tensor):
                for axis in sorted(axes_of(each)):
                    free = trace.labels.free(each)
                    vector = np.moveaxis(free, axis, 0).reshape(free.shape[axis], -1)
                    if vector.any() and (vector[:, :1] == vector).all():
                        yield _Place(key, None, tensor, axis, vector[:, 0])
                        key += 1


def _grouped(places: Sequence[_Place]) -> list[Indices]:
    """Classes that show in the same parameters and tensors equally often, in ascending order."""
    touched: dict[int, list[tuple[int, int]]] = {}
    # What shows in no parameter is padding that nobody reads. Parameters come first.
    for place in places:
        values, counts = np.unique(place.classes, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value and place.use is not None:
                touched.setdefault(value, []).append((place.key, count))
            elif value in touched:
                touched[value].append((place.key, count))
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for value in sorted(touched):
        groups.setdefault(tuple(touched[value]), []).append(value)
    return [np.array(values, dtype=np.int64) for values in groups.values()]


def dependencies_of(trace: Trace, model: onnx.ModelProto) -> Dependencies:
    """Everything that a trace says of what can be cut from its model."""
    places = list(_places(trace))
    classes = _grouped(places)
    where = _Numbering.of(classes, len(trace.labels))
    members: list[list[Member]] = [[] for _ in classes]
    layers: list[list[str]] = [[] for _ in classes]
    tensors: list[list[TensorAxis]] = [[] for _ in classes]
    for place in places:
        for number, indices in where.indices(place.classes):
            if place.use is None:
                tensors[number].append(TensorAxis(place.tensor.name, place.axis, indices))
                continue
            members[number].append(_member(place.use, indices))
            if place.use.role == "writes":
                layers[number].append(name_of(place.use.layer or place.use.node))
    balances = tuple(_balances(trace, where))
    keep = _least_kept(places, balances, where)
    sizes = _parameters(trace, places, where)
    groups = tuple(
        Group(
            number,
            _name(layers[number], members[number]),
            len(values),
            tuple(members[number]),
            tuple(tensors[number]),
            sizes[number],
            keep[number],
        )
        for number, values in enumerate(classes)
    )
    graph = _coupling_graph(trace, places, where)
    return Dependencies(model, groups, tuple(_fixed(trace)), balances, graph, shares(trace))


@dataclass(frozen=True)
class _Numbering:
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
    def of(cls, classes: Sequence[Indices], labels: int) -> _Numbering:
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


def _member(use: ParameterUse, indices: Indices) -> Member:
    tensor = use.node.inputs[use.input]
    return Member(name_of(use.node), use.node.op, use.input, tensor.name, use.axis, use.role, indices)


def _name(layers: Sequence[str], members: Sequence[Member]) -> str:
    names = list(dict.fromkeys(layers)) or [members[0].node]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _balances(trace: Trace, where: _Numbering) -> Iterator[Balance]:
    for blocks in trace.blocks:
        classes = trace.labels.free(blocks.labels)
        if not classes.any():
            continue
        counts: list[dict[int, Indices]] = []
        for block in classes:
            found: dict[int, Indices] = {}
            for number in where.groups(block):
                positions = where.position[block[where.group[block] == number]]
                found[number] = np.bincount(positions, minlength=len(where.classes[number])).astype(np.int64)
            counts.append(found)
        extra = tuple(int(np.count_nonzero(where.group[block] < 0)) for block in classes)
        yield Balance(name_of(blocks.node), blocks.side, tuple(counts), extra)


def _least_kept(places: Sequence[_Place], balances: Sequence[Balance], where: _Numbering) -> list[int]:
    """How many channels of each group must stay so that nothing is left without any, whichever are chosen."""
    keep = [1] * len(where.classes)
    for place in places:
        if not place.classes.all():
            continue
        # Of every group, how many channels can be kept and yet none of them be here.
        outside = [
            (len(where.classes[number]) - len(np.unique(place.classes[where.group[place.classes] == number])), number)
            for number in where.groups(place.classes)
        ]
        least, number = min(outside)
        keep[number] = max(keep[number], least + 1)
    for balance in balances:
        for number in sorted({number for block in balance.blocks for number in block}):
            counts = [block[number] for block in balance.blocks if number in block]
            if (np.sum(counts, axis=0) <= 1).all():
                keep[number] = max(keep[number], len(counts))
    return keep


def _parameters(trace: Trace, places: Sequence[_Place], where: _Numbering) -> list[int]:
    """Elements of parameters that go with one channel of each group."""
    total = [0] * len(where.classes)
    seen: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for place in places:
        if place.use is None:
            continue
        elements = prod(trace.shapes[id(place.tensor)])
        for number, indices in where.indices(place.classes):
            taken = indices.shape[1]
            total[number] += taken * elements // len(place.classes)
            others = seen.setdefault((id(place.use.node), place.use.input, number), [])
            # Where a channel is cut along both axes of a weight, the corner was counted twice.
            total[number] -= sum(taken * more * elements // len(place.classes) // size for more, size in others)
            others.append((taken, len(place.classes)))
    return total


def _fixed(trace: Trace) -> Iterator[Fixed]:
    seen: set[int] = set()
    for use in trace.uses:
        layer = use.layer or use.node
        if use.role != "writes" or id(layer) in seen:
            continue
        seen.add(id(layer))
        stuck: dict[str, list[int]] = {}
        for index, free in enumerate(trace.labels.free(use.labels).tolist()):
            if not free:
                reason = trace.labels.reason(int(use.labels[index])) or ""
                stuck.setdefault(reason, []).append(index)
        for reason, indices in stuck.items():
            tensor = use.node.inputs[use.input]
            yield Fixed(name_of(layer), tensor.name, use.axis, np.array(indices, dtype=np.int64), reason)


def _coupling_graph(trace: Trace, places: Sequence[_Place], where: _Numbering) -> nx.Graph:
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


def shares(trace: Trace) -> dict[str, float]:
    """Share of the weights of convolutions, and of all layers, whose filter or input channel can be cut."""
    stuck: dict[tuple[int, int], list[tuple[int, Field]]] = {}
    for use in trace.uses:
        found = trace.labels.free(use.labels) == 0
        stuck.setdefault((id(use.node), use.input), []).append((use.axis, found))
    counted = {"convolution": [0, 0], "all": [0, 0]}
    for node in trace.graph.nodes:
        for slot in _weights_of(node):
            reader, number = _root(node, slot)
            tensor = reader.inputs[number]
            shape = trace.shapes.get(id(tensor), ())
            if not is_constant(tensor) or len(shape) < 2:
                continue
            left = _stuck_elements(shape, stuck.get((id(reader), number), []))
            for kind in ("all", "convolution") if node.op in _CONVOLUTIONS else ("all",):
                counted[kind][0] += prod(shape) - left
                counted[kind][1] += prod(shape)
    return {kind: inside / total if total else 0.0 for kind, (inside, total) in counted.items()}


def _stuck_elements(shape: Sequence[int], stuck: Sequence[tuple[int, Field]]) -> int:
    """How many elements of a weight lie at no index that can be cut."""
    left = prod(shape)
    along: dict[int, Field] = {}
    for axis, found in stuck:
        if len(found) > shape[axis]:
            # A grouped convolution has as many slices as there are groups; each is as large as the others.
            found = found.reshape(-1, shape[axis])  # noqa: PLW2901
            left = left * int(np.count_nonzero(found)) // found.size
        else:
            along[axis] = along.get(axis, True) & found
    for axis, found in along.items():
        left = left * int(np.count_nonzero(found)) // shape[axis]
    return left


def _weights_of(node: gs.Node) -> Sequence[int]:
    if node.op in _CONVOLUTIONS:
        return (3,) if node.op == "QLinearConv" else (1,)
    return (0, 1) if node.op in {"Gemm", "MatMul"} else ()


def _root(node: gs.Node, slot: int) -> tuple[gs.Node, int]:
    """The node and input where a weight's constant is read, behind what unpacks it."""
    while (
        slot < len(node.inputs) and len(node.inputs[slot].inputs) == 1 and is_op(node.inputs[slot].inputs[0], *REACHED)
    ):
        node, slot = node.inputs[slot].inputs[0], 0
    return node, slot
