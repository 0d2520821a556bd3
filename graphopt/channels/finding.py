"""Groups of channels alike, out of a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx

from graphopt.channels.filled import open_spread
from graphopt.channels.groups import Balance, Dependencies, Fixed, Group, Indices, Member, TensorAxis
from graphopt.channels.places import Numbering, Place, coupling_graph, places_of
from graphopt.channels.shares import shares
from graphopt.channels.trace import ParameterUse, Trace
from graphopt.channels.tracer import name_of
from graphopt.channels.tracing import trace_graph
from graphopt.model import ModelSource, load


def dependency_groups(model: ModelSource, shapes: Mapping[str, Sequence[int]] | None = None) -> Dependencies:
    """Find which channels of a model must be cut together, which of them are alike, and what cannot be cut and why.

    Args:
        model: path, bytes or ModelProto; it is not changed.
        shapes: shapes of inputs by name, for open dimensions. Any that the model accepts will do.
    """
    proto = model if isinstance(model, onnx.ModelProto) else load(model)
    trace = trace_graph(open_spread(proto)[0].gs, shapes)
    return replace(dependencies_of(trace, proto), shapes=shapes)


def group_classes(trace: Trace) -> list[Indices]:
    """The classes of each group, in the order of the groups and of their channels."""
    return _grouped(list(places_of(trace)))


def _grouped(places: Sequence[Place]) -> list[Indices]:
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
    places = list(places_of(trace))
    classes = _grouped(places)
    where = Numbering.of(classes, len(trace.labels))
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
    graph = coupling_graph(trace, places, where)
    return Dependencies(model, groups, tuple(_fixed(trace)), balances, graph, shares(trace))


def _member(use: ParameterUse, indices: Indices) -> Member:
    tensor = use.node.inputs[use.input]
    return Member(name_of(use.node), use.node.op, use.input, tensor.name, use.axis, use.role, indices)


def _name(layers: Sequence[str], members: Sequence[Member]) -> str:
    names = list(dict.fromkeys(layers)) or [members[0].node]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _balances(trace: Trace, where: Numbering) -> Iterator[Balance]:
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


def _least_kept(places: Sequence[Place], balances: Sequence[Balance], where: Numbering) -> list[int]:
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


def _parameters(trace: Trace, places: Sequence[Place], where: Numbering) -> list[int]:
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
