"""Data movement written down again, tensors renamed, and constants permuted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    add_node,
    constant,
    replace_uses,
    set_input,
    set_output,
    sole_producer,
    take_over,
    values_of,
    variable,
)
from graphopt.passes.channel_shuffle.layout import Labels
from graphopt.passes.channel_shuffle.moves import Move
from graphopt.passes.channel_shuffle.passages import Edit
from graphopt.passes.channel_shuffle.planning import Plan, Step
from graphopt.passes.channel_shuffle.tracing import OrderClass


@dataclass
class Writer:
    """Edits one graph.

    Attributes:
        index: verbs and names.
        home: the graph.
        opset: its opset.
    """

    index: Index
    home: gs.Graph
    opset: int
    _constants: dict[tuple[object, ...], gs.Constant] = field(default_factory=dict)
    # Constants known by their id in the keys above, held so that it stays their own.
    _old: list[gs.Tensor] = field(default_factory=list)
    # What now stands for a tensor that is gone; the tensor is held so that its id stays its own.
    _instead: dict[int, tuple[gs.Tensor, gs.Tensor]] = field(default_factory=dict)

    def carry_out(self, plan: Plan, moves: Sequence[Move], classes: Mapping[int, OrderClass]) -> None:
        """Give classes their orders and put a plan's nodes in the place of the moves."""
        made = {id(step.need.target) for step in plan.steps}
        self.index.drop(list({id(node): node for move in moves for node in move.nodes}.values()))
        renamed: dict[int, gs.Tensor] = {}
        edits: dict[tuple[int, int], list[tuple[Edit, Labels]]] = {}
        for number, order in plan.orders.items():
            for slot in classes[number].slots:
                renamed[id(slot.tensor)] = self._rename(slot.tensor, written=id(slot.tensor) not in made)
            for edit in classes[number].edits.values():
                edits.setdefault((id(edit.node), edit.input), []).append((edit, order))
        self._permute(edits.values())
        pieces: dict[tuple[int, int], gs.Tensor] = {}
        for step in plan.steps:
            roots = [self._now(renamed.get(id(root), root)) for root in step.need.roots]
            self._make(step, plan, roots, renamed.get(id(step.need.target), step.need.target), pieces)

    def gather(self, source: gs.Tensor, indices: Labels, axis: int, target: gs.Tensor) -> None:
        """Let one Gather write ``target``."""
        source = self._now(source)
        entries = np.asarray(indices, dtype=np.int32)
        key = ("channels", entries.tobytes())
        if key not in self._constants:
            self._constants[key] = constant(self.index, "channels", entries)
        self._node("Gather", [source, self._constants[key]], [target], {"axis": axis})

    def hand_on(self, source: gs.Tensor, target: gs.Tensor) -> None:
        """Let readers of ``target``, which nothing writes, read ``source``."""
        source = self._now(source)
        if not self.index.is_output(target):
            replace_uses(self.index, target, source)
            self._instead[id(target)] = target, source
            return
        producer = sole_producer(source)
        if producer is None or self.index.is_output(source) or self.index.home(producer) is not self.home:
            self._node("Identity", [source], [target], {})
        else:
            take_over(self.index, source, target)
            self._instead[id(source)] = source, target

    def _now(self, tensor: gs.Tensor) -> gs.Tensor:
        while id(tensor) in self._instead:
            tensor = self._instead[id(tensor)][1]
        return tensor

    def _rename(self, tensor: gs.Tensor, *, written: bool) -> gs.Tensor:
        """A new tensor for the new order, with the producer and all readers of the old one."""
        new = variable(self.index, f"{tensor.name}_permuted", tensor)
        producer = sole_producer(tensor)
        if written and producer is not None:
            slot = next(number for number, output in enumerate(producer.outputs) if output is tensor)
            set_output(self.index, producer, slot, new)
        replace_uses(self.index, tensor, new)
        return new

    def _permute(self, edits: Iterable[Sequence[tuple[Edit, Labels]]]) -> None:
        for each in edits:
            node, number = each[0][0].node, each[0][0].input
            old = node.inputs[number]
            key = (id(old), *((edit.axis, edit.inner, edit.groups, order.tobytes()) for edit, order in each))
            if key not in self._constants:
                values = values_of(old)
                assert values is not None
                for edit, order in each:
                    values = permuted(values, edit, order)
                self._constants[key] = constant(self.index, f"{old.name}_permuted", values)
                self._old.append(old)
            set_input(self.index, node, number, self._constants[key])

    def _make(
        self,
        step: Step,
        plan: Plan,
        roots: Sequence[gs.Tensor],
        target: gs.Tensor,
        pieces: dict[tuple[int, int], gs.Tensor],
    ) -> None:
        axis = step.need.axis
        if not step.stretches:
            offsets = np.concatenate([[0], np.cumsum(step.counts)[:-1]])
            source = roots[0]
            if len(roots) > 1:
                source = gs.Variable(self.index.fresh_name(f"{target.name}_joined"), dtype=target.dtype)
                self._node("Concat", roots, [source], {"axis": axis})
            self.gather(source, step.channel + offsets[step.origin], axis, target)
            return
        parts: list[gs.Tensor] = []
        for number, start, end in step.stretches:
            old, root = step.need.roots[number], roots[number]
            if id(old) in plan.splits:
                places = plan.splits[id(old)]
                if (id(old), 0) not in pieces:
                    self._split(old, root, places, axis, pieces)
                parts += [self._now(pieces[id(old), place]) for place in places if start <= place < end]
            elif (start, end) == (0, step.counts[number]):
                parts.append(root)
            else:
                parts.append(self._slice(root, start, end, axis))
        if len(parts) > 1:
            self._node("Concat", parts, [target], {"axis": axis})
        else:
            self.hand_on(parts[0], target)

    def _split(
        self,
        old: gs.Tensor,
        root: gs.Tensor,
        places: Sequence[int],
        axis: int,
        pieces: dict[tuple[int, int], gs.Tensor],
    ) -> None:
        outputs = [
            gs.Variable(self.index.fresh_name(f"{root.name}_{place}"), dtype=root.dtype) for place in places[:-1]
        ]
        pieces.update(((id(old), place), output) for place, output in zip(places, outputs, strict=False))
        sizes = np.diff(places)
        if self.opset >= 13:
            self._node("Split", [root, self._integers(sizes)], outputs, {"axis": axis})
        else:
            self._node("Split", [root], outputs, {"axis": axis, "split": sizes.tolist()})

    def _slice(self, root: gs.Tensor, start: int, end: int, axis: int) -> gs.Tensor:
        part = gs.Variable(self.index.fresh_name(f"{root.name}_{start}"), dtype=root.dtype)
        if self.opset >= 10:
            bounds = [self._integers(np.array([value])) for value in (start, end, axis)]
            self._node("Slice", [root, *bounds], [part], {})
        else:
            self._node("Slice", [root], [part], {"axes": [axis], "starts": [start], "ends": [end]})
        return part

    def _integers(self, values: Labels) -> gs.Constant:
        key = ("integers", *values.tolist())
        if key not in self._constants:
            self._constants[key] = constant(self.index, "sizes", np.asarray(values, dtype=np.int64))
        return self._constants[key]

    def _node(
        self, op: str, inputs: Sequence[gs.Tensor], outputs: Sequence[gs.Tensor], attrs: Mapping[str, object]
    ) -> None:
        prefix = f"{outputs[0].name}_{op.lower()}"
        add_node(self.index, op, inputs, outputs, attrs, prefix=prefix, home=self.home)


def permuted(values: np.ndarray[Any, Any], edit: Edit, order: Labels) -> np.ndarray[Any, Any]:
    """A constant once its channels are in another order."""
    if edit.groups > 1:
        rows = values.shape[0] // edit.groups
        block = len(order) // edit.groups
        parts = [
            _taken(
                values[group * rows : (group + 1) * rows],
                edit.axis,
                edit.inner,
                order[group * block :][:block] - group * block,
            )
            for group in range(edit.groups)
        ]
        return np.concatenate(parts)
    return _taken(values, edit.axis, edit.inner, order)


def _taken(values: np.ndarray[Any, Any], axis: int, inner: int, order: Labels) -> np.ndarray[Any, Any]:
    places = (order[:, None] * inner + np.arange(inner)).ravel() if inner > 1 else order
    return np.ascontiguousarray(np.take(values, places, axis=axis))
