"""Rules for operators that name axes: reductions, Softmax, Concat, Split, Gather, normalization, quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.layout.moves import Knowledge, Move, axes_in, has_input, is_movable_weight, set_setting, setting
from graphopt.passes.layout.permutations import Perm, identity, inserted, inverse, without

Rule: TypeAlias = Callable[[gs.Node, int, Perm, Knowledge], Move | None]


def _axis(node: gs.Node, rank: int, default: int | None = None) -> int | None:
    given = node.attrs.get("axis", default)
    found = None if given is None else axes_in(given, rank)
    return None if found is None else found[0]


def _same(node: gs.Node, perm: Perm, attrs: Mapping[str, Any] | None = None, *, penalty: int = 0) -> Move:
    """One tensor in and one out, of one order; further inputs as they are."""
    return Move((perm, *(None for _ in node.inputs[1:])), (perm,), attrs or {}, penalty=penalty)


def _concat(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    axis = _axis(node, len(perm))
    if axis is None:
        return None
    constants = [isinstance(tensor, gs.Constant) for tensor in node.inputs]
    weights = {place: (len(perm), perm) for place, fixed in enumerate(constants) if fixed}
    if not all(is_movable_weight(node.inputs[place]) for place in weights):
        return None
    inputs = tuple(None if fixed else perm for fixed in constants)
    return Move(inputs, (perm,), {"axis": inverse(perm)[axis]}, weights=weights)


def _split(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    axis = _axis(node, len(perm), 0)
    if axis is None or slot > 0:
        return None
    outputs = tuple(perm for _ in node.outputs)
    return Move((perm, *(None for _ in node.inputs[1:])), outputs, {"axis": inverse(perm)[axis]})


def _reduce(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    since = 13 if node.op == "ReduceSum" else 18
    given = setting(node, "axes", 1, known, since)
    if given is None and known.opset >= since and has_input(node, 1):
        return None
    if node.attrs.get("noop_with_empty_axes", 0) and (given is None or not given.size):
        return None
    everything = given is None or not given.size
    if everything:
        if slot < 0:
            return None
        outputs = (identity(len(perm)) if node.attrs.get("keepdims", 1) else (),)
        return Move((perm, *(None for _ in node.inputs[1:])), outputs)
    assert given is not None
    moved = _reduced(node, slot, perm, given, known)
    if moved is None:
        return None
    whole, axes, out = moved
    changed = set_setting("axes", 1, sorted(axes), known, since)
    return Move((whole, *(None for _ in node.inputs[1:])), (out,), **changed)


def _arg(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    moved = _reduced(node, slot, perm, np.asarray([node.attrs.get("axis", 0)]), known)
    if moved is None:
        return None
    whole, axes, out = moved
    return Move((whole,), (out,), {"axis": axes[0]}, penalty=_last(whole, axes[0]))


def _reduced(
    node: gs.Node, slot: int, perm: Perm, given: Any, known: Knowledge
) -> tuple[Perm, tuple[int, ...], Perm] | None:
    """The permutation of the input, the axes to reduce then, and the permutation of the output."""
    keep = bool(node.attrs.get("keepdims", 1))
    rank = len(perm) if slot >= 0 or keep else len(perm) + int(given.size)
    axes = axes_in(given, rank)
    if axes is None or slot > 0:
        return None
    whole = perm if slot >= 0 or keep else inserted(perm, axes)
    places = inverse(whole)
    return whole, tuple(places[axis] for axis in axes), whole if keep else without(whole, axes)


def _softmax(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    rank = len(perm)
    axis = _axis(node, rank, -1 if known.opset >= 13 else 1)
    if axis is None:
        return None
    if known.opset < 13:
        # Before opset 13 all axes from this one on are one: a single one only if it is the last, and stays it.
        return _same(node, perm, {"axis": rank - 1}) if axis == rank - 1 == perm[-1] else None
    place = inverse(perm)[axis]
    return _same(node, perm, {"axis": place}, penalty=_last(perm, place))


def _last(perm: Perm, place: int) -> int:
    """Transposes inside a kernel that works along the last axis, after less before, for an axis that is then there."""
    last = len(perm) - 1
    return 2 * (int(place != last) - int(perm[place] != last))


def _cumsum(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    axis = setting(node, "axis", 1, known, 11)
    found = None if axis is None or slot > 0 or axis.size != 1 else axes_in(axis, len(perm))
    if axis is None or found is None:
        return None
    moved = np.asarray(inverse(perm)[found[0]], dtype=axis.dtype).reshape(axis.shape)
    return Move((perm, None), (perm,), parameters={1: moved})


def _topk(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    axis = _axis(node, len(perm), -1)
    if axis is None or slot > 0 or len(node.outputs) != 2:
        return None
    place = inverse(perm)[axis]
    attrs = {"axis": place}
    return Move((perm, *(None for _ in node.inputs[1:])), (perm, perm), attrs, penalty=_last(perm, place))


def _gather(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Single indices along an axis, or one index, which drops it."""
    count = known.rank(node.inputs[1])
    if slot > 0 or count not in {0, 1} or isinstance(node.inputs[0], gs.Constant):
        return None
    rank = len(perm) if slot >= 0 or count == 1 else len(perm) + 1
    axis = _axis(node, rank, 0)
    if axis is None:
        return None
    whole = perm if rank == len(perm) else inserted(perm, [axis])
    out = whole if count == 1 else without(whole, [axis])
    return Move((whole, None), (out,), {"axis": inverse(whole)[axis]})


