"""Concat of what was cut or concatenated just before."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.graph import is_op
from graphopt.passes.movement.editor import Editor
from graphopt.passes.movement.slice_chains import Range, ranges_of, restored_split, write_slice


def simplify_concat(editor: Editor, node: gs.Node) -> bool:
    """Flatten nested Concats, restore what was split, drop empty parts, and join neighbouring Slices."""
    if not node.inputs or editor.opset < 4:
        return False
    return _flatten(editor, node) or _restore(editor, node) or _join_slices(editor, node) or _drop_empty(editor, node)


def _flatten(editor: Editor, node: gs.Node) -> bool:
    """``Concat -> Concat``: one, if the first has no other reader. Started from the last of a chain."""
    if _absorbed_by(editor, node) is not None or not any(is_op(p, "Concat") for t in node.inputs for p in t.inputs):
        return False
    leaves: list[gs.Tensor] = []
    found = 0
    pending = list(reversed(node.inputs))
    while pending:
        tensor = pending.pop()
        inner = editor.producer(tensor, node, "Concat")
        if inner is not None and inner is not node and editor.is_private(tensor) and _same_axis(editor, inner, node):
            found += 1
            pending.extend(reversed(inner.inputs))
        else:
            leaves.append(tensor)
    if not found:
        return False
    editor.rewrite(node, "Concat", leaves, node.attrs)
    editor.counts["concats"] += found
    return True


def _absorbed_by(editor: Editor, node: gs.Node) -> gs.Node | None:
    """The Concat that takes this one in."""
    if not editor.is_private(node.outputs[0]):
        return None
    reader = node.outputs[0].outputs[0]
    if not is_op(reader, "Concat") or editor.index.home(reader) is not editor.index.home(node):
        return None
    return reader if _same_axis(editor, node, reader) else None


def _same_axis(editor: Editor, first: gs.Node, second: gs.Node) -> bool:
    one, other = int(first.attrs.get("axis", 0)), int(second.attrs.get("axis", 0))
    if one == other:
        return True
    sizes = editor.of(second.outputs[0]) if (one < 0) != (other < 0) else None
    return bool(sizes) and one % len(sizes or ()) == other % len(sizes or ())


def _restore(editor: Editor, node: gs.Node) -> bool:
    """``Split -> Concat`` in the same order: nothing, or one part among others."""
    if not any(is_op(producer, "Split") for tensor in node.inputs for producer in tensor.inputs):
        return False
    axis = int(node.attrs.get("axis", 0))
    parts: list[gs.Tensor] = []
    inputs = list(node.inputs)
    place = 0
    while place < len(inputs):
        split = inputs[place].inputs[0] if len(inputs[place].inputs) == 1 else None
        count = len(split.outputs) if split is not None else 0
        run = inputs[place : place + count]
        sizes = editor.of(inputs[place]) if split is not None and is_op(split, "Split") else None
        source = restored_split(editor, run, axis, None if sizes is None else len(sizes)) if len(run) > 1 else None
        parts.append(inputs[place] if source is None else source)
        place += 1 if source is None else count
    if len(parts) == len(inputs):
        return False
    _write(editor, node, parts)
    return True


def _join_slices(editor: Editor, node: gs.Node) -> bool:
    """Neighbouring Slices of one tensor, in order: one Slice, or the tensor."""
    inputs = list(node.inputs)
    if len(inputs) < 2 or not any(is_op(producer, "Slice") for tensor in inputs for producer in tensor.inputs):
        return False
    axis = int(node.attrs.get("axis", 0))
    parts: list[tuple[gs.Tensor, gs.Node | None, Range | None]] = []
    for tensor in inputs:
        slicer = editor.producer(tensor, node, "Slice")
        taken = None
        if slicer is not None and editor.is_private(tensor):
            ranges = ranges_of(editor, slicer)
            if ranges is not None and list(ranges) == [axis] and ranges[axis][2] == 1:
                taken = ranges[axis]
        last = parts[-1] if parts else None
        if slicer is not None and taken is not None and last is not None and last[1] is not None:
            source, before = slicer.inputs[0], last[2]
            if before is not None and source is last[1].inputs[0] and _adjacent(editor, source, axis, before, taken):
                parts[-1] = (last[0], last[1], (before[0], taken[1], 1))
                continue
        parts.append((tensor, slicer if taken is not None else None, taken))
    if len(parts) == len(inputs):
        return False
    kept: list[gs.Tensor] = []
    for tensor, slicer, taken in parts:
        if slicer is not None and taken is not None and ranges_of(editor, slicer) != {axis: taken}:
            sizes = editor.of(slicer.inputs[0])
            whole = taken[0] == 0 and sizes is not None and taken[1] >= sizes[axis][0] > 0
            joined = slicer.inputs[0] if whole else editor.new_tensor(tensor, None)
            if not whole:
                write_slice(editor, editor.add("Slice", list(slicer.inputs), joined, dict(slicer.attrs), node),
                            slicer.inputs[0], {axis: taken})  # fmt: skip
            kept.append(joined)
        else:
            kept.append(tensor)
    _write(editor, node, kept)
    return True


def _adjacent(editor: Editor, source: gs.Tensor, axis: int, first: Range, second: Range) -> bool:
    """Whether ``second`` begins where ``first`` ends, and neither is cut short by the size of the axis."""
    sizes = editor.of(source)
    if sizes is None or not 0 <= axis < len(sizes) or sizes[axis][1]:
        return False
    size = sizes[axis][0]
    one, other = range(size)[first[0] : first[1]], range(size)[second[0] : second[1]]
    return len(one) > 0 and len(other) > 0 and one.stop == other.start


def _drop_empty(editor: Editor, node: gs.Node) -> bool:
    """Parts that are known to be empty along the axis hold nothing."""
    if len(node.inputs) < 2:
        return False
    sizes = [editor.of(tensor) for tensor in node.inputs]
    axis = int(node.attrs.get("axis", 0))
    if any(size is None or not -len(size) <= axis < len(size) for size in sizes):
        return False
    if len({len(size) for size in sizes if size is not None}) != 1:
        return False
    kept = [t for t, size in zip(node.inputs, sizes, strict=True) if size is not None and size[axis] != (0, ())]
    if not kept or len(kept) == len(node.inputs):
        return False
    _write(editor, node, kept)
    return True


def _write(editor: Editor, node: gs.Node, parts: list[gs.Tensor]) -> None:
    """Let a node join these parts; one alone needs no node."""
    if len(parts) == 1:
        editor.bypass(node, parts[0])
    else:
        editor.rewrite(node, "Concat", parts, node.attrs)
    editor.counts["concats"] += 1
