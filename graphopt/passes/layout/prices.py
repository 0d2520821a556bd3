"""What the Transposes of a value cost: the bytes that they move, and what they keep apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import onnx

from graphopt.graph import Shape
from graphopt.passes.layout.moves import Knowledge
from graphopt.passes.layout.permutations import Perm, between, is_identity, without
from graphopt.passes.layout.rules import ELEMENTWISE
from graphopt.passes.layout.values import CONVOLUTIONS, LINEAR, Use, Value

# What running any node costs, in bytes that could be transposed meanwhile.
OVERHEAD = 8192.0
# What an axis of unknown size counts for.
_UNKNOWN = 16
# Of equal places, a Transpose is best where it parts no linear operator from what could fuse with it, above all from
# what follows, then where it parts no arithmetic. Whole numbers, so that prices can be compared exactly.
_AFTER_LINEAR = 90.0
_BEFORE_LINEAR = 60.0
_BESIDE_ARITHMETIC = 30.0
# Readers of a value that its price looks at.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Price:
    """Number of Transposes (and the like) and their cost in bytes; ``units`` are the open sizes that it counts in."""

    count: int = 0
    cost: float = 0.0
    units: frozenset[tuple[str, ...]] = frozenset()

    def __add__(self, other: Price) -> Price:
        return Price(self.count + other.count, self.cost + other.cost, self.units | other.units)

    def beats(self, other: Price) -> bool:
        """Whether it is certainly less: fewer Transposes, or as many and sizes that can be compared."""
        comparable = len(self.units | other.units) <= 1 and (_UNSIZED,) not in self.units
        return self.cost < other.cost and (self.count < other.count or (self.count == other.count and comparable))


_UNSIZED = "?"
FREE = Price()


class Prices:
    """What Transposes cost, value by value."""

    def __init__(self, known: Knowledge) -> None:
        self._known = known
        self._seen: dict[int, tuple[Value, Shape | None, float, int]] = {}

    def of(self, value: Value, start: Perm, end: Perm, readers: Iterable[Use]) -> float:
        """Cost of the Transpose from one order to another, for these readers."""
        some = list(islice(readers, _LOOKED_AT))
        perm = between(start, end)
        swaps_rows = perm[-2:] == (len(perm) - 1, len(perm) - 2) and is_identity(perm[:-2])
        cost = OVERHEAD + _BESIDE_ARITHMETIC * self._look(value)[3]
        # ONNX Runtime's matrix product reads its operands transposed.
        if not (
            swaps_rows and some and end not in value.pinned_labels and all(use.node.op == "MatMul" for use in some)
        ):
            cost += self.bytes_of(value, start, end)
        if start == value.plain and value.producer is not None and value.producer.op in LINEAR:
            cost += _AFTER_LINEAR
        return cost + _BEFORE_LINEAR * any(use.node.op in CONVOLUTIONS for use in some)

    def bytes_of(self, value: Value, start: Perm, end: Perm) -> float:
        """Bytes that a Transpose moves; none where only axes of size 1 change places."""
        _, shape, size, _ = self._look(value)
        if shape is not None and 1 in shape:
            return 0.0 if only_moves_ones(between(start, end), tuple(shape[axis] for axis in start)) else size
        return size

    def unit(self, value: Value) -> tuple[str, ...]:
        """The symbols of its open sizes; those of equal symbols can be compared."""
        shape = self._look(value)[1]
        if shape is None or None in shape:
            return (_UNSIZED,)
        return tuple(sorted(size for size in shape if isinstance(size, str)))

    def _look(self, value: Value) -> tuple[Value, Shape | None, float, int]:
        """Shape, bytes, and on how many sides there is arithmetic."""
        found = self._seen.get(id(value))
        if found is None:
            shape = self._known.shape(value.root)
            sizes = [size if isinstance(size, int) else _UNKNOWN for size in shape or (None,) * value.rank]
            arithmetic = int(any(use.node.op in ELEMENTWISE for use in value.uses[:_LOOKED_AT]))
            arithmetic += value.producer is not None and value.producer.op in ELEMENTWISE
            found = (value, shape, float(math.prod(sizes) * _itemsize(self._known.dtype(value.root))), arithmetic)
            self._seen[id(value)] = found
        return found


@lru_cache(maxsize=64)
def _itemsize(dtype: int) -> int:
    try:
        return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)).itemsize)
    except KeyError:
        return 4


@lru_cache(maxsize=4096)
def only_moves_ones(perm: Perm, shape: tuple[int | str | None, ...]) -> bool:
    """Whether all axes but those of size 1 keep their order."""
    return 1 in shape and is_identity(without(perm, [axis for axis, size in enumerate(shape) if size == 1]))
