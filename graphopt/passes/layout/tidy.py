"""Transposes by themselves: chains made one, those that change nothing gone, those that move no data a Reshape."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, constant, replace_uses, set_input, take_over
from graphopt.passes.layout.moves import Knowledge
from graphopt.passes.layout.permutations import Perm, between, is_identity
from graphopt.passes.layout.prices import only_moves_ones
from graphopt.passes.layout.values import Form, Value, Values, order_of


def compose_chains(values: Values) -> int:
    """Let every Transpose that is read by other nodes read the nearest form that is; return how many went."""
    return sum(
        _compose(values, value)
        for value in values.transposed()
        if len(value.forms) > 1 or is_identity(value.forms[0].label)
    )


def _compose(values: Values, value: Value) -> int:
    index = values.index
    read = {id(use.node.inputs[use.slot]) for use in value.uses} | value.pinned
    stays: dict[int, tuple[gs.Tensor, Perm]] = {id(value.root): (value.root, value.plain)}
    by_order: dict[Perm, gs.Tensor] = {value.plain: value.root}
    dropped: list[gs.Node] = []
    replaced: list[tuple[Form, gs.Tensor]] = []
    rewired: list[tuple[Form, gs.Tensor, Perm]] = []
    for form in value.forms:
        source, label = stays[id(form.node.inputs[0])]
        pinned = id(form.tensor) in value.pinned
        if id(form.tensor) not in read:
            # Read by other Transposes at most, which read what it reads from now on.
            stays[id(form.tensor)] = (source, label)
            dropped.append(form.node)
        elif form.label in by_order and not pinned:
            twin = by_order[form.label]
            stays[id(form.tensor)] = (twin, form.label)
            replaced.append((form, twin))
            dropped.append(form.node)
        else:
            if source is not form.node.inputs[0]:
                rewired.append((form, source, between(label, form.label)))
            stays[id(form.tensor)] = (form.tensor, form.label)
            by_order.setdefault(form.label, form.tensor)
    for form, source, perm in rewired:
        set_input(index, form.node, 0, source)
        form.node.attrs["perm"] = list(perm)
    index.drop(dropped)
    for form, twin in replaced:
        replace_uses(index, form.tensor, twin)
    return len(dropped) + _hand_over(values, value, dropped)


def _hand_over(values: Values, value: Value, dropped: list[gs.Node]) -> int:
    """Let the producer write an output that is the value in its own order."""
    index = values.index
    gone = {id(node) for node in dropped}
    for form in value.forms:
        if (
            id(form.node) not in gone
            and is_identity(form.label)
            and form.node.inputs[0] is value.root
            and value.producer is not None
            and id(value.root) not in value.pinned
        ):
            index.drop([form.node])
            take_over(index, value.root, form.tensor)
            return 1
    return 0


def reshape_instead(index: Index, known: Knowledge) -> int:
    """Turn Transposes that only move axes of size 1 into Reshapes, which cost nothing; return how many."""
    changed = 0
    for graph in index.graphs:
        for node in graph.nodes:
            perm = order_of(node, known)
            shape = None if perm is None else known.shape(node.inputs[0])
            if perm is None or shape is None or is_identity(perm) or not only_moves_ones(perm, shape):
                continue
            target = _target(perm, shape)
            if target is None:
                continue
            node.op = "Reshape"
            node.attrs.clear()
            values = np.asarray(target, dtype=np.int64)
            set_input(index, node, 1, constant(index, f"{node.outputs[0].name}_shape", values))
            changed += 1
    return changed


def _target(perm: Perm, shape: tuple[int | str | None, ...]) -> list[int] | None:
    """The shape to reshape to: at most one open axis elsewhere than it was; None where there are more, or zeros."""
    target: list[int] = []
    for place, axis in enumerate(perm):
        size = shape[axis]
        target.append(size if isinstance(size, int) else 0 if place == axis else -1)
        if size == 0:
            return None
    return target if target.count(-1) <= 1 else None
