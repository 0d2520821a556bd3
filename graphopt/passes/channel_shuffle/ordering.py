"""Orders of channels that make the least data movement necessary.

Every class may take any order that its blocks allow. A *need* is a tensor that moves make out of channels of *roots*,
tensors that something else computes. If it is one root in another order, both classes can share one order, and the
move goes: such classes are united, each with its map to the channels of the first. What blocks say is a condition on
positions and channels: position p may hold channel c only if both have the same key. United classes have the
conditions of all; there is an order that meets them exactly if positions and channels have the same keys as multisets.

What is left is several roots joined, or parts of roots. There, channels of a root that go the same ways are put side
by side, so that a need is made of few whole stretches: each root is cut once, each need joined once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.channel_shuffle.layout import Labels
from graphopt.passes.channel_shuffle.moves import Move
from graphopt.passes.channel_shuffle.tracing import OrderClass, Trace


@dataclass(frozen=True)
class Need:
    """A tensor that computing nodes read (or an output), made of roots by moves alone.

    Attributes:
        target: the tensor.
        axis: its channel axis.
        owner: number of its class.
        roots: the tensors it is made of.
        owners: number of the class of each root.
        origin: number of the root of each channel.
        channel: channel of that root.
    """

    target: gs.Tensor
    axis: int
    owner: int
    roots: tuple[gs.Tensor, ...]
    owners: tuple[int, ...]
    origin: Labels
    channel: Labels


def needs_of(trace: Trace, moves: Sequence[Move]) -> list[Need]:
    """What the moves (in the order of the graph) must deliver, seen through tensors that only moves touch."""
    made: dict[int, Need] = {}
    for move in moves:
        roots: dict[int, gs.Tensor] = {}
        owners: list[int] = []
        origin, channel = np.empty_like(move.origin), np.empty_like(move.channel)
        for number, source in enumerate(move.sources):
            here = move.origin == number
            within = made.get(id(source))
            if within is None or _class(trace, id(source)).computed:
                parts: list[tuple[gs.Tensor, int]] = [(source, trace.class_of[id(source)])]
                below, deeper = np.zeros(here.sum(), dtype=np.int64), move.channel[here]
            else:
                parts = list(zip(within.roots, within.owners, strict=True))
                below, deeper = within.origin[move.channel[here]], within.channel[move.channel[here]]
            numbers = []
            for tensor, owner in parts:
                if id(tensor) not in roots:
                    roots[id(tensor)] = tensor
                    owners.append(owner)
                numbers.append(list(roots).index(id(tensor)))
            origin[here], channel[here] = np.array(numbers, dtype=np.int64)[below], deeper
        used = np.unique(origin)
        all_roots = list(roots.values())
        made[id(move.target)] = Need(
            move.target,
            move.axis,
            trace.class_of[id(move.target)],
            tuple(all_roots[number] for number in used),
            tuple(owners[number] for number in used),
            np.searchsorted(used, origin),
            channel,
        )
    return [need for key, need in made.items() if _class(trace, key).computed]


def orders_for(trace: Trace, needs: Sequence[Need], pinned: Collection[int] = ()) -> dict[int, Labels]:
    """An order for each class that needs one: position -> channel. Classes not in it, and ``pinned`` ones, stay."""
    numbers = dict.fromkeys(number for need in needs for number in (need.owner, *need.owners))
    unions = {number: _Union.of(trace, number, fixed=number in pinned) for number in numbers}
    left = []
    for need in needs:
        if not _unite(unions, need):
            left.append(need)
    groups = {id(union): union for union in unions.values()}
    touching: dict[int, dict[int, Need]] = {key: {} for key in groups}
    first_need = dict.fromkeys(groups, -1)
    for number, need in enumerate(left):
        for owner in (need.owner, *need.owners):
            touching[id(unions[owner])][number] = need
        key = id(unions[need.owner])
        if first_need[key] < 0:
            first_need[key] = number
    decided: dict[int, Labels] = {}
    for key in sorted(groups, key=lambda key: first_need[key]):
        union = groups[key]
        order = union.order(_preferences(union, list(touching[key].values()), decided))
        for number, to_first in union.maps.items():
            back = np.empty_like(to_first)
            back[to_first] = np.arange(len(to_first))
            decided[number] = back[order]
    return {number: order for number, order in decided.items() if not is_identity(order)}


def is_identity(order: Labels) -> bool:
    """Whether an order is that of before."""
    return bool((order == np.arange(len(order))).all())


def in_order(need: Need, orders: Mapping[int, Labels]) -> tuple[Labels, Labels]:
    """Root and channel of each position of a need, once classes have their orders."""
    order = orders.get(need.owner)
    origin, channel = (need.origin, need.channel) if order is None else (need.origin[order], need.channel[order])
    for number, owner in enumerate(need.owners):
        if owner in orders:
            place = np.empty_like(orders[owner])
            place[orders[owner]] = np.arange(len(place))
            here = origin == number
            channel = channel.copy()
            channel[here] = place[channel[here]]
    return origin, channel


class _Union:
    """Classes that share one order.

    Attributes:
        maps: class number -> for each of its channels the channel of the first class.
        places: key of each position.
        channels: key of each channel of the first class.
    """

    def __init__(self, maps: dict[int, Labels], places: Labels, channels: Labels) -> None:
        self.maps, self.places, self.channels = maps, places, channels

    @classmethod
    def of(cls, trace: Trace, number: int, *, fixed: bool) -> _Union:
        each = trace.classes[number]
        assert each is not None
        count = np.arange(each.channels, dtype=np.int64)
        keys = np.zeros_like(count)
        for block in {1} if fixed or each.fixed else each.blocks:
            keys = _joint(keys, count // block)
        return cls({number: count}, keys, keys)

    def order(self, preferences: Sequence[Labels]) -> Labels:
        """Position -> channel of the first class: as the keys demand, then by preference, then as it was."""
        channels = (
            np.lexsort((*reversed(preferences), self.channels))
            if preferences
            else np.argsort(self.channels, kind="stable")
        )
        order = np.empty_like(channels)
        order[np.argsort(self.places, kind="stable")] = channels
        return order


def _joint(first: Labels, second: Labels) -> Labels:
    """One key out of two."""
    return np.asarray(np.unique(first * (int(second.max(initial=0)) + 1) + second, return_inverse=True)[1]).ravel()


def _unite(unions: dict[int, _Union], need: Need) -> bool:
    """Let a need share the order of its root, if it has one root, all of it, and the keys allow it."""
    if len(need.roots) != 1:
        return False
    one, other = unions[need.owners[0]], unions[need.owner]
    root_map, own_map = one.maps[need.owners[0]], other.maps[need.owner]
    if len(root_map) != len(own_map) or len(np.unique(need.channel)) != len(root_map):
        return False
    if one is other:
        return bool((own_map == root_map[need.channel]).all())
    onto = np.empty_like(own_map)
    onto[own_map] = root_map[need.channel]
    moved = np.empty_like(other.channels)
    moved[onto] = other.channels
    count = len(onto)
    firsts = np.unique(np.concatenate([one.places, one.channels]), return_inverse=True)[1].ravel()
    seconds = np.unique(np.concatenate([other.places, moved]), return_inverse=True)[1].ravel()
    joint = _joint(firsts, seconds)
    places, channels = joint[:count], joint[count:]
    if not (np.sort(places) == np.sort(channels)).all():
        return False
    united = _Union({**one.maps, **{number: onto[each] for number, each in other.maps.items()}}, places, channels)
    for number in united.maps:
        unions[number] = united
    return True


def _preferences(union: _Union, left: Sequence[Need], decided: Mapping[int, Labels]) -> list[Labels]:
    """Sorting keys over the channels of a union: first where they go, then where they come from."""
    count = len(union.channels)
    ways, origins = [], []
    for need in left:
        used = np.ones(count, dtype=np.int64)
        for number, owner in enumerate(need.owners):
            if owner in union.maps:
                used[union.maps[owner][need.channel[need.origin == number]]] = 0
        if not used.all():
            ways.append(used)
        if need.owner in union.maps:
            origin, channel = in_order(replace(need, owner=-1), decided)
            for each in (origin, channel):
                key = np.empty(count, dtype=np.int64)
                key[union.maps[need.owner]] = each
                origins.append(key)
    return ways + origins


def _class(trace: Trace, key: int) -> OrderClass:
    found = trace.classes[trace.class_of[key]]
    assert found is not None
    return found
