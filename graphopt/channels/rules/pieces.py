"""Operators that take a part of a tensor, or put something beside it: Split, Slice, Gather, Pad."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.fields import axes_of
from graphopt.channels.labels import Field
from graphopt.channels.rules.elementwise import LARGEST_CHECKED
from graphopt.channels.tracer import Tracer, named

_ALL = range(64)


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
