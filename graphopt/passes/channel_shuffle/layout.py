"""Where every element of a tensor comes from, for data movement along one axis: symbolic, so true for every batch.

A tensor that Reshape, Transpose, Split, Gather, Concat and their kin made of others is described by its axes, each a
product of *atoms*, outermost first. An atom is either a run of positions along an axis of the source that only moves
(its size may be a symbol), or a digit of the channel index, whose size is a number. All channel digits together index
``labels``, which say what source and what channel of it each position holds. Thus channels are traced by executing
the operators on labels, while all other axes are followed as symbols.

Sizes are monomials: a number times symbols. A Reshape is followed only where its input's and output's axes split into
common atoms by exact division of monomials. That is an identity between polynomials, so it holds for every value of
the symbols; where the division leaves a remainder nothing is claimed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

Labels: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """A number times symbols; ``symbols`` is sorted, one entry a power."""

    number: int
    symbols: tuple[str, ...] = ()

    def __mul__(self, other: Size) -> Size:
        return Size(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Size) -> Size | None:
        """The exact quotient, None where there is none."""
        if not other.symbols and not self.symbols:
            return Size(self.number // other.number) if other.number and self.number % other.number == 0 else None
        left = Counter(self.symbols)
        left.subtract(other.symbols)
        if not other.number or self.number % other.number or min(left.values(), default=0) < 0:
            return None
        return Size(self.number // other.number, tuple(sorted(left.elements())))


ONE = Size(1)


@dataclass(frozen=True)
class Run:
    """Positions along ``axis`` of the source: ``size`` of them, ``outer`` such runs lie outside this one."""

    axis: int
    outer: Size
    size: Size


@dataclass(frozen=True)
class Digit:
    """A digit of the channel index."""

    size: Size


Atom: TypeAlias = Run | Digit


@dataclass(frozen=True)
class Layout:
    """A tensor seen from its sources.

    Attributes:
        sources: the tensors that it is made of, alike but for the number of channels.
        shape: sizes of the sources; at ``axis`` that of the first.
        axis: the channel axis of the sources.
        axes: the tensor's axes.
        labels: one axis for each Digit in the order of ``axes``: source number * 2**32 + channel.
    """

    sources: tuple[gs.Tensor, ...]
    shape: tuple[Size, ...]
    axis: int
    axes: tuple[tuple[Atom, ...], ...]
    labels: Labels

    @property
    def sizes(self) -> list[Size]:
        """The tensor's shape."""
        return [_product(atoms) for atoms in self.axes]

    def selection(self) -> tuple[Labels, Labels] | None:
        """Source and channel of every channel, if the tensor is its sources' channels in some order; else None."""
        if len(self.axes) != len(self.shape):
            return None
        for axis, atoms in enumerate(self.axes):
            if axis == self.axis:
                if any(isinstance(atom, Run) for atom in atoms):
                    return None
            elif atoms != _whole(axis, self.shape[axis]):
                return None
        flat = self.labels.ravel()
        return flat >> 32, flat & 0xFFFFFFFF


def start(source: gs.Tensor, shape: Sequence[Size], axis: int) -> Layout:
    """The layout of a tensor seen from itself; its size at ``axis`` must be a number."""
    axes = tuple((Digit(size),) if place == axis else _whole(place, size) for place, size in enumerate(shape))
    return Layout((source,), tuple(shape), axis, axes, np.arange(shape[axis].number, dtype=np.int64))


def reshape(layout: Layout, target: Sequence[Size]) -> Layout | None:
    """Cut all axes into atoms and group them anew; None where the cuts do not match."""
    atoms = [atom for axis in layout.axes for atom in axis]
    atoms.reverse()
    axes: list[tuple[Atom, ...]] = []
    for size in target:
        group: list[Atom] = []
        left = size
        while left != ONE:
            if not atoms:
                return None
            atom = atoms.pop()
            rest = left.over(atom.size)
            if rest is not None:
                group.append(atom)
                left = rest
                continue
            inner = atom.size.over(left)
            if inner is None:
                return None
            if isinstance(atom, Run):
                group.append(Run(atom.axis, atom.outer, left))
                atoms.append(Run(atom.axis, atom.outer * left, inner))
            else:
                group.append(Digit(left))
                atoms.append(Digit(inner))
            left = ONE
        axes.append(tuple(group))
    if any(atom.size != ONE for atom in atoms):
        return None
    digits = [atom.size.number for axis in axes for atom in axis if isinstance(atom, Digit)]
    return _make(layout, axes, layout.labels.reshape(digits))


