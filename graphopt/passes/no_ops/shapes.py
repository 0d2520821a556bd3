"""Rules for operators that move, cut, widen or gather elements, and here do not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, sole_producer
from graphopt.passes.no_ops.knowledge import Knowledge, Rule, given, has_input, holds_only, input_values

# ONNX lets a slice end at "as far as it goes" with any large number; exporters write these.
_FAR = 2**31 - 1
# At scale 1 these read each element from its own place; tf_half_pixel_for_nn lies between two, and crops are no scale.
_IN_PLACE = frozenset({"half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners", "pytorch_half_pixel"})


def _same_elements(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Operators that keep the order of elements, and reductions that keep values: an equal shape makes them no-ops."""
    return node.inputs[0] if known.same_shape(node.inputs[0], node.outputs[0]) else None


def _reshape(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    if _same_elements(node, known):
        return node.inputs[0]
    shape, target = known.shape(node.inputs[0]), given(node, known, 1, "shape", since=5)
    if shape is None or target is None or target.size != len(shape):
        return None
    # ONNX allows a single -1, and with all other sizes equal it comes out as the one that is left.
    unchanged = {-1} if node.attrs.get("allowzero", 0) else {-1, 0}
    same = all(wanted in unchanged or wanted == size for size, wanted in zip(shape, target.tolist(), strict=True))
    return node.inputs[0] if same else None


def _expand(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    target = input_values(node, 1)
    if target is not None and not target.size:
        return node.inputs[0]
    if _same_elements(node, known):
        return node.inputs[0]
    shape = known.shape(node.inputs[0])
    if target is None or shape is None or target.size > len(shape):
        return None
    aligned = shape[len(shape) - target.size :]
    same = all(wanted in {1, size} for size, wanted in zip(aligned, target.tolist(), strict=True))
    return node.inputs[0] if same else None


def _transpose(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    order = node.attrs.get("perm")
    if order is None:
        shape = known.shape(node.inputs[0])
        return node.inputs[0] if shape is not None and len(shape) < 2 else None
    return node.inputs[0] if list(order) == list(range(len(order))) else None


def _pad(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    pads = given(node, known, 1, "pads" if known.opset >= 2 else "paddings", since=11)
    return node.inputs[0] if pads is not None and not pads.any() else None


def _slice(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    starts, ends = given(node, known, 1, "starts", since=10), given(node, known, 2, "ends", since=10)
    if starts is None or ends is None or (starts > 0).any():
        return None
    steps = input_values(node, 4) if has_input(node, 4) else np.ones_like(starts)
    if steps is None or (steps < 1).any():
        return None
    if (starts == 0).all() and (ends >= _FAR).all() and (steps == 1).all():
        return node.inputs[0]
    return _same_elements(node, known)


def _tile(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    once = known.opset >= 6 and len(node.inputs) == 2 and holds_only(node.inputs[1], 1)
    return node.inputs[0] if once else None


def _concat(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Concat of one input, or of all pieces that one Split makes, in order."""
    first = node.inputs[0]
    if len(node.inputs) == 1:
        return first
    split = sole_producer(first)
    if split is None or not is_op(split, "Split") or len(split.outputs) != len(node.inputs):
        return None
    if any(piece is not read for piece, read in zip(split.outputs, node.inputs, strict=True)):
        return None
    axes = (split.attrs.get("axis", 0), node.attrs.get("axis"))
    if axes[0] == axes[1]:
        return split.inputs[0]
    shape = known.shape(split.inputs[0])
    if shape is None or not all(isinstance(axis, int) for axis in axes):
        return None
    return split.inputs[0] if axes[0] % len(shape) == axes[1] % len(shape) else None


def _split(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    return _same_elements(node, known) if len(node.outputs) == 1 else None


def _reduce(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Sum, mean, product, maximum or minimum over axes of size 1, or over none."""
    since = 13 if node.op == "ReduceSum" else 18
    if node.attrs.get("noop_with_empty_axes", 0):
        axes = input_values(node, 1)
        if not has_input(node, 1) or (axes is not None and not axes.size):
            return node.inputs[0] if known.opset >= since else None
    return _same_elements(node, known)


def _pool(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Pooling of single elements."""
    kernel = node.attrs.get("kernel_shape") or [0]
    plain = all(size == 1 for size in (*kernel, *node.attrs.get("strides", ())))
    return node.inputs[0] if plain and not any(node.attrs.get("pads", ())) else None


def _resize(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    if node.attrs.get("coordinate_transformation_mode", "half_pixel") not in _IN_PLACE:
        return None
    slot = 1 if known.opset < 11 else 2
    if has_input(node, slot) and holds_only(node.inputs[slot], 1):
        return node.inputs[0]
    if not has_input(node, 3) or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    return _same_elements(node, known)


def _upsample(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    scales = given(node, known, 1, "scales", since=9) if known.opset >= 7 else None
    return node.inputs[0] if scales is not None and scales.size and (scales == 1).all() else None


def _blocks(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    return node.inputs[0] if node.attrs.get("blocksize") == 1 else None


def _gather(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """Gather of every element along an axis, in order."""
    indices = input_values(node, 1)
    if indices is None or indices.ndim != 1 or not indices.size or indices[0] not in {0, -indices.size}:
        return None
    shape, axis = known.shape(node.inputs[0]), node.attrs.get("axis", 0)
    if not shape or shape[axis] != indices.size or ((indices % indices.size) != np.arange(indices.size)).any():
        return None
    return node.inputs[0]


def _einsum(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    before, arrow, after = str(node.attrs.get("equation", "")).replace(" ", "").partition("->")
    same = bool(arrow) and before == after and before.isalpha() and len(set(before)) == len(before)
    return node.inputs[0] if same and len(node.inputs) == 1 else None


SHAPES: Mapping[str, Rule] = {
    "AveragePool": _pool,
    "Concat": _concat,
    "DepthToSpace": _blocks,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _same_elements,
    "Gather": _gather,
    "GlobalAveragePool": _same_elements,
    "GlobalMaxPool": _same_elements,
    "MaxPool": _pool,
    "Pad": _pad,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _blocks,
    "Split": _split,
    "Squeeze": _same_elements,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _same_elements,
    "Upsample": _upsample,
}
