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

# Most rows that wait for a product; blocks this long are still summed up well in float32.
BLOCK_ROWS = 2048
# Conjugate gradients end when this share of the residual's energy is left, or after so many steps.
CLOSE_ENOUGH = 1e-8
MOST_ITERATIONS = 50


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
class Solution:
    """A change of weights [groups, unknowns, filters of a group] and of the bias [groups, filters of a group]."""

    matrix: Array
    bias: Array
    ridge: float

    def effect(self, inputs: Array) -> Array:
        """By how much the outputs change."""
        changed: Array = inputs @ self.matrix + self.bias[:, None]
        return changed


@dataclass(frozen=True)
class Outcome:
    """What a fit found.

    Attributes:
        change: the change; None where nothing makes the held-out error smaller.
        before: squared error over squared target on the held-out rows with the present weights.
        after: the same with the change found on the other rows.
    """

    change: Solution | None
    before: float
    after: float


class Moments:
    """The equations from sums over rows: [groups, unknowns, unknowns] in memory.

    ``free`` says which weights may change, [groups, unknowns, filters of a group]; None: all.

    Attributes:
        count: how many rows.
        power: sum of the squared residuals.
    """

    def __init__(self, free: Array | None = None) -> None:
        self.count = 0
        self.power = 0.0
        self._waiting: list[Rows] = []
        self._free = free
        self._means: Array | None = None
        self._sums: list[Array] = []

    def add(self, rows: Rows) -> None:
        """Take rows in."""
        self.count += rows.inputs.shape[1]
        self.power += _energy(rows.residual)
        self._waiting.append(rows)
        # Adding up a product costs as much as making it, unless it is one of many rows.
        if sum(each.inputs.shape[1] for each in self._waiting) >= min(rows.inputs.shape[2], BLOCK_ROWS):
            self._multiply()

    def _multiply(self) -> None:
        """Work off the rows that wait. Products are in float32 over one block, sums in float64 over all."""
        if not self._waiting:
            return
        inputs = np.concatenate([rows.inputs for rows in self._waiting], axis=1)
        residual = np.concatenate([rows.residual for rows in self._waiting], axis=1)
        self._waiting = []
        if self._means is None:
            # Sums are taken about the first block's mean: they stay small beside the products.
            self._means = inputs.mean(axis=1, keepdims=True)
        inputs -= self._means
        turned = inputs.transpose(0, 2, 1)
        products = [turned @ inputs, turned @ residual]
        sums = [inputs.sum(axis=1, dtype=np.float64), residual.sum(axis=1, dtype=np.float64)]
        if not self._sums:
            self._sums = [each.astype(np.float64) for each in (*products, *sums)]
            return
        for total, each in zip(self._sums, (*products, *sums), strict=True):
            np.add(total, each, out=total)

    def centred(self) -> tuple[Array, Array]:
        """Mean of x x^T and of x r^T about the means, float64; there must be rows."""
        self._multiply()
        gram, cross, inputs, residual = self._sums
        system = gram / self.count
        # In place, group by group: a product of the means as large as the Gram matrix would double the memory.
        for group, mean in zip(system, inputs / self.count, strict=True):
            np.subtract(group, np.multiply.outer(mean, mean), out=group)
        right = cross / self.count - (inputs / self.count)[:, :, None] * (residual / self.count)[:, None, :]
        return system, right

    def means(self) -> tuple[Array, Array]:
        """Means of x [groups, unknowns] and of r [groups, filters of a group]; there must be rows."""
        self._multiply()
        assert self._means is not None
        return self._sums[2] / self.count + self._means[:, 0], self._sums[3] / self.count

    def solve(self, ridge: float) -> Solution | None:
        """Solve for one ridge; None where the equations are singular."""
        inputs, residual = self.means()
        matrix = np.zeros((*inputs.shape, residual.shape[1]))
        if not np.isinf(ridge):
            system, right = self.centred()
            load = np.trace(system, axis1=1, axis2=2) / system.shape[1] * ridge
            if self._free is None:
                solved = _solved(system, load, right)
            else:
                _add_to_diagonal(system, load)
                diagonal = np.einsum("gii->gi", system)[:, :, None]
                solved = _within(lambda direction: system @ direction, diagonal, right, self._free)
            if solved is None:
                return None
            matrix = solved
        bias = residual - (inputs[:, None, :] @ matrix)[:, 0]
        return Solution(matrix.astype(np.float32), bias.astype(np.float32), ridge)


