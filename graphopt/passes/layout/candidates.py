"""Which nodes could change their order together: from a value with a Transpose, as far as rules carry the change."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.passes.layout.moves import Move
from graphopt.passes.layout.permutations import Perm, between, compose, is_identity
from graphopt.passes.layout.rules import rule_of
from graphopt.passes.layout.values import Value, Values


@dataclass
class Candidates:
    """What could move, all or in part.

    Attributes:
        moves: ``id`` of a node -> it and its move. Every move fits ``orders`` on all its inputs and outputs.
        orders: ``id`` of a root -> its value and the order it would have.
    """

    moves: dict[int, tuple[gs.Node, Move]] = field(default_factory=dict)
    orders: dict[int, tuple[Value, Perm]] = field(default_factory=dict)


def propose(values: Values, seeds: Iterable[tuple[Value, Perm]]) -> Candidates:
    """Let each seed take its order, and everything that reads or writes it follow; the first to come decides."""
    found = Candidates()
    refused: set[int] = set()
    pending: deque[tuple[Value, Perm]] = deque()

    def reach(value: Value | None, order: Perm) -> None:
        if value is not None and id(value.root) not in found.orders:
            found.orders[id(value.root)] = (value, order)
            pending.append((value, order))

    def ask(node: gs.Node, slot: int, perm: Perm) -> None:
        if id(node) in found.moves or id(node) in refused:
            return
        rule = rule_of(node)
        move = None if rule is None else rule(node, slot, perm, values.known)
        if move is None:
            refused.add(id(node))
            return
        found.moves[id(node)] = (node, move)
        for tensor, own in zip(node.inputs, move.inputs, strict=True):
            if own is not None:
                reach(values.of(tensor), compose(values.form(tensor, len(own))[1], own))
        for tensor, own in zip(node.outputs, move.outputs, strict=False):
            if not is_identity(own):
                reach(values.of(tensor), own)

    for seed, wanted in seeds:
        before = len(found.moves)
        fresh = id(seed.root) not in found.orders
        reach(seed, wanted)
        while pending:
            value, order = pending.popleft()
            if value.producer is not None and order != value.plain:
                slot = next(slot for slot, tensor in enumerate(value.producer.outputs) if tensor is value.root)
                ask(value.producer, ~slot, order)
            for use in value.uses:
                if use.label != order:
                    ask(use.node, use.slot, between(use.label, order))
        if fresh and len(found.moves) == before:
            # Nothing follows it; another seed may have a use for it.
            del found.orders[id(seed.root)]
    for key, (node, move) in list(found.moves.items()):
        if not _fits(values, found, node, move):
            del found.moves[key]
    return found


def _fits(values: Values, found: Candidates, node: gs.Node, move: Move) -> bool:
    """Whether a move agrees with the orders that its inputs and outputs would have."""
    for tensor, own in zip(node.inputs, move.inputs, strict=True):
        if own is None:
            continue
        value = values.of(tensor)
        if value is None or found.orders[id(value.root)][1] != compose(values.form(tensor, len(own))[1], own):
            return False
    for tensor, own in zip(node.outputs, move.outputs, strict=False):
        if tensor.is_empty() or is_identity(own):
            continue
        value = values.of(tensor)
        if value is None or value.producer is not node or found.orders[id(value.root)][1] != own:
            return False
    return len(move.outputs) >= sum(not tensor.is_empty() for tensor in node.outputs)
