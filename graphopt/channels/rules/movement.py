"""Operators that only move data: they are executed on the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.fields import axes_of, reshaped, with_rank
from graphopt.channels.labels import Field
from graphopt.channels.rules.joining import Operand, joined
from graphopt.channels.tracer import Tracer, named


def reshape(tracer: Tracer, node: gs.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in another shape."""
    source, target = node.inputs[0], node.outputs[0]
    before, after = tracer.shape(source), tracer.shape(target)
    if before is None or after is None or np.prod(before) != np.prod(after):
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    fields = [reshaped(each, before, after, tracer.trace.labels) for each in tracer.fields(source)]
    tracer.put(target, fields, zero=tracer.is_zero(source))


def transpose(tracer: Tracer, node: gs.Node) -> None:
    """Transpose: axes in another order."""
    source = node.inputs[0]
    order = node.attrs.get("perm")
    fields = [np.transpose(each, order) for each in tracer.fields(source)]
    tracer.put(node.outputs[0], fields, zero=tracer.is_zero(source))


def concatenate(tracer: Tracer, node: gs.Node) -> None:
    """Concat: labels along its axis one after the other, those along others coupled."""
    target = tracer.shape(node.outputs[0])
    shapes = [tracer.shape(tensor) for tensor in node.inputs]
    if target is None or any(shape is None for shape in shapes):
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    rank = len(target)
    axis = int(node.attrs.get("axis", 1)) % rank
    parts: list[Operand] = []
    pieces: list[list[Field]] = []
    for slot, (tensor, shape) in enumerate(zip(node.inputs, shapes, strict=True)):
        assert shape is not None
        fields = () if tracer.is_fixed(tensor) else tracer.fields(tensor)
        over = tuple(each for each in fields if each.shape[axis] == 1 and not _is_single(each, shape, axis))
        pieces.append([each for each in fields if each.shape[axis] > 1])
        whole = tuple(1 if place == axis else size for place, size in enumerate(shape))
        parts.append(Operand(slot, whole, over, tracer.is_zero(tensor)))
    joints = joined(tracer, node, parts)
    found = [joint.labels for joint in joints]
    along = _along(tracer, node, axis, [shape[axis] for shape in shapes if shape is not None], pieces)
    zero = all(not tracer.fields(tensor) or tracer.is_zero(tensor) or tracer.is_fixed(tensor) for tensor in node.inputs)
    tracer.put(node.outputs[0], found if along is None else [*found, along], zero=zero)


def _is_single(each: Field, shape: Sequence[int], axis: int) -> bool:
    return not axes_of(each) and shape[axis] == 1


def _along(
    tracer: Tracer, node: gs.Node, axis: int, sizes: Sequence[int], pieces: Sequence[Sequence[Field]]
) -> Field | None:
    """The field along the axis of a Concat, 0 where a part has no labels."""
    if not any(pieces):
        return None
    ranks = {each.ndim for piece in pieces for each in piece}
    full = [1] * ranks.pop()
    merged: list[Field | None] = []
    for piece in pieces:
        one: Field | None = None
        for each in piece:
            if one is not None:
                tracer.couple(one, each, f"{named(node)} joins them")
                each = np.broadcast_arrays(one, each)[0]  # noqa: PLW2901
            one = each
        merged.append(one)
        if one is not None:
            full = [max(size, other) for size, other in zip(full, one.shape, strict=True)]
    whole = []
    for one, size in zip(merged, sizes, strict=True):
        full[axis] = size
        whole.append(np.zeros(full, np.int64) if one is None else np.broadcast_to(one, full))
    return np.concatenate(whole, axis)


def expand(tracer: Tracer, node: gs.Node) -> None:
    """Expand: labels do not differ along what is repeated."""
    source = node.inputs[0]
    target = tracer.shape(node.outputs[0])
    if target is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    fields = [] if tracer.is_fixed(source) else [with_rank(each, len(target)) for each in tracer.fields(source)]
    tracer.put(node.outputs[0], fields, zero=tracer.is_zero(source))


def tile(tracer: Tracer, node: gs.Node) -> None:
    """Tile: labels are repeated along with the data."""
    source = node.inputs[0]
    before, after = tracer.shape(source), tracer.shape(node.outputs[0])
    if before is None or after is None or len(before) != len(after) or 0 in before:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    fields = []
    for each in tracer.fields(source):
        times = [new // old if size > 1 else 1 for new, old, size in zip(after, before, each.shape, strict=True)]
        fields.append(np.tile(each, times))
    tracer.put(node.outputs[0], fields, zero=tracer.is_zero(source))


def depth_to_space(tracer: Tracer, node: gs.Node) -> None:
    """DepthToSpace: the channels that become one place of an image go together."""
    source = node.inputs[0]
    block = int(node.attrs["blocksize"]) ** 2
    why = f"{named(node)} makes one channel of them"
    found = []
    for each in tracer.fields(source):
        over = tracer.without(each, [2, 3], why)
        if over is not None and over.shape[1] > 1:
            shape = (-1, block) if node.attrs.get("mode", "DCR") == "CRD" else (block, -1)
            grid = over.transpose(0, 2, 3, 1).reshape(
                over.shape[0], 1, 1, *[over.shape[1] // block if one < 0 else one for one in shape]
            )
            axis = 4 if shape[0] < 0 else 3
            over = tracer.even(grid, [axis], why).reshape(over.shape[0], -1, 1, 1)
        if over is not None:
            found.append(over)
    tracer.put(node.outputs[0], found, zero=tracer.is_zero(source))


def space_to_depth(tracer: Tracer, node: gs.Node) -> None:
    """SpaceToDepth: each channel becomes several, one for each place of a block."""
    source = node.inputs[0]
    block = int(node.attrs["blocksize"]) ** 2
    found = []
    for each in tracer.fields(source):
        over = tracer.without(each, [2, 3], f"{named(node)} makes channels of them")
        if over is not None:
            found.append(np.tile(over, (1, block if over.shape[1] > 1 else 1, 1, 1)))
    tracer.put(node.outputs[0], found, zero=tracer.is_zero(source))


def moved_field(tracer: Tracer, node: gs.Node, each: Field) -> Field:
    """What Transpose or an operator that only reshapes makes of a field of its input."""
    if node.op == "Transpose":
        return np.transpose(each, node.attrs.get("perm"))
    before, after = tracer.shape(node.inputs[0]), tracer.shape(node.outputs[0])
    assert before is not None
    assert after is not None
    return reshaped(each, before, after, tracer.trace.labels)
