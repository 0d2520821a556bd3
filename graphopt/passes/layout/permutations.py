"""Permutations of axes, as Transpose has them: ``perm[i]`` is the old axis that becomes axis ``i``.

A graph has few different ones and asks for them all the time, so answers are remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

Perm: TypeAlias = tuple[int, ...]


@lru_cache(maxsize=4096)
def identity(rank: int) -> Perm:
    """The permutation that changes nothing."""
    return tuple(range(rank))


@lru_cache(maxsize=4096)
def is_identity(perm: Perm) -> bool:
    """Whether the permutation changes nothing."""
    return all(axis == place for place, axis in enumerate(perm))


def is_permutation(perm: Sequence[int]) -> bool:
    """Whether the numbers are those of all axes, each once."""
    return sorted(perm) == list(range(len(perm)))


@lru_cache(maxsize=4096)
def compose(first: Perm, then: Perm) -> Perm:
    """The one permutation that does ``first``, then ``then``."""
    return tuple(first[axis] for axis in then)


@lru_cache(maxsize=4096)
def inverse(perm: Perm) -> Perm:
    """The permutation that undoes ``perm``: old axis ``a`` is at place ``inverse(perm)[a]``."""
    places = [0] * len(perm)
    for place, axis in enumerate(perm):
        places[axis] = place
    return tuple(places)


@lru_cache(maxsize=4096)
def between(start: Perm, end: Perm) -> Perm:
    """The permutation that leads from the order ``start`` to the order ``end``."""
    places = inverse(start)
    return tuple(places[axis] for axis in end)


def without(perm: Perm, axes: Iterable[int]) -> Perm:
    """What is left of a permutation when old axes ``axes`` are dropped from input and output."""
    gone = set(axes)
    kept = [axis for axis in range(len(perm)) if axis not in gone]
    rank_of = {axis: place for place, axis in enumerate(kept)}
    return tuple(rank_of[axis] for axis in perm if axis not in gone)


def inserted(perm: Perm, axes: Iterable[int]) -> Perm:
    """A permutation of more axes that is ``perm`` on the others and leaves ``axes`` where they are."""
    fixed = set(axes)
    rank = len(perm) + len(fixed)
    others = [axis for axis in range(rank) if axis not in fixed]
    moved = iter([others[axis] for axis in perm])
    return tuple(axis if axis in fixed else next(moved) for axis in range(rank))
