"""Which channels to cut: the least important of each group, so that grouped convolutions stay whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt

from graphopt.channels.balance import most_removable
from graphopt.channels.balanced import choose_balanced
from graphopt.channels.groups import Balance, Dependencies, Selection
from graphopt.errors import UsageError

Scores = Mapping[int, npt.NDArray[Any]]


def select(dependencies: Dependencies, scores: Scores, remove: Mapping[int, int]) -> Selection:
    """Choose channels to cut, those of the lowest scores first.

    Groups that share a grouped convolution are chosen together, so that each of its blocks loses as many channels as
    the others; where that cannot be had with the numbers asked for, fewer are chosen, never more.

    Args:
        dependencies: what ``dependency_groups`` found.
        scores: group number -> importance of each channel, [channels of the group]; the higher, the longer it stays.
        remove: group number -> how many channels to cut; at least ``Group.keep`` of each group stay.

    Returns:
        group number -> positions, ascending; a selection that ``cut`` accepts. Groups that lose nothing are left out.

    Raises:
        UsageError: a group that does not exist, or one without as many scores as channels.
    """
    wanted: dict[int, int] = {}
    for number, count in sorted(remove.items()):
        if not 0 <= number < len(dependencies):
            raise UsageError(f"there is no group {number}; the model has {len(dependencies)} groups")
        group = dependencies[number]
        given = np.asarray(scores[number]).shape if number in scores else None
        if given != (group.size,):
            raise UsageError(f"group {number} ({group.name}) has {group.size} channels, its scores the shape {given}")
        wanted[number] = max(0, min(int(count), most_removable(group)))
    chosen: dict[int, list[int]] = {}
    for numbers, balances in _linked(dependencies):
        if balances:
            asked = {number: wanted.get(number, 0) for number in numbers}
            found = choose_balanced(balances, scores, asked) if any(asked.values()) else {}
            chosen.update(found)
        elif wanted.get(numbers[0], 0):
            order = np.argsort(np.asarray(scores[numbers[0]]), kind="stable")
            chosen[numbers[0]] = sorted(int(position) for position in order[: wanted[numbers[0]]])
    return {number: chosen[number] for number in sorted(chosen) if chosen[number]}


def random_selection(dependencies: Dependencies, seed: int, share: float = 0.5, groups: float = 1.0) -> Selection:
    """Choose random channels, for tests and measurements.

    Args:
        dependencies: what ``dependency_groups`` found.
        seed: of the random numbers.
        share: share of the channels of a group that goes at most; how many do is random too.
        groups: share of the groups that lose any.
    """
    rng = np.random.default_rng(seed)
    scores = {group.number: rng.random(group.size) for group in dependencies}
    remove = {}
    for group in dependencies:
        count = int(rng.integers(1, max(2, int(group.size * share) + 1)))
        if rng.random() < groups:
            remove[group.number] = count
    return select(dependencies, scores, remove)


def _linked(dependencies: Dependencies) -> list[tuple[list[int], Sequence[Balance]]]:
    """Groups that must be chosen together, with the balances between them."""
    graph = nx.Graph()
    graph.add_nodes_from(range(len(dependencies)))
    members = [sorted({number for block in balance.blocks for number in block}) for balance in dependencies.balances]
    for numbers in members:
        graph.add_edges_from(pairwise(numbers))
    found = []
    balances: dict[int, list[Balance]] = {}
    home: dict[int, int] = {}
    for component in nx.connected_components(graph):
        first = min(component)
        home.update(dict.fromkeys(component, first))
        found.append(sorted(component))
    for balance, numbers in zip(dependencies.balances, members, strict=True):
        if numbers:
            balances.setdefault(home[numbers[0]], []).append(balance)
    return [(numbers, balances.get(numbers[0], [])) for numbers in sorted(found)]
