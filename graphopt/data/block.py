"""What every reader hands over: named arrays that are read row by row, and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from graphopt.data.sample import Array


class Column(Protocol):
    """An array that is read along its first axis, in ascending order, without being held in memory."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""

    def row(self, index: int) -> Array:
        """Return ``array[index]``."""

    def whole(self) -> Array:
        """Return the whole array."""


@dataclass(frozen=True)
class ArrayColumn:
    """A column over an array that is in memory or mapped from a file."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array."""
        return self.array.dtype

    def row(self, index: int) -> Array:
        """Return one row."""
        return np.asarray(self.array[index])

    def whole(self) -> Array:
        """Return the array itself."""
        return np.asarray(self.array)


@dataclass(frozen=True)
class Block:
    """Arrays that belong together: a file, an item of an iterable, a test data set.

    Attributes:
        where: file or item, for messages.
        columns: input name -> array.
        labels: one label or a sequence of them; None where there are none.
        counted: the first axis counts samples (``FILE.npz``); otherwise the arrays are one feed, a batch, or one
            sample without the batch axis.
        single: holds exactly one sample, known before anything is opened; lets a reader skip it unread.
    """

    where: str
    columns: Mapping[str, Column]
    labels: Any = None
    counted: bool = False
    single: bool = False


# Starts a reader anew. A generator, so that its files can be closed when the caller stops halfway.
Reader: TypeAlias = Callable[[], Generator[Block, None, None]]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``input_10`` comes after ``input_9``."""
    parts: list[tuple[int, int, str]] = []
    text = ""
    digits = ""
    for character in name + "\0":
        if character.isdecimal() and character.isascii():
            digits += character
            continue
        if digits:
            parts += [(0, 0, text), (1, int(digits), digits)]
            text, digits = "", ""
        text += character
    return [*parts, (0, 0, text)]
