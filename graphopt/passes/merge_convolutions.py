"""Merge parallel and consecutive convolutions into one.

    x -> Conv 3x3 -> Add -> Add          x -> Conv 3x3
    x -> Conv 1x1 ----^      ^
    x -> BatchNormalization -'

1. *Branches* (``branches``): what is added up of one tensor, each branch a Conv (or Gemm, MatMul) with constant
   weights, a BatchNormalization or arithmetic by constants, or the tensor itself. Strides must be equal, and outputs
   equal in size whatever the input; then the kernels are added up at their offsets (``kernels`` has the proof).
2. *Chains*: a Conv read by another only, one of the two with one tap (1x1, no padding), and likewise Gemm and MatMul.
   Where the first is the one with one tap, its bias must not meet the zero padding of the second.

Both only where the result takes no more multiplications and no more bytes than the parts. Sums and products are
computed in float64 and cast once. Normalizations between are ``fold_batchnorm``'s to fold first.

Several convolutions of one tensor whose outputs are not added up are left alone: merged, they would need a Split, which
copies what they give.

Left alone: computed weights, values that are outputs of the graph or have other readers, paddings that depend on the
size (SAME with a stride), results that the dtype cannot hold, weights that other nodes read where a copy costs more
than the nodes save.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, set_input, sole_consumer, sole_producer, walk
from graphopt.passes.affine.ledger import Ledger
from graphopt.passes.affine.ranks import Knowledge
from graphopt.passes.base import Context, PassReport
from graphopt.passes.convolutions.branches import is_sum, merge_branches
from graphopt.passes.convolutions.kernel_nodes import fitted, pays_in_bytes, write_kernel
from graphopt.passes.convolutions.kernels import chained, read_kernel

_LINEAR = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class MergeConvolutions:
    """Merge parallel and consecutive convolutions into one."""

    name: ClassVar[str] = "merge_convolutions"
    summary: ClassVar[str] = "merge parallel and consecutive convolutions into one"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        counts = {"branches": 0, "chains": 0}
        known, ledger = Knowledge(graph), Ledger()
        # Branches made one may be followed by a convolution, and convolutions made one may be a branch.
        while True:
            chains = _chains(graph, known, ledger)
            branches = _branches(graph, known, ledger)
            counts["chains"] += chains
            counts["branches"] += branches
            if not branches:
                break
        changes = sum(counts.values())
        return PassReport(changes, details=counts | {"growth_bytes": ledger.growth} if changes else {})


def _chains(graph: gs.Graph, known: Knowledge, ledger: Ledger) -> int:
    seconds = [node for home in walk(graph) for node in home.nodes if node.op in _LINEAR and _follows(node)]
    if not seconds:
        return 0
    index = known.index = Index(graph)
    merged = 0
    for node in seconds:
        # What has taken one node up may go with the one before that, too.
        while _merge_chain(index, node, known, ledger):
            merged += 1
    index.finish()
    return merged


def _branches(graph: gs.Graph, known: Knowledge, ledger: Ledger) -> int:
    sums = [node for home in walk(graph) for node in home.nodes if node.op in {"Add", "Sum"} and _may_merge(node)]
    if not sums:
        return 0
    index = known.index = Index(graph)
    merged = sum(merge_branches(index, node, known, ledger) for node in sums if not index.is_dropped(node))
    index.finish()
    return merged


def _may_merge(node: gs.Node) -> bool:
    """A first look: whether two operands might come of one tensor, or are sums themselves."""
    if not is_sum(node):
        return False
    seen: set[int] = set()
    for tensor in node.inputs:
        own = {id(tensor)}
        if len(tensor.inputs) == 1:
            before = tensor.inputs[0]
            if before.op in {"Add", "Sum"} and len(tensor.outputs) == 1:
                return True
            own.update(id(given) for given in before.inputs)
        if not seen.isdisjoint(own):
            return True
        seen |= own
    return False


def _follows(node: gs.Node) -> bool:
    """A first look: whether the node is the only reader of another linear node."""
    if not node.inputs or len(node.inputs[0].inputs) != 1 or len(node.inputs[0].outputs) != 1:
        return False
    return node.inputs[0].inputs[0].op in _LINEAR


def _merge_chain(index: Index, node: gs.Node, known: Knowledge, ledger: Ledger) -> bool:
    """Merge a node with the one before it into it, if possible; return whether it was."""
    if index.is_dropped(node):
        return False
    alone = sole_consumer(index, node.inputs[0]) is node
    before = sole_producer(node.inputs[0])
    if not alone or before is None or (before.op == "Conv") is not (node.op == "Conv"):
        return False
    first, second = read_kernel(before, index), read_kernel(node, index)
    if first is None or second is None or first[0].weights.dtype != second[0].weights.dtype:
        return False
    kernel = chained(first[1], second[1])
    if kernel is None:
        return False
    # Of a Gemm and a MatMul, the input of either tells that it is a matrix.
    is_matrix = "Gemm" in {before.op, node.op} or known.rank(before.inputs[0]) == 2
    folded = fitted(second[0], kernel, is_matrix=is_matrix)
    if folded is None or not pays_in_bytes(ledger, folded, [before, node], 1):
        return False
    source = before.inputs[0]
    index.drop([before])
    set_input(index, node, 0, source)
    write_kernel(index, second[0], kernel, folded)
    return True
