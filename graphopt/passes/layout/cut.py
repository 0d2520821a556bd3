"""Which of the nodes that could move should: the choice that leaves the fewest bytes to transpose.

Every value costs one Transpose for each order that is read and not the one written. Each candidate node either stays
or moves, so the best choice is a minimum cut: candidates are its nodes, the source stands for moving, and each value
adds the edges that charge its Transposes. The cut is exact but for values read in three orders and more; what comes
out is priced again, connected group by connected group, and only what costs less than before is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from graphopt.passes.layout.candidates import Candidates
from graphopt.passes.layout.mincut import Network
from graphopt.passes.layout.permutations import Perm
from graphopt.passes.layout.prices import FREE, OVERHEAD, Price, Prices
from graphopt.passes.layout.values import Use, Value, Values

_NEVER = math.inf


def choose(values: Values, candidates: Candidates) -> Candidates:
    """The candidates that should move; every connected group of them lowers the price."""
    prices = Prices(values.known)
    chosen = _cut(values, candidates, prices)
    kept: dict[int, bool] = {}
    for group in _groups(candidates, chosen):
        touched = {id(found.root): found for key in group for found in _touched(values, candidates, key)}
        before, after = FREE, FREE
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
        return FREE
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
    total = FREE if move.gather is None else Price(1, OVERHEAD)
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
