"""Operators that are told the shape of their result: Reshape, Expand, Tile, Resize, Upsample, ConstantOfShape."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.surgery.narrowing import Surgery, integers
from graphopt.graph import add_node, constant, dtype_of, is_op, set_input, sole_producer, values_of, variable


def freeze(surgery: Surgery) -> None:
    """Write numbers of channels that are read as data as constants.

    Operators that are told the shape of their result are told what remains; all others get what they got before, so
    that a scale by the square root of a width stays what it was.
    """
    there = {id(node) for node in surgery.index.graph.nodes}
    for frozen in surgery.trace.frozen:
        node, slot = frozen.node, frozen.input
        if id(node) not in there:
            continue
        if frozen.told:
            result, entries = node.outputs[0], np.flatnonzero(frozen.entries).tolist()
            first = len(surgery.shape(result)) - len(frozen.entries)
            axes = node.attrs.get("axes") or range(first, len(surgery.shape(result)))
            put_sizes(surgery, node, slot, {at: surgery.size(result, axes[at]) for at in entries})
        else:
            surgery.put(node, slot, surgery.trace.values[node.inputs[slot].name])


def narrow_reshape(surgery: Surgery, node: gs.Node) -> None:
    """Ask for the sizes that remain; -1 and a 0 that copies such a size stay."""
    data, result = node.inputs[0], node.outputs[0]
    after = surgery.shape(result)
    if len(node.inputs) < 2:
        _narrow_shape_attribute(surgery, node)
        return
    target = values_of(node.inputs[1])
    copies = not node.attrs.get("allowzero", 0)
    wanted: dict[int, int] = {}
    for axis in range(len(after)):
        size = surgery.size(result, axis)
        entry = None if target is None else int(target[axis])
        if entry == 0 and copies:
            if surgery.size(data, axis) != size:
                wanted[axis] = size
        elif entry not in {None, -1, size} or (entry is None and size != after[axis]):
            wanted[axis] = size
    put_sizes(surgery, node, 1, wanted)


def _narrow_shape_attribute(surgery: Surgery, node: gs.Node) -> None:
    target = list(node.attrs.get("shape", []))
    for axis in range(len(target)):
        size = surgery.size(node.outputs[0], axis)
        if target[axis] > 0 or (target[axis] == 0 and surgery.size(node.inputs[0], axis) != size):
            target[axis] = size
    node.attrs["shape"] = target


def narrow_expand(surgery: Surgery, node: gs.Node) -> None:
    """Expand takes the larger of what it is given and what it is told: along axes that become narrower it is told 1."""
    result = node.outputs[0]
    length = _length(surgery, node.inputs[1])
    first = len(surgery.shape(result)) - length
    wanted = {axis - first: len(kept) for axis, kept in surgery.narrowing.of(result).items() if axis >= first}
    for position in _wrong(surgery, node.inputs[1], wanted):
        axis = position + first - len(surgery.shape(result)) + len(surgery.shape(node.inputs[0]))
        if axis >= 0 and surgery.size(node.inputs[0], axis) == wanted[position]:
            wanted[position] = 1
    put_sizes(surgery, node, 1, wanted)


def narrow_shape_input(slot: int, surgery: Surgery, node: gs.Node) -> None:
    """Tell an operator that is told the whole shape of its result what remains of it."""
    if slot >= len(node.inputs) or node.inputs[slot].is_empty():
        return
    result = node.outputs[0]
    axes = [axis % len(surgery.shape(result)) for axis in node.attrs.get("axes", [])]
    axes = axes or list(range(len(surgery.shape(result))))
    kept = surgery.narrowing.of(result)
    put_sizes(surgery, node, slot, {axes.index(axis): len(kept[axis]) for axis in kept if axis in axes})


def put_sizes(surgery: Surgery, node: gs.Node, slot: int, wanted: Mapping[int, int]) -> None:
    """Let a node read a shape in which some entries have other values; those that come out right already stay."""
    put_entries(surgery, node, slot, _wrong(surgery, node.inputs[slot], wanted))


def put_entries(surgery: Surgery, node: gs.Node, slot: int, wanted: Mapping[int, int]) -> None:
    """Let a node read a vector of integers in which some entries have other values."""
    if not wanted:
        return
    given = node.inputs[slot]
    values = values_of(given)
    if values is None and len(wanted) < _length(surgery, given):
        set_input(surgery.index, node, slot, _corrected(surgery, given, wanted))
        return
    changed = np.array(surgery.values(node, slot))
    for position, size in wanted.items():
        changed[position] = size
    # What is computed may be computed from sizes that are others now.
    if values is None or not np.array_equal(changed, values):
        surgery.put(node, slot, changed)


def _wrong(surgery: Surgery, tensor: gs.Tensor, wanted: Mapping[int, int]) -> dict[int, int]:
    """Those entries of a shape that do not come out right by themselves."""
    return {at: size for at, size in wanted.items() if not _comes_out(surgery, tensor, at, size)}


def _comes_out(surgery: Surgery, tensor: gs.Tensor, position: int, size: int) -> bool:
    """Whether an entry of a computed shape is read off a tensor that will have that size."""
    while values_of(tensor) is None:
        node = sole_producer(tensor)
        if node is None:
            return False
        if is_op(node, "Shape"):
            source = node.inputs[0]
            return surgery.size(source, position + _first(node, len(surgery.shape(source)))) == size
        if is_op(node, "Cast", "Unsqueeze", "Squeeze", "Identity", "Reshape"):
            if len(surgery.trace.shapes.get(id(tensor), (0,))) > 1:
                return False
            tensor = node.inputs[0]
        elif is_op(node, "Concat"):
            lengths = [_length(surgery, piece) for piece in node.inputs]
            piece = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
            tensor, position = node.inputs[piece], position - sum(lengths[:piece])
        elif is_op(node, "Gather") and (picked := values_of(node.inputs[1])) is not None and picked.ndim < 2:
            index = int(picked.reshape(-1)[position])
            tensor = node.inputs[0]
            position = index % _length(surgery, tensor)
        elif is_op(node, "Slice") and (start := _slice_start(node)) is not None:
            tensor = node.inputs[0]
            position += start % _length(surgery, tensor)
        else:
            return False
    found = values_of(tensor)
    return found is not None and int(found.reshape(-1)[position]) == size


def _length(surgery: Surgery, tensor: gs.Tensor) -> int:
    """How many entries a vector has; 1 for a number."""
    values = values_of(tensor)
    return prod(surgery.shape(tensor)) if values is None else values.size


def _first(node: gs.Node, rank: int) -> int:
    """The first axis that a Shape node tells the size of."""
    start = int(node.attrs.get("start", 0))
    return max(0, start + rank) if start < 0 else min(start, rank)


def _slice_start(node: gs.Node) -> int | None:
    """Where a Slice of a vector starts; None where that is not constant or it takes steps."""
    if len(node.inputs) == 1:
        return int(node.attrs["starts"][0])
    starts = values_of(node.inputs[1])
    steps = values_of(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
    return None if starts is None or steps is None or steps[0] != 1 else int(starts[0])


def _corrected(surgery: Surgery, given: gs.Tensor, wanted: Mapping[int, int]) -> gs.Tensor:
    """A computed shape with some entries replaced: in the Concat that makes it, or by arithmetic."""
    index = surgery.index
    producer = sole_producer(given)
    if (
        producer is not None
        and is_op(producer, "Concat")
        and all(_length(surgery, piece) == 1 for piece in producer.inputs)
    ):
        pieces = list(producer.inputs)
        for position, size in wanted.items():
            pieces[position] = constant(index, f"{given.name}_size", integers([size]))
        joined = variable(index, given.name, given)
        surgery.trace.shapes[id(joined)] = (len(pieces),)
        add_node(index, "Concat", pieces, [joined], {"axis": 0}, prefix=joined.name)
        return joined
    length = _length(surgery, given)
    dtype = dtype_of(given) or np.dtype(np.int64)
    stays, sizes = np.ones(length, dtype=dtype), np.zeros(length, dtype=dtype)
    for position, size in wanted.items():
        stays[position], sizes[position] = 0, size
    masked, result = variable(index, given.name, given), variable(index, given.name, given)
    surgery.trace.shapes[id(result)] = (length,)
    add_node(index, "Mul", [given, constant(index, f"{given.name}_stays", stays)], [masked], prefix=masked.name)
    add_node(index, "Add", [masked, constant(index, f"{given.name}_sizes", sizes)], [result], prefix=result.name)
    return result
