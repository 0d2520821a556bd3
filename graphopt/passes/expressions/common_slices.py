"""Cut a tensor once: sibling Slices that take it apart along one axis become one Split.

::

    a = Slice(x, 0, 16, axis)                       a, b = Split(x, [16, 48], axis)
    b = Slice(x, 16, 64, axis)             ->

Only where the pieces follow on one another from the first element to the last, of a size that is known, with step 1 and
nothing cut along other axes. ONNX Runtime 1.31 makes the same of them (equal times on every shape tried, with its
optimizations on); other runtimes start one kernel instead of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, constant
from graphopt.passes.no_ops.knowledge import Knowledge, given, has_input, input_values


@dataclass(frozen=True)
class Piece:
    """A Slice that takes ``start`` to ``end`` along one axis and everything along the others."""

    node: gs.Node
    axis: int
    start: int
    end: int
    size: int


def find_partitions(graphs: Sequence[gs.Graph], known: Knowledge) -> list[tuple[gs.Graph, list[Piece]]]:
    """Slices that take a tensor apart, in order, with the graph that they stand in."""
    if known.opset < 7:
        return []
    found: list[tuple[gs.Graph, list[Piece]]] = []
    for graph in graphs:
        siblings: dict[int, list[gs.Node]] = {}
        for node in graph.nodes:
            if node.op == "Slice" and not node.domain and len(node.inputs[0].outputs) > 1:
                siblings.setdefault(id(node.inputs[0]), []).append(node)
        for nodes in siblings.values():
            if len(nodes) < 2:
                continue
            pieces: dict[int, list[Piece]] = {}
            for node in nodes:
                piece = _read(node, known)
                if piece is not None:
                    pieces.setdefault(piece.axis, []).append(piece)
            for along in pieces.values():
                whole = _covering(along)
                if whole:
                    found.append((graph, whole))
    return found


def split_once(index: Index, partitions: Sequence[tuple[gs.Graph, Sequence[Piece]]]) -> None:
    """Replace the Slices of each partition by one Split."""
    wanted = [
        (home, pieces[0].node.inputs[0], [piece.node.outputs[0] for piece in pieces], pieces)
        for home, pieces in partitions
    ]
    # All at once: they may share the constants that they read.
    index.drop([piece.node for _, pieces in partitions for piece in pieces])
    for home, source, outputs, pieces in wanted:
        prefix, axis = f"{source.name}_split", pieces[0].axis
        sizes = [piece.end - piece.start for piece in pieces]
        if index.graph.opset < 13:
            add_node(index, "Split", [source], outputs, {"axis": axis, "split": sizes}, prefix=prefix, home=home)
        else:
            stored = constant(index, f"{prefix}_sizes", np.array(sizes, dtype=np.int64))
            add_node(index, "Split", [source, stored], outputs, {"axis": axis}, prefix=prefix, home=home)


def _read(node: gs.Node, known: Knowledge) -> Piece | None:
    """What a Slice takes; None if it is not fixed, or cuts along several axes, or not in steps of 1."""
    starts, ends = given(node, known, 1, "starts", since=10), given(node, known, 2, "ends", since=10)
    if starts is None or ends is None or starts.ndim != 1 or starts.shape != ends.shape or not starts.size:
        return None
    axes = given(node, known, 3, "axes", since=10)
    if axes is None:
        if known.opset >= 10 and has_input(node, 3):
            return None
        axes = np.arange(starts.size)
    steps = input_values(node, 4) if has_input(node, 4) else None
    if axes.shape != starts.shape or (has_input(node, 4) and (steps is None or (steps != 1).any())):
        return None
    shape = known.shape(node.inputs[0])
    if shape is None:
        return None
    cuts: list[Piece] = []
    for axis, start, end in zip(axes.tolist(), starts.tolist(), ends.tolist(), strict=True):
        if not -len(shape) <= axis < len(shape):
            return None
        size = shape[axis]
        if not isinstance(size, int):
            return None
        first, last = (max(0, min(size, place + size if place < 0 else place)) for place in (start, end))
        if (first, last) != (0, size):
            cuts.append(Piece(node, axis % len(shape), first, last, size))
    return cuts[0] if len(cuts) == 1 and cuts[0].start < cuts[0].end else None


def _covering(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces in order if they cover the axis without gap or overlap; else none."""
    ordered = sorted(pieces, key=lambda piece: piece.start)
    ends = [0] + [piece.end for piece in ordered]
    follows = all(piece.start == end for piece, end in zip(ordered, ends, strict=False))
    return ordered if len(ordered) > 1 and follows and ends[-1] == ordered[0].size else []
