"""Sizes as data: which numbers depend on how many channels there are, and who reads them.

A Shape node tells how long an axis is that may become shorter. Such numbers are followed through the little graphs that
exporters write around them. Where they are read at last (the target of a Reshape, the bounds of a Slice, a scale) they
are noted as *frozen*: surgery writes what they must be as constants.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.channels.rules.pieces import slice_bounds
from graphopt.channels.trace import Frozen
from graphopt.channels.tracer import Sizes, Tracer, named
from graphopt.graph import is_constant, is_op

# What an entry depends on.
CHANNELS, OPEN = 1, 2

_MOVES = ("Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_COMPUTES = (
    "Abs", "Add", "And", "Ceil", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum",
    "Round", "Sqrt", "Sub", "Where",
)  # fmt: skip
# Operators that are told the shape of what they write, which is known of every tensor, and by which input.
_TOLD = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}
_LARGEST = 64


def shape_of(tracer: Tracer, node: gs.Node) -> None:
    """Shape and Size: note which numbers depend on channels."""
    tensor = node.inputs[0]
    shape = tracer.shape(tensor)
    fields = tracer.fields(tensor)
    if shape is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    depends = np.full(len(shape), OPEN if tracer.is_open else 0, dtype=np.uint8)
    for each in fields:
        depends[[axis for axis, size in enumerate(each.shape) if size > 1]] = CHANNELS
    if node.op == "Size":
        depends = np.bitwise_or.reduce(depends, keepdims=False).reshape(())
    else:
        depends = depends[int(node.attrs.get("start", 0)) : int(node.attrs.get("end", len(shape)))]
    tracer.sizes[id(node.outputs[0])] = Sizes(depends, fields)


def carry(tracer: Tracer, node: gs.Node) -> bool:
    """Follow sizes through a node that moves them or computes with them; return whether it is one."""
    if not is_op(node, *_MOVES, *_COMPUTES) or len(node.outputs) != 1:
        return False
    data = node.inputs if node.op in {"Concat", *_COMPUTES} else node.inputs[:1]
    if not all(is_constant(one) or one.is_empty() or id(one) in tracer.sizes for one in data):
        return False
    if any(id(one) in tracer.sizes for one in node.inputs[len(data) :]):
        return False
    target = tracer.shape(node.outputs[0])
    if target is None or np.prod(target, dtype=np.int64) > _LARGEST:
        return False
    sources = tuple(each for one in data if id(one) in tracer.sizes for each in tracer.sizes[id(one)].sources)
    depends = _depends(tracer, node, list(data), target)
    tracer.sizes[id(node.outputs[0])] = Sizes(depends, sources)
    return True


def _depends(tracer: Tracer, node: gs.Node, data: list[gs.Tensor], target: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    parts = [
        tracer.sizes[id(one)].depends if id(one) in tracer.sizes else np.zeros(tracer.shape(one) or (), dtype=np.uint8)
        for one in data
        if not one.is_empty()
    ]
    first = parts[0]
    if node.op == "Concat":
        return np.concatenate(parts, int(node.attrs["axis"]))
    if node.op == "Transpose":
        return np.transpose(first, node.attrs.get("perm"))
    if node.op == "Gather" and (places := tracer.value(node.inputs[1])) is not None:
        return np.asarray(np.take(first, places.astype(np.int64), int(node.attrs.get("axis", 0))))
    if node.op == "Slice":
        for axis, bound in slice_bounds(tracer, node, first.ndim).items():
            if bound is None:
                return np.full(target, np.bitwise_or.reduce(first, axis=None), dtype=np.uint8)
            first = first[(slice(None),) * axis + (bound,)]
    if node.op in _MOVES and first.size == np.prod(target, dtype=np.int64):
        return first.reshape(target)
    if node.op in _COMPUTES and not node.op.startswith("Reduce"):
        found = np.zeros(target, dtype=np.uint8)
        for part in parts:
            found |= part
        return found
    every = np.uint8(0)
    for part in parts:
        every |= np.bitwise_or.reduce(part, axis=None)
    return np.full(target, every, dtype=np.uint8)


def freeze(tracer: Tracer, node: gs.Node) -> None:
    """Note where a node reads numbers that depend on channels; pin these where the numbers are open, too."""
    for slot, tensor in enumerate(node.inputs):
        sizes = tracer.sizes.get(id(tensor))
        if sizes is None or not np.any(sizes.depends & CHANNELS):
            continue
        told = is_op(node, *_TOLD) and slot == _TOLD[node.op]
        mixed = np.any(sizes.depends == CHANNELS | OPEN) or (not told and np.any(sizes.depends & OPEN))
        if not mixed and (told or tracer.value(tensor) is not None):
            tracer.trace.frozen.append(Frozen(node, slot, sizes.depends == CHANNELS, told))
            continue
        why = f"{named(node)} computes with their number"
        for each in sizes.sources:
            tracer.trace.labels.pin(each, why)


def pin(tracer: Tracer, tensor: gs.Tensor, why: str) -> None:
    """Forbid that any channel is cut on whose number a tensor depends."""
    sizes = tracer.sizes.get(id(tensor))
    if sizes is not None and np.any(sizes.depends & CHANNELS):
        for each in sizes.sources:
            tracer.trace.labels.pin(each, why)
