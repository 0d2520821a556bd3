"""What a node computes, reads or converts for nothing, and can be spared without going itself.

1. *Results nobody reads* (the mask of a Dropout, the indices of a MaxPool, the states of an LSTM): not asked for.
2. *Empty pieces of a Concat*: constants that are of size 0 along its axis are not read.
3. *Cast of a Cast* that lost nothing: the outer one reads what the inner one reads.
4. *Biases of zeros* of Conv, ConvTranspose and Gemm (from opset 11): not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Index, dtype_of, is_op, onnx_dtype, set_input, shape_of, sole_producer
from graphopt.passes.affine.uniform import uniform_of
from graphopt.passes.no_ops.knowledge import Knowledge, holds_only

# From which opset on each operator's further outputs may be left out without changing the others. BatchNormalization
# is none of them: it tells training by them.
_SPARED = {"Dropout": 7, "MaxPool": 8, "LSTM": 7, "GRU": 7, "RNN": 7, "LayerNormalization": 17, "Unique": 11}

_T = onnx.TensorProto
_UNSIGNED: dict[int, int] = {_T.BOOL: 1, _T.UINT8: 8, _T.UINT16: 16, _T.UINT32: 32, _T.UINT64: 64}
_SIGNED: dict[int, int] = {_T.INT8: 8, _T.INT16: 16, _T.INT32: 32, _T.INT64: 64}
# Significant bits.
_FLOATS: dict[int, int] = {_T.FLOAT16: 11, _T.BFLOAT16: 8, _T.FLOAT: 24, _T.DOUBLE: 53}


def find_trims(graphs: Sequence[gs.Graph], known: Knowledge) -> list[tuple[str, Callable[[Index], None]]]:
    """What can be spared: a kind and the edit, to be made in this order."""
    shown = {id(tensor) for graph in graphs for tensor in graph.outputs}
    found: list[tuple[str, Callable[[Index], None]]] = []
    for graph in graphs:
        for node in graph.nodes:
            if node.op not in _CANDIDATES or node.domain:
                continue
            if node.op == "Concat":
                pieces = _needed_pieces(node)
                if len(pieces) < len(node.inputs):
                    found.append(("empty_pieces", _reading_only(node, pieces)))
            elif node.op in _BIASED:
                if len(node.inputs) > 2 and _adds_zeros(node, known):
                    found.append(("zero_biases", _reading_only(node, (0, 1))))
            elif node.op == "Cast":
                if _before_widening(node, known) is not None:
                    found.append(("casts", _reading_past_casts(node, known)))
            elif len(node.outputs) > 1 and known.opset >= _SPARED[node.op]:
                unread = [
                    slot
                    for slot, tensor in enumerate(node.outputs)
                    if not tensor.is_empty() and not tensor.outputs and id(tensor) not in shown
                ]
                if node.op not in {"LSTM", "GRU", "RNN"}:
                    unread = [slot for slot in unread if slot > 0]
                if (unread and len(unread) < len(node.outputs)) or node.outputs[-1].is_empty():
                    found.append(("unread_results", _sparing(node, unread)))
    return found


# From which opset on each operator may come without a bias.
_BIASED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 11}
_CANDIDATES = frozenset({"Cast", "Concat", *_SPARED, *_BIASED})


def _sparing(node: gs.Node, unread: Sequence[int]) -> Callable[[Index], None]:
    def edit(index: Index) -> None:
        for slot in unread:
            list.clear(node.outputs[slot].inputs)
            empty = gs.Variable.empty()
            list.__setitem__(node.outputs, slot, empty)
            list.append(empty.inputs, node)
        while len(node.outputs) > 1 and node.outputs[-1].is_empty():
            list.pop(node.outputs)

    return edit


def _needed_pieces(node: gs.Node) -> list[int]:
    """Which inputs of a Concat are not constants of size 0 along its axis; at least one."""
    axis = node.attrs.get("axis")
    needed = []
    for slot, tensor in enumerate(node.inputs):
        shape = shape_of(tensor) if isinstance(tensor, gs.Constant) else None
        # The other pieces have this rank too, so an axis counted from the end means the same in all.
        if shape is None or not isinstance(axis, int) or not -len(shape) <= axis < len(shape) or shape[axis] != 0:
            needed.append(slot)
    return needed or [0]


def _adds_zeros(node: gs.Node, known: Knowledge) -> bool:
    """Whether the bias of a linear node is a constant of zeros, stored or generated."""
    bias = node.inputs[2]
    if bias.is_empty() or known.opset < _BIASED[node.op] or not math.isfinite(node.attrs.get("beta", 1.0)):
        return False
    if isinstance(bias, gs.Constant):
        dtype = dtype_of(bias)
        return dtype is not None and onnx_dtype(dtype) in _FLOATS and holds_only(bias, 0)
    values = uniform_of(bias)
    return values is not None and onnx_dtype(values.dtype) in _FLOATS and values.size > 0 and not values.flat[0]


def _reading_only(node: gs.Node, slots: Sequence[int]) -> Callable[[Index], None]:
    def edit(index: Index) -> None:
        kept = [node.inputs[slot] for slot in slots]
        for slot, tensor in enumerate(kept):
            set_input(index, node, slot, tensor)
        for slot in range(len(kept), len(node.inputs)):
            # Reading a placeholder takes the node out of the readers of what it read.
            set_input(index, node, slot, gs.Variable.empty())
        list.__delitem__(node.inputs, slice(len(kept), None))

    return edit


def _reading_past_casts(node: gs.Node, known: Knowledge) -> Callable[[Index], None]:
    def edit(index: Index) -> None:
        while (source := _before_widening(node, known)) is not None:
            set_input(index, node, 0, source)

    return edit


def _before_widening(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """What a Cast may read instead of the result of another Cast."""
    inner = sole_producer(node.inputs[0])
    if inner is None or not is_op(inner, "Cast") or known.opset < 9:
        return None
    last, middle = node.attrs.get("to"), inner.attrs.get("to")
    if last is None or middle is None:
        return None
    first = known.dtype(inner.inputs[0])
    return inner.inputs[0] if _same_directly(first, onnx_dtype(middle), onnx_dtype(last)) else None


def _same_directly(first: int, middle: int, last: int) -> bool:
    """Whether casting ``first`` to ``middle`` to ``last`` gives in every case what one cast gives."""
    if not _holds(middle, first) or last not in {*_UNSIGNED, *_SIGNED, *_FLOATS}:
        return False
    if _holds(last, first):
        return True
    if last == _T.BOOL:
        return True
    if last in _FLOATS:
        # Runtimes may round twice on the way from a wide integer to a half.
        return last in {_T.FLOAT, _T.DOUBLE} or first in _FLOATS or _bits(first) <= _FLOATS[last]
    # Integers wrap around alike; a float out of range becomes anything.
    return first not in _FLOATS and middle not in _FLOATS


def _holds(wide: int, narrow: int) -> bool:
    """Whether one type has every value of the other."""
    if wide == narrow:
        return wide in {*_UNSIGNED, *_SIGNED, *_FLOATS}
    if narrow in _FLOATS:
        return wide in {_T.FLOAT, _T.DOUBLE} and _FLOATS[narrow] < _FLOATS[wide]
    if narrow not in _UNSIGNED and narrow not in _SIGNED:
        return False
    if wide in _FLOATS:
        return _bits(narrow) <= _FLOATS[wide]
    if wide in _SIGNED:
        return _SIGNED[wide] > _bits(narrow)
    return narrow in _UNSIGNED and _UNSIGNED.get(wide, 0) > _UNSIGNED[narrow]


def _bits(dtype: int) -> int:
    """Bits of an integer type's magnitude."""
    return _UNSIGNED[dtype] if dtype in _UNSIGNED else _SIGNED[dtype] - 1
