"""How many channels a group may keep: counts that kernels reward, fine enough that small groups can be cut."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm

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
    """Groups that lose equally many channels, and the counts that they may keep.

    Attributes:
        groups: numbers of the groups; most often one.
        counts: channels kept by each, descending, the first all of them.
    """

    groups: tuple[int, ...]
    counts: Counts


def ladders(dependencies: Dependencies, multiple: int = 16, least_share: float = 1 / 8) -> tuple[Ladder, ...]:
    """Find the counts that each group may keep, in the order of the groups.

    Counts are such that the tensors that hold only this group are as wide as a multiple of ``multiple`` (16, 8 or 4
    for small groups); where every width of the group is odd anyway, steps of that size from its full width.

    Args:
        dependencies: groups of the model.
        multiple: channels that the target's kernels compute at a time.
        least_share: no group keeps less than this share of its channels.
    """
    linked = _linked(dependencies)
    result = []
    for groups in linked:
        together = [dependencies[number] for number in groups]
        size = min(group.size for group in together)
        least = max(int(np.ceil(size * least_share)), *(group.keep - (group.size - size) for group in together))
        step = lcm(*(_step(dependencies, group, multiple) for group in together))
        result.append(Ladder(groups, _counts(size, least, step)))
    return tuple(result)


def _counts(size: int, least: int, step: int) -> Counts:
    """Multiples of ``step`` from ``size`` down to ``least``, with ``size`` itself at the head."""
    below = np.arange((size - 1) // step * step, 0, -step, dtype=np.int64)
    return np.concatenate([[size], below[below >= least]])


def _step(dependencies: Dependencies, group: Group, multiple: int) -> int:
    """Least number of channels between two counts of a group."""
    blocks = 1
    for balance in dependencies.balances:
        inside = sum(1 for block in balance.blocks if np.any(block.get(group.number, 0)))
        blocks = lcm(blocks, inside) if inside > 1 else blocks
    each = max((place.indices.shape[1] for place in group.tensors), default=1)
    wanted = multiple
    while wanted > LEAST and group.size * each // blocks < wanted * STEPS:
        wanted //= 2
    if group.size * each % min(LEAST, multiple) and group.size * each < LEAST * STEPS:
        wanted = 1
    return blocks * max(1, wanted // gcd(wanted, each))


def _linked(dependencies: Dependencies) -> list[tuple[int, ...]]:
    """Groups that must lose equally many: those that fill different blocks of one grouped convolution."""
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
