"""Sizes of tensors as products: a number times open sizes, so that ``[-1, 64, 49]`` of ``[N, 8, 7, 8, 7]`` is ``N``.

Shape inference gives every size that it cannot work out a symbol of its own. What a Reshape with -1, a Flatten or a
broadcast makes of open sizes is worked out here, symbol by symbol; two sizes are equal where their products are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, is_constant, is_op, shape_of, values_of

# A factor, and the symbols that multiply it, sorted.
Size: TypeAlias = tuple[int, tuple[str, ...]]
Sizes: TypeAlias = tuple[Size, ...]

BROADCASTING = frozenset(
    {
        "Add",
        "And",
        "BitShift",
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
        "Sub",
        "Sum",
        "Where",
        "Xor",
    }
)
ONE: Size = (1, ())


def fixed(number: int) -> Size:
    """The size that is a number."""
    return (number, ())


def product(sizes: Iterable[Size]) -> Size:
    """The number of elements of so many axes."""
    factor = 1
    symbols: list[str] = []
    for number, names in sizes:
        factor *= number
        symbols += names
    return (factor, tuple(sorted(symbols))) if factor else (0, ())


def quotient(whole: Size, part: Size) -> Size | None:
    """The size that times ``part`` is ``whole``, where every open size cancels or stays; None if there is none."""
    if part[0] == 0 or whole[0] % part[0]:
        return None
    left = list(whole[1])
    for name in part[1]:
        if name not in left:
            return None
        left.remove(name)
    return (whole[0] // part[0], tuple(left))


@dataclass
class KnownSizes:
    """The sizes of the tensors of one graph.

    Attributes:
        opset: of the default domain.
        types: inferred types by tensor name, every open size of an input with a symbol of its own.
        solved: symbols that stand for products of others.
        made: sizes of tensors made since inference ran.
    """

    opset: int
    types: Mapping[str, TensorType]
    solved: dict[str, Size] = field(default_factory=dict)
    made: dict[str, Sizes] = field(default_factory=dict)
    _found: dict[str, Sizes | None] = field(default_factory=dict)

    def of(self, tensor: gs.Tensor) -> Sizes | None:
        """The sizes of a tensor; None where its rank is unknown."""
        name = tensor.name
        if name in self.made:
            return self.made[name]
        if name not in self._found:
            self._found[name] = self._read(tensor)
        return self._found[name]

    def _read(self, tensor: gs.Tensor) -> Sizes | None:
        known = self.types.get(tensor.name)
        shape = known.shape if known is not None else shape_of(tensor) if isinstance(tensor, gs.Constant) else None
        if shape is None:
            return None
        return tuple(
            (size, ()) if isinstance(size, int) else self.named(f"{tensor.name}@{axis}" if size is None else size)
            for axis, size in enumerate(shape)
        )

    def named(self, symbol: str) -> Size:
        """The size of a symbol."""
        return self.solved.get(symbol, (1, (symbol,)))

    def solve(self, nodes: Iterable[gs.Node]) -> None:
        """Work out symbols along the nodes, each after its producers."""
        for node in nodes:
            rule = _RULES.get(node.op)
            if rule is None or len(node.outputs) != 1 or not is_op(node, node.op):
                continue
            known = self.types.get(node.outputs[0].name)
            if known is None or known.shape is None or all(isinstance(size, int) for size in known.shape):
                continue
            found = rule(self, node, len(known.shape))
            for axis, size in enumerate(found or ()):
                symbol = known.shape[axis]
                if symbol is None:
                    symbol = f"{node.outputs[0].name}@{axis}"
                if size is not None and isinstance(symbol, str) and symbol not in self.solved and symbol not in size[1]:
                    self.solved[symbol] = size
                    self._found.pop(node.outputs[0].name, None)


def _reshape(state: KnownSizes, node: gs.Node, rank: int) -> Sequence[Size | None] | None:
    """The size that -1 stands for."""
    if state.opset < 5 or not is_constant(node.inputs[1]):
        return None
    target, source, result = values_of(node.inputs[1]), state.of(node.inputs[0]), state.of(node.outputs[0])
    if target is None or source is None or result is None or target.size != rank:
        return None
    wanted = [int(item) for item in target.flat]
    if wanted.count(-1) != 1:
        return None
    here = wanted.index(-1)
    found: list[Size | None] = [None] * rank
    # An empty source would let -1 be anything; the runtime then takes 0 elements divided by the others, or refuses.
    found[here] = quotient(product(source), product(result[:here] + result[here + 1 :]))
    return found


def _flatten(state: KnownSizes, node: gs.Node, rank: int) -> Sequence[Size | None] | None:
    source = state.of(node.inputs[0])
    if source is None:
        return None
    axis = node.attrs.get("axis", 1)
    axis += len(source) if axis < 0 else 0
    return [product(source[:axis]), product(source[axis:])]


def _broadcast(state: KnownSizes, node: gs.Node, rank: int) -> Sequence[Size | None] | None:
    return _aligned([state.of(tensor) for tensor in node.inputs], rank) if state.opset >= 7 else None


def _matmul(state: KnownSizes, node: gs.Node, rank: int) -> Sequence[Size | None] | None:
    shapes = [state.of(tensor) for tensor in node.inputs]
    if any(shape is None or len(shape) < 2 for shape in shapes):
        return None
    batch = _aligned([None if shape is None else shape[:-2] for shape in shapes], rank - 2)
    first, second = shapes
    if batch is None or first is None or second is None:
        return None
    return [*batch, first[-2], second[-1]]


def _aligned(shapes: Sequence[Sizes | None], rank: int) -> list[Size | None] | None:
    """Each axis that a broadcast of these shapes leaves without doubt."""
    if any(shape is None for shape in shapes):
        return None
    result: list[Size | None] = []
    for axis in range(-rank, 0):
        met = {shape[axis] for shape in shapes if shape is not None and len(shape) >= -axis} - {ONE}
        result.append(met.pop() if len(met) == 1 else None if met else ONE)
    return result


def _concat(state: KnownSizes, node: gs.Node, rank: int) -> Sequence[Size | None] | None:
    """All inputs agree on every axis but one: what any of them says holds."""
    axis = node.attrs.get("axis", 1 if state.opset < 4 else 0)
    axis += rank if axis < 0 else 0
    result: list[Size | None] = [None] * rank
    for shape in map(state.of, node.inputs):
        # ONNX Runtime lets an empty vector stand among inputs of any rank.
        if shape is None or len(shape) != rank:
            return None
        result = [have or size for have, size in zip(result, shape, strict=True)]
    result[axis] = None
    return result


_RULES = {
    "Concat": _concat,
    "Flatten": _flatten,
    "MatMul": _matmul,
    "Reshape": _reshape,
    **dict.fromkeys(BROADCASTING, _broadcast),
}


def closed_target(wanted: Sizes, source: Sizes | None, may_fail_on: frozenset[Size] | None) -> list[int] | None:
    """The constant target that reshapes ``source`` to ``wanted``; None if there is none.

    0 copies the size of the same axis and -1 takes what is left over. Both together fail on an empty tensor, as the
    sizes copied may be 0: only done where the sizes are among ``may_fail_on``, which fail today as well.
    """
    target: list[int] = []
    copied: list[Size] = []
    for axis, size in enumerate(wanted):
        if not size[1]:
            target.append(size[0])
        elif source is not None and axis < len(source) and source[axis] == size:
            target.append(0)
            copied.append(size)
        else:
            target.append(-1)
    if any(size == (0, ()) for size in wanted) or target.count(-1) > 1:
        return None
    if -1 in target and copied and (may_fail_on is None or not may_fail_on.issuperset(copied)):
        return None
    return target


def elements(sizes: Sizes) -> int | None:
    """How many elements there are; None where that is open."""
    return None if any(names for _, names in sizes) else math.prod(number for number, _ in sizes)
