"""What a layer of the changed net sees and what it should give, at the positions recorded of the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.recovery.behind import Behind
from graphopt.recovery.columns import Places, arranged, columns, positions_shape
from graphopt.recovery.layers import Array, Layer, Weights
from graphopt.recovery.least_squares import Rows
from graphopt.recovery.net import Net
from graphopt.recovery.record import Recorded
from graphopt.recovery.store import Store

# Tensor -> axis -> indices of the original that remain.
Kept: TypeAlias = Mapping[str, Mapping[int, Places]]
# One sample in so many chooses the ridge.
HELD_OUT = 5
# Bytes of what the filters see that are held at once.
BLOCK_BYTES = 64 << 20


def remaining_filters(kept: Kept, name: str, rank: int, axis: int) -> Places | None:
    """Which filters of the original a layer still has; None: all."""
    return kept.get(name, {}).get(axis % rank)


def rows_of(
    net: Net, store: Store, known: Recorded, kept: Kept, layer: Layer, after: Behind, weights: Weights
) -> Iterator[Rows]:
    """Yield what the filters see at the recorded positions, and what the present weights leave unexplained."""
    for batch in range(known.batches):
        shape = store.shape(layer.input, batch)
        sizes = positions_shape(net, layer, shape)
        old = known.shape(layer.name, batch)
        axis = layer.channel_axis
        remaining, places = _remaining(kept.get(layer.name, {}), old, axis, known.places(layer.name, batch))
        target = _target(store, known, kept, layer, after, batch, remaining, places)
        held = _held_out(known, batch, sizes, places)
        values = arranged(net, layer, store.get(layer.input, batch))
        step = max(1, BLOCK_BYTES // (4 * layer.unknowns * layer.groups))
        for start in range(0, len(places), step):
            part = slice(start, start + step)
            seen = columns(net, layer, shape, values, places[part])
            wanted = target[part].reshape(seen.shape[1], layer.groups, -1).transpose(1, 0, 2)
            residual = wanted - seen @ weights.matrix - weights.bias.reshape(layer.groups, 1, -1)
            for flag in (False, True):
                chosen = held[part] == flag
                if chosen.any():
                    power = float(np.square(wanted[:, chosen], dtype=np.float64).sum())
                    yield Rows(seen[:, chosen], residual[:, chosen], power, flag)


def _target(
    store: Store,
    known: Recorded,
    kept: Kept,
    layer: Layer,
    after: Behind,
    batch: int,
    remaining: Places | None,
    places: Places,
) -> Array:
    """What a layer should give at the recorded positions, [positions, filters]."""
    filters = remaining_filters(kept, layer.name, len(known.shape(layer.name, batch)), layer.channel_axis)
    target = _chosen(known.values(layer.name, batch), remaining, filters)
    if after.operand is None:
        return target
    other = np.moveaxis(store.get(after.operand, batch), layer.channel_axis, -1)
    missing = _chosen(known.sums(layer.name, batch), remaining, filters) - after.shift
    missing -= other.reshape(-1, other.shape[-1])[places]
    # A channel that the normalization sets to zero cannot make up for anything.
    live = after.factor != 0
    return np.where(live, missing / np.where(live, after.factor, 1), target)


def _chosen(values: Array, remaining: Places | None, filters: Places | None) -> Array:
    if remaining is not None:
        values = values[remaining]
    chosen: Array = values if filters is None else values[:, filters]
    return chosen


def _remaining(
    kept: Mapping[int, Places], old: tuple[int, ...], channel_axis: int, places: Places
) -> tuple[Places | None, Places]:
    """Carry positions over to a tensor that lost some of them.

    Returns:
        which of the positions remain (None: all), and where they are in the narrower tensor.
    """
    rank = len(old)
    order = [axis for axis in range(rank) if axis != channel_axis % rank]
    if not any(axis in kept for axis in order):
        return None, places
    index = list(np.unravel_index(places, old[:-1]))
    sizes = list(old[:-1])
    there = np.ones(len(places), dtype=bool)
    for slot, axis in enumerate(order):
        if axis in kept:
            new = np.full(old[slot], -1, dtype=np.int64)
            new[kept[axis]] = np.arange(len(kept[axis]))
            index[slot], sizes[slot] = new[index[slot]], len(kept[axis])
            there &= index[slot] >= 0
    chosen = np.flatnonzero(there)
    return chosen, np.ravel_multi_index([each[chosen] for each in index], sizes).astype(np.int64)


def _held_out(known: Recorded, batch: int, sizes: tuple[int, ...], places: Places) -> npt.NDArray[np.bool_]:
    """Which positions are for the choice of the ridge: those of every fifth sample; of few samples, every fifth."""
    if known.samples < HELD_OUT:
        few: npt.NDArray[np.bool_] = np.arange(len(places)) % HELD_OUT == HELD_OUT - 1
        return few
    sample: Places = np.full(len(places), known.starts[batch], dtype=np.int64)
    if known.count(batch) > 1:
        sample += np.unravel_index(places, sizes)[0]
    held: npt.NDArray[np.bool_] = sample % HELD_OUT == HELD_OUT - 1
    return held
