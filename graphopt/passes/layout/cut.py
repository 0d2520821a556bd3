"""Which of the nodes that could move should: the choice that leaves the fewest bytes to transpose.

Every value costs one Transpose for each order that is read and not the one written. Each candidate node either stays
or moves, so the best choice is a minimum cut: candidates are its nodes, the source stands for moving, and each value
adds the edges that charge its Transposes. The cut is exact but for values read in three orders and more; what comes
out is priced again, connected group by connected group, and only what costs less than before is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx

from graphopt.graph import Shape
from graphopt.passes.layout.candidates import Candidates
from graphopt.passes.layout.mincut import Network
from graphopt.passes.layout.moves import Knowledge
from graphopt.passes.layout.permutations import Perm, between, is_identity, without
from graphopt.passes.layout.rules import ELEMENTWISE
from graphopt.passes.layout.values import LINEAR, Use, Value, Values

# What running any node costs, in bytes that could be transposed meanwhile.
_OVERHEAD = 8192.0
# What an axis of unknown size counts for.
_UNKNOWN = 16
# Of equal places, a Transpose is best where it parts no convolution from what could fuse with it, then where it parts
# no arithmetic. Whole numbers, so that prices can be compared exactly.
_BESIDE_LINEAR = 90.0
_BESIDE_ARITHMETIC = 30.0
_NEVER = math.inf
# Readers of a value that its price looks at.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Price:
    """Number of Transposes (and the like) and their cost in bytes."""

    count: int
    cost: float

    def __add__(self, other: Price) -> Price:
        return Price(self.count + other.count, self.cost + other.cost)


class Prices:
    """What Transposes cost, value by value."""

    def __init__(self, known: Knowledge) -> None:
        self._known = known
        self._seen: dict[int, tuple[Value, Shape | None, float, int]] = {}

    def of(self, value: Value, start: Perm, end: Perm) -> float:
        """Cost of the Transpose from one order to another."""
        beside = int(any(use.label == end and use.node.op in LINEAR for use in value.uses[:_LOOKED_AT]))
        if start == value.plain and value.producer is not None and value.producer.op in LINEAR:
            beside += 1
        cost = self.bytes_of(value, start, end) + _OVERHEAD + _BESIDE_LINEAR * beside
        return cost + _BESIDE_ARITHMETIC * self._look(value)[3]

    def bytes_of(self, value: Value, start: Perm, end: Perm) -> float:
        """Bytes that a Transpose moves; none where only axes of size 1 change places."""
        _, shape, size, _ = self._look(value)
        if shape is not None and 1 in shape:
            return 0.0 if only_moves_ones(between(start, end), tuple(shape[axis] for axis in start)) else size
        return size

    def _look(self, value: Value) -> tuple[Value, Shape | None, float, int]:
        """Shape, bytes, and on how many sides there is arithmetic."""
        found = self._seen.get(id(value))
        if found is None:
            shape = self._known.shape(value.root)
            sizes = [size if isinstance(size, int) else _UNKNOWN for size in shape or (None,) * value.rank]
            arithmetic = int(any(use.node.op in ELEMENTWISE for use in value.uses[:_LOOKED_AT]))
            arithmetic += value.producer is not None and value.producer.op in ELEMENTWISE
            found = (value, shape, float(math.prod(sizes) * _itemsize(self._known.dtype(value.root))), arithmetic)
            self._seen[id(value)] = found
        return found


@lru_cache(maxsize=64)
def _itemsize(dtype: int) -> int:
    try:
        return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)).itemsize)
    except KeyError:
        return 4


@lru_cache(maxsize=4096)
def only_moves_ones(perm: Perm, shape: tuple[int | str | None, ...]) -> bool:
    """Whether all axes but those of size 1 keep their order."""
    return 1 in shape and is_identity(without(perm, [axis for axis, size in enumerate(shape) if size == 1]))


def choose(values: Values, candidates: Candidates) -> Candidates:
    """The candidates that should move; every connected group of them lowers the price."""
    prices = Prices(values.known)
    chosen = _cut(values, candidates, prices)
    kept: dict[int, bool] = {}
    for group in _groups(candidates, chosen):
        touched = {id(found.root): found for key in group for found in _touched(values, candidates, key)}
        before, after = Price(0, 0.0), Price(0, 0.0)
        for value in touched.values():
            before += price(value, candidates, frozenset(), prices)
            after += price(value, candidates, group, prices)
        for key in group:
            after += _extra(values, candidates, key, prices)
        better = after.cost < before.cost and after.count <= before.count
        kept.update(dict.fromkeys(group, better))
    moves = {key: move for key, move in candidates.moves.items() if kept.get(key)}
    return Candidates(moves, candidates.orders)


def labels_after(
    value: Value, candidates: Candidates, moving: Mapping[int, object] | frozenset[int] | set[int]
) -> tuple[Perm, set[Perm]]:
    """The order in which a value is written and those in which it is read, once some nodes have moved."""
    order = candidates.orders[id(value.root)][1] if id(value.root) in candidates.orders else value.plain
    written = order if _writes(value, candidates) and id(value.producer) in moving else value.plain
    read = set(value.pinned_labels)
    read.update(order if id(use.node) in moving and follows(use, candidates) else use.label for use in value.uses)
    return written, read


def price(value: Value, candidates: Candidates, moving: frozenset[int] | set[int], prices: Prices) -> Price:
    """What the Transposes of one value cost, once some nodes have moved."""
    written, read = labels_after(value, candidates, moving)
    read.discard(written)
    return Price(len(read), sum(prices.of(value, written, label) for label in read))


def follows(use: Use, candidates: Candidates) -> bool:
    """Whether a use takes its value's new order if its node moves."""
    found = candidates.moves.get(id(use.node))
    return found is not None and found[1].inputs[use.slot] is not None


