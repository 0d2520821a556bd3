"""Whether a selection can be cut, and random ones that can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from graphopt.channels.groups import Balance, Dependencies, Group, Indices, Selection
from graphopt.errors import UsageError


def check_selection(dependencies: Dependencies, selection: Selection) -> dict[int, Indices]:
    """The positions of each group that go, ascending; groups of which none go are left out.

    Raises:
        UsageError: a group or position that does not exist, a group that would keep too few channels, or a grouped
            convolution whose blocks would lose different numbers of channels; the message names them.
    """
    chosen: dict[int, Indices] = {}
    for number in sorted(selection):
        if not 0 <= number < len(dependencies):
            raise UsageError(f"there is no group {number}; the model has {len(dependencies)} groups")
        group = dependencies[number]
        positions = np.unique(np.asarray(list(selection[number]), dtype=np.int64))
        if not len(positions):
            continue
        if positions[0] < 0 or positions[-1] >= group.size:
            wrong = positions[0] if positions[0] < 0 else positions[-1]
            raise UsageError(f"group {number} ({group.name}) has no channel {wrong}; it has {group.size}")
        if group.size - len(positions) < group.keep:
            raise UsageError(
                f"group {number} ({group.name}) must keep at least {group.keep} of its {group.size} channels;"
                f" this selection leaves {group.size - len(positions)}"
            )
        chosen[number] = positions
    for balance in dependencies.balances:
        lost = [sum(counts for counts in _lost(block, chosen)) for block in balance.blocks]
        if len(set(lost)) > 1:
            raise UsageError(
                f"'{balance.node}' {balance.side} its channels in {len(lost)} blocks, which must lose equally many;"
                f" this selection takes {lost}"
            )
        if lost and lost[0] and lost[0] >= block_size(balance):
            raise UsageError(f"'{balance.node}' must keep at least one channel in each of its {len(lost)} blocks")
    return chosen


def _lost(block: Mapping[int, Indices], chosen: Mapping[int, Indices]) -> Iterator[int]:
    for number, counts in block.items():
        if number in chosen:
            yield int(np.asarray(counts)[chosen[number]].sum())


def block_size(balance: Balance) -> int:
    """Channels in each block of a grouped convolution."""
    counted = sum(int(np.asarray(counts).sum()) for counts in balance.blocks[0].values())
    return counted + (balance.extra[0] if balance.extra else 0)


def most_removable(group: Group) -> int:
    """How many channels of a group can go at most."""
    return max(0, group.size - max(1, group.keep))
