"""How each operator follows a permutation of its axes.

A rule is asked: if input ``slot`` (output ``~slot`` where negative) came permuted by ``perm``, what would the node be?
It answers with a ``Move``, or None where the node cannot do without the order it has. Operators without a rule never
can. Nothing is edited here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx
import onnx_graphsurgeon as gs

from graphopt.passes.layout.axes import AXES
from graphopt.passes.layout.moves import Knowledge, Move, has_input, is_movable_weight
from graphopt.passes.layout.permutations import Perm, identity
from graphopt.passes.layout.shaping import SHAPING

Rule: TypeAlias = Callable[[gs.Node, int, Perm, Knowledge], Move | None]


def rule_of(node: gs.Node) -> Rule | None:
    """The rule for a node; None where it holds on to its axes."""
    if node.domain not in {None, "", "ai.onnx"}:
        return None
    return RULES.get(node.op)


def _unary(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """One tensor in, one out, value by value; further inputs are scalars."""
    if slot not in {0, -1} or any(not tensor.is_empty() for tensor in node.outputs[1:]):
        return None
    return Move((perm, *(None for _ in node.inputs[1:])), (perm,))


def _dropout(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    return None if has_input(node, 2) else _unary(node, slot, perm, known)


def _broadcasting(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Value by value over several inputs that are broadcast against each other."""
    ranks = [known.rank(tensor) for tensor in node.inputs]
    rank = len(perm)
    if len(node.outputs) != 1 or any(other is None or other > rank for other in ranks):
        return None
    if slot >= 0 and ranks[slot] != rank:
        return None
    if slot < 0 and max((other for other in ranks if other is not None), default=0) != rank:
        return None
    inputs: list[Perm | None] = []
    weights: dict[int, tuple[int, Perm]] = {}
    for place, tensor in enumerate(node.inputs):
        own = ranks[place]
        assert own is not None
        if place == slot or (own == rank and not isinstance(tensor, gs.Constant)):
            inputs.append(perm)
            continue
        inputs.append(None)
        # The axes of a tensor of lower rank are the last ones.
        if perm[rank - own :] == identity(rank)[rank - own :] or known.is_single(tensor):
            continue
        if not is_movable_weight(tensor):
            return None
        weights[place] = (rank, perm)
    return Move(tuple(inputs), (perm,), weights=weights)


def _prelu(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    return _broadcasting(node, slot, perm, known) if slot in {0, -1} else None


def _matmul(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    """Rows of a matrix product with one matrix, and its batch axes, may change places."""
    if len(node.inputs) != 2:
        return None
    ranks, rank = [known.rank(tensor) for tensor in node.inputs], len(perm)
    kept = identity(rank)
    if ranks == [2, 2] and rank == 2 and slot >= 0:
        if known.dtype(node.outputs[0]) not in _GEMM_TYPES:
            return None
        inputs = (perm, None) if slot == 0 else (None, perm)
        return Move(inputs, (kept,), op="Gemm", attrs={"transA" if slot == 0 else "transB": 1})
    if ranks == [rank, 2] and rank > 2 and slot != 1 and perm[-1:] == kept[-1:]:
        return None if isinstance(node.inputs[0], gs.Constant) else Move((perm, None), (perm,))
    if ranks == [rank, rank] and rank > 2 and perm[-2:] == kept[-2:]:
        if slot < 0 and all(isinstance(tensor, gs.Constant) for tensor in node.inputs):
            return None
        constants = [isinstance(tensor, gs.Constant) for tensor in node.inputs]
        weights = {place: (rank, perm) for place, fixed in enumerate(constants) if fixed}
        if not all(is_movable_weight(node.inputs[place]) for place in weights):
            return None
        return Move(tuple(None if fixed else perm for fixed in constants), (perm,), weights=weights)
    return None


def _gemm(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    if slot not in {0, 1} or perm != (1, 0):
        return None
    name = "transA" if slot == 0 else "transB"
    inputs = tuple(perm if place == slot else None for place in range(len(node.inputs)))
    return Move(inputs, ((0, 1),), attrs={name: 0 if node.attrs.get(name, 0) else 1})


def _shape(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    if slot != 0 or "start" in node.attrs or "end" in node.attrs:
        return None
    return Move((perm,), ((0,),), gather=perm)


def _size(node: gs.Node, slot: int, perm: Perm, known: Knowledge) -> Move | None:
    return Move((perm,), ((),)) if slot == 0 else None


_T = onnx.TensorProto
_GEMM_TYPES = frozenset({_T.FLOAT, _T.DOUBLE})
_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
""".split()  # noqa: SIM905 (a page of lines otherwise)
_BROADCASTING = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min
    Mod Mul Or Pow Sub Sum Where Xor
""".split()  # noqa: SIM905 (a page of lines otherwise)

ELEMENTWISE = frozenset({*_UNARY, *_BROADCASTING, "Dropout", "PRelu"})

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BROADCASTING, _broadcasting),
    **AXES,
    **SHAPING,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "PRelu": _prelu,
    "Shape": _shape,
    "Size": _size,
}