class Collected:
    """The same equations from the rows themselves, where they are fewer than the unknowns; ``free`` as above."""

    def __init__(self, free: Array | None = None) -> None:
        self._free = free
        self._rows: list[Rows] = []

    @property
    def count(self) -> int:
        """How many rows."""
        return sum(rows.inputs.shape[1] for rows in self._rows)

    def add(self, rows: Rows) -> None:
        """Take rows in."""
        self._rows.append(rows)

    def solve(self, ridge: float) -> Solution | None:
        """Solve for one ridge; None where the equations are singular."""
        inputs = np.concatenate([rows.inputs for rows in self._rows], axis=1)
        residual = np.concatenate([rows.residual for rows in self._rows], axis=1)
        middle, offset = inputs.mean(axis=1, dtype=np.float64), residual.mean(axis=1, dtype=np.float64)
        matrix = np.zeros((inputs.shape[0], inputs.shape[2], residual.shape[2]))
        if not np.isinf(ridge):
            solved = self._changed(inputs - middle[:, None].astype(np.float32), residual - offset[:, None], ridge)
            if solved is None:
                return None
            matrix = solved
        bias = offset - (middle[:, None, :] @ matrix)[:, 0]
        return Solution(matrix.astype(np.float32), bias.astype(np.float32), ridge)

    def _changed(self, inputs: Array, residual: Array, ridge: float) -> Array | None:
        turned = inputs.transpose(0, 2, 1)
        if self._free is not None:
            diagonal = np.square(inputs, dtype=np.float64).sum(axis=1)
            load = diagonal.mean(axis=1)[:, None, None] * ridge
            load = np.where(load > 0, load, 1.0)
            return _within(
                lambda direction: turned @ (inputs @ direction.astype(np.float32)) + load * direction,
                diagonal[:, :, None] + load,
                (turned @ residual).astype(np.float64),
                self._free,
            )
        system = (inputs @ turned).astype(np.float64)
        unit = np.trace(system, axis1=1, axis2=2) / inputs.shape[2]
        solved = _solved(system, unit * ridge, residual)
        return None if solved is None else np.asarray(turned @ solved.astype(np.float32))


def _solved(system: Array, load: Array, right: Array) -> Array | None:
    """Solve with something added to the diagonal; a group whose inputs never vary keeps its weights."""
    _add_to_diagonal(system, load)
    try:
        return np.asarray(np.linalg.solve(system, right))
    except np.linalg.LinAlgError:
        return None


def _add_to_diagonal(system: Array, load: Array) -> None:
    diagonal = np.arange(system.shape[1])
    system[:, diagonal, diagonal] += np.where(load > 0, load, 1.0)[:, None]


def _within(image_of: Callable[[Array], Array], diagonal: Array, right: Array, free: Array) -> Array:
    """As ``_solved``, for the free unknowns of each filter, the others being zero: by conjugate gradients.

    Each filter has a system of its own, the rows and columns of its free unknowns: to factor them all would cost as
    many times as much as there are filters. All filters take a step at once; preconditioned with the diagonal
    (Hestenes and Stiefel 1952). ``image_of`` multiplies by the system.
    """
    solution = np.zeros_like(right)
    left = right * free
    direction = left / diagonal
    energy = (left * direction).sum(axis=1, keepdims=True)
    least = energy * CLOSE_ENOUGH
    for _ in range(MOST_ITERATIONS):
        image = image_of(direction) * free
        curvature = (direction * image).sum(axis=1, keepdims=True)
        length = np.where(curvature > 0, energy / np.where(curvature > 0, curvature, 1), 0)
        solution += length * direction
        left -= length * image
        scaled = left / diagonal
        new = (left * scaled).sum(axis=1, keepdims=True)
        if (new <= least).all():
            break
        direction = scaled + np.where(energy > 0, new / np.where(energy > 0, energy, 1), 0) * direction
        energy = new
    return solution


def fit(blocks: Iterable[Rows], ridges: Sequence[float], *, primal: bool, free: Array | None = None) -> Outcome | None:
    """Find the change of weights whose error on the held-out rows is least.

    Args:
        blocks: all rows; those held out choose among the ridges, then count like the others.
        ridges: ridges to choose from, in units of the mean square of a centred input.
        primal: whether there are more rows than unknowns.
        free: which weights may change, bool [groups, unknowns, filters of a group]; None: all.

    Returns:
        the outcome, or None where there are too few rows to hold some out, or they are not finite.
    """
    equations: Moments | Collected = Moments(free) if primal else Collected(free)
    held: list[Rows] = []
    for rows in blocks:
        if rows.held_out:
            held.append(rows)
        else:
            equations.add(rows)
    if not held or not equations.count:
        return None
    scale = sum(rows.power for rows in held) or 1.0
    before = sum(_energy(rows.residual) for rows in held) / scale
    if not np.isfinite(before):
        return None
    best, after = None, before
    for ridge in (np.inf, *ridges):
        solution = equations.solve(ridge)
        if solution is None:
            continue
        error = sum(_energy(rows.residual - solution.effect(rows.inputs)) for rows in held) / scale
        if error < after:
            best, after = solution, error
    if best is None:
        return Outcome(None, before, before)
    for rows in held:
        equations.add(rows)
    return Outcome(equations.solve(best.ridge) or best, before, after)


def _energy(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())
