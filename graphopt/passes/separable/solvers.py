"""Exact or conjugate-gradient half-steps of the alternating fit: one factor is best for the other.

Each minimises the same quadratic, for one group: ``tr(W' G W) - 2 tr(W' X)`` over the weights W that the factors make,
G the second moments of what a filter sees and X those with what it should give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt.passes.separable.factors import Array

# Systems of up to so many unknowns are solved exactly, larger ones by conjugate gradients.
MOST_EXACT = 1600
# Conjugate gradients end when this share of the residual's energy is left, or after so many steps: the next turn goes
# on from there.
CLOSE_ENOUGH, MOST_STEPS = 1e-6, 15
# Added to the diagonal of every system, over its mean: factors may be degenerate.
JITTER = 1e-12
# Bytes of the filters' systems that are held at once.
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Quadratic:
    """What is minimised, for one group.

    Attributes:
        gram: [taps, channels, taps, channels].
        cross: [taps, channels, filters].
        by_channel: the Gram matrix again as [channels, taps, taps and channels].
    """

    gram: Array
    cross: Array
    by_channel: Array

    @staticmethod
    def of(gram: Array, cross: Array, taps: int, channels: int) -> Quadratic:
        """Make one from moments as ``recovery.Normal`` has them, of one group."""
        split = gram.reshape(taps, channels, taps, channels)
        by_channel = np.ascontiguousarray(split.transpose(1, 0, 2, 3)).reshape(channels, taps, -1)
        return Quadratic(split, cross.reshape(taps, channels, -1), by_channel)


def best_pointwise_behind(problem: Quadratic, first: Array, second: Array) -> Array:
    """``depthwise_first``: the pointwise factor [rank, channels, filters] for a depthwise [rank, channels, taps].

    All filters see the same depthwise outputs: one system for all.
    """
    taps, channels, filters = problem.cross.shape
    rank = len(first)
    depthwise = np.ascontiguousarray(first.transpose(1, 0, 2))  # [channels, rank, taps]
    half = (depthwise @ problem.by_channel).reshape(channels * rank, taps, channels)
    system = np.einsum("xtd,dst->xds", half, depthwise, optimize=True).reshape(channels * rank, -1)
    right = (depthwise @ problem.cross.transpose(1, 0, 2)).reshape(channels * rank, filters)
    old = second.transpose(1, 0, 2).reshape(channels * rank, filters)
    return _better(system, right, old).reshape(channels, rank, filters).transpose(1, 0, 2)


def best_depthwise_before(problem: Quadratic, first: Array, second: Array) -> Array:
    """``depthwise_first``: the depthwise factor [rank, channels, taps] for a pointwise one [rank, channels, filters].

    The channels meet in the filters: one system for all taps of all channels, of which every block of two channels is
    a Kronecker product of the pointwise weights' and the inputs' second moments.
    """
    taps, channels, filters = problem.cross.shape
    rank = len(first)
    pointwise = np.ascontiguousarray(second.transpose(1, 0, 2))  # [channels, rank, filters]
    flat = pointwise.reshape(channels * rank, filters)
    meet = (flat @ flat.T).reshape(channels, rank, channels, rank)
    right = pointwise @ problem.cross.transpose(1, 2, 0)  # [channels, rank, taps]
    old = first.transpose(1, 0, 2)
    size = channels * rank * taps
    if size <= MOST_EXACT:
        gram = problem.gram.transpose(1, 0, 3, 2)  # [channels, taps, channels, taps]
        system = (meet[:, :, None, :, :, None] * gram[:, None, :, :, None, :]).reshape(size, size)
        found = _better(system, right.reshape(size, 1), old.reshape(size, 1))
        return found.reshape(channels, rank, taps).transpose(1, 0, 2)

    def image_of(vector: Array) -> Array:
        mixed = np.einsum("crds,dsu->cudr", meet, vector, optimize=True).reshape(channels, taps * channels, rank)
        image: Array = (problem.by_channel @ mixed).transpose(0, 2, 1)
        return image

    own_gram = np.einsum("tcuc->ctu", problem.gram)
    own_meet = np.einsum("crcs->crs", meet)
    blocks = own_meet[:, :, None, :, None] * own_gram[:, None, :, None, :]
    inverse = _inverse(blocks.reshape(channels, rank * taps, rank * taps))

    def scaled(vector: Array) -> Array:
        return (inverse @ vector.reshape(channels, -1, 1)).reshape(vector.shape)

    return _descend(image_of, scaled, right, old, (0, 1, 2)).transpose(1, 0, 2)


def best_pointwise_before(problem: Quadratic, first: Array, second: Array) -> Array:
    """``pointwise_first``: the pointwise factor [rank, channels, filters] for a depthwise one [rank, filters, taps].

    Every filter has a system of its own.
    """
    taps, channels, filters = problem.cross.shape
    rank = len(first)
    size = rank * channels
    kernels = second.transpose(1, 0, 2)  # [filters, rank, taps]
    right = kernels @ problem.cross.transpose(2, 0, 1)  # [filters, rank, channels]
    old = first.transpose(2, 0, 1)
    if size * size * filters * max(size, taps * taps) <= MOST_EXACT**3 * 16:
        by_taps = problem.gram.transpose(0, 2, 1, 3).reshape(taps * taps, channels * channels)
        found = np.empty_like(old)
        step = max(1, BLOCK_BYTES // (8 * size * size))
        for start in range(0, filters, step):
            part = slice(start, start + step)
            outer = np.einsum("frt,fsu->frstu", kernels[part], kernels[part]).reshape(-1, taps * taps)
            system = (outer @ by_taps).reshape(-1, rank, rank, channels, channels).transpose(0, 1, 3, 2, 4)
            flat = right[part].reshape(-1, size, 1), old[part].reshape(-1, size, 1)
            found[part] = _better(system.reshape(-1, size, size), *flat).reshape(-1, rank, channels)
        return found.transpose(1, 2, 0)
    gram = problem.gram.reshape(taps * channels, -1)
    over_taps, over_channels = np.einsum("tcuc->tu", problem.gram), np.einsum("tctd->cd", problem.gram)
    share = np.trace(over_taps) or 1.0
    inner = _inverse(kernels @ (over_taps / share) @ kernels.transpose(0, 2, 1))
    outer_inverse = _inverse(over_channels[None])[0]

    def image_of(vector: Array) -> Array:
        weights = np.einsum("frc,frt->tcf", vector, kernels, optimize=True).reshape(taps * channels, filters)
        return np.asarray(kernels @ (gram @ weights).reshape(taps, channels, filters).transpose(2, 0, 1))

    def scaled(vector: Array) -> Array:
        return np.asarray(inner @ vector @ outer_inverse)

    return _descend(image_of, scaled, right, old, (1, 2)).transpose(1, 2, 0)


def best_depthwise_behind(problem: Quadratic, first: Array, second: Array) -> Array:
    """``pointwise_first``: the depthwise factor [rank, filters, taps] for a pointwise one [rank, channels, filters]."""
    taps, channels, filters = problem.cross.shape
    rank = len(first)
    mixes = first.transpose(2, 0, 1)  # [filters, rank, channels]
    right = mixes @ problem.cross.transpose(2, 1, 0)  # [filters, rank, taps]
    flat = mixes.reshape(filters * rank, channels).T
    system = np.empty((filters, rank, taps, rank, taps))
    for tap in range(taps):
        half = (problem.gram[:, :, tap].reshape(taps * channels, channels) @ flat).reshape(
            taps, channels, filters, rank
        )
        system[..., tap] = (mixes @ half.transpose(2, 1, 0, 3).reshape(filters, channels, taps * rank)).reshape(
            filters, rank, taps, rank
        )
    size = rank * taps
    old = second.transpose(1, 0, 2).reshape(filters, size, 1)
    found = _better(system.reshape(filters, size, size), right.reshape(filters, size, 1), old)
    return found.reshape(filters, rank, taps).transpose(1, 0, 2)


def best_columns(problem: Quadratic, first: Array, second: Array) -> Array:
    """``spatial``: the second factor [rank, filters, columns] for a first one [rank, channels, rows]."""
    rank, channels, rows = first.shape
    filters, columns = second.shape[1:]
    gram = problem.gram.reshape(rows, columns, channels, rows, columns, channels)
    flat = first.transpose(2, 1, 0).reshape(rows * channels, rank)
    inner = gram.transpose(1, 4, 0, 2, 3, 5).reshape(columns, columns, rows * channels, rows * channels)
    system = (flat.T @ inner @ flat).transpose(2, 0, 3, 1).reshape(rank * columns, -1)
    cross = problem.cross.reshape(rows, columns, channels, filters).transpose(1, 0, 2, 3)
    right = (flat.T @ cross.reshape(columns, rows * channels, filters)).transpose(1, 0, 2).reshape(-1, filters)
    old = second.transpose(0, 2, 1).reshape(-1, filters)
    return _better(system, right, old).reshape(rank, columns, filters).transpose(0, 2, 1)


def best_rows(problem: Quadratic, first: Array, second: Array) -> Array:
    """``spatial``: the first factor [rank, channels, rows] for a second one [rank, filters, columns]."""
    rank, channels, rows = first.shape
    filters, columns = second.shape[1:]
    inside = rows * channels
    flat = second.transpose(0, 2, 1).reshape(rank * columns, filters)
    meet = (flat @ flat.T).reshape(rank, columns, rank, columns)
    gram = problem.gram.reshape(rows, columns, channels, rows, columns, channels).transpose(1, 0, 2, 4, 3, 5)
    gram = gram.reshape(columns, inside, columns, inside)
    cross = problem.cross.reshape(rows, columns, channels, filters).transpose(1, 0, 2, 3)
    right = np.einsum("bxf,rfb->rx", cross.reshape(columns, inside, filters), second, optimize=True)
    old = first.transpose(0, 2, 1).reshape(rank, inside)
    size = rank * inside
    if size <= MOST_EXACT:
        system = np.einsum("bxdy,rbsd->rxsy", gram, meet, optimize=True).reshape(size, size)
        found = _better(system, right.reshape(size, 1), old.reshape(size, 1)).reshape(rank, rows, channels)
        return found.transpose(0, 2, 1)
    wide = gram.reshape(columns, inside, columns * inside)
    over_gram, over_meet = np.einsum("bxby->xy", gram), np.einsum("rbsb->rs", meet)
    inner, outer = _inverse(over_meet[None])[0], _inverse(over_gram[None])[0] * columns

    def image_of(vector: Array) -> Array:
        mixed = np.einsum("sy,rbsd->bdyr", vector, meet, optimize=True).reshape(columns, columns * inside, rank)
        return np.asarray((wide @ mixed).sum(axis=0).T)

    def scaled(vector: Array) -> Array:
        return np.asarray(inner @ vector @ outer)

    return _descend(image_of, scaled, right, old, (0, 1)).reshape(rank, rows, channels).transpose(0, 2, 1)


def _better(system: Array, right: Array, old: Array) -> Array:
    """Solve systems [..., n, n] for [..., n, columns]; where rounding makes it worse than the old, the old stays."""
    size = system.shape[-1]
    loaded = system.copy()
    diagonal = np.arange(size)
    mean = np.trace(system, axis1=-2, axis2=-1) / size
    loaded[..., diagonal, diagonal] += np.where(mean > 0, JITTER * mean, 1.0)[..., None]
    # The jitter pulls towards the old factor, not towards zero: what no sample needs stays as it was.
    missing = right - system @ old
    try:
        change = np.linalg.solve(loaded, missing)
    except np.linalg.LinAlgError:
        return old
    gain = 2 * (change * missing).sum(axis=(-2, -1)) - (change * (system @ change)).sum(axis=(-2, -1))
    found: Array = old + np.where(np.isfinite(gain) & (gain > 0), 1.0, 0.0)[..., None, None] * np.nan_to_num(change)
    return found


def _inverse(systems: Array) -> Array:
    """Inverses of symmetric systems [n, m, m], nearly singular directions damped."""
    power, axes = np.linalg.eigh(systems)
    largest = power[:, -1:]
    floor = np.where(largest > 0, 1e-9 * largest, 1.0)
    inverse: Array = (axes / np.maximum(power, floor)[:, None, :]) @ axes.transpose(0, 2, 1)
    return inverse


def _descend(
    image_of: Callable[[Array], Array],
    scaled: Callable[[Array], Array],
    right: Array,
    old: Array,
    axes: tuple[int, ...],
) -> Array:
    """Preconditioned conjugate gradients from the old solution (Hestenes and Stiefel 1952).

    Each step makes the quadratic smaller. ``axes`` belong to one system; the systems of the others step at once.
    """
    solution = old.copy()
    left = right - image_of(solution)
    direction = scaled(left)
    energy = (left * direction).sum(axis=axes, keepdims=True)
    least = energy * CLOSE_ENOUGH
    for _ in range(MOST_STEPS):
        image = image_of(direction)
        curvature = (direction * image).sum(axis=axes, keepdims=True)
        length = np.where(curvature > 0, energy / np.where(curvature > 0, curvature, 1), 0)
        solution += length * direction
        left -= length * image
        preconditioned = scaled(left)
        new = (left * preconditioned).sum(axis=axes, keepdims=True)
        if (new <= least).all():
            break
        direction = preconditioned + np.where(energy > 0, new / np.where(energy > 0, energy, 1), 0) * direction
        energy = new
    return solution
