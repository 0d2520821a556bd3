"""Operators that take parts of a tensor or put parts beside it: Split, Slice, Gather, Pad; shuffles as one Gather."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Indices
from graphopt.channels.surgery.narrowing import Surgery, integers
from graphopt.channels.surgery.sizes import put_entries
from graphopt.channels.trace import Regather
from graphopt.graph import add_node, constant, replace_uses, set_output, sole_producer, values_of, variable


def narrow_split(surgery: Surgery, node: gs.Node) -> None:
    """Tell a Split the sizes of its parts, unless equal parts stay equal parts."""
    data = node.inputs[0]
    axis = _axis(surgery, data, int(node.attrs.get("axis", 0)))
    if surgery.kept(data, axis) is None:
        return
    sizes = [surgery.size(part, axis) for part in node.outputs]
    told = "split" in node.attrs or (len(node.inputs) > 1 and not node.inputs[1].is_empty())
    if not told and "num_outputs" not in node.attrs and len(set(sizes)) == 1:
        return
    node.attrs.pop("num_outputs", None)
    if surgery.opset < 13:
        node.attrs["split"] = sizes
    else:
        surgery.put(node, 1, integers(sizes))


def narrow_slice(surgery: Surgery, node: gs.Node) -> None:
    """Move the bounds of a Slice; where what remains is not evenly spaced, a Gather takes over that axis."""
    index, data, result = surgery.index, node.inputs[0], node.outputs[0]
    given = _slice_arguments(surgery, node)
    moved: dict[int, tuple[int, int, int]] = {}
    uneven: dict[int, Indices] = {}
    for number, (start, end, axis, step) in enumerate(given):
        kept = surgery.kept(data, axis)
        if kept is None:
            continue
        size = surgery.shape(data)[axis]
        source = np.arange(size)[slice(*_clamped(start, end, step, size))]
        wanted = surgery.places(data, axis)[source[surgery.remaining(result, axis)]]
        spacing = int(wanted[1] - wanted[0]) if len(wanted) > 1 else 1
        even = bool((np.diff(wanted) == spacing).all()) and spacing != 0
        if not even or (spacing != 1 and surgery.opset < 10):
            uneven[axis] = wanted
            moved[number] = (0, len(kept), 1)
            continue
        stop = int(wanted[-1]) + (1 if spacing > 0 else -1)
        # A Slice that ran to the end goes on doing so.
        through = spacing > 0 and stop == len(kept) and end > size
        moved[number] = (int(wanted[0]), end if through else stop if stop >= 0 else -len(kept) - 1, spacing)
    if len(uneven) == len(given):
        index.drop([node])
        _gather(surgery, data, result, uneven)
        return
    _put_slice(surgery, node, given, moved)
    if uneven:
        sliced = variable(index, result.name)
        set_output(index, node, 0, sliced)
        _gather(surgery, sliced, result, uneven)


def _clamped(start: int, end: int, step: int, size: int) -> tuple[int, int | None, int]:
    """Bounds as Python's slices take them; ONNX clamps an end before the first to before it, not to the last."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size), step
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return start, None if end < 0 else end, step


def _slice_arguments(surgery: Surgery, node: gs.Node) -> list[tuple[int, int, int, int]]:
    """Start, end, axis and step, once for each axis that is sliced."""
    data = node.inputs[0]
    if surgery.opset < 10:
        starts, ends = [int(v) for v in node.attrs["starts"]], [int(v) for v in node.attrs["ends"]]
        axes = [int(v) for v in node.attrs.get("axes") or range(len(starts))]
        steps = [1] * len(starts)
    else:
        starts, ends = [int(v) for v in surgery.values(node, 1)], [int(v) for v in surgery.values(node, 2)]
        axes = _optional(surgery, node, 3, list(range(len(starts))))
        steps = _optional(surgery, node, 4, [1] * len(starts))
    return list(zip(starts, ends, (_axis(surgery, data, axis) for axis in axes), steps, strict=True))


def _optional(surgery: Surgery, node: gs.Node, slot: int, default: list[int]) -> list[int]:
    if slot >= len(node.inputs) or node.inputs[slot].is_empty():
        return default
    return [int(value) for value in surgery.values(node, slot)]


