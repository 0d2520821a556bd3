"""Merge groups of grouped convolutions until the target's blocked kernels take them.

    Conv 128 -> 32 channels, 4 groups of 32 -> 8        Conv 128 -> 32 channels, 2 groups of 64 -> 16, half of it zeros

ONNX Runtime's CPU kernels for grouped convolutions work on blocks of channels (``channel_multiple`` of the target) and
take only groups that are whole blocks on both sides. Others leave the blocked layout: input and output are reordered,
and the windows of a k x k kernel are written out, group by group. With as many groups merged as fill the blocks, the
weights between merged groups being zeros, there is more to multiply and less to do.

A convolution is rewritten where that saves a seventh of its predicted time (``pruning.kernels``, whose terms all go by
the size of the output: it need not be known). Weights grow by as many times as groups are merged. Zeros times infinity
is not a number: an input that holds infinities spoils the outputs of the merged groups, too.

Left alone: depthwise convolutions, which have kernels of their own; computed weights; other types than float32; all
where a budget of multiply-adds is set, for they count.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.graph import Index, constant, is_constant, is_op, set_input, shape_of, values_of, walk
from graphopt.passes.base import Context, PassReport
from graphopt.passes.pruning.kernels import Convolution, float_convolution

# Share of the time that must be saved: predictions err by a tenth.
WORTHWHILE = 0.85


@dataclass(frozen=True)
class MergeGroups:
    """Merge groups of convolutions that are too narrow for the kernels."""

    name: ClassVar[str] = "merge_groups"
    summary: ClassVar[str] = "merge groups of convolutions that are too narrow for the kernels"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        multiple = context.hardware.channel_multiple.get("float32", 1)
        if multiple == 1 or context.goals.max_macs is not None:
            return PassReport(changes=0)
        found = [
            (node, by)
            for home in walk(graph)
            for node in home.nodes
            if is_op(node, "Conv") and (by := groups_to_merge(node, multiple)) > 1
        ]
        if not found:
            return PassReport(changes=0)
        index = Index(graph)
        growth = sum(_merge(index, node, by) for node, by in found)
        index.finish()
        return PassReport(len(found), details={"growth_bytes": growth})


def groups_to_merge(node: gs.Node, multiple: int) -> int:
    """How many groups of a convolution are to become one; 1 where it does not pay or cannot be done.

    Args:
        node: a Conv.
        multiple: channels that the kernels take at once.
    """
    groups = int(node.attrs.get("group", 1))
    if groups < 2 or len(node.inputs) < 2 or not is_constant(node.inputs[1]):
        return 1
    shape = shape_of(node.inputs[1])
    if shape is None or len(shape) < 3 or node.inputs[1].dtype != np.float32:
        return 1
    sizes = [size for size in shape if isinstance(size, int)]
    outside, inside, taps = sizes[0] // groups, sizes[1], prod(sizes[2:])
    if inside == outside == 1 or sizes[0] % groups:
        return 1
    by = next(
        (
            by
            for by in range(1, groups + 1)
            if groups % by == 0 and inside * by % multiple == 0 and outside * by % multiple == 0
        ),
        1,
    )
    now, then = (_time(inside * groups, sizes[0], taps, groups // each, multiple) for each in (1, by))
    return by if then < WORTHWHILE * now else 1


def _time(inside: int, outside: int, taps: int, groups: int, multiple: int) -> float:
    """Predicted nanoseconds for each position of the output."""
    one = np.ones((), dtype=np.int64)
    return float(float_convolution(Convolution(one, taps, inside * one, outside * one, groups, False), multiple))


def _merge(index: Index, node: gs.Node, by: int) -> int:
    """Merge every ``by`` groups of a convolution; return the bytes that its weights grow by."""
    weights = values_of(node.inputs[1])
    assert weights is not None, "asked for constants only"
    groups = int(node.attrs["group"])
    merged = merged_weights(weights, groups, by)
    set_input(index, node, 1, constant(index, node.inputs[1].name, merged))
    node.attrs["group"] = groups // by
    return merged.nbytes - weights.nbytes


def merged_weights(weights: npt.NDArray[Any], groups: int, by: int) -> npt.NDArray[Any]:
    """Return the weights of a convolution with every ``by`` groups made one: [outputs, inputs a group * by, ...]."""
    outside, inside, *taps = weights.shape
    wide = np.zeros((groups // by, by, outside // groups, by, inside, *taps), dtype=weights.dtype)
    narrow = weights.reshape(groups // by, by, outside // groups, inside, *taps)
    for place in range(by):
        wide[:, place, :, place] = narrow[:, place]
    return wide.reshape(outside, by * inside, *taps)


__all__ = ["MergeGroups", "groups_to_merge", "merged_weights"]
