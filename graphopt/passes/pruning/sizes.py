"""Sizes of tensors as functions of how many channels each group keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.channels import Dependencies

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Extent:
    """How long one axis is.

    Attributes:
        full: its length in the whole model.
        parts: (group, indices of each channel) of the groups along it.
    """

    full: int
    parts: tuple[tuple[int, int], ...] = ()

    def length(self, removed: Sequence[Counts]) -> Counts:
        """Its length when ``removed[group]`` channels are gone (numbers or arrays that broadcast)."""
        length = np.asarray(self.full)
        for group, each in self.parts:
            length = length - each * removed[group]
        return np.asarray(np.maximum(length, 1))


@dataclass(frozen=True)
class Sizes:
    """One tensor's axes.

    Attributes:
        axes: an extent for each.
    """

    axes: tuple[Extent, ...]

    def elements(self, removed: Sequence[Counts]) -> Counts:
        """How many elements the tensor has when ``removed[group]`` channels are gone."""
        count = np.asarray(1, dtype=np.int64)
        for axis in self.axes:
            count = count * axis.length(removed)
        return count

    @property
    def groups(self) -> frozenset[int]:
        """Groups that make it narrower."""
        return frozenset(group for axis in self.axes for group, _ in axis.parts)


def tensor_sizes(
    dependencies: Dependencies, shapes: Mapping[str, Sequence[int | None]], names: Iterable[str]
) -> dict[str, Sizes]:
    """Sizes of the named tensors; those whose shape is unknown are left out, open axes count as 1."""
    parts: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for group in dependencies:
        for place in group.tensors:
            parts.setdefault((place.tensor, place.axis), []).append((group.number, place.indices.shape[1]))
    result: dict[str, Sizes] = {}
    for name in names:
        shape = shapes.get(name)
        if shape is not None:
            axes = (Extent(size or 1, tuple(parts.get((name, axis), ()))) for axis, size in enumerate(shape))
            result[name] = Sizes(tuple(axes))
    return result