def _put_slice(
    surgery: Surgery,
    node: gs.Node,
    given: Sequence[tuple[int, int, int, int]],
    moved: Mapping[int, tuple[int, int, int]],
) -> None:
    """Write new bounds: start, end and step by place among the arguments."""
    if surgery.opset < 10:
        node.attrs["starts"] = [moved[at][0] if at in moved else each[0] for at, each in enumerate(given)]
        node.attrs["ends"] = [moved[at][1] if at in moved else each[1] for at, each in enumerate(given)]
        return
    put_entries(surgery, node, 1, {at: each[0] for at, each in moved.items()})
    put_entries(surgery, node, 2, {at: each[1] for at, each in moved.items()})
    steps = [moved[at][2] if at in moved else each[3] for at, each in enumerate(given)]
    if steps == [each[3] for each in given]:
        return
    dtype = surgery.values(node, 1).dtype
    if len(node.inputs) < 4 or node.inputs[3].is_empty():
        surgery.put(node, 3, np.array([each[2] for each in given], dtype=dtype))
    surgery.put(node, 4, np.array(steps, dtype=dtype))


def _put_if_new(surgery: Surgery, node: gs.Node, slot: int, values: Indices) -> None:
    old = values_of(node.inputs[slot]) if slot < len(node.inputs) else None
    if old is None or not np.array_equal(old, values):
        surgery.put(node, slot, values if old is None else values.astype(old.dtype))


def _gather(surgery: Surgery, source: gs.Tensor, result: gs.Tensor, wanted: Mapping[int, Indices]) -> None:
    """Gather some indices along each of some axes."""
    index = surgery.index
    for number, (axis, indices) in enumerate(wanted.items(), start=1):
        target = result if number == len(wanted) else variable(index, result.name)
        picked = constant(index, f"{result.name}_channels", indices)
        add_node(index, "Gather", [source, picked], [target], {"axis": axis}, prefix=f"{result.name}_channels")
        source = target


def narrow_gather(surgery: Surgery, node: gs.Node) -> None:
    """Renumber the indices of a Gather, without those of channels that go."""
    data, result = node.inputs[0], node.outputs[0]
    axis = _axis(surgery, data, int(node.attrs.get("axis", 0)))
    if surgery.kept(data, axis) is None:
        return
    indices = surgery.values(node, 1)
    picked = np.where(indices < 0, indices + surgery.shape(data)[axis], indices)
    for own in range(indices.ndim):
        kept = surgery.kept(result, axis + own)
        if kept is not None:
            picked = np.take(picked, kept, axis=own)
    _put_if_new(surgery, node, 1, surgery.places(data, axis)[picked])


def narrow_pad(surgery: Surgery, node: gs.Node) -> None:
    """Pad only what remains of the padding; a negative pad crops what remains of what it cropped."""
    data, result = node.inputs[0], node.outputs[0]
    rank = len(surgery.shape(data))
    by_input = len(node.inputs) > 1
    name = "pads" if "pads" in node.attrs else "paddings"
    pads = [int(value) for value in (surgery.values(node, 1) if by_input else node.attrs[name])]
    axes = [_axis(surgery, data, axis) for axis in _optional(surgery, node, 3, list(range(rank)))]
    changed: list[int] = []
    for number, axis in enumerate(axes):
        if surgery.kept(data, axis) is None and surgery.kept(result, axis) is None:
            continue
        changed += [number, number + len(axes)]
        size, behind = surgery.shape(data)[axis], number + len(axes)
        inputs, outputs = surgery.remaining(data, axis), surgery.remaining(result, axis)
        before, after = pads[number], pads[behind]
        pads[number] = int((outputs < before).sum()) - int((inputs < -before).sum())
        pads[behind] = int((outputs >= before + size).sum()) - int((inputs >= size + after).sum())
    if by_input:
        put_entries(surgery, node, 1, {at: pads[at] for at in changed})
    else:
        node.attrs[name] = pads


def regather(surgery: Surgery, tensor: gs.Tensor, moved: Regather) -> None:
    """Write data movement that ends in ``tensor`` as one Gather, or as nothing where the order is the same."""
    index, source, axis = surgery.index, moved.source, moved.axis
    kept = surgery.remaining(tensor, axis)
    wanted = surgery.places(source, axis)[moved.order[kept]]
    producer = sole_producer(tensor)
    if producer is None:
        return
    slot = next(slot for slot, other in enumerate(producer.outputs) if other is tensor)
    if np.array_equal(wanted, np.arange(surgery.size(source, axis))) and not index.is_output(tensor):
        replace_uses(index, tensor, source)
        return
    set_output(index, producer, slot, variable(index, tensor.name))
    _gather(surgery, source, tensor, {axis: wanted})


def _axis(surgery: Surgery, tensor: gs.Tensor, axis: int) -> int:
    return axis % len(surgery.shape(tensor))
