"""What a permutation of channels does at each operator: to its other tensors and to its parameters.

A *slot* is an axis of a tensor whose size is channels x ``inner``: channels in order, ``inner`` entries each (a Flatten
leaves height x width of them). Seen from one slot of a node, a rule says either nothing (``None``: the operator does
not commute with permutations there, so the order of channels must stay) or a ``Passage``:

- ``slots``: other tensors of the node whose channels must then have the same order;
- ``edits``: its constants, and the axis along which they must be permuted;
- ``block``: the permutation may not lead out of blocks of so many channels (grouped convolutions).

A Conv that reads the slot has no slots: its input channels are summed over, so any order will do if its weights follow.
One that writes it likewise. Elementwise operators, pooling, normalization and depthwise convolution hand the order on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import is_constant, is_op, shape_of, values_of
from graphopt.passes.channel_shuffle.layout import ONE, Size
from graphopt.passes.channel_shuffle.nodes import constants, slices
from graphopt.passes.channel_shuffle.shapes import Known


@dataclass(frozen=True)
class Slot:
    """An axis of a tensor that holds channels, ``inner`` entries for each."""

    tensor: gs.Tensor
    axis: int
    inner: int = 1


@dataclass(frozen=True)
class Edit:
    """A constant input that is to be permuted along an axis, ``inner`` entries for each channel.

    ``groups`` above 1: the axis holds the channels of one group, and axis 0 tells which group.
    """

    node: gs.Node
    input: int
    axis: int
    inner: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Passage:
    """How a permutation passes a node; see the module."""

    slots: tuple[Slot, ...] = ()
    edits: tuple[Edit, ...] = ()
    block: int | None = None


@dataclass(frozen=True)
class View:
    """A node seen from one of its slots.

    Attributes:
        node: the node.
        slot: where the channels are.
        written: whether the node writes the tensor (else it reads it).
        place: number of the input or output.
        channels: number of channels.
        known: opset and types.
    """

    node: gs.Node
    slot: Slot
    written: bool
    place: int
    channels: int
    known: Known

    @property
    def length(self) -> int:
        """Size of the axis."""
        return self.channels * self.slot.inner

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Number of axes, None where unknown."""
        shape = self.known.shape(tensor)
        return None if shape is None else len(shape)

    def other(self, axis: int, inner: int | None = None) -> Slot:
        """The slot on the other side of a node with one data input and one output."""
        tensor = self.node.inputs[0] if self.written else self.node.outputs[0]
        return Slot(tensor, axis, self.slot.inner if inner is None else inner)


def passage(view: View) -> Passage | None:
    """How a permutation of the slot's channels passes the node; None: it does not."""
    node = view.node
    if not is_op(node, node.op) or view.known.opset < 7:
        return None
    if not view.written and sum(tensor is view.slot.tensor for tensor in node.inputs) > 1 and node.op not in _MANY:
        return None
    rule = RULES.get(node.op)
    return None if rule is None else rule(view)


def _used(node: gs.Node, number: int) -> bool:
    return len(node.inputs) > number and not node.inputs[number].is_empty()


def _extra_outputs(node: gs.Node) -> bool:
    return any(not tensor.is_empty() for tensor in node.outputs[1:])


def _same(view: View) -> Passage | None:
    """One input, one output, element by element; further inputs must be scalars or constants of no channel."""
    if view.place or _extra_outputs(view.node):
        return None
    if view.node.op == "Dropout" and _used(view.node, 2) and values_of(view.node.inputs[2]) != False:  # noqa: E712
        return None
    if any(
        _used(view.node, number) and not _scalar(view.node.inputs[number]) for number in range(1, len(view.node.inputs))
    ):
        return None
    return Passage((view.other(view.slot.axis),))


def _scalar(tensor: gs.Tensor) -> bool:
    shape = shape_of(tensor) if isinstance(tensor, gs.Constant) else None
    if shape is None:
        values = values_of(tensor)
        shape = None if values is None else values.shape
    return shape is not None and all(size == 1 for size in shape)