def _writes(value: Value, candidates: Candidates) -> bool:
    """Whether the producer writes the new order if it moves."""
    found = None if value.producer is None else candidates.moves.get(id(value.producer))
    if found is None or id(value.root) not in candidates.orders:
        return False
    node, move = found
    slot = next(slot for slot, tensor in enumerate(node.outputs) if tensor is value.root)
    return slot < len(move.outputs) and move.outputs[slot] == candidates.orders[id(value.root)][1] != value.plain


def _touched(values: Values, candidates: Candidates, key: int) -> list[Value]:
    node = candidates.moves[key][0]
    found = (values.of(tensor) for tensor in (*node.inputs, *node.outputs))
    return [value for value in found if value is not None and id(value.root) in candidates.orders]


def _extra(values: Values, candidates: Candidates, key: int, prices: Prices) -> Price:
    """What a node costs by itself, once moved."""
    node, move = candidates.moves[key]
    total = Price(0, 0.0) if move.gather is None else Price(1, _OVERHEAD)
    value = values.of(node.inputs[0]) if move.penalty else None
    if value is not None:
        total += Price(0, move.penalty * prices.bytes_of(value, value.plain, value.plain[::-1]))
    return total


def _cut(values: Values, candidates: Candidates, prices: Prices) -> set[int]:
    """The nodes that a minimum cut moves, the fewest of them."""
    network = Network()
    places = {key: network.add_node() for key in candidates.moves}
    for value, order in candidates.orders.values():
        _charge(network, places, value, order, candidates, prices)
    for key, place in places.items():
        extra = _extra(values, candidates, key, prices).cost
        network.drain(place, max(extra, 0.0))
        network.feed(place, max(-extra, 0.0))
    side = network.source_side()
    # Too hard to tell: let each group move as a whole or not at all.
    return set(places) if side is None else {key for key, place in places.items() if place in side}


def _charge(
    network: Network, places: Mapping[int, int], value: Value, order: Perm, candidates: Candidates, prices: Prices
) -> None:
    """Add the edges that charge one value's Transposes."""
    plain = value.plain
    writer = places[id(value.producer)] if _writes(value, candidates) else None
    fixed = set(value.pinned_labels)
    movable: dict[Perm, dict[int, None]] = {}
    for use in value.uses:
        if follows(use, candidates) and use.label != order:
            movable.setdefault(use.label, {})[places[id(use.node)]] = None
        else:
            fixed.add(use.label)
    movers = [place for group in movable.values() for place in group]
    if writer is not None:
        if order in fixed:
            network.feed(writer, prices.of(value, plain, order))
        elif movers:
            _any(network, movers, writer, prices.of(value, plain, order))
        if plain in fixed:
            network.drain(writer, prices.of(value, order, plain))
    elif order != plain and order not in fixed and movers:
        _any(network, movers, None, prices.of(value, plain, order))
    for label, group in movable.items():
        if label in fixed:
            continue
        if label != plain:
            _all(network, group, None, prices.of(value, plain, label))
        elif writer is not None:
            _all(network, group, writer, prices.of(value, order, plain))


def _any(network: Network, movers: list[int], unless: int | None, cost: float) -> None:
    """Charge ``cost`` if any of the nodes moves, unless one moves too."""
    hub = network.add_node()
    for place in movers:
        network.connect(place, hub, _NEVER)
    if unless is None:
        network.drain(hub, cost)
    else:
        network.connect(hub, unless, cost)


def _all(network: Network, movers: Mapping[int, None], only: int | None, cost: float) -> None:
    """Charge ``cost`` unless all of the nodes move; if ``only`` is given, only if that one moves."""
    hub = network.add_node()
    if only is None:
        network.feed(hub, cost)
    else:
        network.connect(only, hub, cost)
    for place in movers:
        network.connect(hub, place, _NEVER)


def _groups(candidates: Candidates, chosen: set[int]) -> list[set[int]]:
    """The chosen nodes, those that share a value together."""
    leader = {key: key for key in chosen}

    def find(key: int) -> int:
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for value, _ in candidates.orders.values():
        first = id(value.producer) if id(value.producer) in leader else None
        for use in value.uses:
            if id(use.node) in leader:
                first = id(use.node) if first is None else first
                leader[find(id(use.node))] = find(first)
    groups: dict[int, set[int]] = {}
    for key in candidates.moves:
        if key in leader:
            groups.setdefault(find(key), set()).add(key)
    return list(groups.values())
