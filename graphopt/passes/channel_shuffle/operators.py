"""What a permutation of channels does at each operator: to its other tensors and to its parameters.

Seen from one slot of a node, a rule says either nothing (``None``: the operator does
not commute with permutations there, so the order of channels must stay) or a ``Passage``:

- ``slots``: other tensors of the node whose channels must then have the same order;
- ``edits``: its constants, and the axis along which they must be permuted;
- ``block``: the permutation may not lead out of blocks of so many channels (grouped convolutions).

A Conv that reads the slot has no slots: its input channels are summed over, so any order will do if its weights follow.
One that writes it likewise. Elementwise operators, pooling, normalization and depthwise convolution hand the order on.
"""

from __future__ import annotations

from collections.abc import Callable

from graphopt.graph import is_constant, is_op, values_of
from graphopt.passes.channel_shuffle.axis_rules import along_others, pad, reduce, reshape, resize, transpose
from graphopt.passes.channel_shuffle.linear_rules import conv, gemm, matmul
from graphopt.passes.channel_shuffle.passages import Edit, Passage, Slot, View, extra_outputs, is_scalar, used


def passage(view: View) -> Passage | None:
    """How a permutation of the slot's channels passes the node; None: it does not."""
    node = view.node
    if not is_op(node, node.op) or view.known.opset < 7:
        return None
    if not view.written and sum(tensor is view.slot.tensor for tensor in node.inputs) > 1 and node.op not in _MANY:
        return None
    rule = RULES.get(node.op)
    return None if rule is None else rule(view)


def _same(view: View) -> Passage | None:
    """One input, one output, element by element; further inputs must be scalars or constants of no channel."""
    if view.place or extra_outputs(view.node):
        return None
    if view.node.op == "Dropout" and used(view.node, 2) and values_of(view.node.inputs[2]) != False:  # noqa: E712
        return None
    if any(
        used(view.node, number) and not is_scalar(view.node.inputs[number])
        for number in range(1, len(view.node.inputs))
    ):
        return None
    return Passage((view.other(view.slot.axis),))


def _broadcast(view: View) -> Passage | None:
    """Element by element with broadcasting: axes are counted from the last."""
    output = view.node.outputs[0]
    rank = view.rank(output)
    own = view.rank(view.slot.tensor)
    if rank is None or own is None or extra_outputs(view.node):
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
    if view.slot.axis != 1 or view.place or extra_outputs(view.node):
        return None
    return Passage((view.other(1),))


def _normalization(view: View) -> Passage | None:
    """BatchNormalization and InstanceNormalization: parameters follow the channels."""
    node = view.node
    if view.slot.axis != 1 or view.place or extra_outputs(node) or node.attrs.get("training_mode", 0):
        return None
    if node.op == "BatchNormalization" and view.known.opset < 9 and not node.attrs.get("spatial", 1):
        return None
    count = 5 if node.op == "BatchNormalization" else 3
    if len(node.inputs) != count or any(
        not is_constant(tensor) or view.known.shape(tensor) != (view.length,) for tensor in node.inputs[1:]
    ):
        return None
    return Passage((view.other(1),), tuple(Edit(node, number, 0, view.slot.inner) for number in range(1, count)))


def _shape(view: View) -> Passage | None:
    return None if view.written else Passage()


_UNARY = frozenset(
    """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log LogSoftmax Mish Neg Not Reciprocal Relu Round Selu Shrink
    Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu""".split()  # noqa: SIM905
)
_BINARY = frozenset(
    """Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or
    Pow PRelu Sub Sum Where Xor""".split()  # noqa: SIM905
)
_REDUCE = frozenset(
    """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare""".split()  # noqa: SIM905
)
_MANY = _BINARY | {"Concat"}

RULES: dict[str, Callable[[View], Passage | None]] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_BINARY, _broadcast),
    **dict.fromkeys(_REDUCE, reduce),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"), _channels_second),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalization),
    **dict.fromkeys(("Conv", "ConvTranspose"), conv),
    **dict.fromkeys(("Concat", "Gather", "Slice", "Split"), along_others),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("Shape", "Size"), _shape),
    "Gemm": gemm,
    "MatMul": matmul,
    "Pad": pad,
    "Transpose": transpose,
}
