"""Data movement along a channel axis, one ``Move`` for each tensor that is made of channels of others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op
from graphopt.passes.channel_shuffle.finding import Shuffle
from graphopt.passes.channel_shuffle.layout import Labels
from graphopt.passes.channel_shuffle.nodes import chosen, cuts, slices
from graphopt.passes.channel_shuffle.shapes import Known


@dataclass(frozen=True)
class Move:
    """Where the channels of a tensor come from.

    Attributes:
        target: the tensor.
        sources: those that it is made of, each once.
        axis: the channel axis, of all of them.
        origin: number of the source of each channel of ``target``.
        channel: channel of that source.
        nodes: what does it now.
    """

    target: gs.Tensor
    sources: tuple[gs.Tensor, ...]
    axis: int
    origin: Labels
    channel: Labels
    nodes: tuple[gs.Node, ...]

    @property
    def runs(self) -> int:
        """How many stretches of neighbouring channels it copies."""
        return count_runs(self.origin, self.channel)

    @property
    def scrambles(self) -> bool:
        """Whether it does more than cut and join."""
        return self.runs > len(self.sources)


def count_runs(origin: Labels, channel: Labels) -> int:
    """Number of maximal stretches of successive channels of one source."""
    return 1 + int(np.count_nonzero((np.diff(origin) != 0) | (np.diff(channel) != 1)))


def of_shuffle(shuffle: Shuffle) -> Move:
    """A shuffle found as several nodes, as one move."""
    return Move(shuffle.target, shuffle.sources, shuffle.axis, shuffle.origin, shuffle.channel, shuffle.nodes)


def of_node(node: gs.Node, axis: int, known: Known) -> list[Move]:
    """The moves that a Concat, Split, Slice or Gather makes along an axis; none if it is not one that does."""
    if not is_op(node, "Concat", "Split", "Slice", "Gather"):
        return []
    counts = [_count(tensor, axis, known) for tensor in (node.inputs if node.op == "Concat" else node.inputs[:1])]
    sizes = [count for count in counts if count]
    rank = len(known.sizes(node.inputs[0]) or ())
    if not sizes or len(sizes) != len(counts):
        return []
    along = int(node.attrs.get("axis", 0)) % rank if node.op != "Slice" else axis
    if along != axis:
        return []
    if node.op == "Concat":
        return [_join(node, sizes, axis)]
    if node.op == "Split":
        parts = cuts(node, sizes[0], known.opset)
        if parts is None:
            return []
        ends = np.cumsum(parts)
        picks = [np.arange(end - part, end, dtype=np.int64) for part, end in zip(parts, ends, strict=True)]
        return [_pick(node, number, axis, pick) for number, pick in enumerate(picks)]
    if node.op == "Gather":
        indices = chosen(node, sizes[0])
        return [_pick(node, 0, axis, indices)] if indices is not None and indices.ndim == 1 else []
    ranges = slices(node, rank, known.opset)
    if ranges is None or len(ranges) != 1 or ranges[0][0] != axis:
        return []
    _, begin, end, step = ranges[0]
    pick = np.arange(sizes[0], dtype=np.int64)[begin:end:step]
    return [_pick(node, 0, axis, pick)] if pick.size else []


def _count(tensor: gs.Tensor, axis: int, known: Known) -> int | None:
    sizes = known.sizes(tensor)
    return None if sizes is None or axis >= len(sizes) or sizes[axis].symbols else sizes[axis].number


def _pick(node: gs.Node, number: int, axis: int, pick: Labels) -> Move:
    return Move(node.outputs[number], (node.inputs[0],), axis, np.zeros_like(pick), pick, (node,))


def _join(node: gs.Node, sizes: list[int], axis: int) -> Move:
    sources: dict[int, gs.Tensor] = {}
    origin, channel = [], []
    for tensor, size in zip(node.inputs, sizes, strict=True):
        sources.setdefault(id(tensor), tensor)
        origin.append(np.full(size, list(sources).index(id(tensor)), dtype=np.int64))
        channel.append(np.arange(size, dtype=np.int64))
    joined = np.concatenate(origin), np.concatenate(channel)
    return Move(node.outputs[0], tuple(sources.values()), axis, *joined, (node,))
