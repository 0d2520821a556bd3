"""Carry out a choice: let nodes work on the new order, and give every reader the form that it reads now.

Every tensor that stays keeps its value; new orders are new tensors, unless a Transpose wrote just that one.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    add_node,
    constant,
    set_input,
    set_output,
    values_of,
    variable,
)
from graphopt.passes.layout.candidates import Candidates
from graphopt.passes.layout.cut import follows, labels_after
from graphopt.passes.layout.moves import Move
from graphopt.passes.layout.permutations import Perm, between, identity, inverse
from graphopt.passes.layout.values import Value, Values

# Constants with their permuted copies, one for all readers of an order: by id, rank and permutation.
Weights: TypeAlias = dict[tuple[int, int, Perm], tuple[gs.Constant, gs.Constant]]


def rewire(values: Values, chosen: Candidates) -> int:
    """Move the chosen nodes; return how many fewer Transposes there are."""
    index, graph = values.index, values.graph
    touched: dict[int, Value] = {}
    for node, _ in chosen.moves.values():
        for tensor in (*node.inputs, *node.outputs):
            value = values.of(tensor)
            if value is not None and id(value.root) in chosen.orders:
                touched[id(value.root)] = value
    saved = sum(_rewire_value(index, graph, value, chosen) for value in touched.values())
    weights: Weights = {}
    for node, move in chosen.moves.values():
        _apply(index, graph, node, move, weights)
    return saved


def _rewire_value(index: Index, graph: gs.Graph, value: Value, chosen: Candidates) -> int:
    """Write and read one value in its new orders; return how many Transposes that saves."""
    written, read = labels_after(value, chosen, chosen.moves)
    forms: dict[Perm, gs.Tensor] = {value.plain: value.root}
    for form in sorted(value.forms, key=lambda form: id(form.tensor) not in value.pinned):
        forms.setdefault(form.label, form.tensor)
    source = value.root
    added = 0
    if written != value.plain:
        assert value.producer is not None
        slot = next(slot for slot, tensor in enumerate(value.producer.outputs) if tensor is value.root)
        source = forms.setdefault(written, _transposed(index, value, written))
        writer = next((form.node for form in value.forms if form.tensor is source), None)
        if writer is not None:
            # Its readers among the Transposes find what they read below.
            set_output(index, writer, 0, variable(index, f"{source.name}_unused"))
        set_output(index, value.producer, slot, source)
        if value.plain in read:
            _transpose(index, graph, source, value.root, between(written, value.plain))
            added += 1
    alive = {id(source)} | ({id(value.root)} if written == value.plain or value.plain in read else set())
    dropped: list[gs.Node] = []
    for form in value.forms:
        pinned = id(form.tensor) in value.pinned
        if form.tensor is source or not (pinned or (form.label in read and forms[form.label] is form.tensor)):
            dropped.append(form.node)
            continue
        if id(form.node.inputs[0]) not in alive:
            set_input(index, form.node, 0, source)
            form.node.attrs["perm"] = list(between(written, form.label))
        alive.add(id(form.tensor))
    for label in sorted(read):
        if label not in forms:
            forms[label] = _transposed(index, value, label)
            _transpose(index, graph, source, forms[label], between(written, label))
            added += 1
    order = chosen.orders[id(value.root)][1]
    for use in value.uses:
        moves = id(use.node) in chosen.moves and follows(use, chosen)
        tensor = forms[order if moves else use.label]
        if use.node.inputs[use.slot] is not tensor:
            set_input(index, use.node, use.slot, tensor)
    index.drop(dropped)
    return len(dropped) - added


def _transpose(index: Index, graph: gs.Graph, source: gs.Tensor, target: gs.Tensor, perm: Perm) -> None:
    prefix = f"{target.name}_transpose"
    add_node(index, "Transpose", [source], [target], {"perm": list(perm)}, prefix=prefix, home=graph)


def _transposed(index: Index, value: Value, label: Perm) -> gs.Tensor:
    """A new tensor for a value in another order."""
    tensor = variable(index, f"{value.root.name}_{''.join(map(str, label))}", value.root)
    if tensor.shape is not None:
        tensor.shape = tuple(tensor.shape[axis] for axis in label) if len(tensor.shape) == len(label) else None
    return tensor


def _apply(index: Index, graph: gs.Graph, node: gs.Node, move: Move, weights: Weights) -> None:
    """Give a node the attributes, parameters and weights of its new order."""
    for name, setting in move.attrs.items():
        node.attrs[name] = setting
    if move.op is not None:
        node.op = move.op
    label = node.name or node.outputs[0].name
    for slot, given in move.parameters.items():
        while len(node.inputs) < slot:
            set_input(index, node, len(node.inputs), gs.Variable.empty())
        set_input(index, node, slot, constant(index, f"{label}_moved", given))
    for slot, (rank, perm) in move.weights.items():
        held = node.inputs[slot]
        key = (id(held), rank, perm)
        if key not in weights:
            weights[key] = (held, constant(index, f"{held.name}_moved", _permuted(held, rank, perm)))
        set_input(index, node, slot, weights[key][1])
    if move.gather is not None and move.gather != identity(len(move.gather)):
        result = node.outputs[0]
        sizes = variable(index, f"{result.name}_moved", result)
        set_output(index, node, 0, sizes)
        order = constant(index, f"{result.name}_order", np.asarray(inverse(move.gather), dtype=np.int64))
        add_node(index, "Gather", [sizes, order], [result], {"axis": 0}, prefix=f"{result.name}_gather", home=graph)


def _permuted(held: gs.Constant, rank: int, perm: Perm) -> np.ndarray[Any, Any]:
    found = values_of(held)
    assert found is not None
    return np.ascontiguousarray(found.reshape((1,) * (rank - found.ndim) + found.shape).transpose(perm))