def transpose(layout: Layout, order: Sequence[int]) -> Layout:
    """Reorder the axes."""
    digits: list[list[int]] = []
    count = 0
    for atoms in layout.axes:
        here = sum(isinstance(atom, Digit) for atom in atoms)
        digits.append(list(range(count, count + here)))
        count += here
    moved = layout.labels.transpose([digit for axis in order for digit in digits[axis]])
    return _make(layout, [layout.axes[axis] for axis in order], moved)


def take(layout: Layout, axis: int, chosen: Labels | int) -> Layout | None:
    """Choose positions along an axis that holds only channels; an integer drops the axis."""
    atoms = layout.axes[axis]
    if not atoms and isinstance(chosen, int):
        return _make(layout, [*layout.axes[:axis], *layout.axes[axis + 1 :]], layout.labels)
    if len(atoms) != 1 or not isinstance(atoms[0], Digit):
        return None
    place = sum(isinstance(atom, Digit) for each in layout.axes[:axis] for atom in each)
    if layout.labels.ndim <= place:
        return None
    labels = layout.labels.take(chosen, axis=place)
    axes = list(layout.axes)
    if isinstance(chosen, int):
        del axes[axis]
    else:
        axes[axis] = (Digit(Size(len(chosen))),)
    return _make(layout, axes, labels)


def concat(layouts: Sequence[Layout], axis: int) -> Layout | None:
    """Join along an axis that holds only channels; what Concat demands to be equal is taken to be."""
    first = layouts[0]
    sources: dict[int, gs.Tensor] = {}
    parts: list[Labels] = []
    for layout in layouts:
        if len(layout.axes) != len(first.axes) or layout.axis != first.axis or len(layout.shape) != len(first.shape):
            return None
        for place, (atoms, wanted) in enumerate(zip(layout.axes, first.axes, strict=True)):
            if place == axis:
                if any(isinstance(atom, Run) for atom in atoms):
                    return None
            elif not _alike(atoms, wanted, layout, first):
                return None
        for source in layout.sources:
            sources.setdefault(id(source), source)
        numbers = np.array([list(sources).index(id(source)) for source in layout.sources], dtype=np.int64)
        parts.append((numbers[layout.labels >> 32] << 32) | (layout.labels & 0xFFFFFFFF))
    place = sum(isinstance(atom, Digit) for each in first.axes[:axis] for atom in each)
    # An axis of size 1 has no digit yet.
    parts = [
        part if layout.axes[axis] else np.expand_dims(part, place) for part, layout in zip(parts, layouts, strict=True)
    ]
    joined = np.concatenate(parts, axis=place)
    axes = list(first.axes)
    axes[axis] = (Digit(Size(joined.shape[place])),)
    return _make(Layout(tuple(sources.values()), first.shape, first.axis, (), first.labels), axes, joined)


def _alike(atoms: Sequence[Atom], wanted: Sequence[Atom], layout: Layout, first: Layout) -> bool:
    """Whether two axes that Concat makes equal in size hold the same positions of their sources."""
    if tuple(atoms) == tuple(wanted):
        return True
    return all(
        len(each) == 1 and isinstance(each[0], Run) and each == _whole(each[0].axis, seen.shape[each[0].axis])
        for each, seen in ((tuple(atoms), layout), (tuple(wanted), first))
    ) and [atom.axis for atom in atoms if isinstance(atom, Run)] == [
        atom.axis for atom in wanted if isinstance(atom, Run)
    ]


def _whole(axis: int, size: Size) -> tuple[Atom, ...]:
    return () if size == ONE else (Run(axis, ONE, size),)


def _product(atoms: Sequence[Atom]) -> Size:
    size = ONE
    for atom in atoms:
        size = size * atom.size
    return size


def _make(layout: Layout, axes: Sequence[Sequence[Atom]], labels: Labels) -> Layout:
    """Join neighbouring atoms that belong together, and drop those of size 1."""
    shape: list[int] = []
    joined: list[tuple[Atom, ...]] = []
    for atoms in axes:
        group: list[Atom] = []
        for atom in atoms:
            if atom.size == ONE:
                continue
            last = group[-1] if group else None
            if isinstance(atom, Digit):
                if isinstance(last, Digit):
                    group[-1] = Digit(last.size * atom.size)
                    shape[-1] *= atom.size.number
                    continue
                shape.append(atom.size.number)
            elif isinstance(last, Run) and last.axis == atom.axis and last.outer * last.size == atom.outer:
                group[-1] = Run(last.axis, last.outer, last.size * atom.size)
                continue
            group.append(atom)
        joined.append(tuple(group))
    return Layout(layout.sources, layout.shape, layout.axis, tuple(joined), labels.reshape(shape))
