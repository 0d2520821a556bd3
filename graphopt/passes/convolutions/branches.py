"""Sums of several linear maps of one tensor, made one: the branches of RepVGG, MobileOne, RepLKNet and their kin.

A *tree* is a run of Add and Sum nodes, each but the last the operand of another one only; its *leaves* are what they
add up. Leaves that are a Conv, Gemm or MatMul of one tensor x with constant weights, a BatchNormalization, Mul or Add
of x by a constant a channel, or x itself, become one Conv, Gemm or MatMul.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, is_op, set_output, sole_consumer, sole_producer, variable
from graphopt.passes.affine.ledger import Ledger
from graphopt.passes.affine.linear import Linear
from graphopt.passes.affine.maps import Affine, Link, may_be_link, read_link
from graphopt.passes.affine.ranks import Knowledge
from graphopt.passes.convolutions.kernel_nodes import fitted, pays_in_bytes, write_kernel
from graphopt.passes.convolutions.kernels import Kernel, diagonal, read_kernel, summed

_BASES = ("Conv", "Gemm", "MatMul")
# Branches put together at once, and looked at for that; no net has more, and it keeps the cost linear.
_AT_ONCE = 16
_LOOKED_AT = 64


@dataclass(frozen=True)
class Leaf:
    """One operand of a tree.

    Attributes:
        place: ``id`` of the node that reads it, and at which input.
        source: the tensor that it is a map of; itself if nothing else is known of it.
        node: the node that computes it from the source; None for the source itself.
    """

    place: tuple[int, int]
    source: gs.Tensor
    node: gs.Node | None

    @property
    def is_base(self) -> bool:
        """Whether it might be a kernel that others go into."""
        return self.node is not None and self.node.op in _BASES


def is_sum(node: gs.Node) -> bool:
    """Whether the node adds at least two tensors up."""
    return is_op(node, "Add", "Sum") and len(node.inputs) > 1


def merge_branches(index: Index, root: gs.Node, known: Knowledge, ledger: Ledger) -> int:
    """Merge what can be merged of the tree that ends in ``root``; return how many branches went."""
    reader = sole_consumer(index, root.outputs[0])
    if reader is not None and is_sum(reader):
        return 0
    nodes, leaves = _tree(index, root)
    by_source: dict[int, list[Leaf]] = {}
    for leaf in leaves:
        by_source.setdefault(id(leaf.source), []).append(leaf)
    # What to read at each place; None: nothing, the leaf is part of another now.
    replaced: dict[tuple[int, int], gs.Tensor | None] = {}
    for same in by_source.values():
        if len(same) > 1 and any(leaf.is_base for leaf in same):
            replaced |= _merge_leaves(index, same, known, ledger)
    if replaced:
        _rewire(index, nodes, replaced)
    return sum(tensor is None for tensor in replaced.values())


def _tree(index: Index, root: gs.Node) -> tuple[list[gs.Node], list[Leaf]]:
    """Nodes of a tree, outer before inner, and its leaves."""
    nodes, leaves = [root], []
    for node in nodes:
        for slot, tensor in enumerate(node.inputs):
            inner = sole_producer(tensor)
            if inner is None or sole_consumer(index, tensor) is not node:
                leaves.append(Leaf((id(node), slot), tensor, None))
            elif is_sum(inner):
                nodes.append(inner)
            elif is_op(inner, *_BASES):
                leaves.append(Leaf((id(node), slot), inner.inputs[0], inner))
            elif may_be_link(inner):
                # A BatchNormalization, or arithmetic with one constant.
                computed = next(given for given in inner.inputs if not isinstance(given, gs.Constant))
                leaves.append(Leaf((id(node), slot), computed, inner))
            else:
                leaves.append(Leaf((id(node), slot), tensor, None))
    return nodes, leaves


def _merge_leaves(
    index: Index, same: Sequence[Leaf], known: Knowledge, ledger: Ledger
) -> dict[tuple[int, int], gs.Tensor | None]:
    """Merge leaves of one source; return what to read in the place of each leaf that changed."""
    bases: list[tuple[Leaf, Linear, Kernel]] = []
    for leaf in same:
        read = read_kernel(leaf.node, index) if leaf.is_base else None
        if read is not None:
            bases.append((leaf, *read))
    if not bases:
        return {}
    # The largest is what the others go into; a Gemm can hold a bias, a MatMul cannot.
    bases.sort(key=lambda base: (-base[2].macs, base[1].node.op == "MatMul"))
    replaced: dict[tuple[int, int], gs.Tensor | None] = {}
    others = [leaf for leaf in same if leaf.node is None or not leaf.is_base]
    while bases and len(bases) + len(others) > 1:
        (first, linear, kernel), *rest = bases[:_LOOKED_AT]
        group: list[tuple[Leaf, Kernel]] = [(first, kernel)]
        total = kernel
        offered = [(leaf, other) for leaf, one, other in rest if one.weights.dtype == linear.weights.dtype]
        offered += [
            (leaf, diagonal_kernel)
            for leaf in others[:_LOOKED_AT]
            if (diagonal_kernel := _as_diagonal(leaf, kernel, index, known)) is not None
        ]
        for leaf, other in offered:
            if len(group) >= _AT_ONCE:
                break
            joined = summed([*(one for _, one in group), other])
            if joined is not None:
                group.append((leaf, other))
                total = joined
        taken = _write(index, linear, total, [leaf for leaf, _ in group], known, ledger)
        replaced |= taken
        done = {leaf.place for leaf, _ in group} if taken else {first.place}
        bases = [base for base in bases if base[0].place not in done]
        others = [leaf for leaf in others if leaf.place not in done]
    return replaced


def _as_diagonal(leaf: Leaf, kernel: Kernel, index: Index, known: Knowledge) -> Kernel | None:
    """The leaf as a kernel that maps each channel by itself; None where it is none."""
    axes = len(kernel.grid.taps)
    if kernel.inputs != kernel.outputs:
        return None
    if leaf.node is None:
        return diagonal(Affine(np.ones(1), np.zeros(1)), kernel.inputs, axes)
    link = read_link(leaf.node, known.rank, index)
    if not isinstance(link, Link) or link.source is not leaf.source or link.affine.channels not in {1, kernel.inputs}:
        return None
    if link.axis is not None:
        rank = axes + 2 if axes else known.rank(leaf.source)
        if rank is None or link.axis != (1 if axes else rank - 1):
            return None
    return diagonal(link.affine, kernel.inputs, axes)


def _write(
    index: Index, linear: Linear, total: Kernel, group: Sequence[Leaf], known: Knowledge, ledger: Ledger
) -> dict[tuple[int, int], gs.Tensor | None]:
    """Let one node compute a whole group, if that is possible and pays; return what to read in each place."""
    if len(group) < 2:
        return {}
    is_matrix = linear.node.op == "MatMul" and known.rank(linear.node.inputs[0]) == 2
    folded = fitted(linear, total, is_matrix=is_matrix)
    nodes = [leaf.node for leaf in group if leaf.node is not None]
    if folded is None or not pays_in_bytes(ledger, folded, nodes, len(group) - 1):
        return {}
    old = linear.node.outputs[0]
    index.drop([node for node in nodes if node is not linear.node])
    write_kernel(index, linear, total, folded)
    # The sum is a new value, and must not go by the name of one part.
    merged = variable(index, f"{old.name}_merged", like=old)
    set_output(index, linear.node, 0, merged)
    return {leaf.place: merged if leaf is group[0] else None for leaf in group}


def _rewire(index: Index, nodes: Sequence[gs.Node], replaced: dict[tuple[int, int], gs.Tensor | None]) -> None:
    """Make the nodes of a tree, outer before inner, add up what is left of their operands."""
    value: dict[int, gs.Tensor | None] = {}
    remade: list[tuple[gs.Node, list[gs.Tensor], gs.Tensor]] = []
    gone: list[gs.Node] = []
    root, result = nodes[0], nodes[0].outputs[0]
    for node in reversed(nodes):
        operands: list[gs.Tensor | None] = []
        for slot, tensor in enumerate(node.inputs):
            inner = sole_producer(tensor)
            place = (id(node), slot)
            if place in replaced:
                operands.append(replaced[place])
            else:
                operands.append(tensor if inner is None else value.get(id(inner), tensor))
        kept = [tensor for tensor in operands if tensor is not None]
        output = node.outputs[0]
        if len(kept) == len(node.inputs) and all(a is b for a, b in zip(kept, node.inputs, strict=True)):
            value[id(node)] = output
            continue
        gone.append(node)
        if len(kept) < 2:
            value[id(node)] = kept[0] if kept else None
            continue
        if node is not root:
            output = variable(index, f"{output.name}_merged", like=output)
        remade.append((node, kept, output))
        value[id(node)] = output
    index.drop(gone)
    for node, kept, output in remade:
        add_node(index, node.op, kept, [output], prefix=f"{node.name or output.name}_merged", home=index.home(node))
    whole = value[id(root)]
    if whole is not None and whole is not result:
        producer = sole_producer(whole)
        assert producer is not None
        set_output(index, producer, 0, result)
