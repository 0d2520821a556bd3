"""Operators that only move data: they are executed on the labels."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.fields import axes_of, reshaped, with_rank
from graphopt.channels.labels import Field
from graphopt.channels.rules.elementwise import LARGEST_CHECKED
from graphopt.channels.rules.joining import Operand, joined
from graphopt.channels.tracer import Tracer, named

_ALL = range(64)


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


def split(tracer: Tracer, node: gs.Node) -> None:
    """Split: each output has the labels of its piece."""
    source = node.inputs[0]
    shape = tracer.shape(source)
    outputs = [tracer.shape(tensor) for tensor in node.outputs]
    if shape is None or any(piece is None for piece in outputs):
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    start = 0
    for tensor, piece in zip(node.outputs, outputs, strict=True):
        assert piece is not None
        fields = [_cut(each, axis, np.arange(start, start + piece[axis])) for each in tracer.fields(source)]
        tracer.put(tensor, fields, zero=tracer.is_zero(source))
        start += piece[axis]


def _cut(each: Field, axis: int, indices: Any) -> Field:
    return each if each.shape[axis] == 1 else np.take(each, indices, axis)


def slices(tracer: Tracer, node: gs.Node) -> None:
    """Slice: bounds are attributes in old models, inputs in new ones."""
    source = node.inputs[0]
    shape = tracer.shape(source)
    if shape is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    labelled = {axis for each in tracer.fields(source) for axis in axes_of(each)}
    bounds = slice_bounds(tracer, node, len(shape), labelled)
    found = []
    for field in tracer.fields(source):
        each: Field | None = field
        for axis, bound in bounds.items():
            if each is None or each.shape[axis] == 1:
                continue
            if bound is None:
                each = tracer.without(each, [axis], f"{named(node)} takes a part of them that is computed")
            else:
                each = each[(slice(None),) * axis + (bound,)]
        if each is not None:
            found.append(each)
    tracer.put(node.outputs[0], found, zero=tracer.is_zero(source))


def slice_bounds(tracer: Tracer, node: gs.Node, rank: int, wanted: Container[int] = _ALL) -> dict[int, slice | None]:
    """The bounds by axis, None where they are computed; only those of axes that are ``wanted`` are worked out."""
    axes = _slice_argument(tracer, node, 3, "axes")
    count = tracer.shape(node.inputs[1]) if len(node.inputs) > 1 else (len(node.attrs["starts"]),)
    if axes is None or count is None:
        return dict.fromkeys(range(rank))
    places = [int(axis) % rank for axis in axes if axis is not None] or list(range(count[0]))
    if not any(axis in wanted for axis in places):
        return {}
    starts, ends, steps = (
        _slice_argument(tracer, node, slot, name) for slot, name in ((1, "starts"), (2, "ends"), (4, "steps"))
    )
    if starts is None or ends is None or steps is None:
        return dict.fromkeys(places)
    found: dict[int, slice | None] = {}
    for axis, start, end, step in zip(places, starts, ends, steps or [1] * len(places), strict=True):
        if start is None or end is None or step is None:
            found[axis] = None
        else:
            # A negative end counts from the back, but one far below the first element takes it in, too.
            found[axis] = slice(start, None if step < 0 and end < -(1 << 30) else end, step)
    return found


def _slice_argument(tracer: Tracer, node: gs.Node, slot: int, name: str) -> list[int | None] | None:
    """One argument of a Slice, an attribute in old models; empty where it is left out, None where it is unknown."""
    if name in node.attrs:
        return [int(one) for one in node.attrs[name]]
    if len(node.inputs) <= slot or node.inputs[slot].is_empty():
        return []
    return tracer.integers(node.inputs[slot])


def gather(tracer: Tracer, node: gs.Node) -> None:
    """Gather with constant indices; the entries of a table are pinned."""
    source, index = node.inputs[0], node.inputs[1]
    shape = tracer.shape(source)
    tracer.trace.pin(index, f"{named(node)} reads them as indices")
    fields = () if tracer.is_fixed(source) else tracer.fields(source)
    if shape is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    places = tracer.value(index)
    indices = tracer.shape(index)
    found = []
    for field in fields:
        each: Field | None = field
        if field.shape[axis] > 1 and places is None:
            each = tracer.without(field, [axis], f"{named(node)} takes a part of them that is computed")
        elif field.shape[axis] > 1 and places is not None and places.ndim == 0:
            each = _pick(tracer, node, field, axis, int(places))
        if each is None:
            continue
        if each.shape[axis] > 1 and places is not None:
            found.append(np.take(each, places.astype(np.int64), axis))
        elif indices is not None:
            found.append(each.reshape(each.shape[:axis] + (1,) * len(indices) + each.shape[axis + 1 :]))
    tracer.put(node.outputs[0], found, zero=tracer.is_zero(source))


def _pick(tracer: Tracer, node: gs.Node, each: Field, axis: int, place: int) -> Field | None:
    """What is left when one index of a labelled axis is picked: it must not be cut."""
    why = f"{named(node)} picks one of them"
    if axes_of(each) == {axis}:
        tracer.trace.labels.pin(np.take(each, place, axis), why)
        return None
    return tracer.even(each, [axis], why)


def pad(tracer: Tracer, node: gs.Node) -> None:
    """Pad: what is added along a labelled axis has labels of its own, so that it can shrink along with others."""
    source = node.inputs[0]
    shape = tracer.shape(source)
    if shape is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    amounts = _pad_amounts(tracer, node, len(shape))
    mode = node.attrs.get("mode", "constant")
    why = f"{named(node)} pads them"
    found = []
    for field in tracer.fields(source):
        each: Field | None = field
        for axis in sorted(axes_of(field)):
            before, after = (None, None) if amounts is None else amounts[axis]
            if each is None or (before, after) == (0, 0) or each.shape[axis] == 1:
                continue
            if (
                before is None
                or after is None
                or mode != "constant"
                or min(before, after) < 0
                or axes_of(each) != {axis}
            ):
                each = tracer.without(each, [axis], why)
            else:
                added = tracer.trace.labels.new(before + after)
                parts = [added[:before], each.reshape(-1), added[before:]]
                each = np.concatenate(parts).reshape([-1 if place == axis else 1 for place in range(each.ndim)])
        if each is not None:
            found.append(each)
    tracer.put(node.outputs[0], found, zero=tracer.is_zero(source) and mode == "constant" and _pads_zeros(tracer, node))


def _pad_amounts(tracer: Tracer, node: gs.Node, rank: int) -> list[tuple[int | None, int | None]] | None:
    """What is added before and behind along each axis, None where that depends on open sizes."""
    given = node.attrs.get("pads", node.attrs.get("paddings"))
    amounts: list[int | None] | None = None if given is None else [int(one) for one in given]
    if given is None and len(node.inputs) > 1:
        amounts = tracer.integers(node.inputs[1])
    axes: Sequence[int] = range(rank)
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        value = tracer.value(node.inputs[3])
        axes = [] if value is None else [int(one) % rank for one in value.reshape(-1)]
    if amounts is None or len(amounts) != 2 * len(axes):
        return None
    found: list[tuple[int | None, int | None]] = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        found[axis] = (amounts[place], amounts[place + len(axes)])
    return found


def _pads_zeros(tracer: Tracer, node: gs.Node) -> bool:
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        value = tracer.value(node.inputs[2])
        return value is not None and value.size <= LARGEST_CHECKED and not np.any(value)
    return not node.attrs.get("value", 0.0)


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
