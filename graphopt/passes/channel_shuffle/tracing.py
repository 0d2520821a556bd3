"""Which tensors must have their channels in the same order, and which moves lie between them.

Starting at the moves that scramble channels, slots are followed through every operator that hands an order on. All
slots that must have one order make a *class*; a class knows which constants follow its order, in which blocks it may
be permuted, and whether something that is not understood (or an input or output of the graph) fixes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.graph import Index, consumers, dtype_of, is_constant, size_of, sole_producer, values_of
from graphopt.passes.channel_shuffle.moves import Move, of_node
from graphopt.passes.channel_shuffle.nodes import data_inputs
from graphopt.passes.channel_shuffle.operators import passage
from graphopt.passes.channel_shuffle.passages import Edit, Slot, View
from graphopt.passes.channel_shuffle.shapes import Known

# A constant that others read too may be copied if it is no larger than this.
_SMALL_BYTES = 4096


@dataclass
class OrderClass:
    """Slots whose channels must be in the same order.

    Attributes:
        channels: how many.
        slots: one for each tensor.
        edits: constants that follow.
        blocks: sizes of blocks that no channel may leave; 1 fixes the order.
        computed: whether any node but a move makes or reads one of the tensors.
    """

    channels: int
    slots: list[Slot] = field(default_factory=list)
    edits: dict[tuple[int, int, int], Edit] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)
    computed: bool = False

    @property
    def fixed(self) -> bool:
        """Whether the order must stay."""
        return 1 in self.blocks


@dataclass(frozen=True)
class Trace:
    """All classes that moves connect, and the moves.

    Attributes:
        classes: by number; merged ones are None.
        class_of: ``id`` of a tensor -> number of its class.
        moves: ``id`` of a target -> its move, in the order of the graph.
        slots: ``id`` of a tensor -> where its class sees its channels.
    """

    classes: list[OrderClass | None]
    class_of: dict[int, int]
    moves: dict[int, Move]
    slots: dict[int, Slot]

    def is_clear(self, move: Move) -> bool:
        """Whether all tensors of a move are seen by their classes as the move sees them."""
        slots = [self.slots.get(id(tensor)) for tensor in (move.target, *move.sources)]
        return all(slot is not None and (slot.axis, slot.inner) == (move.axis, 1) for slot in slots)

    def is_fixed(self, number: int) -> bool:
        """Whether the order of a class must stay."""
        found = self.classes[number]
        return found is None or found.fixed


class Tracer:
    """Follows slots through one graph."""

    def __init__(self, index: Index, home: gs.Graph, known: Known, shuffles: Sequence[Move]) -> None:
        self._index, self._home, self._known = index, home, known
        self._ends = {id(move.target): move for move in shuffles}
        self._starts: dict[int, list[Move]] = {}
        self._inside = {id(node) for move in shuffles for node in move.nodes}
        for move in shuffles:
            for source in move.sources:
                self._starts.setdefault(id(source), []).append(move)
        self._classes: list[OrderClass | None] = []
        self._slots: dict[int, tuple[Slot, int]] = {}
        self._moves: dict[int, Move] = {}
        self._pending: list[Slot] = []
        self._merged: dict[int, int] = {}
        self._links: dict[tuple[int, int], list[Move]] = {}

    def run(self, seeds: Sequence[Move]) -> Trace:
        """Follow everything that the seeds connect."""
        for seed in seeds:
            self._connect(seed)
            while self._pending:
                self._visit(self._pending.pop())
        place = {id(node): number for number, node in enumerate(self._home.nodes)}
        moves = sorted(self._moves.values(), key=lambda move: place[id(move.nodes[0])])
        return Trace(
            self._classes,
            {key: self._find(number) for key, (_, number) in self._slots.items()},
            {id(move.target): move for move in moves},
            {key: slot for key, (slot, _) in self._slots.items()},
        )

    def _find(self, number: int) -> int:
        while self._classes[number] is None:
            number = self._merged[number]
        return number

    def _connect(self, move: Move) -> None:
        """Take a move in, and the slots at its ends."""
        if id(move.target) in self._moves:
            return
        self._moves[id(move.target)] = move
        self._reach(Slot(move.target, move.axis), None, len(move.channel))
        for tensor in move.sources:
            self._reach(Slot(tensor, move.axis), None)

    def _reach(self, slot: Slot, number: int | None, channels: int | None = None) -> None:
        """Put a slot into a class, a new one if ``number`` is None."""
        seen = self._slots.get(id(slot.tensor))
        if seen is not None:
            other = self._find(seen[1])
            if (seen[0].axis, seen[0].inner) != (slot.axis, slot.inner):
                # Seen as two different sets of channels: neither may move.
                for known in (other, number):
                    if known is not None:
                        self._class(known).blocks.add(1)
            elif number is not None:
                self._merge(other, self._find(number))
            return
        channels = self._channels(slot) if channels is None else channels
        if number is None:
            self._classes.append(OrderClass(channels))
            number = len(self._classes) - 1
        number = self._find(number)
        each = self._class(number)
        if channels != each.channels:
            each.blocks.add(1)
            return
        if channels < 2:
            each.blocks.add(1)
        each.slots.append(slot)
        self._slots[id(slot.tensor)] = (slot, number)
        self._pending.append(slot)

    def _class(self, number: int) -> OrderClass:
        found = self._classes[self._find(number)]
        assert found is not None
        return found

    def _merge(self, first: int, second: int) -> None:
        if first == second:
            return
        one, other = self._class(first), self._class(second)
        if one.channels != other.channels:
            one.blocks.add(1)
            other.blocks.add(1)
            return
        if len(one.slots) < len(other.slots):
            first, second, one, other = second, first, other, one
        one.slots += other.slots
        one.edits |= other.edits
        one.blocks |= other.blocks
        one.computed = one.computed or other.computed
        self._classes[second] = None
        self._merged[second] = first

    def _channels(self, slot: Slot) -> int:
        """Number of channels of a slot, 0 where it is not known."""
        sizes = self._known.sizes(slot.tensor)
        if sizes is None or not 0 <= slot.axis < len(sizes):
            return 0
        size = sizes[slot.axis]
        return 0 if size.symbols or size.number % slot.inner else size.number // slot.inner

    def _visit(self, slot: Slot) -> None:
        tensor = slot.tensor
        number = self._slots[id(tensor)][1]
        producer = sole_producer(tensor)
        if is_constant(tensor) or producer is None or self._index.is_output(tensor):
            self._class(number).blocks.add(1)
            self._class(number).computed = True
        if is_constant(tensor):
            return
        if producer is not None:
            self._pass(producer, slot, written=True)
        for reader in consumers(tensor):
            self._pass(reader, slot, written=False)

    def _pass(self, node: gs.Node, slot: Slot, *, written: bool) -> None:
        each = self._class(self._slots[id(slot.tensor)][1])
        if self._index.home(node) is not self._home:
            each.blocks.add(1)
            each.computed = True
            return
        moves = self._moves_at(node, slot, written=written)
        if moves:
            for move in moves:
                self._connect(move)
            return
        each.computed = True
        if id(node) in self._inside:
            each.blocks.add(1)
            return
        tensors = node.outputs if written else node.inputs
        place = next(number for number, tensor in enumerate(tensors) if tensor is slot.tensor)
        found = passage(View(node, slot, written, place, each.channels, self._known))
        if found is None or not all(self._editable(edit) for edit in found.edits):
            each.blocks.add(1)
            return
        each.edits.update(((id(edit.node), edit.input, edit.axis), edit) for edit in found.edits)
        if found.block is not None:
            each.blocks.add(found.block)
        for other in found.slots:
            self._reach(other, self._slots[id(slot.tensor)][1])

    def _moves_at(self, node: gs.Node, slot: Slot, *, written: bool) -> list[Move]:
        """Moves that make this slot's tensor, or that the node takes part in and that read it."""
        if slot.inner != 1:
            return []
        if written and id(slot.tensor) in self._ends:
            move = self._ends[id(slot.tensor)]
            return [move] if move.axis == slot.axis else []
        if not written and id(node) in self._inside:
            found = [move for move in self._starts.get(id(slot.tensor), ()) if move.axis == slot.axis]
            return [move for move in found if any(each is node for each in move.nodes)]
        if not written and sum(tensor is slot.tensor for tensor in data_inputs(node)) != sum(
            tensor is slot.tensor for tensor in node.inputs
        ):
            return []
        key = (id(node), slot.axis)
        if key not in self._links:
            self._links[key] = of_node(node, slot.axis, self._known)
        return self._links[key]

    def _editable(self, edit: Edit) -> bool:
        tensor = edit.node.inputs[edit.input]
        if isinstance(tensor, gs.Constant):
            dtype, size = dtype_of(tensor), size_of(tensor)
        else:
            values = values_of(tensor)
            dtype, size = (None, 0) if values is None else (values.dtype, values.nbytes)
        return dtype is not None and dtype.kind in "fiub" and (len(tensor.outputs) == 1 or size <= _SMALL_BYTES)
