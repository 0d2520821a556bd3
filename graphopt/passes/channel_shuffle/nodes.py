"""What the data-moving operators of ONNX do to a layout, in every version of their forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, values_of
from graphopt.passes.channel_shuffle.layout import ONE, Labels, Layout, Size, concat, reshape, take, transpose
from graphopt.passes.channel_shuffle.shapes import Known, integers, reshaped


def constants(node: gs.Node, slot: int, name: str, since: int, opset: int) -> list[int] | None:
    """A list of integers that is an attribute before opset ``since`` and an input from there on."""
    if opset < since:
        given = node.attrs.get(name)
        return [int(value) for value in given] if isinstance(given, (list, tuple)) else None
    values = values_of(node.inputs[slot]) if slot < len(node.inputs) else None
    return None if values is None else [int(value) for value in values.ravel()]


def outputs_of(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> list[Layout | None]:
    """Layouts of the outputs of a node whose data inputs have the given layouts (``id`` of a tensor -> its layout)."""
    if not is_op(node, *_RULES):
        return [None] * len(node.outputs)
    found = _RULES[node.op](node, layouts, known)
    return found if isinstance(found, list) else [found]


def data_inputs(node: gs.Node) -> Sequence[gs.Tensor]:
    """The inputs that the node moves."""
    return list(node.inputs) if node.op == "Concat" else [node.inputs[0]]


def slices(node: gs.Node, rank: int, opset: int) -> list[tuple[int, int, int, int]] | None:
    """Axis, start, end and step of each axis that a Slice cuts; None where they are not constant."""
    starts, ends = constants(node, 1, "starts", 10, opset), constants(node, 2, "ends", 10, opset)
    if starts is None or ends is None:
        return None
    given = len(node.inputs) > 3 and not node.inputs[3].is_empty() if opset >= 10 else "axes" in node.attrs
    axes = constants(node, 3, "axes", 10, opset) if given else list(range(len(starts)))
    stepped = opset >= 10 and len(node.inputs) > 4 and not node.inputs[4].is_empty()
    steps = constants(node, 4, "steps", 10, opset) if stepped else [1] * len(starts)
    if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        return None
    return [(axis % rank, *each) for axis, *each in zip(axes, starts, ends, steps, strict=True)]  # type: ignore[misc]


def cuts(node: gs.Node, size: int, opset: int) -> list[int] | None:
    """Sizes of the outputs of a Split along an axis of ``size``; None where they are not known."""
    count = len(node.outputs)
    if (opset >= 13 and len(node.inputs) > 1 and not node.inputs[1].is_empty()) or (
        opset < 13 and "split" in node.attrs
    ):
        found = constants(node, 1, "split", 13, opset)
    else:
        # From opset 18 on the last part may be smaller.
        part = -(-size // count)
        found = [part] * (count - 1) + [size - part * (count - 1)]
        if opset < 18 and size % count:
            return None
    return found if found is not None and len(found) == count and sum(found) == size and min(found) > 0 else None


def chosen(node: gs.Node, size: int) -> Labels | None:
    """Indices of a Gather along an axis of ``size``; None where they are not constant or not in range."""
    values = values_of(node.inputs[1])
    if values is None or values.ndim > 1 or not values.size or values.min() < -size or values.max() >= size:
        return None
    return np.asarray(values, dtype=np.int64) % size


def _reshape(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    if known.opset < 5 or len(node.inputs) < 2:
        return None

    def sizes_of(tensor: gs.Tensor) -> Sequence[Size] | None:
        return layouts[id(tensor)].sizes if id(tensor) in layouts else known.sizes(tensor)

    target = integers(node.inputs[1], sizes_of)
    if target is None:
        return None
    sizes = reshaped(layout.sizes, target, allowzero=bool(node.attrs.get("allowzero", 0)))
    return None if sizes is None else reshape(layout, sizes)


def _flatten(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    axis = int(node.attrs.get("axis", 1))
    axis = axis + len(layout.axes) if axis < 0 else axis
    halves = [ONE, ONE]
    for place, size in enumerate(layout.sizes):
        halves[place >= axis] = halves[place >= axis] * size
    return reshape(layout, halves)


def _squeeze(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    axes = constants(node, 1, "axes", 13, known.opset)
    if axes is None:
        return None
    rank = len(layout.axes)
    gone = {axis % rank for axis in axes}
    if any(layout.axes[axis] for axis in gone):
        return None
    return reshape(layout, [size for axis, size in enumerate(layout.sizes) if axis not in gone])


def _unsqueeze(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    axes = constants(node, 1, "axes", 13, known.opset)
    if axes is None:
        return None
    rank = len(layout.axes) + len(axes)
    new = {axis % rank for axis in axes}
    sizes = iter(layout.sizes)
    return reshape(layout, [ONE if axis in new else next(sizes) for axis in range(rank)])


def _transpose(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    order = node.attrs.get("perm") or list(range(len(layout.axes)))[::-1]
    return transpose(layout, order) if len(order) == len(layout.axes) else None


def _depth_to_space(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    block = Size(int(node.attrs.get("blocksize", 1)))
    if len(layout.axes) != 4:
        return None
    batch, channels, height, width = layout.sizes
    left = channels.over(block * block)
    if left is None:
        return None
    if node.attrs.get("mode", "DCR") == "CRD":
        parted, order = [batch, left, block, block, height, width], [0, 1, 4, 2, 5, 3]
    else:
        parted, order = [batch, block, block, left, height, width], [0, 3, 4, 1, 5, 2]
    return _through(layout, parted, order, [batch, left, height * block, width * block])


def _space_to_depth(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    block = Size(int(node.attrs.get("blocksize", 1)))
    if len(layout.axes) != 4:
        return None
    batch, channels, height, width = layout.sizes
    high, wide = height.over(block), width.over(block)
    if high is None or wide is None:
        return None
    parted = [batch, channels, high, block, wide, block]
    return _through(layout, parted, [0, 3, 5, 1, 2, 4], [batch, channels * block * block, high, wide])


def _through(layout: Layout, parted: list[Size], order: list[int], joined: list[Size]) -> Layout | None:
    apart = reshape(layout, parted)
    return None if apart is None else reshape(transpose(apart, order), joined)


def _gather(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout = layouts[id(node.inputs[0])]
    axis = int(node.attrs.get("axis", 0)) % len(layout.axes)
    indices = chosen(node, layout.sizes[axis].number)
    if indices is None:
        return None
    return take(layout, axis, indices if indices.ndim else int(indices))


def _slice(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    layout: Layout | None = layouts[id(node.inputs[0])]
    assert layout is not None
    parts = slices(node, len(layout.axes), known.opset)
    for axis, begin, end, step in parts or ():
        size = layout.sizes[axis]
        if size.symbols:
            return None
        layout = take(layout, axis, np.arange(size.number, dtype=np.int64)[begin:end:step])
        if layout is None:
            return None
    return None if parts is None else layout


def _split(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> list[Layout | None]:
    layout = layouts[id(node.inputs[0])]
    axis = int(node.attrs.get("axis", 0)) % len(layout.axes)
    size = layout.sizes[axis]
    parts = None if size.symbols else cuts(node, size.number, known.opset)
    if parts is None:
        return [None] * len(node.outputs)
    ends = np.cumsum(parts)
    return [
        take(layout, axis, np.arange(end - part, end, dtype=np.int64)) for part, end in zip(parts, ends, strict=True)
    ]


def _concat(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    inputs = [layouts[id(each)] for each in node.inputs]
    return concat(inputs, int(node.attrs.get("axis", 1)) % len(inputs[0].axes))


def _identity(node: gs.Node, layouts: Mapping[int, Layout], known: Known) -> Layout | None:
    return layouts[id(node.inputs[0])]


_RULES: dict[str, Callable[[gs.Node, Mapping[int, Layout], Known], Any]] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
MOVING = frozenset(_RULES)
