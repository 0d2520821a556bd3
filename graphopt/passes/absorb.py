"""Affine maps taken up further away: through nodes that only move values, or that add and multiply them.

``A(f(x))`` becomes ``f(A'(x))``, from node to node upwards, until nodes with constant parameters take the map up:

| node | map | goes on to |
|---|---|---|
| Conv, ConvTranspose, Gemm, MatMul with constant weights | any, along the outputs | taken up |
| normalization with constant scale and bias | any, along their axis | taken up |
| Add and Sub, Mul and Div by a constant | shift, scale | taken up |
| Transpose, Identity, pooling by average | any | its input |
| pooling by maximum / Relu, LeakyRelu | scale above 0 / and no shift | its input |
| Reshape, Flatten, Squeeze, Unsqueeze | a number; a vector that still runs along one axis | its input |
| Slice, DepthToSpace | a number | its input |
| Split, Gather of one place | what leaves the other parts as they are | its input |
| Concat | any | all its inputs, piece by piece |
| Add, Sub of two | shift | one of the two |
| Mul of two, MatMul of two | a number, without shift | one of the two |

Every tensor on the way must have no other reader. All or nothing: no node is added, so that each map taken up is a
node less. A tensor whose value changes gets a new name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    constant,
    is_constant,
    is_op,
    set_input,
    set_output,
    sole_consumer,
    sole_producer,
    values_of,
    variable,
)
from graphopt.passes.affine import ELEMENTWISE, Affine, Link, all_finite, may_be_link, read_link
from graphopt.passes.axes import vector_before
from graphopt.passes.merge_affine import laid_out
from graphopt.passes.parameters import Site, absorb_in_linear, absorb_in_normalization
from graphopt.passes.ranks import Knowledge

# A call lets the node that was looked at write the mapped value into a tensor.
Edit: TypeAlias = Callable[[gs.Tensor], None]
# Nodes looked at for one map; enough for what exporters write, and it keeps the cost linear.
_REACH = 24


@dataclass(frozen=True)
class Demand:
    """A map wanted of a tensor, along one of its axes (None: all elements alike)."""

    affine: Affine
    axis: int | None

    @property
    def is_number(self) -> bool:
        """Whether every element is treated alike."""
        return self.axis is None or self.affine.channels == 1


class Search(Site):
    """Looks for nodes that take a map up; counts the nodes it looked at.

    Attributes:
        left: how many more nodes it may look at.
        met: the nodes it would change.
    """

    def __init__(self, index: Index, known: Knowledge, spare: int, *, may_add: bool = False) -> None:
        super().__init__(index, known, spare, may_add)
        self.left = _REACH
        self.met: list[gs.Node] = []

    def edit(self, tensor: gs.Tensor, demand: Demand) -> Edit | None:
        """How to make ``tensor``, which only the caller reads, come out mapped; None where it cannot."""
        node = sole_producer(tensor)
        self.left -= 1
        if node is None or node.domain or self.left < 0 or sole_consumer(self.index, tensor) is None:
            return None
        spare = self.spare
        self.met.append(node)
        found = self._edit(node, tensor, demand)
        if found is None:
            self.spare = spare
        return found

    def _edit(self, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
        if node.op == "Split":
            return _split(self, node, tensor, demand)
        if any(output is not tensor and output.outputs for output in node.outputs):
            return None
        for leaf in (absorb_in_linear, absorb_in_normalization):
            found = leaf(self, node, demand.affine, demand.axis)
            if found is not None:
                return found
        if node.op in ELEMENTWISE and may_be_link(node):
            return _by_a_constant(self, node, demand)
        step = _STEPS.get(node.op)
        return None if step is None else step(self, node, demand)

    def through(self, node: gs.Node, slot: int, demand: Demand) -> Edit | None:
        """Map one input of a node, so that its output comes out mapped."""
        source = node.inputs[slot]
        before = self.edit(source, demand)
        if before is None:
            return None

        def apply(target: gs.Tensor) -> None:
            mapped = variable(self.index, f"{source.name}_mapped", like=source)
            before(mapped)
            set_input(self.index, node, slot, mapped)
            set_output(self.index, node, 0, target)

        return apply

    def spread(self, source: gs.Tensor, readers: list[gs.Node], demand: Demand, node: gs.Node) -> Edit | None:
        """Map a tensor that several nodes read, of which all but ``node`` see parts that stay as they are."""
        producer = sole_producer(source)
        self.left -= 1
        if producer is None or producer.domain or self.left < 0 or producer.op == "Split":
            return None
        spare = self.spare
        self.met.append(producer)
        before = self._edit(producer, source, demand)
        if before is None:
            self.spare = spare
            return None

        def apply(target: gs.Tensor) -> None:
            mapped = variable(self.index, f"{source.name}_mapped", like=source)
            before(mapped)
            for reader in readers:
                set_input(self.index, reader, 0, mapped)
            set_output(self.index, node, 0, target)

        return apply


def _transpose(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    if demand.axis is None:
        return search.through(node, 0, demand)
    order = node.attrs.get("perm")
    if order is None:
        rank = search.known.rank(node.outputs[0])
        order = None if rank is None else list(range(rank))[::-1]
    if order is None or demand.axis >= len(order):
        return None
    return search.through(node, 0, replace(demand, axis=int(order[demand.axis])))


def _number_only(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """The elements are moved or left out, never made up: a number goes through whatever the order."""
    return search.through(node, 0, replace(demand, axis=None)) if demand.is_number else None


def _reshape(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """A vector goes through where it still runs along one axis."""
    if demand.is_number or demand.axis is None:
        return _number_only(search, node, demand)
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


def _pick(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """Gather: of a tensor that nothing else reads, a number; of one read in other places too, a part of a vector."""
    source = node.inputs[0]
    if sole_consumer(search.index, source) is node:
        return _number_only(search, node, demand)
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


def _keeping_axes(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    return search.through(node, 0, demand)


def _average(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """The mean of mapped values is the mapped mean, over the axes after the first two."""
    return search.through(node, 0, demand) if demand.axis in {None, 1} else None


def _average_pool(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """Averages over what is there only are mapped as their values are; zeros counted in must not be shifted."""
    counted = node.attrs.get("count_include_pad", 0) or node.attrs.get("ceil_mode", 0)
    if demand.affine.shifts and counted and not _reads_inside(node):
        return None
    return _average(search, node, demand)


def _reads_inside(node: gs.Node) -> bool:
    mode = node.attrs.get("auto_pad", "NOTSET")
    return mode in {"NOTSET", "VALID"} and not any(node.attrs.get("pads", [])) and not node.attrs.get("ceil_mode", 0)


def _maximum(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """The largest of values mapped by a rising function is the mapped largest."""
    return _average(search, node, demand) if (demand.affine.scale > 0).all() else None


def _homogeneous(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """Relu of a positive multiple is that multiple of Relu."""
    rising = (demand.affine.scale > 0).all() and not demand.affine.shifts
    return search.through(node, 0, demand) if rising else None


def _concat(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    axis = int(node.attrs.get("axis", 1))
    if axis < 0:
        rank = search.known.rank(node.outputs[0])
        if rank is None:
            return None
        axis += rank
    count = len({id(tensor) for tensor in node.inputs})
    if count != len(node.inputs) or count > search.left:
        return None
    edits: list[Edit] = []
    start = 0
    for tensor in node.inputs:
        piece = demand
        if not demand.is_number and axis == demand.axis:
            shape = search.known.shape(tensor)
            size = None if shape is None else shape[axis]
            if not isinstance(size, int):
                return None
            piece = Demand(_piece(demand.affine, start, start + size), axis)
            start += size
        edit = search.edit(tensor, piece)
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


def _by_a_constant(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """An Add or Sub takes the shift up and hands the scale on; a Mul or Div takes a scale up."""
    link = read_link(node, search.known.rank, search.index)
    if not isinstance(link, Link) or link.dtype.name not in {"float32", "float64"}:
        return None
    wanted = demand.affine
    if None not in {link.axis, demand.axis} and link.axis != demand.axis:
        return None
    if 1 not in {link.affine.channels, wanted.channels} and link.affine.channels != wanted.channels:
        return None
    total = link.affine.then(wanted)
    adds = node.op in {"Add", "Sub"}
    if not adds and wanted.shifts:
        return None
    op, vector = ("Sub" if link.affine.scale[0] < 0 else "Add", total.shift) if adds else ("Mul", total.scale)
    axis = link.axis if demand.axis is None else demand.axis
    rank = search.known.rank(node.outputs[0]) if axis is not None else None
    if axis is not None and rank is None:
        return None
    with np.errstate(over="ignore"):  # The infinities are looked for.
        values = laid_out(vector, axis, rank).astype(link.dtype)
    if not all_finite(values):
        return None
    before: Edit | None = None
    if adds and wanted.scales:
        before = search.edit(link.source, Demand(Affine(wanted.scale, np.zeros(1)), demand.axis))
        if before is None:
            return None

    def apply(target: gs.Tensor) -> None:
        slot = link.slot
        if before is not None:
            mapped = variable(search.index, f"{link.source.name}_mapped", like=link.source)
            before(mapped)
            set_input(search.index, node, slot, mapped)
        made = constant(search.index, node.inputs[1 - slot].name, values)
        set_input(search.index, node, 1 - slot, made)
        # Of the four, only Sub of a constant has it first; Add and Mul do not mind.
        node.op = op
        set_output(search.index, node, 0, target)

    return apply


def _sum(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    """A shift goes to either of the two; a vector only where it cannot widen anything."""
    if demand.affine.scales or len(node.inputs) != 2:
        return None
    for slot in (0, 1):
        if not demand.is_number and not _same_axis(search, node, slot, demand):
            continue
        wanted = demand
        if node.op == "Sub" and slot == 1:
            wanted = replace(demand, affine=Affine(np.ones(1), -demand.affine.shift))
        found = search.through(node, slot, wanted)
        if found is not None:
            return found
    return None


def _same_axis(search: Search, node: gs.Node, slot: int, demand: Demand) -> bool:
    """Whether the axis is the same one of an input as of the output, and as long."""
    if demand.axis is None:
        return True
    rank = search.known.rank(node.inputs[slot])
    return rank is not None and rank == search.known.rank(node.outputs[0])


def _product(search: Search, node: gs.Node, demand: Demand) -> Edit | None:
    if not demand.is_number or demand.affine.shifts or len(node.inputs) != 2:
        return None
    # ONNX Runtime recognises attention with a computed mask by the division between the product and the mask.
    reader = node.outputs[0].outputs[0]
    if node.op == "MatMul" and any(
        is_op(later, "Add") and not any(is_constant(given) for given in later.inputs)
        for later in reader.outputs[0].outputs
    ):
        return None
    wanted = replace(demand, axis=None)
    return search.through(node, 0, wanted) or search.through(node, 1, wanted)


_STEPS: dict[str, Callable[[Search, gs.Node, Demand], Edit | None]] = {
    "Transpose": _transpose,
    "Identity": _keeping_axes,
    "GlobalAveragePool": _average,
    "Concat": _concat,
    "Add": _sum,
    "Sub": _sum,
    "Mul": _product,
    "MatMul": _product,
    "Gather": _pick,
    "GlobalMaxPool": _maximum,
    "MaxPool": _maximum,
    "AveragePool": _average_pool,
    "Relu": _homogeneous,
    "LeakyRelu": _homogeneous,
    "Slice": _number_only,
    "DepthToSpace": _number_only,
} | dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape)