def _broadcast(view: View) -> Passage | None:
    """Element by element with broadcasting: axes are counted from the last."""
    output = view.node.outputs[0]
    rank = view.rank(output)
    own = view.rank(view.slot.tensor)
    if rank is None or own is None or _extra_outputs(view.node):
        return None
    back = own - view.slot.axis
    slots, edits = [], []
    if not view.written:
        slots.append(Slot(output, rank - back, view.slot.inner))
    for number, tensor in enumerate(view.node.inputs):
        if tensor.is_empty():
            return None
        sizes = view.known.shape(tensor)
        if sizes is None:
            return None
        if len(sizes) < back or sizes[-back] == 1:
            continue
        if sizes[-back] != view.length:
            return None
        if is_constant(tensor):
            edits.append(Edit(view.node, number, len(sizes) - back, view.slot.inner))
        elif not (tensor is view.slot.tensor and not view.written):
            slots.append(Slot(tensor, len(sizes) - back, view.slot.inner))
    return Passage(tuple(slots), tuple(edits))


def _channels_second(view: View) -> Passage | None:
    """Pooling and its kin: axis 1 is handed on."""
    if view.slot.axis != 1 or view.place or _extra_outputs(view.node):
        return None
    return Passage((view.other(1),))


def _normalization(view: View) -> Passage | None:
    """BatchNormalization and InstanceNormalization: parameters follow the channels."""
    node = view.node
    if view.slot.axis != 1 or view.place or _extra_outputs(node) or node.attrs.get("training_mode", 0):
        return None
    if node.op == "BatchNormalization" and view.known.opset < 9 and not node.attrs.get("spatial", 1):
        return None
    count = 5 if node.op == "BatchNormalization" else 3
    if len(node.inputs) != count or any(
        not is_constant(tensor) or view.known.shape(tensor) != (view.length,) for tensor in node.inputs[1:]
    ):
        return None
    return Passage((view.other(1),), tuple(Edit(node, number, 0, view.slot.inner) for number in range(1, count)))


