"""Choosing channels so that every block of every grouped convolution loses as many as the others.

Channels of one group that occur in the same blocks of all balances can stand in for each other: they form a *cell*, of
which the lowest scores go first. What is left to choose is how many go of each cell.

- One balance over one group: as many of each block. Two that cross (a channel shuffle between two grouped
  convolutions): a transportation problem, solved as a flow of least cost, with the most channels that it allows.
- Anything else: each cell gives its share, rounded down; then single channels and pairs are given or taken until all
  balances hold, with smaller shares where that does not succeed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt

from graphopt.channels.balance import block_size
from graphopt.channels.groups import Balance, Indices

Counts = npt.NDArray[np.int64]
# Costs of flows are integers: scores are told apart to this many steps.
_STEPS = 1_000_000


@dataclass(frozen=True)
class _Cells:
    """How many can go where.

    Attributes:
        group: number of the group of each cell, [cells].
        positions: the channels of each cell, lowest score first.
        scores: their scores.
        losses: for each balance what one channel of each cell takes from each block, [blocks, cells].
        largest: for each balance how many channels its blocks can lose.
    """

    group: Counts
    positions: tuple[Indices, ...]
    scores: tuple[npt.NDArray[np.float64], ...]
    losses: tuple[Counts, ...]
    largest: tuple[int, ...]

    @property
    def room(self) -> Counts:
        """Channels of each cell."""
        return np.array([len(each) for each in self.positions], dtype=np.int64)


def choose_balanced(
    balances: Sequence[Balance], scores: Mapping[int, npt.NDArray[Any]], asked: Mapping[int, int]
) -> dict[int, list[int]]:
    """Choose channels of groups that balances link.

    Args:
        balances: all of them.
        scores: importance of each channel, for every group of which any are asked for.
        asked: group number -> how many at most.

    Returns:
        group number -> positions, ascending.
    """
    cells = _cells(balances, scores)
    single = len(asked) == 1 and all(_is_partition(losses) for losses in cells.losses)
    if single and len(cells.losses) == 1:
        taken = _equal_shares(cells, sum(asked.values()))
    elif single and len(cells.losses) == 2:
        taken = _crossing(cells, sum(asked.values()))
    else:
        taken = _repaired(cells, asked)
    chosen: dict[int, list[int]] = {number: [] for number in asked}
    for cell, count in enumerate(taken):
        chosen[int(cells.group[cell])] += [int(position) for position in cells.positions[cell][:count]]
    return {number: sorted(positions) for number, positions in chosen.items() if positions}


def _cells(balances: Sequence[Balance], scores: Mapping[int, npt.NDArray[Any]]) -> _Cells:
    tables: dict[tuple[object, ...], int] = {}
    kept: list[dict[int, Counts]] = []
    largest: list[int] = []
    sizes = {
        number: len(np.asarray(counts))
        for balance in balances
        for block in balance.blocks
        for number, counts in block.items()
    }
    for balance in balances:
        table = {
            number: np.stack([np.asarray(block.get(number, np.zeros(size)), np.int64) for block in balance.blocks])
            for number, size in sizes.items()
        }
        most = block_size(balance) - 1
        key = tuple(sorted(tuple(_row(table, row)) for row in range(len(balance.blocks))))
        if key in tables:
            largest[tables[key]] = min(largest[tables[key]], most)
            continue
        tables[key] = len(kept)
        kept.append(table)
        largest.append(most)
    groups, positions, values, columns = [], [], [], []
    for number, size in sorted(sizes.items()):
        stacked = np.concatenate([table[number] for table in kept])
        given = np.asarray(scores[number], np.float64) if number in scores else np.zeros(size)
        signatures, place = np.unique(stacked, axis=1, return_inverse=True)
        for cell in range(signatures.shape[1]):
            members = np.flatnonzero(place.reshape(-1) == cell)
            members = members[np.argsort(given[members], kind="stable")]
            groups.append(number)
            positions.append(members)
            values.append(given[members])
            columns.append(signatures[:, cell])
    whole = np.stack(columns, axis=1)
    bounds = np.cumsum([0, *(len(next(iter(table.values()))) for table in kept)])
    losses = tuple(whole[first:last] for first, last in pairwise(bounds))
    return _Cells(np.array(groups, np.int64), tuple(positions), tuple(values), losses, tuple(largest))


def _row(table: Mapping[int, Counts], row: int) -> list[bytes]:
    """What one block holds, comparable with other blocks."""
    return [table[number][row].tobytes() for number in sorted(table)]


def _is_partition(losses: Counts) -> bool:
    """Whether every channel occurs once, in one block."""
    return bool((losses.sum(axis=0) == 1).all() and (losses <= 1).all())


def _equal_shares(cells: _Cells, asked: int) -> Counts:
    losses = cells.losses[0]
    each = min(asked // len(losses), cells.largest[0], int((losses @ cells.room).min()))
    return np.asarray(losses.sum(axis=0) * each)


def _crossing(cells: _Cells, asked: int) -> Counts:
    """The most channels, of these the lowest scores, that take equally many from every row and every column."""
    first, second = cells.losses
    step = int(np.lcm(len(first), len(second)))
    most = min(
        asked,
        min(cells.largest[0], int((first @ cells.room).min())) * len(first),
        min(cells.largest[1], int((second @ cells.room).min())) * len(second),
    )
    rows, columns = first.argmax(axis=0), second.argmax(axis=0)
    span = max((float(np.abs(scores).max()) for scores in cells.scores if len(scores)), default=0.0) or 1.0
    for total in range(most // step * step, 0, -step):
        network = nx.MultiDiGraph()
        for row in range(len(first)):
            network.add_node(("row", row), demand=-(total // len(first)))
        for column in range(len(second)):
            network.add_node(("column", column), demand=total // len(second))
        for cell, scores in enumerate(cells.scores):
            for score in scores:
                cost = round(float(score) / span * _STEPS)
                network.add_edge(("row", int(rows[cell])), ("column", int(columns[cell])), (cell, network.size()),
                                 capacity=1, weight=cost)  # fmt: skip
        try:
            flow = nx.network_simplex(network)[1]
        except nx.NetworkXUnfeasible:
            continue
        taken = np.zeros(len(cells.scores), dtype=np.int64)
        for targets in flow.values():
            for arcs in targets.values():
                for (cell, _), amount in arcs.items():
                    taken[cell] += amount
        return taken
    return np.zeros(len(cells.scores), dtype=np.int64)


def _repaired(cells: _Cells, asked: Mapping[int, int]) -> Counts:
    """Shares of all cells, rounded down, and then channels given and taken until all balances hold.

    Each group gives the share asked of it, or all give that of the group of which least is asked, whichever comes to
    more: balances often tie the shares together.
    """
    size = {number: int(cells.room[cells.group == number].sum()) for number in asked}
    own = np.array([asked[int(number)] / size[int(number)] for number in cells.group])
    starts = (own, np.full(len(own), own.min())) if own.min() < own.max() else (own,)
    for hundredths in range(100, 0, -2):
        tries = [np.floor(share * cells.room * hundredths / 100 + 1e-9).astype(np.int64) for share in starts]
        repaired = [found for found in (_repair(cells, asked, each) for each in tries) if found is not None]
        best = max(repaired, key=lambda each: int(each.sum()), default=None)
        if best is not None and best.any():
            return best
    return np.zeros(len(cells.group), dtype=np.int64)


def _repair(cells: _Cells, asked: Mapping[int, int], taken: Counts) -> Counts | None:
    """Give and take single channels and pairs as long as that brings blocks nearer to each other; None: stuck."""
    count, room = len(taken), cells.room
    singles = np.concatenate([-np.eye(count, dtype=np.int64), np.eye(count, dtype=np.int64)])
    pairs = (singles[:, None] + singles[None]).reshape(-1, count) if count <= 64 else singles
    while True:
        error = _unrest(cells, taken[None])[0]
        if error == 0:
            return taken if _fits(cells, asked, taken[None])[0] else None
        for moves in (singles, pairs):
            options = taken[None] + moves
            allowed = ((options >= 0) & (options <= room)).all(axis=1) & _fits(cells, asked, options)
            errors = np.where(allowed, _unrest(cells, options), np.iinfo(np.int64).max)
            best = int(errors.argmin())
            if errors[best] < error:
                taken = options[best]
                break
        else:
            return None


def _unrest(cells: _Cells, options: Counts) -> Counts:
    """How far the blocks of all balances are from losing equally many, for each of several ways to choose."""
    total = np.zeros(len(options), dtype=np.int64)
    for losses in cells.losses:
        lost = options @ losses.T
        middle = np.sort(lost, axis=1)[:, lost.shape[1] // 2]
        total += np.abs(lost - middle[:, None]).sum(axis=1)
    return total


def _fits(cells: _Cells, asked: Mapping[int, int], options: Counts) -> npt.NDArray[np.bool_]:
    """Whether no group loses more than asked and no block all of its channels."""
    fits = np.ones(len(options), dtype=bool)
    for number, most in asked.items():
        fits &= options[:, cells.group == number].sum(axis=1) <= most
    for losses, most in zip(cells.losses, cells.largest, strict=True):
        fits &= (options @ losses.T).max(axis=1) <= most
    return fits
