"""How a permutation of channels passes operators that treat one axis otherwise than another."""

from __future__ import annotations

from graphopt.graph import is_constant, values_of
from graphopt.passes.channel_shuffle.layout import ONE, Size
from graphopt.passes.channel_shuffle.nodes import constants, slices
from graphopt.passes.channel_shuffle.passages import Passage, Slot, View, is_scalar, used


def reduce(view: View) -> Passage | None:
    """A reduction over other axes hands the order on; one over the channels takes any."""
    node = view.node
    since = 13 if node.op == "ReduceSum" else 18
    rank = view.rank(node.inputs[0])
    if view.place or rank is None:
        return None
    given = used(node, 1) if view.known.opset >= since else "axes" in node.attrs
    axes = constants(node, 1, "axes", since, view.known.opset) if given else []
    if axes is None or (view.known.opset < since and "axes" in node.attrs and not axes):
        return None
    if not axes and not node.attrs.get("noop_with_empty_axes", 0):
        axes = list(range(rank))
    gone = {axis % rank for axis in axes}
    kept = bool(node.attrs.get("keepdims", 1))
    axis = view.slot.axis
    if view.written:
        inside = [place for place in range(rank) if kept or place not in gone]
        return None if inside[axis] in gone else Passage((view.other(inside[axis]),))
    if axis in gone:
        return Passage()
    return Passage((view.other(axis if kept else axis - sum(each < axis for each in gone)),))


def pad(view: View) -> Passage | None:
    """Padding of other axes by constant amounts."""
    rank = view.rank(view.slot.tensor)
    pads = constants(view.node, 1, "pads", 11, view.known.opset)
    if view.place or pads is None or rank is None or (used(view.node, 2) and not is_scalar(view.node.inputs[2])):
        return None
    axes = list(range(rank))
    if used(view.node, 3):
        given = values_of(view.node.inputs[3])
        if given is None:
            return None
        axes = [int(axis) % rank for axis in given]
    if len(pads) != 2 * len(axes):
        return None
    touched = any(axis == view.slot.axis and (pads[at] or pads[at + len(axes)]) for at, axis in enumerate(axes))
    return None if touched else Passage((view.other(view.slot.axis),))


def resize(view: View) -> Passage | None:
    """Resizing of other axes: constant scales of 1, or constant sizes, along the channels."""
    node, opset = view.node, view.known.opset
    rank = view.rank(view.slot.tensor)
    mode = node.attrs.get("coordinate_transformation_mode", "")
    if view.place or rank is None or "axes" in node.attrs or mode in {"tf_crop_and_resize", "tf_half_pixel_for_nn"}:
        return None
    number = 1 if node.op == "Upsample" or opset < 11 else 2
    if node.op == "Upsample" and opset < 9:
        scales = node.attrs.get("scales")
    else:
        values = values_of(node.inputs[number]) if used(node, number) else None
        scales = None if values is None or not values.size else values.tolist()
    if scales is not None and len(scales) == rank:
        return Passage((view.other(view.slot.axis),)) if scales[view.slot.axis] == 1 else None
    sizes = values_of(node.inputs[3]) if used(node, 3) else None
    if sizes is None or sizes.size != rank or "keep_aspect_ratio_policy" in node.attrs:
        return None
    return Passage((view.other(view.slot.axis),)) if sizes[view.slot.axis] == view.length else None


def transpose(view: View) -> Passage | None:
    """Any reordering of axes."""
    rank = view.rank(view.slot.tensor)
    if rank is None:
        return None
    order = list(view.node.attrs.get("perm") or range(rank)[::-1])
    return Passage((view.other(order[view.slot.axis] if view.written else order.index(view.slot.axis)),))


def reshape(view: View) -> Passage | None:
    """Reshape, Flatten, Squeeze and Unsqueeze where the channels stay the outermost digit of one axis."""
    source, target = view.node.inputs[0], view.node.outputs[0]
    if view.place:
        return None
    inside, outside = view.known.sizes(source), view.known.sizes(target)
    if inside is None or outside is None:
        return None
    here, there = (outside, inside) if view.written else (inside, outside)
    before, after = _product(here[: view.slot.axis]), _product(here[view.slot.axis :])
    for axis in range(len(there)):
        if _product(there[:axis]) != before and (after.symbols or _product(there[axis:]) != after):
            continue
        size = there[axis]
        if size.symbols or size == ONE or size.number % view.channels:
            continue
        # Both axes begin with the same digit, the channel, if what one axis has more the other has further in.
        return Passage((view.other(axis, size.number // view.channels),))
    return None


def _product(sizes: tuple[Size, ...]) -> Size:
    total = ONE
    for size in sizes:
        total = total * size
    return total


def along_others(view: View) -> Passage | None:
    """Concat, Split, Slice and Gather along another axis than that of the channels."""
    node = view.node
    rank = view.rank(view.slot.tensor)
    axis = view.slot.axis
    if rank is None:
        return None
    if node.op == "Slice":
        parts = slices(node, rank, view.known.opset)
        if view.place or parts is None or any(each[0] == axis for each in parts):
            return None
        return Passage((view.other(axis),))
    if node.op == "Gather":
        return None
    along = int(node.attrs.get("axis", 1 if node.op == "Concat" else 0)) % rank
    if along == axis or (node.op == "Split" and not view.written and view.place):
        return None
    inputs = node.inputs if node.op == "Concat" else node.inputs[:1]
    if any(is_constant(tensor) for tensor in inputs):
        return None
    tensors = [
        tensor for tensor in (*inputs, *node.outputs) if tensor is not view.slot.tensor and not tensor.is_empty()
    ]
    return Passage(tuple(Slot(tensor, axis, view.slot.inner) for tensor in tensors))
