"""The order in which channels are given up at the least loss, when those that remain are refitted.

A layer computes Y = X W from rows of which each channel owns some. With H = E[x x'] the least-squares loss of doing
without the rows of channel j, all others refitted, is tr(W_j' ([H^-1]_jj)^-1 W_j); the others' best weights are then
W - [H^-1]_:j ([H^-1]_jj)^-1 W_j, and the inverse of the smaller H is H^-1 - [H^-1]_:j ([H^-1]_jj)^-1 [H^-1]_j:
(Optimal Brain Surgeon, Hassibi and Stork 1993, for blocks of weights; Schur complement). Giving up one channel after
another this way is exact: the losses add up to that of the best fit with what remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

# Channels given up between two updates of the inverse: this share of those that remain. Within such a lot the
# candidates (three times as many) are still updated after each one.
LOT = 1 / 32
CANDIDATES = 3


@dataclass(frozen=True)
class Factor:
    """What one layer (or one block of a grouped one) loses with channels.

    Attributes:
        channels: which channels of the group the layer reads, [m].
        inverse: H^-1 at their rows, [m, rows of each, m, rows of each].
        weights: weights of their rows, [m, rows of each, outputs].
        weight: what one unit of squared error of the layer costs.
    """

    channels: Indices
    inverse: Floats
    weights: Floats
    weight: float = 1.0


@dataclass(frozen=True)
class Elimination:
    """An order of giving up channels.

    Attributes:
        order: channels, the first given up first; as many as were asked for.
        loss: [len(order) + 1], loss after each; starts at 0 and never falls.
    """

    order: Indices
    loss: Floats


def eliminate(size: int, factors: Sequence[Factor], least: int = 1, order: Sequence[int] | None = None) -> Elimination:
    """Give up channels one by one, always the one that costs least, until ``least`` of ``size`` remain.

    Args:
        size: channels of the group.
        factors: the layers that read them; a channel that none reads costs nothing.
        least: how many remain.
        order: a given order to go by, instead of the cheapest; only its losses are found.
    """
    states = [_State.of(size, factor) for factor in factors]
    remaining = np.arange(size)
    given = None if order is None else [int(channel) for channel in order][: size - least]
    chosen: list[int] = []
    losses: list[float] = [0.0]
    while len(remaining) > least and (given is None or len(chosen) < len(given)):
        lot = min(max(1, int(len(remaining) * LOT)), len(remaining) - least)
        if given is None:
            candidates = remaining
            if lot > 1:
                costs = _costs(size, states)[remaining]
                candidates = remaining[np.argsort(costs, kind="stable")[: lot * CANDIDATES]]
            picked = _cheapest(size, [state.among(candidates) for state in states], candidates, lot)
        else:
            picked = _in_turn(size, states, given[len(chosen) : len(chosen) + lot])
        for channel, cost in picked:
            chosen.append(channel)
            losses.append(losses[-1] + max(cost, 0.0))
        gone = np.array([channel for channel, _ in picked])
        states = [state.without(gone) for state in states]
        remaining = np.setdiff1d(remaining, gone)
    return Elimination(np.array(chosen, dtype=np.int64), np.array(losses))


def loss_without(factors: Sequence[Factor], gone: Indices) -> float:
    """The loss of doing without channels ``gone`` at once, the others refitted."""
    total = 0.0
    for factor in factors:
        at = np.flatnonzero(np.isin(factor.channels, gone))
        if len(at) == 0:
            continue
        rows = len(at) * factor.inverse.shape[1]
        block = factor.inverse[at][:, :, at].reshape(rows, rows)
        weights = factor.weights[at].reshape(rows, -1)
        total += factor.weight * float(np.sum(weights * np.linalg.solve(block, weights)))
    return total


@dataclass
class _State:
    """A factor without the channels given up so far; ``place`` maps a channel to its position or -1."""

    factor: Factor
    place: Indices

    @classmethod
    def of(cls, size: int, factor: Factor) -> _State:
        place = np.full(size, -1)
        place[factor.channels] = np.arange(len(factor.channels))
        return cls(factor, place)

    def costs(self) -> Floats:
        """What each of the factor's channels costs, [m]."""
        at = np.arange(len(self.factor.channels))
        if len(at) == 0:
            return np.zeros(0)
        weights = self.factor.weights
        if self.factor.inverse.shape[1] == 1:
            diagonal = self.factor.inverse[at, 0, at, 0]
            return np.asarray(self.factor.weight * np.square(weights[:, 0]).sum(axis=1) / diagonal)
        blocks = self.factor.inverse[at, :, at, :]
        return np.asarray(self.factor.weight * (weights * np.linalg.solve(blocks, weights)).sum(axis=(1, 2)))

    def among(self, channels: Indices) -> _State:
        """Only some channels, the others staying as they are."""
        at = self.place[channels]
        at = at[at >= 0]
        return self._kept(at, self.factor.inverse[at][:, :, at], self.factor.weights[at])

    def without(self, gone: Indices) -> _State:
        """Channels given up, the others refitted."""
        at = self.place[gone]
        at = at[at >= 0]
        if len(at) == 0:
            return self
        left = np.setdiff1d(np.arange(len(self.factor.channels)), at)
        rows = self.factor.inverse.shape[1]
        inverse, weights = self.factor.inverse, self.factor.weights
        cross = inverse[left][:, :, at].reshape(len(left) * rows, len(at) * rows)
        block = inverse[at][:, :, at].reshape(len(at) * rows, len(at) * rows)
        both = np.concatenate([cross.T, weights[at].reshape(len(at) * rows, -1)], axis=1)
        solved = np.linalg.solve(block, both)
        update = cross @ solved
        inner = inverse[left][:, :, left] - update[:, : len(left) * rows].reshape(len(left), rows, len(left), rows)
        outer = weights[left] - update[:, len(left) * rows :].reshape(len(left), rows, weights.shape[-1])
        return self._kept(left, inner, outer)

    def _kept(self, at: Indices, inverse: Floats, weights: Floats) -> _State:
        factor = Factor(self.factor.channels[at], inverse, weights, self.factor.weight)
        return _State.of(len(self.place), factor)


def _costs(size: int, states: Sequence[_State]) -> Floats:
    total = np.zeros(size)
    for state in states:
        np.add.at(total, state.factor.channels, state.costs())
    return total


def _cheapest(size: int, states: Sequence[_State], candidates: Indices, count: int) -> list[tuple[int, float]]:
    picked: list[tuple[int, float]] = []
    while True:
        costs = _costs(size, states)[candidates]
        best = int(np.argmin(costs))
        picked.append((int(candidates[best]), float(costs[best])))
        if len(picked) == count:
            return picked
        states = [state.without(candidates[best : best + 1]) for state in states]
        candidates = np.delete(candidates, best)


def _in_turn(size: int, states: Sequence[_State], channels: Sequence[int]) -> list[tuple[int, float]]:
    lot = np.array(channels)
    states = [state.among(lot) for state in states]
    picked: list[tuple[int, float]] = []
    for channel in channels:
        picked.append((channel, float(_costs(size, states)[channel])))
        states = [state.without(np.array([channel])) for state in states]
    return picked
