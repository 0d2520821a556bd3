"""How a permutation of channels passes convolutions and matrix products with constant weights."""

from __future__ import annotations

from graphopt.graph import is_constant
from graphopt.passes.channel_shuffle.passages import Edit, Passage, View, used


def conv(view: View) -> Passage | None:
    """Conv and ConvTranspose: dense, grouped or depthwise."""
    node = view.node
    sizes = view.known.shape(node.inputs[1]) if len(node.inputs) > 1 and is_constant(node.inputs[1]) else None
    if view.slot.axis != 1 or view.place or sizes is None or len(sizes) < 3:
        return None
    groups = int(node.attrs.get("group", 1))
    first, second = sizes[0], sizes[1]
    if not isinstance(first, int) or not isinstance(second, int) or first % groups:
        return None
    transposed = node.op == "ConvTranspose"
    inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
    if view.length != (outputs if view.written else inputs) or not _bias_fits(view, outputs):
        return None
    biased = used(node, 2)
    inner = view.slot.inner
    times = outputs // inputs
    if groups == inputs > 1 and (not transposed or times == 1) and not (view.written and inner % times):
        # Depthwise: each input channel has its own outputs.
        wide = inner if view.written else inner * times
        edits = [Edit(node, 1, 0, wide)] + ([Edit(node, 2, 0, wide)] if biased else [])
        return Passage((view.other(1, wide // times if view.written else wide),), tuple(edits))
    block = view.length // groups
    if block % inner:
        return None
    if view.written:
        edits = [Edit(node, 1, 1, inner, groups) if transposed else Edit(node, 1, 0, inner)]
        edits += [Edit(node, 2, 0, inner)] if biased else []
    else:
        edits = [Edit(node, 1, 0, inner) if transposed else Edit(node, 1, 1, inner, groups)]
    return Passage((), tuple(edits), None if groups == 1 else block // inner)


def _bias_fits(view: View, outputs: int) -> bool:
    node = view.node
    return not used(node, 2) or (is_constant(node.inputs[2]) and view.known.shape(node.inputs[2]) == (outputs,))


def matmul(view: View) -> Passage | None:
    """A product with a constant matrix: the last axis is summed over or new, the others are rows."""
    node = view.node
    if view.place or not is_constant(node.inputs[1]) or len(view.known.shape(node.inputs[1]) or ()) != 2:
        return None
    rank = view.rank(view.slot.tensor)
    if rank is None or rank < 2:
        return None
    if view.slot.axis < rank - 1:
        return Passage((view.other(view.slot.axis),))
    return Passage((), (Edit(node, 1, 1 if view.written else 0, view.slot.inner),))


def gemm(view: View) -> Passage | None:
    """A product with a constant matrix, and a constant added; input not transposed."""
    node = view.node
    if view.place or view.slot.axis != 1 or node.attrs.get("transA", 0) or not is_constant(node.inputs[1]):
        return None
    swapped = bool(node.attrs.get("transB", 0))
    inner = view.slot.inner
    if not view.written:
        return Passage((), (Edit(node, 1, 1 if swapped else 0, inner),))
    edits = [Edit(node, 1, 0 if swapped else 1, inner)]
    if used(node, 2):
        sizes = view.known.shape(node.inputs[2])
        if not is_constant(node.inputs[2]) or sizes is None:
            return None
        if sizes and sizes[-1] != 1:
            if sizes[-1] != view.length:
                return None
            edits.append(Edit(node, 2, len(sizes) - 1, inner))
    return Passage((), tuple(edits))