def _conv(view: View) -> Passage | None:
    node = view.node
    sizes = view.known.shape(node.inputs[1]) if len(node.inputs) > 1 and is_constant(node.inputs[1]) else None
    if view.slot.axis != 1 or view.place or sizes is None or len(sizes) < 3:
        return None
    groups = int(node.attrs.get("group", 1))
    first, second = sizes[0], sizes[1]
    if not isinstance(first, int) or not isinstance(second, int) or first % groups:
        return None
    transposed = node.op == "ConvTranspose"
    inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
    if view.length != (outputs if view.written else inputs) or not _bias_fits(view, outputs):
        return None
    biased = _used(node, 2)
    inner = view.slot.inner
    times = outputs // inputs
    if groups == inputs > 1 and (not transposed or times == 1) and not (view.written and inner % times):
        # Depthwise: each input channel has its own outputs.
        wide = inner if view.written else inner * times
        edits = [Edit(node, 1, 0, wide)] + ([Edit(node, 2, 0, wide)] if biased else [])
        return Passage((view.other(1, wide // times if view.written else wide),), tuple(edits))
    block = view.length // groups
    if block % inner:
        return None
    if view.written:
        edits = [Edit(node, 1, 1, inner, groups) if transposed else Edit(node, 1, 0, inner)]
        edits += [Edit(node, 2, 0, inner)] if biased else []
    else:
        edits = [Edit(node, 1, 0, inner) if transposed else Edit(node, 1, 1, inner, groups)]
    return Passage((), tuple(edits), None if groups == 1 else block // inner)


def _bias_fits(view: View, outputs: int) -> bool:
    node = view.node
    return not _used(node, 2) or (is_constant(node.inputs[2]) and view.known.shape(node.inputs[2]) == (outputs,))


def _matmul(view: View) -> Passage | None:
    """A product with a constant matrix: the last axis is summed over or new, the others are rows."""
    node = view.node
    if view.place or not is_constant(node.inputs[1]) or len(view.known.shape(node.inputs[1]) or ()) != 2:
        return None
    rank = view.rank(view.slot.tensor)
    if rank is None or rank < 2:
        return None
    if view.slot.axis < rank - 1:
        return Passage((view.other(view.slot.axis),))
    return Passage((), (Edit(node, 1, 1 if view.written else 0, view.slot.inner),))


def _gemm(view: View) -> Passage | None:
    node = view.node
    if view.place or view.slot.axis != 1 or node.attrs.get("transA", 0) or not is_constant(node.inputs[1]):
        return None
    swapped = bool(node.attrs.get("transB", 0))
    inner = view.slot.inner
    if not view.written:
        return Passage((), (Edit(node, 1, 1 if swapped else 0, inner),))
    edits = [Edit(node, 1, 0 if swapped else 1, inner)]
    if _used(node, 2):
        sizes = view.known.shape(node.inputs[2])
        if not is_constant(node.inputs[2]) or sizes is None:
            return None
        if sizes and sizes[-1] != 1:
            if sizes[-1] != view.length:
                return None
            edits.append(Edit(node, 2, len(sizes) - 1, inner))
    return Passage((), tuple(edits))


def _reduce(view: View) -> Passage | None:
    """A reduction over other axes hands the order on; one over the channels takes any."""
    node = view.node
    since = 13 if node.op == "ReduceSum" else 18
    rank = view.rank(node.inputs[0])
    if view.place or rank is None:
        return None
    given = _used(node, 1) if view.known.opset >= since else "axes" in node.attrs
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


def _pad(view: View) -> Passage | None:
    rank = view.rank(view.slot.tensor)
    pads = constants(view.node, 1, "pads", 11, view.known.opset)
    if view.place or pads is None or rank is None or (_used(view.node, 2) and not _scalar(view.node.inputs[2])):
        return None
    axes = list(range(rank))
    if _used(view.node, 3):
        given = values_of(view.node.inputs[3])
        if given is None:
            return None
        axes = [int(axis) % rank for axis in given]
    if len(pads) != 2 * len(axes):
        return None
    touched = any(axis == view.slot.axis and (pads[at] or pads[at + len(axes)]) for at, axis in enumerate(axes))
    return None if touched else Passage((view.other(view.slot.axis),))


def _resize(view: View) -> Passage | None:
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
        values = values_of(node.inputs[number]) if _used(node, number) else None
        scales = None if values is None or not values.size else values.tolist()
    if scales is not None and len(scales) == rank:
        return Passage((view.other(view.slot.axis),)) if scales[view.slot.axis] == 1 else None
    sizes = values_of(node.inputs[3]) if _used(node, 3) else None
    if sizes is None or sizes.size != rank or "keep_aspect_ratio_policy" in node.attrs:
        return None
    return Passage((view.other(view.slot.axis),)) if sizes[view.slot.axis] == view.length else None


def _transpose(view: View) -> Passage | None:
    rank = view.rank(view.slot.tensor)
    if rank is None:
        return None
    order = list(view.node.attrs.get("perm") or range(rank)[::-1])
    return Passage((view.other(order[view.slot.axis] if view.written else order.index(view.slot.axis)),))


def _reshape(view: View) -> Passage | None:
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


def _along_others(view: View) -> Passage | None:
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


def _shape(view: View) -> Passage | None:
    return None if view.written else Passage()


_UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
_BINARY = [
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
_REDUCE = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]
_MANY = frozenset({*_BINARY, "Concat"})

RULES: dict[str, Callable[[View], Passage | None]] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_BINARY, _broadcast),
    **dict.fromkeys(_REDUCE, _reduce),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"), _channels_second),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalization),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Concat", "Gather", "Slice", "Split"), _along_others),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Shape", "Size"), _shape),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Transpose": _transpose,
}
