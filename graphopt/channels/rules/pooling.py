"""Operators that slide over, sum up or normalise along some axes and leave the channels alone."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from graphopt.channels.tracer import Tracer, named

# Reductions of zeros are zero.
_ZERO = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare")


def spatial(tracer: Tracer, node: gs.Node) -> None:
    """Pooling and resampling: every channel on its own, along the axes behind the second."""
    source = node.inputs[0]
    why = f"{named(node)} works along that axis"
    fields = [tracer.without(each, range(2, each.ndim), why) for each in tracer.fields(source)]
    for tensor in node.inputs[1:]:
        tracer.trace.pin(tensor, f"{named(node)} reads them as sizes or places")
    kept = [each for each in fields if each is not None]
    for number, target in enumerate(node.outputs):
        shape = tracer.shape(target)
        if shape is None or any(len(shape) != each.ndim for each in kept):
            tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        else:
            tracer.put(target, kept, zero=tracer.is_zero(source) and number == 0)


def resize(tracer: Tracer, node: gs.Node) -> None:
    """Resize, Upsample: labels along axes that keep their size pass."""
    source = node.inputs[0]
    before, after = tracer.shape(source), tracer.shape(node.outputs[0])
    for tensor in node.inputs[1:]:
        tracer.trace.pin(tensor, f"{named(node)} reads them as sizes")
    if before is None or after is None or len(before) != len(after):
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    changed = [axis for axis in range(len(before)) if before[axis] != after[axis]]
    _pass(tracer, node, changed, zero=tracer.is_zero(source))


def reduce(tracer: Tracer, node: gs.Node) -> None:
    """Reductions over some axes, which may be kept with size 1 or left out."""
    source = node.inputs[0]
    before, after = tracer.shape(source), tracer.shape(node.outputs[0])
    axes = _axes(tracer, node)
    if before is None or after is None or axes is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    rank = len(before)
    reduced = sorted({axis % rank for axis in axes})
    if not axes and not node.attrs.get("noop_with_empty_axes", 0):
        reduced = list(range(rank))
    _pass(tracer, node, reduced, zero=tracer.is_zero(source) and node.op in _ZERO, drop=len(after) < rank)


def _axes(tracer: Tracer, node: gs.Node) -> list[int] | None:
    """The axes reduced over; empty: all of them (or none); None: they are computed."""
    if node.op in {"ArgMax", "ArgMin"}:
        return [int(node.attrs.get("axis", 0))]
    if "axes" in node.attrs:
        return [int(axis) for axis in node.attrs["axes"]]
    if len(node.inputs) > 1 and not node.inputs[1].is_empty():
        value = tracer.value(node.inputs[1])
        return None if value is None else [int(axis) for axis in value.reshape(-1)]
    return []


def one_axis(tracer: Tracer, node: gs.Node) -> None:
    """Softmax, CumSum, TopK and the like: along one axis, or from one axis on."""
    source = node.inputs[0]
    shape = tracer.shape(source)
    if shape is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    axis = node.attrs.get("axis")
    if node.op == "CumSum":
        value = tracer.value(node.inputs[1])
        axes: Sequence[int] = range(len(shape)) if value is None else [int(value.reshape(-1)[0]) % len(shape)]
    elif node.op in {"Softmax", "LogSoftmax", "Hardmax"} and tracer.opset < 13:
        axes = range((1 if axis is None else int(axis)) % len(shape), len(shape))
    else:
        default = 0 if node.op == "Compress" else -1
        axes = [(default if axis is None else int(axis)) % len(shape)]
    for tensor in node.inputs[1:]:
        tracer.trace.pin(tensor, f"{named(node)} reads them as sizes or places")
    zero = tracer.is_zero(source) and node.op in {"CumSum"}
    for number, _ in enumerate(node.outputs):
        _pass(tracer, node, axes, zero=zero, output=number)


def _pass(
    tracer: Tracer, node: gs.Node, axes: Sequence[int], *, zero: bool, drop: bool = False, output: int = 0
) -> None:
    """Labels along all other axes pass; ``axes`` must stay whole, and are left out of the result if ``drop``."""
    found = []
    for each in tracer.fields(node.inputs[0]):
        over = tracer.without(each, axes, f"{named(node)} works along that axis")
        if over is not None:
            kept = [size for axis, size in enumerate(over.shape) if not (drop and axis in axes)]
            found.append(over.reshape(kept))
    tracer.put(node.outputs[output], found, zero=zero)
