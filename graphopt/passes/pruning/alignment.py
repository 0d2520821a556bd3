"""How many channels a group may keep: counts that kernels reward, fine enough that small groups can be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np
import numpy.typing as npt

from graphopt.channels import Dependencies, Group

Counts = npt.NDArray[np.int64]

# A group is cut in at least this many steps, with finer counts where the kernels' multiple would give fewer.
STEPS = 4
# Counts that are not a multiple of this fall off the blocked kernels.
LEAST = 4


@dataclass(frozen=True)
class Ladder:
    """Groups that lose channels in step, and the counts that they may keep.

    Attributes:
        groups: numbers of the groups; most often one.
        kept: channels kept by each, [counts, groups], descending, all of them first.
    """

    groups: tuple[int, ...]
    kept: Counts

    @property
    def counts(self) -> Counts:
        """Channels kept by the first group."""
        return np.asarray(self.kept[:, 0])


def ladders(
    dependencies: Dependencies, multiple: int = 16, least_share: float = 1 / 8, *, finer: bool = True
) -> tuple[Ladder, ...]:
    """Find the counts that each group may keep, in the order of the groups.

    Counts are such that the tensors of a group are as wide as a multiple of ``multiple``, or of half of it and so on
    where that would leave fewer than ``STEPS`` counts. Blocks of grouped convolutions lose equally many; groups that
    fill different blocks of one lose the same share.

    Args:
        dependencies: groups of the model.
        multiple: channels that the target's kernels compute at a time.
        least_share: no group keeps less than this share of its channels.
        finer: whether small groups may keep counts between the multiples; False where kernels pad these.
    """
    blocks = _blocks(dependencies)
    result = []
    for numbers in _linked(dependencies):
        groups = [dependencies[number] for number in numbers]
        if len(groups) == 1:
            size = groups[0].size
            least = max(groups[0].keep, int(np.ceil(size * least_share)), 1)
            counts = _counts(size, least, _step(groups[0], blocks[groups[0].number], multiple, finer))[:, None]
        else:
            counts = _shares(groups, blocks, multiple, least_share, finer)
        result.append(Ladder(numbers, counts))
    return tuple(result)


def _counts(size: int, least: int, step: int) -> Counts:
    """Multiples of ``step`` from ``size`` down to ``least``, with ``size`` itself at the head."""
    below = np.arange((size - 1) // step * step, 0, -step, dtype=np.int64)
    return np.concatenate([[size], below[below >= least]])


def _step(group: Group, blocks: int, multiple: int, finer: bool) -> int:
    """Channels of the group between two counts."""
    each = max((place.indices.shape[1] for place in group.tensors), default=1)
    if not finer:
        return lcm(multiple, each * blocks) // each
    width = group.size * each
    inside = [multiple * blocks] if blocks > 1 else []
    halves = [multiple >> shift for shift in range(multiple.bit_length()) if multiple >> shift >= LEAST]
    for wide in (*inside, *halves, min(LEAST, multiple)):
        step = lcm(wide, each * blocks)
        if width >= step * STEPS:
            return step // each
    return blocks if width < LEAST * STEPS or blocks > 1 else lcm(min(LEAST, multiple), each) // each


def _shares(groups: Sequence[Group], blocks: Sequence[int], multiple: int, least_share: float, finer: bool) -> Counts:
    """Counts of groups that all lose the same share, [counts, groups]."""
    sizes = np.array([group.size for group in groups])
    least = np.array([max(group.keep, int(np.ceil(group.size * least_share))) for group in groups])
    steps = min(group.size // _step(group, blocks[group.number], multiple, finer) for group in groups)
    while finer and steps < 2 * STEPS and multiple > LEAST:  # much of the model goes with each
        multiple //= 2
        steps = max(steps, min(group.size // _step(group, blocks[group.number], multiple, finer) for group in groups))
    steps = max(steps, 1)  # one: they stay whole
    even = [blocks[group.number] for group in groups]
    while steps > 1 and (np.any(sizes % steps) or np.any(sizes // steps % even)):
        steps -= 1
    kept = sizes - np.arange(steps)[:, None] * (sizes // steps)
    return np.asarray(kept[(kept >= least).all(axis=1)], dtype=np.int64)


def _blocks(dependencies: Dependencies) -> list[int]:
    """In how many blocks of grouped convolutions each group occurs."""
    result = [1] * len(dependencies)
    for balance in dependencies.balances:
        for number in {number for block in balance.blocks for number in block}:
            inside = sum(1 for block in balance.blocks if np.any(block.get(number, 0)))
            result[number] = lcm(result[number], inside)
    return result


def _linked(dependencies: Dependencies) -> list[tuple[int, ...]]:
    """Groups that must lose channels in step: those that fill different blocks of one grouped convolution."""
    root = list(range(len(dependencies)))

    def find(number: int) -> int:
        while root[number] != number:
            number = root[number]
        return number

    for balance in dependencies.balances:
        occur: dict[int, list[int]] = {}
        for block in balance.blocks:
            for number, counts in block.items():
                occur.setdefault(number, []).append(int(np.sum(counts)))
        uneven = [n for n, counts in occur.items() if len(counts) != len(balance.blocks) or len(set(counts)) > 1]
        for number in uneven[1:]:
            one, other = sorted((find(uneven[0]), find(number)))
            root[other] = one
    together: dict[int, list[int]] = {}
    for number in range(len(dependencies)):
        together.setdefault(find(number), []).append(number)
    return [tuple(numbers) for numbers in together.values()]
