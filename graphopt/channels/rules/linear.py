"""Layers with weights: they end the labels of what they read and start new ones for what they write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.fields import along, with_rank
from graphopt.channels.labels import Field
from graphopt.channels.rules.elementwise import add_fixed
from graphopt.channels.rules.joining import Operand, joined
from graphopt.channels.tracer import Tracer, named


@dataclass(frozen=True)
class _Slots:
    """Which inputs of a convolution are what; -1: it has none.

    Attributes:
        weight: the weight.
        bias: the bias.
        scales: scales and zero points of the weight, one for all or one for each filter.
        transposed: whether the weight is [in, out / group, ...], not [out, in / group, ...].
    """

    weight: int = 1
    bias: int = 2
    scales: tuple[int, ...] = ()
    transposed: bool = False


def convolution(tracer: Tracer, node: gs.Node) -> None:
    """Conv."""
    _convolution(tracer, node, _Slots())


def transposed_convolution(tracer: Tracer, node: gs.Node) -> None:
    """ConvTranspose."""
    _convolution(tracer, node, _Slots(transposed=True))


def fused_convolution(tracer: Tracer, node: gs.Node) -> None:
    """FusedConv of ONNX Runtime: with an activation, and perhaps something added before it."""
    if _given(node, 3):
        tracer.pin_inputs(node, f"{named(node)} adds something")
        return
    _convolution(tracer, node, _Slots())
    if node.attrs.get("activation", "") not in {"", "Relu", "LeakyRelu", "Tanh"}:
        tracer.zeros.discard(id(node.outputs[0]))


def quantized_convolution(tracer: Tracer, node: gs.Node) -> None:
    """QLinearConv."""
    _convolution(tracer, node, _Slots(weight=3, bias=8, scales=(4, 5)))


def integer_convolution(tracer: Tracer, node: gs.Node) -> None:
    """ConvInteger."""
    _convolution(tracer, node, _Slots(bias=-1, scales=(3,)))


def _convolution(tracer: Tracer, node: gs.Node, slots: _Slots) -> None:
    source, target, weight, transposed = node.inputs[0], node.outputs[0], slots.weight, slots.transposed
    size, kernel = tracer.shape(source), tracer.shape(node.inputs[weight])
    if size is None or kernel is None or not tracer.is_fixed(node.inputs[weight]):
        tracer.pin_inputs(node, f"the weight of {named(node)} is computed, or its shapes are not known")
        return
    groups = int(node.attrs.get("group", 1))
    rank = len(size)
    over, read = _split(tracer, node, source, 1)
    if read is not None and groups > 1 and size[1] == groups and kernel[1] == 1:
        _depthwise(tracer, node, read, over, slots)
        return
    if read is not None:
        axis, blocks = (0, 1) if transposed else (1, groups)
        tracer.read(node, weight, axis, read, blocks)
        if groups > 1:
            tracer.balance(node, "reads", read, groups)
    bias = slots.bias if _given(node, slots.bias) else None
    made = tracer.write(node, weight, 1 if transposed else 0, bias, groups if transposed else 1)
    if made is not None:
        _scale(tracer, node, slots.scales, made)
    if made is not None and groups > 1:
        if len(made) == groups:
            tracer.trace.labels.pin(made, f"{named(node)} writes one channel for each of its groups")
        else:
            tracer.balance(node, "writes", made, groups)
    written = [] if made is None else [along(made, 1, rank)]
    zero = not over or tracer.is_zero(source)
    tracer.put(target, [*over, *written], zero=zero and (not over or bias is None))


def _given(node: gs.Node, slot: int) -> bool:
    return 0 <= slot < len(node.inputs) and not node.inputs[slot].is_empty()


def _scale(tracer: Tracer, node: gs.Node, slots: Sequence[int], labels: Field) -> None:
    """Let scales and zero points of filters go with them, where each has its own."""
    for slot in slots:
        if not _given(node, slot):
            continue
        size = tracer.shape(node.inputs[slot])
        if size not in {(), (1,)} and (size != labels.shape or not tracer.assign(node, slot, labels, "writes")):
            tracer.trace.labels.pin(labels, f"a scale of {named(node)} is computed")


def _depthwise(tracer: Tracer, node: gs.Node, read: Field, over: Sequence[Field], slots: _Slots) -> None:
    """One filter (or a few) for each channel: the channels pass, and the filters follow them."""
    kernel = tracer.shape(node.inputs[slots.weight])
    assert kernel is not None
    labels = np.repeat(read, 1 if slots.transposed else kernel[0] // len(read))
    fixed = f"the weight of {named(node)} is computed"
    if not tracer.assign(node, slots.weight, along(labels, 0, len(kernel)), "follows"):
        tracer.trace.labels.pin(labels, fixed)
    has_bias = _given(node, slots.bias)
    if has_bias and not tracer.assign(node, slots.bias, labels, "follows"):
        tracer.trace.labels.pin(labels, fixed)
    _scale(tracer, node, slots.scales, labels)
    zero = not over or (tracer.is_zero(node.inputs[0]) and not has_bias)
    tracer.put(node.outputs[0], [*over, along(labels, 1, len(kernel))], zero=zero)


def _split(tracer: Tracer, node: gs.Node, source: gs.Tensor, axis: int) -> tuple[list[Field], Field | None]:
    """What passes over a layer that reads one axis of its input and slides along all others but the first."""
    vector: Field | None = None
    over: list[Field] = []
    why = f"{named(node)} reads them all together"
    for each in tracer.fields(source):
        if each.shape[axis] > 1:
            found = tracer.vector(each, axis, why)
            if vector is not None:
                tracer.couple(vector, found, why)
            vector = found
        else:
            rest = tracer.without(each, range(1, each.ndim), why)
            if rest is not None:
                over.append(rest)
    return over, vector


def matmul(tracer: Tracer, node: gs.Node) -> None:
    """MatMul, of which either side may be a constant weight, or both computed."""
    fields, zero = _product(tracer, node, (False, False))
    tracer.put(node.outputs[0], fields, zero=zero)


def gemm(tracer: Tracer, node: gs.Node) -> None:
    """Gemm: a product of two matrices, each transposed or not, and a third added to it."""
    fields, zero = _product(tracer, node, (bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0))))
    shape = tracer.shape(node.outputs[0])
    if fields and shape is not None and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        fields, zero = add_fixed(tracer, node, 2, fields, zero, shape)
    tracer.put(node.outputs[0], fields, zero=zero)


@dataclass
class _Side:
    """One factor of a product, as a stack of matrices: rows (or columns) pass, the other axis is summed over.

    Attributes:
        slot: which input it is.
        shape: its shape, with as many axes as the product.
        inner: the axis summed over.
        own: axis of the tensor itself that is summed over, and the one that passes (None: it is a vector).
        fixed: whether it is a weight.
        summed: labels along the inner axis.
        over: fields that pass.
    """

    slot: int
    shape: tuple[int, ...]
    inner: int
    own: tuple[int, int | None]
    fixed: bool
    summed: Field | None = None
    over: tuple[Field, ...] = ()


def _product(tracer: Tracer, node: gs.Node, flips: tuple[bool, bool]) -> tuple[list[Field], bool]:
    shapes = [tracer.shape(node.inputs[slot]) for slot in (0, 1)]
    target = tracer.shape(node.outputs[0])
    if shapes[0] is None or shapes[1] is None or target is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return [], False
    rank = max(2, len(shapes[0]), len(shapes[1]))
    left = _side(tracer, node, 0, shapes[0], rank, flipped=flips[0])
    right = _side(tracer, node, 1, shapes[1], rank, flipped=flips[1])
    for weight, other in ((left, right), (right, left)):
        if weight.fixed and other.summed is not None:
            tracer.read(node, weight.slot, weight.own[0], other.summed)
    if not left.fixed and not right.fixed:
        _contract(tracer, node, left, right)
    joints = joined(tracer, node, [_passing(tracer, node, left), _passing(tracer, node, right)])
    fields = [joint.labels for joint in joints]
    zero = all(tracer.is_zero(node.inputs[side.slot]) for side in (left, right) if side.over)
    for weight in (left, right):
        if weight.fixed and not (left.fixed and right.fixed) and weight.own[1] is not None:
            made = tracer.write(node, weight.slot, weight.own[1], None)
            if made is not None:
                fields.append(along(made, rank - 1 if weight.inner == rank - 2 else rank - 2, rank))
    dropped = [rank - 2] * (len(shapes[0]) == 1) + [rank - 1] * (len(shapes[1]) == 1)
    kept = [axis for axis in range(rank) if axis not in dropped]
    return [each.reshape([each.shape[axis] for axis in kept]) for each in fields], zero


def _side(tracer: Tracer, node: gs.Node, slot: int, shape: tuple[int, ...], rank: int, *, flipped: bool) -> _Side:
    tensor = node.inputs[slot]
    last = len(shape) - 1
    inner = rank - 1 if slot == 0 else rank - 2
    matrix = shape
    own: tuple[int, int | None] = (last, last - 1)
    if len(shape) == 1:
        matrix, own = ((1, shape[0]) if slot == 0 else (shape[0], 1)), (0, None)
    elif flipped:
        matrix = (*shape[:-2], shape[-1], shape[-2])
    if len(shape) > 1 and (slot == 0) == flipped:
        own = (last - 1, last)
    side = _Side(slot, (1,) * (rank - len(matrix)) + matrix, inner, own, tracer.is_fixed(tensor))
    if side.fixed:
        return side
    why = f"{named(node)} sums over them"
    for field in tracer.fields(tensor):
        each = (
            field.reshape(1, -1)
            if field.ndim == 1 and slot == 0
            else field.reshape(-1, 1)
            if field.ndim == 1
            else field
        )
        each = with_rank(np.swapaxes(each, -1, -2) if flipped else each, rank)
        if each.shape[inner] > 1:
            found = tracer.vector(each, inner, why)
            if side.summed is not None:
                tracer.couple(side.summed, found, why)
            side.summed = found
        else:
            side.over = (*side.over, each)
    return side


def _contract(tracer: Tracer, node: gs.Node, left: _Side, right: _Side) -> None:
    """Sum over labels of two computed factors: exact where one of them is zero at the channels that are cut."""
    if left.summed is None and right.summed is None:
        return
    why = f"{named(node)} sums over channels that cannot be cut"
    one, other = (np.zeros(1, np.int64) if side.summed is None else side.summed for side in (left, right))
    if not tracer.is_zero(node.inputs[0]) and not tracer.is_zero(node.inputs[1]):
        other, why = np.zeros(1, np.int64), f"{named(node)} sums over them, and they are not zero once zeroed"
    tracer.couple(one, other, why)


def _passing(tracer: Tracer, node: gs.Node, side: _Side) -> Operand:
    """What of a factor passes: all but the axis summed over."""
    shape = tuple(1 if axis == side.inner else size for axis, size in enumerate(side.shape))
    return Operand(side.slot, shape, side.over, tracer.is_zero(node.inputs[side.slot]))
