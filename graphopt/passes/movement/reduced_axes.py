"""Axes that a reduction or a Transpose beside a Reshape, Squeeze or Unsqueeze need not make or drop."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.graph import is_op
from graphopt.passes.movement.editor import Editor
from graphopt.passes.movement.reshape_forms import RESHAPES, hazards, positive
from graphopt.passes.movement.reshape_sizes import ONE, closed_target


def squeeze_before_transpose(editor: Editor, node: gs.Node) -> bool:
    """``Reshape -> Transpose -> Squeeze``: the axes are never made, and the Transpose is the smaller."""
    transpose = editor.producer(node.inputs[0], node, "Transpose")
    if node.op != "Squeeze" or transpose is None or not editor.is_private(node.inputs[0]):
        return False
    middle = transpose.inputs[0]
    before = editor.producer(middle, node, *RESHAPES)
    if before is None or not editor.is_private(middle):
        return False
    source, inner, moved = editor.of(before.inputs[0]), editor.of(middle), editor.of(node.inputs[0])
    if inner is None or moved is None or editor.opset < 5:
        return False
    order = list(transpose.attrs.get("perm", range(len(inner) - 1, -1, -1)))
    axes = editor.constants(node, 1, "axes", 13)
    if axes is None:
        if editor.has(node, 1, "axes", 13) or any(names for _, names in inner):
            return False
        axes = [axis for axis, size in enumerate(moved) if size == ONE]
    places = positive(axes, len(inner))
    if places is None or sorted(order) != list(range(len(inner))):
        return False
    gone = {order[axis] for axis in places}
    left = [axis for axis in range(len(inner)) if axis not in gone]
    wanted = tuple(inner[axis] for axis in left)
    perm = [left.index(axis) for axis in order if axis not in gone]
    if source == wanted:
        reads = before.inputs[0]
    else:
        target = closed_target(wanted, source, hazards(editor, node, before, middle))
        if target is None:
            return False
        reads = editor.new_tensor(middle, wanted)
        numbers = editor.ints(target, f"{reads.name}_shape")
        editor.add("Reshape", [before.inputs[0], numbers], reads, {}, node)
    editor.rewrite(node, "Transpose", [reads], {"perm": perm})
    editor.counts["reshapes"] += 1
    return True


def keep_reduced_axes(editor: Editor, node: gs.Node) -> bool:
    """A reduction whose axes are put back, or taken out, right after it: let it keep them, or not."""
    reduction = node.inputs[0].inputs[0] if len(node.inputs[0].inputs) == 1 else None
    if reduction is None or not reduction.op.startswith(("Reduce", "Arg")) or not is_op(reduction, reduction.op):
        return False
    if editor.index.home(reduction) is not editor.index.home(node) or not editor.is_private(node.inputs[0]):
        return False
    read, result = editor.of(reduction.inputs[0]), editor.of(node.outputs[0])
    if read is None or result is None:
        return _put_back(editor, node, reduction)
    axes = _reduced_axes(editor, reduction, len(read))
    if axes is None:
        return False
    kept = not reduction.attrs.get("keepdims", 1)
    shape = [ONE if axis in axes else size for axis, size in enumerate(read) if kept or axis not in axes]
    if tuple(shape) != result:
        return False
    editor.rewrite(node, reduction.op, list(reduction.inputs), {**reduction.attrs, "keepdims": int(kept)})
    editor.counts["reductions"] += 1
    return True


def _put_back(editor: Editor, node: gs.Node, reduction: gs.Node) -> bool:
    """An Unsqueeze of just the axes that were reduced needs no shape to be known."""
    since = 13 if reduction.op == "ReduceSum" else 18
    if node.op != "Unsqueeze" or reduction.attrs.get("keepdims", 1) or reduction.op.startswith("Arg"):
        return False
    first, second = editor.constants(reduction, 1, "axes", since), editor.constants(node, 1, "axes", 13)
    if not first or second is None or sorted(first) != sorted(second) or min(first) < 0:
        return False
    editor.rewrite(node, reduction.op, list(reduction.inputs), {**reduction.attrs, "keepdims": 1})
    editor.counts["reductions"] += 1
    return True


def _reduced_axes(editor: Editor, node: gs.Node, rank: int) -> list[int] | None:
    if node.op.startswith("Arg"):
        return positive([node.attrs.get("axis", 0)], rank)
    since = 13 if node.op == "ReduceSum" else 18
    if not editor.has(node, 1, "axes", since):
        return None if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    axes = editor.constants(node, 1, "axes", since)
    if not axes:
        return None
    return positive(axes, rank)
