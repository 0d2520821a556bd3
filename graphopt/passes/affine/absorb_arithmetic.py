"""Affine maps through pooling, activations and arithmetic; see ``absorb``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_constant, is_op, set_input, set_output, variable
from graphopt.passes.affine.absorb_search import Demand, Edit, Search, Step
from graphopt.passes.affine.maps import Affine, Link, all_finite, may_be_link, read_link
from graphopt.passes.affine.merge import laid_out


def _average(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """The mean of mapped values is the mapped mean, over the axes after the first two."""
    return search.through(node, 0, demand) if demand.axis in {None, 1} else None


def _average_pool(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """Averages over what is there only are mapped as their values are; zeros counted in must not be shifted."""
    counted = node.attrs.get("count_include_pad", 0) or node.attrs.get("ceil_mode", 0)
    if demand.affine.shifts and counted and not _reads_inside(node):
        return None
    return _average(search, node, tensor, demand)


def _reads_inside(node: gs.Node) -> bool:
    mode = node.attrs.get("auto_pad", "NOTSET")
    return mode in {"NOTSET", "VALID"} and not any(node.attrs.get("pads", [])) and not node.attrs.get("ceil_mode", 0)


def _maximum(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """The largest of values mapped by a rising function is the mapped largest."""
    return _average(search, node, tensor, demand) if (demand.affine.scale > 0).all() else None


def _homogeneous(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    """Relu of a positive multiple is that multiple of Relu."""
    rising = (demand.affine.scale > 0).all() and not demand.affine.shifts
    return search.through(node, 0, demand) if rising else None


def _add(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    constant_operand = may_be_link(node)
    return (_by_a_constant if constant_operand else _sum)(search, node, tensor, demand)


def _multiply(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
    constant_operand = may_be_link(node)
    return (_by_a_constant if constant_operand else _product)(search, node, tensor, demand)


def _by_a_constant(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
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
    if not all_finite(values) or not search.pays(node, ((1 - link.slot, values),)):
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
        search.stock.replace(node, 1 - slot, node.inputs[1 - slot].name, values)
        # Of the four, only Sub of a constant has it first; Add and Mul do not mind.
        node.op = op
        set_output(search.index, node, 0, target)

    return apply


def _sum(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
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


def _product(search: Search, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
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
    found = search.through(node, 0, wanted)
    return found if found is not None or node.op == "Div" else search.through(node, 1, wanted)


ARITHMETIC: dict[str, Step] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Div": _multiply,
    "GlobalAveragePool": _average,
    "GlobalMaxPool": _maximum,
    "LeakyRelu": _homogeneous,
    "MatMul": _product,
    "MaxPool": _maximum,
    "Mul": _multiply,
    "Relu": _homogeneous,
    "Sub": _add,
}
