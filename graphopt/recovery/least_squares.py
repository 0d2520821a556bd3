"""Ridge least squares towards given weights, from rows that stream by.

Minimises, for each group, ``mean |x D + d - r|^2 + ridge * m * |D|^2`` over the change of weights D and of the bias d:
x are the inputs of a filter, r what the present weights leave unexplained, m the mean square of a centred input. The
bias is not penalised: x and r are centred. Many rows go into the normal equations (Gram matrix of the inputs); where
there are fewer rows than inputs the same solution comes from the Gram matrix of the rows (Hoerl and Kennard 1970;
Saunders, Gammerman and Vovk 1998 for the dual form).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.recovery.layers import Array


@dataclass(frozen=True)
class Rows:
    """Some positions of a layer.

    Attributes:
        inputs: what the filters see, float32 [groups, rows, unknowns].
        residual: target minus what the layer gives now, float32 [groups, rows, filters of a group].
        power: sum of the squared targets.
        held_out: whether the rows are for the choice of the ridge only.
    """

    inputs: Array
    residual: Array
    power: float
    held_out: bool


@dataclass(frozen=True)
class Change:
    """What to add to the weights.

    Attributes:
        matrix: float32 [groups, unknowns, filters of a group]; None where nothing makes the held-out error smaller.
        bias: float32 [filters]; None likewise.
        ridge: the ridge that was chosen; infinity where only the bias changes; None where nothing does.
        before: squared error over squared target on the held-out rows with the present weights.
        after: the same with the change found on the other rows.
    """

    matrix: Array | None
    bias: Array | None
    ridge: float | None
    before: float
    after: float


class Moments:
    """Sums over rows: enough for the normal equations, [groups, unknowns, unknowns] in memory."""

    def __init__(self) -> None:
        self.count = 0
        self._origin: tuple[Array, Array] | None = None
        self._sums: list[Array] = []

    def add(self, rows: Rows) -> None:
        """Take rows in. Products are in float32 over one block, sums in float64 over all."""
        if self._origin is None:
            # Sums are taken about the first block's mean: they stay small beside the products.
            self._origin = rows.inputs.mean(axis=1, keepdims=True), rows.residual.mean(axis=1, keepdims=True)
        inputs, residual = rows.inputs - self._origin[0], rows.residual - self._origin[1]
        turned = inputs.transpose(0, 2, 1)
        sums = [turned @ inputs, turned @ residual, inputs.sum(axis=1), residual.sum(axis=1)]
        self.count += rows.inputs.shape[1]
        if not self._sums:
            self._sums = [each.astype(np.float64) for each in sums]
            return
        for number, each in enumerate(sums):
            self._sums[number] += each

    def centred(self) -> tuple[Array, Array, Array, Array]:
        """Covariance of the inputs, covariance with the residual, mean of the inputs, mean of the residual."""
        assert self._origin is not None
        gram, cross, inputs, residual = (each / self.count for each in self._sums)
        gram = gram - inputs[:, :, None] * inputs[:, None, :]
        cross = cross - inputs[:, :, None] * residual[:, None, :]
        return gram, cross, inputs + self._origin[0][:, 0], residual + self._origin[1][:, 0]


class Collected:
    """The rows themselves, where they are fewer than the unknowns."""

    def __init__(self) -> None:
        self._rows: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Take rows in."""
        self._rows.append(rows)

    @property
    def count(self) -> int:
        """How many rows."""
        return sum(rows.inputs.shape[1] for rows in self._rows)

    def centred(self) -> tuple[Array, Array, Array, Array]:
        """Inputs and residual about their means, and the means."""
        inputs = np.concatenate([rows.inputs for rows in self._rows], axis=1)
        residual = np.concatenate([rows.residual for rows in self._rows], axis=1)
        means = inputs.mean(axis=1, dtype=np.float64), residual.mean(axis=1, dtype=np.float64)
        return inputs - means[0][:, None], residual - means[1][:, None], *means


def fit(blocks: Callable[[], Iterable[Rows]], ridges: Sequence[float], *, primal: bool) -> Change | None:
    """Find the change of weights whose error on the held-out rows is least.

    Args:
        blocks: yields all rows; those held out choose among the ridges, then count like the others.
        ridges: ridges to choose from, in units of the mean square of a centred input.
        primal: whether there are more rows than unknowns.

    Returns:
        the change, or None where there are too few rows to hold some out, or they are not finite.
    """
    moments: Moments | Collected = Moments() if primal else Collected()
    held: list[Rows] = []
    for rows in blocks():
        if rows.held_out:
            held.append(rows)
        else:
            moments.add(rows)
    power = sum(rows.power for rows in held)
    before = sum(_energy(rows.residual) for rows in held)
    if not held or not moments.count or not np.isfinite(before):
        return None
    scale = power or 1.0
    best: tuple[float, float] | None = None
    for ridge, matrix, bias in _solutions(moments, (np.inf, *ridges), primal):
        error = sum(_energy(rows.residual - rows.inputs @ matrix - bias[:, None]) for rows in held)
        if np.isfinite(error) and error < (before if best is None else best[0]):
            best = error, ridge
    if best is not None:
        for rows in held:
            moments.add(rows)
        for ridge, matrix, bias in _solutions(moments, (best[1],), primal):
            return Change(matrix, bias.reshape(-1), ridge, before / scale, best[0] / scale)
    return Change(None, None, None, before / scale, before / scale)


def _energy(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _solutions(
    moments: Moments | Collected, ridges: Sequence[float], primal: bool
) -> Iterable[tuple[float, Array, Array]]:
    """Yield (ridge, change of weights, change of bias); ridges at which the equations are singular are left out."""
    left, right, inputs, residual = moments.centred()
    if primal:
        system, unit = left, np.trace(left, axis1=1, axis2=2) / left.shape[1]
    else:
        system = (left @ left.transpose(0, 2, 1)).astype(np.float64)
        unit = np.trace(system, axis1=1, axis2=2) / left.shape[2]
    diagonal = np.arange(system.shape[1])
    for ridge in ridges:
        if np.isinf(ridge):
            matrix = np.zeros((inputs.shape[0], inputs.shape[1], residual.shape[1]))
        else:
            loaded = system.copy()
            # A group whose inputs never vary has no scale of its own: any ridge leaves its weights as they are.
            loaded[:, diagonal, diagonal] += (ridge * np.where(unit > 0, unit, 1.0))[:, None]
            try:
                matrix = np.linalg.solve(loaded, right.astype(np.float64))
            except np.linalg.LinAlgError:
                continue
            if not primal:
                matrix = left.transpose(0, 2, 1) @ matrix.astype(np.float32)
        bias = residual - (inputs[:, None, :] @ matrix)[:, 0]
        yield ridge, matrix.astype(np.float32), bias.astype(np.float32)
