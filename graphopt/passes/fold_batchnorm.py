"""Fold normalizations and per-channel arithmetic into the linear operators beside them.

``Conv -> BatchNormalization -> Mul -> Add`` becomes ``Conv``; likewise for ConvTranspose, Gemm and MatMul, grouped and
depthwise, with any chain of BatchNormalization, Mul, Add, Sub and Div by constants, before or after. ``affine`` and
``linear`` hold the algebra.

1. A *chain* is a run of such nodes, each the only reader of the one before, along one axis (or by scalars).
2. It goes into the linear node that feeds it, if it is that node's only reader and the axis is that of its outputs.
3. Else into the linear node that is its only reader, if that is exact: without padding, or without shift.
4. Else a chain of several nodes becomes the fewest that compute it: one BatchNormalization, Mul or Add.
5. A BatchNormalization that stands alone stays: one costs what one Mul costs and two thirds of Mul and Add (ONNX
   Runtime 1.31, CPU, one thread, 64x56x56: 69, 74 and 107 microseconds). One that changes nothing is removed.

Left alone: training mode, parameters or weights that are inputs or computed, statistics outputs that are read, values
that are outputs of the graph or have other readers, results that the dtype cannot hold. Weights shared by several
nodes get one scaled copy for each; ``growth_bytes`` in the report says what that costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    TensorType,
    add_node,
    constant,
    is_op,
    set_input,
    set_output,
    size_of,
    sole_consumer,
    sole_producer,
    types_of,
    walk,
)
from graphopt.passes.affine_chains import Chain, find_chains
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.linear import (
    LINEAR,
    Folded,
    Linear,
    into_inputs,
    into_outputs,
    read_linear,
    why_not_into_inputs,
    why_not_representable,
    write_linear,
)
from graphopt.passes.merge_affine import merge


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold BatchNormalization and arithmetic by constants into convolutions and matrix products."""

    name: ClassVar[str] = "fold_batchnorm"
    summary: ClassVar[str] = "fold normalizations and per-channel arithmetic into convolutions"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        counts = {"into_producer": 0, "into_consumer": 0, "merged": 0}
        start = _constant_bytes(graph)
        # What one chain leaves behind (an Add after a MatMul) may continue another.
        while True:
            changed, skipped = _round(graph, counts)
            if not changed:
                break
        details = {f"folded_{how}" if how != "merged" else how: count for how, count in counts.items()}
        growth = _constant_bytes(graph) - start
        return PassReport(sum(counts.values()), tuple(skipped), details | {"growth_bytes": growth})


def _round(graph: gs.Graph, counts: dict[str, int]) -> tuple[int, list[Skip]]:
    """Fold every chain there is; return how many, and what was left alone with why."""
    index = Index(graph)
    types = types_of(graph)
    chains, skipped = find_chains(index, types)
    changed = 0
    for chain in chains:
        reasons: list[str] = []
        for how, fold in (("into_producer", _into_producer), ("into_consumer", _into_consumer), ("merged", merge)):
            reason = fold(index, chain, types)
            if reason is None:
                counts[how] += len(chain.links)
                changed += 1
                break
            reasons.append(reason)
        else:
            telling = next((reason for reason in reasons if reason), None)
            if telling is not None:
                skipped.append(Skip(chain.where, telling))
    index.finish()
    return changed, skipped