def _batchnorm(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    if slot > 0 or len(perm) < 2 or perm[1] != 1 or node.attrs.get("training_mode", 0):
        return None
    if node.attrs.get("spatial", 1) != 1 or any(not tensor.is_empty() for tensor in node.outputs[1:]):
        return None
    return _same(node, perm)


def _spatial(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Operators that treat all axes after the first two alike."""
    return _same(node, perm) if slot in {0, -1} and perm[:2] == (0, 1) and len(node.outputs) == 1 else None


def _layernorm(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Axes before those normalized over may change places."""
    rank = len(perm)
    axis = _axis(node, rank, -1)
    if axis is None or slot not in {0, -1} or perm[axis:] != identity(rank)[axis:]:
        return None
    if any(not tensor.is_empty() for tensor in node.outputs[1:]):
        return None
    ranks = [known.rank(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()]
    return _same(node, perm) if all(own is not None and own <= rank - axis for own in ranks) else None


def _quantize(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Per tensor, or per channel with the axis following."""
    if slot > 0 or node.attrs.get("block_size", 0) or len(node.outputs) != 1:
        return None
    scale = known.shape(node.inputs[1])
    if scale is None or len(scale) > 1:
        return None
    attrs = {}
    if scale not in {(), (1,)}:
        axis = _axis(node, len(perm), 1)
        if axis is None:
            return None
        attrs["axis"] = inverse(perm)[axis]
    if not isinstance(node.inputs[0], gs.Constant):
        return _same(node, perm, attrs)
    if not is_movable_weight(node.inputs[0]):
        return None
    return Move(tuple(None for _ in node.inputs), (perm,), attrs, weights={0: (len(perm), perm)})


_REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

AXES: Mapping[str, Rule] = {
    **{f"Reduce{kind}": _reduce for kind in _REDUCTIONS},
    "ArgMax": _arg,
    "ArgMin": _arg,
    "BatchNormalization": _batchnorm,
    "Concat": _concat,
    "CumSum": _cumsum,
    "DequantizeLinear": _quantize,
    "Gather": _gather,
    "GlobalAveragePool": _spatial,
    "GlobalMaxPool": _spatial,
    "GroupNormalization": _spatial,
    "Hardmax": _softmax,
    "InstanceNormalization": _spatial,
    "LRN": _spatial,
    "LayerNormalization": _layernorm,
    "LogSoftmax": _softmax,
    "QuantizeLinear": _quantize,
    "RMSNormalization": _layernorm,
    "Softmax": _softmax,
    "Split": _split,
    "TopK": _topk,
}
