"""Which of the nodes that could move should: the choice that leaves the fewest bytes to transpose.

Every value costs one Transpose for each order that is read and not the one written. Each candidate node either stays
or moves, so the best choice is a minimum cut: candidates are its nodes, the source stands for moving, and each value
adds the edges that charge its Transposes. The cut is exact but for values read in three orders and more; what comes
out is priced again, connected group by connected group, and only what costs less than before is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import onnx

from graphopt.graph import Shape
from graphopt.passes.layout.candidates import Candidates
from graphopt.passes.layout.mincut import Network
from graphopt.passes.layout.moves import Knowledge
from graphopt.passes.layout.permutations import Perm, between, is_identity, without
from graphopt.passes.layout.rules import ELEMENTWISE
from graphopt.passes.layout.values import CONVOLUTIONS, LINEAR, Use, Value, Values

# What running any node costs, in bytes that could be transposed meanwhile.
_OVERHEAD = 8192.0
# What an axis of unknown size counts for.
_UNKNOWN = 16
# Of equal places, a Transpose is best where it parts no linear operator from what could fuse with it, above all from
# what follows, then where it parts no arithmetic. Whole numbers, so that prices can be compared exactly.
_AFTER_LINEAR = 90.0
_BEFORE_LINEAR = 60.0
_BESIDE_ARITHMETIC = 30.0
_NEVER = math.inf
# Readers of a value that its price looks at.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Price:
    """Number of Transposes (and the like) and their cost in bytes; ``units`` are the open sizes that it counts in."""

    count: int = 0
    cost: float = 0.0
    units: frozenset[tuple[str, ...]] = frozenset()

    def __add__(self, other: Price) -> Price:
        return Price(self.count + other.count, self.cost + other.cost, self.units | other.units)

    def beats(self, other: Price) -> bool:
        """Whether it is certainly less: fewer Transposes, or as many and sizes that can be compared."""
        comparable = len(self.units | other.units) <= 1 and (_UNSIZED,) not in self.units
        return self.cost < other.cost and (self.count < other.count or (self.count == other.count and comparable))


_UNSIZED = "?"
_FREE = Price()


class Prices:
    """What Transposes cost, value by value."""

    def __init__(self, known: Knowledge) -> None:
        self._known = known
        self._seen: dict[int, tuple[Value, Shape | None, float, int]] = {}

    def of(self, value: Value, start: Perm, end: Perm, readers: Iterable[Use]) -> float:
        """Cost of the Transpose from one order to another, for these readers."""
        some = list(islice(readers, _LOOKED_AT))
        perm = between(start, end)
        swaps_rows = perm[-2:] == (len(perm) - 1, len(perm) - 2) and is_identity(perm[:-2])
        cost = _OVERHEAD + _BESIDE_ARITHMETIC * self._look(value)[3]
        # ONNX Runtime's matrix product reads its operands transposed.
        if not (
            swaps_rows and some and end not in value.pinned_labels and all(use.node.op == "MatMul" for use in some)
        ):
            cost += self.bytes_of(value, start, end)
        if start == value.plain and value.producer is not None and value.producer.op in LINEAR:
            cost += _AFTER_LINEAR
        return cost + _BEFORE_LINEAR * any(use.node.op in CONVOLUTIONS for use in some)

    def bytes_of(self, value: Value, start: Perm, end: Perm) -> float:
        """Bytes that a Transpose moves; none where only axes of size 1 change places."""
        _, shape, size, _ = self._look(value)
        if shape is not None and 1 in shape:
            return 0.0 if only_moves_ones(between(start, end), tuple(shape[axis] for axis in start)) else size
        return size

    def unit(self, value: Value) -> tuple[str, ...]:
        """The symbols of its open sizes; those of equal symbols can be compared."""
        shape = self._look(value)[1]
        if shape is None or None in shape:
            return (_UNSIZED,)
        return tuple(sorted(size for size in shape if isinstance(size, str)))

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
        before, after = _FREE, _FREE
        for value in touched.values():
            before += price(value, candidates, frozenset(), prices)
            after += price(value, candidates, group, prices)
        for key in group:
            after += _extra(values, candidates, key, prices)
        kept.update(dict.fromkeys(group, after.beats(before)))
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
    if not read:
        return _FREE
    order = candidates.orders[id(value.root)][1]
    readers: dict[Perm, list[Use]] = {label: [] for label in read}
    for use in value.uses:
        label = order if id(use.node) in moving and follows(use, candidates) else use.label
        if label != written:
            readers[label].append(use)
    cost = sum(prices.of(value, written, label, uses) for label, uses in readers.items())
    return Price(len(read), cost, frozenset([prices.unit(value)]))


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
    total = _FREE if move.gather is None else Price(1, _OVERHEAD)
    value = values.of(node.inputs[0]) if move.penalty else None
    if value is not None:
        cost = move.penalty * prices.bytes_of(value, value.plain, value.plain[::-1])
        total += Price(0, cost, frozenset([prices.unit(value)]))
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
    readers: dict[Perm, list[Use]] = {}
    movable: dict[Perm, dict[int, None]] = {}
    movers: dict[int, None] = {}
    for use in value.uses:
        readers.setdefault(use.label, []).append(use)
        if use.label == order or not follows(use, candidates):
            fixed.add(use.label)
            continue
        place = places[id(use.node)]
        movable.setdefault(use.label, {})[place] = None
        movers[place] = None
        readers.setdefault(order, []).append(use)

    def cost(start: Perm, end: Perm) -> float:
        return prices.of(value, start, end, readers.get(end, ()))

    if writer is not None:
        if order in fixed:
            network.feed(writer, cost(plain, order))
        elif movers:
            _any(network, movers, writer, cost(plain, order))
        if plain in fixed:
            network.drain(writer, cost(order, plain))
    elif order != plain and order not in fixed and movers:
        _any(network, movers, None, cost(plain, order))
    for label, group in movable.items():
        if label in fixed:
            continue
        if label != plain:
            _all(network, group, None, cost(plain, label))
        elif writer is not None:
            _all(network, group, writer, cost(order, plain))


def _any(network: Network, movers: Mapping[int, None], unless: int | None, cost: float) -> None:
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