def _into_producer(index: Index, chain: Chain, types: Mapping[str, TensorType]) -> str | None:
    """Fold a chain into the linear node that feeds it; None if done, else why not ('' where there is none)."""
    producer = sole_producer(chain.source)
    if producer is None or not is_op(producer, *LINEAR):
        return ""
    label = f"{producer.op} '{producer.name or producer.outputs[0].name}'"
    if index.is_output(chain.source):
        return f"the output of {label} is a graph output"
    if sole_consumer(index, chain.source) is not chain.links[0].node:
        return f"the output of {label} has other readers"
    linear = read_linear(producer, index)
    if not isinstance(linear, Linear):
        return linear if chain.has_batchnorm or producer.op != "MatMul" else ""
    if chain.axis not in {None, _channel_axis(linear, chain.rank)} or chain.affine.channels not in {1, linear.outputs}:
        return f"it does not run along the outputs of {label}" if chain.has_batchnorm else ""
    folded = into_outputs(linear, chain.affine)
    if not _can_hold_bias(linear, folded, chain) and len(chain.links) == 1:
        return f"{label} has no bias to take it up" if chain.has_batchnorm else ""
    reason = why_not_representable(linear, folded)
    if reason is None:
        target = chain.target
        index.drop([link.node for link in chain.links])
        _write(index, linear, folded, chain, target)
    return reason


def _into_consumer(index: Index, chain: Chain, types: Mapping[str, TensorType]) -> str | None:
    """Fold a chain into the linear node that reads it; None if done, else why not ('' where there is none)."""
    consumer = sole_consumer(index, chain.target)
    if consumer is None or not is_op(consumer, *LINEAR) or consumer.inputs[0] is not chain.target:
        return ""
    linear = read_linear(consumer, index)
    if not isinstance(linear, Linear):
        return linear if chain.has_batchnorm or consumer.op != "MatMul" else ""
    if chain.axis not in {None, _channel_axis(linear, chain.rank)} or chain.affine.channels not in {1, linear.inputs}:
        return f"it does not run along the inputs of {linear.label}" if chain.has_batchnorm else ""
    if chain.may_widen(types):
        return ""
    shift = np.broadcast_to(chain.affine.shift, (linear.inputs,))
    reason = why_not_into_inputs(linear, shift)
    if reason is not None:
        return reason
    folded = into_inputs(linear, chain.affine)
    if not _can_hold_bias(linear, folded, chain) and len(chain.links) == 1:
        return f"{linear.label} has no bias to take its shift up" if chain.has_batchnorm else ""
    reason = why_not_representable(linear, folded)
    if reason is None:
        source, target = chain.source, consumer.outputs[0]
        index.drop([link.node for link in chain.links])
        set_input(index, consumer, 0, source)
        _write(index, linear, folded, chain, target)
    return reason


def _write(index: Index, linear: Linear, folded: Folded, chain: Chain, target: gs.Tensor) -> None:
    """Give the linear node its new parameters and let it write ``target``, with an Add behind it where needed."""
    node = linear.node
    if _can_hold_bias(linear, folded, chain):
        write_linear(index, linear, folded)
        if node.outputs[0] is not target:
            set_output(index, node, 0, target)
        return
    write_linear(index, linear, replace(folded, bias=None))
    if node.outputs[0] is target:
        set_output(index, node, 0, gs.Variable(index.fresh_name(f"{target.name}_unbiased"), target.dtype, target.shape))
    values = np.asarray(folded.bias).astype(linear.weights.dtype)
    bias = constant(index, f"{node.name or target.name}_bias", values)
    home = index.home(node)
    add_node(index, "Add", [node.outputs[0], bias], [target], prefix=f"{node.name or target.name}_add", home=home)


def _can_hold_bias(linear: Linear, folded: Folded, chain: Chain) -> bool:
    """Whether the node takes the bias itself: a MatMul only as a Gemm, which wants two axes."""
    return folded.bias is None or linear.node.op != "MatMul" or chain.rank == 2


def _channel_axis(linear: Linear, rank: int | None) -> int | None:
    """The axis of a linear node's input and output channels; None where it is not known."""
    if linear.node.op != "MatMul":
        return 1
    return None if rank is None else rank - 1


def _constant_bytes(graph: gs.Graph) -> int:
    found = {
        id(tensor): tensor
        for home in walk(graph)
        for node in home.nodes
        for tensor in node.inputs
        if isinstance(tensor, gs.Constant)
    }
    return sum(size_of(tensor) for tensor in found.values())
