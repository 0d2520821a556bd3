"""Affine maps through nodes that move values, and take them apart and together; see ``absorb``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, set_input, set_output, sole_consumer, values_of, variable
from graphopt.passes.affine.absorb_search import Demand, Edit, Search, Step
from graphopt.passes.affine.axes import vector_before
from graphopt.passes.affine.maps import Affine


def _transpose(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    if demand.axis is None:
        return search.through(node, 0, demand)
    order = node.attrs.get("perm")
    if order is None:
        rank = search.known.rank(node.outputs[0])
        order = None if rank is None else list(range(rank))[::-1]
    if order is None or demand.axis >= len(order):
        return None
    return search.through(node, 0, replace(demand, axis=int(order[demand.axis])))


def _number_only(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """The elements are moved or left out, never made up: a number goes through whatever the order."""
    return search.through(node, 0, replace(demand, axis=None)) if demand.is_number else None


def _keeping_axes(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    return search.through(node, 0, demand)


def _reshape(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """A vector goes through where it still runs along one axis."""
    if demand.is_number or demand.axis is None:
        return _number_only(search, node, tensor, demand)
    given, wanted = search.known.shape(node.inputs[0]), search.known.shape(node.outputs[0])
    if given is None or wanted is None or wanted[demand.axis] != demand.affine.channels:
        return None
    moved = []
    axes = set()
    for vector in (demand.affine.scale, demand.affine.shift):
        found = (vector, None) if vector.size == 1 else vector_before(vector, demand.axis, given, wanted)
        if found is None:
            return None
        moved.append(found[0])
        axes.add(found[1])
    axes.discard(None)
    if len(axes) != 1:
        return None
    return search.through(node, 0, Demand(Affine(moved[0], moved[1]), axes.pop()))


def _pick(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """Gather: of a tensor that nothing else reads, a number; of one read in other places too, a part of a vector."""
    source = node.inputs[0]
    if sole_consumer(search.index, source) is node:
        return _number_only(search, node, tensor, demand)
    places = _places(search, source) if demand.is_number and len(source.outputs) <= search.left else None
    if places is None:
        return None
    axis, size, picked = places
    scale, shift = np.ones(size), np.zeros(size)
    mine = picked[id(node)]
    if any(place == mine for other, place in picked.items() if other != id(node)):
        return None
    scale[mine], shift[mine] = demand.affine.scale[0], demand.affine.shift[0]
    return search.spread(source, list(source.outputs), Demand(Affine(scale, shift), axis), node)


def _places(search: Search, source: gs.Tensor) -> tuple[int, int, dict[int, int]] | None:
    """Axis, its size, and which place each reader takes, if all pick one place along one axis."""
    shape = search.known.shape(source)
    picked: dict[int, int] = {}
    axes = set()
    if shape is None or not source.inputs or search.index.is_output(source):
        return None
    for reader in source.outputs:
        place = values_of(reader.inputs[1]) if is_op(reader, "Gather") and reader.inputs[0] is source else None
        if place is None or place.size != 1 or search.index.home(reader) is not search.index.home(source.inputs[0]):
            return None
        axis = int(reader.attrs.get("axis", 0)) % len(shape)
        size = shape[axis]
        if not isinstance(size, int):
            return None
        axes.add((axis, size))
        picked[id(reader)] = int(place.ravel()[0]) % size
    return (*axes.pop(), picked) if len(axes) == 1 else None


def _split(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """One part of a Split is mapped where the vector of the whole leaves the other parts as they are."""
    shapes = [search.known.shape(output) for output in node.outputs]
    axis = int(node.attrs.get("axis", 0))
    sizes: list[int] = []
    for shape in shapes:
        if shape is None:
            return None
        axis %= len(shape)
        size = shape[axis]
        if not isinstance(size, int):
            return None
        sizes.append(size)
    if not demand.is_number and demand.axis != axis:
        return None
    slot = next(slot for slot, output in enumerate(node.outputs) if output is tensor)
    start = sum(sizes[:slot])
    scale, shift = np.ones(sum(sizes)), np.zeros(sum(sizes))
    scale[start : start + sizes[slot]], shift[start : start + sizes[slot]] = demand.affine.scale, demand.affine.shift
    source = node.inputs[0]
    before = search.edit(source, Demand(Affine(scale, shift), axis))
    if before is None:
        return None

    def apply(target: gs.Tensor) -> None:
        mapped = variable(search.index, f"{source.name}_mapped", like=source)
        before(mapped)
        set_input(search.index, node, 0, mapped)
        set_output(search.index, node, slot, target)

    return apply


def _concat(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    axis = int(node.attrs.get("axis", 1))
    if axis < 0:
        rank = search.known.rank(node.outputs[0])
        if rank is None:
            return None
        axis += rank
    count = len({id(given) for given in node.inputs})
    if count != len(node.inputs) or count > search.left:
        return None
    edits: list[Edit] = []
    start = 0
    for given in node.inputs:
        piece = demand
        if not demand.is_number and axis == demand.axis:
            shape = search.known.shape(given)
            size = None if shape is None else shape[axis]
            if not isinstance(size, int):
                return None
            piece = Demand(_piece(demand.affine, start, start + size), axis)
            start += size
        edit = search.edit(given, piece)
        if edit is None:
            return None
        edits.append(edit)
    if start not in {0, demand.affine.channels}:
        return None

    def apply(target: gs.Tensor) -> None:
        for slot, edit in enumerate(edits):
            mapped = variable(search.index, f"{node.inputs[slot].name}_mapped", like=node.inputs[slot])
            edit(mapped)
            set_input(search.index, node, slot, mapped)
        set_output(search.index, node, 0, target)

    return apply


def _piece(affine: Affine, start: int, stop: int) -> Affine:
    scale, shift = (vector if vector.size == 1 else vector[start:stop] for vector in (affine.scale, affine.shift))
    return Affine(scale, shift)


MOVES: dict[str, Step] = {
    "Concat": _concat,
    "DepthToSpace": _number_only,
    "Flatten": _reshape,
    "Gather": _pick,
    "Identity": _keeping_axes,
    "Reshape": _reshape,
    "Slice": _number_only,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
