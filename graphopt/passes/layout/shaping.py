"""Rules for operators that cut, extend and resize along axes: Slice, Pad, Tile, Expand, Resize, Squeeze, Unsqueeze."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.passes.layout.moves import Knowledge, Move, axes_in, has_input, set_setting, setting, small_values
from graphopt.passes.layout.permutations import Perm, inserted, inverse, without

Rule: TypeAlias = Callable[[gs.Node, int, Perm, Knowledge], Move | None]


def _moved(node: gs.Node, perm: Perm, **changes: Any) -> Move:
    return Move((perm, *(None for _ in node.inputs[1:])), (perm,), **changes)


def _along(perm: Perm, axes: Sequence[int]) -> list[int]:
    places = inverse(perm)
    return [places[axis] for axis in axes]


def _slice(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Starts and ends may be computed as long as the axes are fixed."""
    if slot > 0:
        return None
    if known.opset < 10:
        starts = node.attrs.get("starts")
        axes = None if starts is None else axes_in(node.attrs.get("axes", range(len(starts))), len(perm))
        return None if axes is None else _moved(node, perm, attrs={"axes": _along(perm, axes)})
    if has_input(node, 3):
        given = small_values(node, 3)
    else:
        count = known.shape(node.inputs[1])
        given = np.arange(count[0]) if count is not None and len(count) == 1 and isinstance(count[0], int) else None
    axes = None if given is None else axes_in(given, len(perm))
    if axes is None:
        return None
    # One type for starts, ends, axes and steps.
    kind = np.int32 if known.dtype(node.inputs[1]) == onnx.TensorProto.INT32 else np.int64
    return _moved(node, perm, parameters={3: np.asarray(_along(perm, axes), dtype=kind)})


def _pad(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    if slot > 0:
        return None
    rank = len(perm)
    if has_input(node, 3):
        given = small_values(node, 3)
        axes = None if given is None else axes_in(given, rank)
        if given is None or axes is None:
            return None
        return _moved(node, perm, parameters={3: np.asarray(_along(perm, axes), dtype=given.dtype)})
    pads = setting(node, "pads", 1, known, 11)
    if pads is None or pads.size != 2 * rank:
        return None
    moved = [int(pads[side * rank + axis]) for side in (0, 1) for axis in perm]
    return _moved(node, perm, **set_setting("pads", 1, moved, known, 11))


def _tile(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    repeats = small_values(node, 1)
    if slot > 0 or repeats is None or repeats.size != len(perm):
        return None
    return _moved(node, perm, parameters={1: repeats[list(perm)]})


def _expand(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """To a fixed shape of no more axes than there are."""
    shape, rank = small_values(node, 1), len(perm)
    if slot > 0 or shape is None or known.rank(node.inputs[0]) != rank or shape.size > rank:
        return None
    whole = np.concatenate([np.ones(rank - shape.size, dtype=np.int64), shape])
    return _moved(node, perm, parameters={1: whole[list(perm)]})


def _squeeze(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    given = setting(node, "axes", 1, known, 13)
    if given is None or slot > 0:
        return None
    axes = axes_in(given, len(perm) if slot == 0 else len(perm) + given.size)
    if axes is None:
        return None
    whole = perm if slot == 0 else inserted(perm, axes)
    changed = set_setting("axes", 1, sorted(_along(whole, axes)), known, 13)
    return replace(_moved(node, whole, **changed), outputs=(without(whole, axes),))


def _unsqueeze(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    given = setting(node, "axes", 1, known, 13)
    if given is None or slot > 0 or isinstance(node.inputs[0], gs.Constant):
        return None
    axes = axes_in(given, len(perm) if slot < 0 else len(perm) + given.size)
    if axes is None:
        return None
    whole = perm if slot < 0 else inserted(perm, axes)
    changed = set_setting("axes", 1, sorted(_along(whole, axes)), known, 13)
    return replace(_moved(node, without(whole, axes), **changed), outputs=(whole,))


def _resize(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Fixed factors or sizes; only towards an order that ends in the axes resized, which ONNX Runtime is made for."""
    if slot > 0 or "axes" in node.attrs or node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    rank = len(perm)
    if node.op == "Upsample" and known.opset < 9:
        scales = node.attrs.get("scales")
        if scales is None or len(scales) != rank or not _trailing([scales[axis] != 1 for axis in perm]):
            return None
        return _moved(node, perm, attrs={"scales": [scales[axis] for axis in perm]})
    if node.op == "Resize" and has_input(node, 3):
        sizes, shape = small_values(node, 3), known.shape(node.inputs[0])
        if sizes is None or shape is None or sizes.size != rank or len(shape) != rank:
            return None
        if has_input(node, 2) and known.shape(node.inputs[2]) != (0,):
            return None
        if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        if not _trailing([sizes[axis] != shape[axis] for axis in perm]):
            return None
        return _moved(node, perm, parameters={3: sizes[list(perm)]})
    place = 2 if node.op == "Resize" and known.opset >= 11 else 1
    factors = small_values(node, place)
    if factors is None or factors.size != rank or not _trailing([factors[axis] != 1 for axis in perm]):
        return None
    return _moved(node, perm, parameters={place: factors[list(perm)]})


def _trailing(resized: Sequence[bool]) -> bool:
    """Whether only axes after batch and channels are resized."""
    return not any(resized[:2])


SHAPING: Mapping[str, Rule] = {
    "Expand": _expand,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
