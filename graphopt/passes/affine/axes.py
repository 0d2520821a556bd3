"""Which axes of a Reshape's output are which of its input."""

from __future__ import annotations

import math

from graphopt.graph import Shape
from graphopt.passes.affine.maps import Vector

# Axes of the input and of the output, from first to (not with) last, that hold the same elements in the same order.
Block = tuple[range, range]


def blocks(given: Shape, wanted: Shape) -> list[Block]:
    """Pair axes of two shapes of one size from the right, as far as they are known.

    Elements are counted row by row, so that two shapes agree on the trailing axes wherever products of trailing sizes
    agree; equal symbols count as equal.
    """
    found: list[Block] = []
    if 0 in given or 0 in wanted:
        return found
    left, right = len(given), len(wanted)
    while left and right:
        last_left, last_right = left, right
        left, right = left - 1, right - 1
        mine, theirs = given[left], wanted[right]
        if mine is None or theirs is None:
            return found
        while mine != theirs:
            if not isinstance(mine, int) or not isinstance(theirs, int):
                return found
            shorter = mine < theirs
            if (left if shorter else right) == 0:
                return found
            more = given[left - 1] if shorter else wanted[right - 1]
            if not isinstance(more, int):
                return found
            if shorter:
                left, mine = left - 1, mine * more
            else:
                right, theirs = right - 1, theirs * more
        found.append((range(left, last_left), range(right, last_right)))
    return found


def vector_before(vector: Vector, axis: int, given: Shape, wanted: Shape) -> tuple[Vector, int] | None:
    """A vector along one axis of ``wanted`` as a vector along one axis of ``given``; None where it is none."""
    block = next((block for block in blocks(given, wanted) if axis in block[1]), None)
    if block is None:
        return None
    before, after = block
    if len(before) == len(after) == 1:
        return vector, before[0]
    sizes = [wanted[each] for each in after]
    old = [given[each] for each in before]
    ints = [size for size in (*sizes, *old) if isinstance(size, int)]
    if len(ints) != len(sizes) + len(old):
        return None
    inner = math.prod(ints[axis - after[0] + 1 : len(sizes)])
    outer = math.prod(ints[: axis - after[0]])
    # One entry an element of the block, in its order.
    spread = vector.repeat(inner)
    spread = spread.reshape(1, -1).repeat(outer, axis=0).reshape(ints[len(sizes) :])
    for place, each in enumerate(before):
        first = spread[tuple(slice(None) if other == place else slice(0, 1) for other in range(spread.ndim))]
        if (spread == first).all():
            return first.reshape(-1), each
    return None
