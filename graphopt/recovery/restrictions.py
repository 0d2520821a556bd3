"""Layers that must stay in a family of weights: what the family is told, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from graphopt.recovery.layers import Array


@dataclass(frozen=True)
class Normal:
    """Second moments of what a layer's filters see and of what they should give, about their means.

    Attributes:
        gram: mean of x x^T, float64 [groups, unknowns, unknowns]; unknowns are ordered as in ``layers.Weights``
            (of a convolution: taps, then channels of a group).
        cross: mean of x y^T, y the target, float64 [groups, unknowns, filters of a group].
        power: mean of |y|^2 summed over all filters.
        weights: the weights that the layer has now, like ``cross``: what to believe where the moments say little.
            None: nothing is known.
        count: how many positions the means are over.
    """

    gram: Array
    cross: Array
    power: float
    weights: Array | None = None
    count: int = 1

    def error(self, matrix: Array) -> float:
        """Squared error of weights [groups, unknowns, filters of a group] over the power of the target."""
        explained = np.vdot(matrix, 2 * self.cross - self.gram @ matrix)
        return float(max(self.power - explained, 0.0) / max(self.power, 1e-300))

    def joined(self, other: Normal) -> Normal:
        """The moments over both sets of positions, each about its own mean."""
        count = self.count + other.count
        own, others = self.count / count, other.count / count
        return Normal(
            own * self.gram + others * other.gram,
            own * self.cross + others * other.cross,
            own * self.power + others * other.power,
            self.weights,
            count,
        )


class Fitted(Protocol):
    """Weights of the family; whoever made the family knows the rest of it."""

    def matrix(self) -> Array:
        """The weights in the common form, [groups, unknowns, filters of a group]."""


class Restriction(Protocol):
    """A family of weights in which a refitted layer must stay."""

    def fit(self, fitting: Normal, held_out: Normal) -> Fitted:
        """Return the weights of the family that come closest to the target; ``held_out`` chooses among ridges.

        The positions held out may be used in the end, too (``Normal.joined``).
        """
