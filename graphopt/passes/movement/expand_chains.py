"""Expand and Tile: in a row, without effect, or before an operator that broadcasts anyway."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, set_input
from graphopt.passes.movement.editor import Editor
from graphopt.passes.movement.reshape_sizes import BROADCASTING, ONE, Sizes

_MANY_READERS = 64


def merge_expands(editor: Editor, node: gs.Node) -> bool:
    """``Expand -> Expand``: one, where the targets are constant or the second names every size."""
    before = editor.producer(node.inputs[0], node, "Expand")
    if before is None:
        return False
    first, second = editor.constants(before, 1, "shape", 8), editor.constants(node, 1, "shape", 8)
    target: gs.Tensor | None = None
    if first is not None and second is not None:
        shape = np.broadcast_shapes(tuple(first), tuple(second)) if _fit(first, second) else None
        target = None if shape is None else editor.ints(shape, f"{node.outputs[0].name}_shape")
    elif _names_every_size(editor, node):
        target = node.inputs[1]
    if target is None:
        return False
    editor.rewrite(node, "Expand", [before.inputs[0], target], {})
    editor.counts["expands"] += 1
    return True


def _fit(first: list[int], second: list[int]) -> bool:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs) and min([*first, *second], default=0) >= 0


def _names_every_size(editor: Editor, node: gs.Node) -> bool:
    result, target = editor.of(node.outputs[0]), editor.values.of(node.inputs[1])
    return result is not None and target is not None and target.items == result


def drop_expand(editor: Editor, node: gs.Node) -> bool:
    """An Expand whose every reader broadcasts against another tensor of the same sizes is not needed."""
    source, result = node.inputs[0], node.outputs[0]
    if editor.index.is_output(result) or not 0 < len(result.outputs) <= _MANY_READERS:
        return False
    if not all(reader.op in BROADCASTING and is_op(reader, reader.op) for reader in result.outputs):
        return False
    small, large = editor.of(source), editor.of(result)
    if small is None or large is None or editor.opset < 8:
        return False
    readers = list(result.outputs)
    for reader in readers:
        others = [editor.of(tensor) for tensor in reader.inputs if tensor is not result]
        if len(others) != len(reader.inputs) - 1 or not _covered(small, large, others):
            return False
    for reader in readers:
        slot = next(slot for slot, tensor in enumerate(reader.inputs) if tensor is result)
        set_input(editor.index, reader, slot, source)
    editor.release(result)
    editor.counts["expands"] += 1
    return True


def _covered(small: Sizes, large: Sizes, others: list[Sizes | None]) -> bool:
    """Whether a broadcast of ``small`` with the others gives what one of ``large`` with them gives."""
    for axis in range(1, len(large) + 1):
        size = large[-axis]
        have = small[-axis] if axis <= len(small) else None
        if have == size:
            continue
        beside = [other[-axis] for other in others if other is not None and len(other) >= axis]
        if have not in {None, ONE} or not (size in beside or (size == ONE and beside)):
            return False
    return True


def merge_tiles(editor: Editor, node: gs.Node) -> bool:
    """``Tile -> Tile``: one Tile by the products."""
    before = editor.producer(node.inputs[0], node, "Tile")
    if before is None or len(node.inputs) != 2:
        return False
    first, second = editor.constants(before, 1, "repeats", 6), editor.constants(node, 1, "repeats", 6)
    if first is None or second is None or len(first) != len(second):
        return False
    repeats = editor.ints([a * b for a, b in zip(first, second, strict=True)], f"{node.outputs[0].name}_repeats")
    editor.rewrite(node, "Tile", [before.inputs[0], repeats], {})
    editor.counts["tiles"] += 1
    return True
