"""Arrays of labels, moved as the data they stand for; see ``graphopt.channels.labels``.

A field has as many axes as its tensor, of size 1 where labels do not differ. Operators are executed on it at that size
wherever they can be, so that following labels costs what the channels cost and not what the data does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from graphopt.channels.labels import Field, Labels

Shape = Sequence[int]

# Elements of the largest field; more would take longer than it is worth, so labels are coupled first.
LARGEST = 1 << 21


def axes_of(field: Field) -> frozenset[int]:
    """The axes along which the labels differ."""
    return frozenset(axis for axis, size in enumerate(field.shape) if size > 1)


def along(labels: Field, axis: int, rank: int) -> Field:
    """A field of ``rank`` axes with the vector ``labels`` along one."""
    shape = [1] * rank
    shape[axis] = len(labels)
    return labels.reshape(shape)


def compress(field: Field) -> Field:
    """The same field at size 1 along every axis on which it does not differ."""
    for axis, size in enumerate(field.shape):
        if size > 1:
            first = take_first(field, (axis,))
            if (field == first).all():
                field = first
    return field


def take_first(field: Field, axes: Sequence[int]) -> Field:
    """The field at index 0 of some axes, which stay with size 1."""
    return field[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(field.ndim))]


def with_rank(field: Field, rank: int) -> Field:
    """The field with axes put in front, as broadcasting does."""
    return field.reshape((1,) * (rank - field.ndim) + field.shape)


def widened(field: Field, axis: int, size: int) -> Field:
    """The field at the full size of one axis."""
    if field.shape[axis] == size:
        return field
    return np.broadcast_to(field, (*field.shape[:axis], size, *field.shape[axis + 1 :]))


def reshaped(field: Field, source: Shape, target: Shape, labels: Labels) -> Field:
    """The field of a tensor of shape ``source`` once it is reshaped to ``target`` (the same number of elements).

    Only runs of axes that the reshape merges or splits *and* along which labels differ are executed at full size.
    """
    before, after = [1] * len(source), [1] * len(target)
    if 0 in source:
        return np.zeros(after, dtype=np.int64)
    for inner, outer in _runs(source, target):
        if any(field.shape[axis] > 1 for axis in inner):
            for axis in inner:
                before[axis] = source[axis]
            for axis in outer:
                after[axis] = target[axis]
    if prod(before) > LARGEST:
        labels.pin(field, "its tensor is too large to be followed through a reshape")
        return np.zeros(after, dtype=np.int64)[(slice(0, 1),) * len(after)]
    return compress(np.broadcast_to(field, before).reshape(after))


def _runs(source: Shape, target: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of axes of either side that hold the same elements, as short as possible."""
    runs: list[tuple[list[int], list[int]]] = []
    left = right = 0
    while left < len(source) or right < len(target):
        inner, outer = [], []
        have = want = 1
        if left < len(source):
            inner, have, left = [left], source[left], left + 1
        if right < len(target):
            outer, want, right = [right], target[right], right + 1
        while have != want:
            if have < want:
                inner.append(left)
                have *= source[left]
                left += 1
            else:
                outer.append(right)
                want *= target[right]
                right += 1
        runs.append((inner, outer))
    return runs
