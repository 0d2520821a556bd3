"""Slices, and what reads or makes their pieces.

A Slice is held as ``axis -> range``, a range as (start, end, step) in ONNX's terms: negative ends count from the back,
and a far end means as far as it goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_graphsurgeon as gs

from graphopt.graph import is_op
from graphopt.passes.movement.editor import Editor

Range: TypeAlias = tuple[int, int, int]
# ONNX lets a slice end at "as far as it goes" with any large number; exporters write these.
FAR = 2**63 - 1
_FAR_ENOUGH = 2**31 - 1
_LOWEST = -(2**63)


def ranges_of(editor: Editor, node: gs.Node) -> dict[int, Range] | None:
    """What a Slice takes, by axis (negative only where the rank is unknown); None where it is not constant."""
    starts, ends = editor.constants(node, 1, "starts", 10), editor.constants(node, 2, "ends", 10)
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes: list[int] | None = list(range(len(starts)))
    if editor.has(node, 3, "axes", 10):
        axes = editor.constants(node, 3, "axes", 10)
    steps: list[int] | None = [1] * len(starts)
    if editor.opset >= 10 and editor.has(node, 4, "steps", 10):
        steps = editor.constants(node, 4, "steps", 10)
    if axes is None or steps is None or not len(axes) == len(steps) == len(starts):
        return None
    if any(axis < 0 for axis in axes):
        sizes = editor.of(node.inputs[0])
        if sizes is not None:
            axes = [axis + len(sizes) if axis < 0 else axis for axis in axes]
    ends = [FAR if end >= _FAR_ENOUGH and step > 0 else end for end, step in zip(ends, steps, strict=True)]
    found = dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))
    same_side = all(axis >= 0 for axis in axes) or all(axis < 0 for axis in axes)
    return found if len(found) == len(axes) and same_side and 0 not in steps else None


def write_slice(editor: Editor, node: gs.Node, source: gs.Tensor, ranges: Mapping[int, Range]) -> None:
    """Let a node be the Slice of ``source`` that takes these ranges."""
    axes = sorted(ranges)
    starts, ends, steps = ([ranges[axis][place] for axis in axes] for place in range(3))
    name = node.outputs[0].name
    if editor.opset < 10:
        editor.rewrite(node, "Slice", [source], {"axes": axes, "starts": starts, "ends": ends})
        return
    inputs = [source, *(editor.ints(each, f"{name}_slice") for each in (starts, ends, axes))]
    if any(step != 1 for step in steps):
        inputs.append(editor.ints(steps, f"{name}_slice"))
    editor.rewrite(node, "Slice", inputs, {})


def merge_slices(editor: Editor, node: gs.Node) -> bool:
    """``Slice -> Slice``: one Slice, where that is proven to take the same."""
    before = editor.producer(node.inputs[0], node, "Slice")
    if before is None:
        return False
    first, second = ranges_of(editor, before), ranges_of(editor, node)
    if first is None or second is None or any((axis < 0) != (other < 0) for axis in first for other in second):
        return False
    sizes = editor.of(before.inputs[0]) if set(first) & set(second) else None
    merged = dict(first)
    for axis, wanted in second.items():
        if axis not in first:
            merged[axis] = wanted
            continue
        size = sizes[axis] if sizes is not None else None
        whole = size[0] if size is not None and not size[1] else None
        both = _in_turn(first[axis], wanted, whole)
        if both is None:
            return False
        merged[axis] = both
    write_slice(editor, node, before.inputs[0], merged)
    editor.counts["slices"] += 1
    return True


def _in_turn(first: Range, second: Range, size: int | None) -> Range | None:
    """The one range that takes what ``second`` takes of what ``first`` takes of an axis; None if it is not certain."""
    if size is not None:
        left = range(size)[_python(first)][_python(second)]
        if not left:
            return (0, 0, 1)
        return (left.start, left.stop if left.stop >= 0 else _LOWEST, left.step)
    (start, end, step), (start2, end2, step2) = first, second
    if step != 1 or step2 < 1 or start < 0 or start2 < 0:
        return None
    begin = min(start + start2, FAR)
    if end == FAR:
        # What is left of a negative end counts from the same back.
        return (begin, end2 if end2 < 0 else min(start + end2, FAR), step2)
    if end < 0:
        return (begin, end, step2) if end2 == FAR else None
    return None if end2 < 0 else (begin, min(end, start + end2), step2)


def _python(given: Range) -> slice:
    """The Python slice that takes the same of a range: ends far below are before the first element."""
    start, end, step = given
    return slice(start, None if step < 0 and end <= -_FAR_ENOUGH else end, step)


def slice_of_concat(editor: Editor, node: gs.Node) -> bool:
    """``Concat -> Slice`` that takes one part, or a piece of it: read that part."""
    joined = editor.producer(node.inputs[0], node, "Concat")
    ranges = None if joined is None else ranges_of(editor, node)
    if joined is None or ranges is None or any(axis < 0 for axis in ranges):
        return False
    sizes = editor.of(node.inputs[0])
    bounds = _bounds(editor, joined)
    if sizes is None or bounds is None:
        return False
    axis = axis_of(editor, joined, len(sizes))
    if axis not in ranges:
        return False
    start, end, step = ranges[axis]
    if step != 1 or bounds[-1] is None:
        return False
    total = bounds[-1]
    taken = range(total)[start:end]
    for part, low, high in zip(joined.inputs, bounds, bounds[1:], strict=False):
        if low is None or high is None or not taken or taken.start < low or taken.stop > high:
            continue
        left = {other: each for other, each in ranges.items() if other != axis}
        if (taken.start, taken.stop) != (low, high):
            left[axis] = (taken.start - low, taken.stop - low, 1)
        if left:
            write_slice(editor, node, part, left)
        else:
            editor.bypass(node, part)
        editor.counts["slices_of_concat"] += 1
        return True
    return False


def axis_of(editor: Editor, node: gs.Node, rank: int) -> int:
    """The axis of a Concat or Gather, counted from the front."""
    axis = int(node.attrs.get("axis", 1 if editor.opset < 4 and node.op == "Concat" else 0))
    return axis + rank if axis < 0 else axis


def _bounds(editor: Editor, joined: gs.Node) -> list[int | None] | None:
    """Where each part of a Concat begins and ends; None where its sizes are open."""
    bounds: list[int | None] = [0]
    total = 0
    for part in joined.inputs:
        sizes = editor.of(part)
        if not sizes:
            return None
        size = sizes[axis_of(editor, joined, len(sizes))]
        if size[1]:
            return None
        total += size[0]
        bounds.append(total)
    return bounds


def restored_split(editor: Editor, parts: Sequence[gs.Tensor], axis: int, rank: int | None) -> gs.Tensor | None:
    """What was split into just these parts, in this order, along this axis."""
    split = parts[0].inputs[0] if len(parts[0].inputs) == 1 else None
    if split is None or not is_op(split, "Split") or len(split.outputs) != len(parts):
        return None
    if any(part is not output for part, output in zip(parts, split.outputs, strict=True)):
        return None
    cut = int(split.attrs.get("axis", 0))
    if cut != axis and (rank is None or cut % rank != axis % rank):
        return None
    return split.inputs[0]


def slice_before_split(editor: Editor, node: gs.Node) -> bool:
    """``Split``, and the same Slice of every part along other axes: one Slice before it."""
    slicers = [output.outputs[0] for output in node.outputs if editor.is_private(output)]
    if len(slicers) != len(node.outputs) or len(slicers) < 2 or not all(is_op(each, "Slice") for each in slicers):
        return False
    home = editor.index.home(node)
    if any(editor.index.home(each) is not home or each.inputs[0].inputs[0] is not node for each in slicers):
        return False
    ranges, axis = ranges_of(editor, slicers[0]), int(node.attrs.get("axis", 0))
    if not ranges or axis < 0 or any(other < 0 or other == axis for other in ranges):
        return False
    if any(ranges_of(editor, each) != ranges for each in slicers[1:]):
        return False
    sliced = editor.new_tensor(node.inputs[0], None)
    write_slice(editor, editor.add("Slice", list(slicers[0].inputs), sliced, {}, node), node.inputs[0], ranges)
    editor.rewrite(node, "Split", [sliced, *list(node.inputs)[1:]], node.attrs)
    for slot, each in enumerate(slicers):
        editor.hand_over(each, node, slot)
    editor.counts["slices"] += len(slicers) - 1
    return True
