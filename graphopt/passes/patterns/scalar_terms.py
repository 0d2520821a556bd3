"""Scalar constants in graphs, and the polynomials of a tensor that they make: what spelled-out functions consist of.

Exporters write ``3`` as a rank-0 tensor, as ``[3]`` or as ``[[[3]]]``; ``x + [3]`` has the shape of ``x`` only where
``x`` has at least one axis. Every term here therefore says how many axes its tensor must have (``rank``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, is_constant, is_op, shape_of, sole_producer, types_of, values_of

_DEEPEST = 8
_DEGREE = 3
FLOATS: frozenset[np.dtype[Any]] = frozenset({np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)})


@dataclass(frozen=True)
class Scalar:
    """A constant of one element of a float type, and how many axes it is written with."""

    value: float
    rank: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Step:
    """``scale * source + shift``, written by one node."""

    source: gs.Tensor
    scale: float
    shift: float
    scalar: Scalar | None


@dataclass(frozen=True)
class Term:
    """A polynomial of a tensor, the constant coefficient first; ``rank``: axes that the tensor must have."""

    coefficients: tuple[float, ...]
    rank: int = 0

    def __getitem__(self, power: int) -> float:
        return self.coefficients[power] if power < len(self.coefficients) else 0.0

    @property
    def constant(self) -> bool:
        """Whether no positive power occurs."""
        return len(self.coefficients) < 2


class Terms:
    """Reads scalars, steps and polynomials of one graph; asks for types only where a constant has axes."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._scalars: dict[int, tuple[gs.Tensor, Scalar | None]] = {}

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        """Inferred types by tensor name."""
        return types_of(self.graph, distinct=True)

    def has_rank(self, tensor: gs.Tensor, rank: int) -> bool:
        """Whether a constant of so many axes and one element leaves the shape of the tensor as it is."""
        if rank == 0:
            return True
        found = self.types.get(tensor.name)
        return found is not None and found.shape is not None and len(found.shape) >= rank

    def dtype(self, tensor: gs.Tensor) -> int:
        """ONNX element type of a tensor; 0 where it is unknown."""
        found = self.types.get(tensor.name)
        return 0 if found is None else found.dtype

    def scalar(self, tensor: gs.Tensor) -> Scalar | None:
        """The value of a constant of one element of float16, float32 or float64."""
        if id(tensor) not in self._scalars:
            self._scalars[id(tensor)] = (tensor, _read(tensor))
        return self._scalars[id(tensor)][1]

    def step(self, node: gs.Node) -> Step | None:
        """An Add, Sub, Mul, Div by a scalar, or a Neg, as a map of its other operand."""
        if is_op(node, "Neg"):
            return Step(node.inputs[0], -1.0, 0.0, None)
        if not is_op(node, "Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
            return None
        first, second = node.inputs
        scalar, source = self.scalar(second), first
        if scalar is None:
            if node.op == "Div":
                return None
            scalar, source = self.scalar(first), second
        if scalar is None or is_constant(source):
            return None
        value = scalar.value
        if node.op == "Add":
            return Step(source, 1.0, value, scalar)
        if node.op == "Sub":
            return Step(source, -1.0, value, scalar) if source is second else Step(source, 1.0, -value, scalar)
        if node.op == "Mul":
            return Step(source, value, 0.0, scalar)
        return None if value == 0 else Step(source, 1.0 / value, 0.0, scalar)

    def ancestors(self, tensor: gs.Tensor, *, scaled_only: bool = False) -> list[tuple[gs.Tensor, Term]]:
        """Tensors that ``tensor`` is a linear function of, itself first, with that function."""
        found = [(tensor, Term((0.0, 1.0)))]
        for _ in range(_DEEPEST):
            current, term = found[-1]
            producer = sole_producer(current)
            step = None if producer is None else self.step(producer)
            if step is None or (scaled_only and step.shift != 0):
                break
            rank = max(term.rank, 0 if step.scalar is None else step.scalar.rank)
            shift, scale = term[0] + term[1] * step.shift, term[1] * step.scale
            found.append((step.source, Term((shift, scale), rank)))
        return found

    def polynomial(self, tensor: gs.Tensor, variable: gs.Tensor, depth: int = _DEEPEST) -> Term | None:
        """``tensor`` as a polynomial of ``variable`` of degree 3 at most; None where it is none."""
        if tensor is variable:
            return Term((0.0, 1.0))
        scalar = self.scalar(tensor)
        if scalar is not None:
            return Term((scalar.value,), scalar.rank)
        node = sole_producer(tensor)
        if node is None or depth == 0:
            return None
        if is_op(node, "Neg"):
            inner = self.polynomial(node.inputs[0], variable, depth - 1)
            return None if inner is None else _times(inner, Term((-1.0,)))
        if not is_op(node, "Add", "Sub", "Mul", "Div", "Pow") or len(node.inputs) != 2:
            return None
        first = self.polynomial(node.inputs[0], variable, depth - 1)
        if first is None:
            return None
        if node.op == "Pow":
            return self._power(first, node.inputs[1])
        second = self.polynomial(node.inputs[1], variable, depth - 1)
        if second is None:
            return None
        if node.op == "Add":
            return _plus(first, second)
        if node.op == "Sub":
            negated = _times(second, Term((-1.0,)))
            return None if negated is None else _plus(first, negated)
        if node.op == "Mul":
            return _times(first, second)
        if not second.constant or second[0] == 0:
            return None
        return _times(first, Term((1.0 / second[0],), second.rank))

    def _power(self, base: Term, exponent: gs.Tensor) -> Term | None:
        power = one_value(exponent)
        if power is None or power not in (2, 3):
            return None
        rank = len(shape_of(exponent) or ())
        result: Term | None = Term((1.0,), rank)
        for _ in range(int(power)):
            result = None if result is None else _times(result, base)
        return result


def one_value(tensor: gs.Tensor) -> float | None:
    """The value of a constant of one element of any numeric dtype."""
    if not is_constant(tensor):
        return None
    shape = shape_of(tensor) if isinstance(tensor, gs.Constant) else ()
    if shape is not None and any(size != 1 for size in shape):
        return None
    values = values_of(tensor)
    if values is None or values.size != 1 or values.dtype == object:
        return None
    return float(values.reshape(-1)[0])


def close(found: float, wanted: float, dtype: np.dtype[Any]) -> bool:
    """Whether two constants are one to the precision of the dtype that they were written in."""
    tolerance = 2e-3 if dtype == np.float16 else 1e-6
    return abs(found - wanted) <= tolerance * abs(wanted)


def _read(tensor: gs.Tensor) -> Scalar | None:
    if not is_constant(tensor):
        return None
    if isinstance(tensor, gs.Constant):
        shape = shape_of(tensor)
        if shape is None or any(size != 1 for size in shape):
            return None
    values = values_of(tensor)
    if values is None or values.size != 1 or values.dtype not in FLOATS or not np.isfinite(values).all():
        return None
    return Scalar(float(values.reshape(-1)[0]), values.ndim, values.dtype)


def _plus(first: Term, second: Term) -> Term:
    length = max(len(first.coefficients), len(second.coefficients))
    return Term(tuple(first[power] + second[power] for power in range(length)), max(first.rank, second.rank))


def _times(first: Term, second: Term) -> Term | None:
    degree = len(first.coefficients) + len(second.coefficients) - 2
    if degree > _DEGREE:
        return None
    product = [0.0] * (degree + 1)
    for i, a in enumerate(first.coefficients):
        for j, b in enumerate(second.coefficients):
            product[i + j] += a * b
    return Term(tuple(product), max(first.rank, second.rank))
