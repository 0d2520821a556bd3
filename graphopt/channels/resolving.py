"""The end of a trace: every tensor that channels are cut from must stay rectangular.

A tensor whose labels differ along several axes would get holes. Where the labels are only on their way into another
order (a channel shuffle), the way is noted to be written as one Gather. Elsewhere labels are coupled along all axes but
the one that leaves the most classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.fields import along, axes_of, compress, take_first
from graphopt.channels.labels import Field, Labels
from graphopt.channels.rules.movement import moved_field
from graphopt.channels.trace import Blocks, ParameterUse, Regather
from graphopt.channels.tracer import Tracer, Use, named
from graphopt.graph import is_op

_MOVES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def resolve(tracer: Tracer) -> None:
    """Couple what must be coupled for every tensor to stay rectangular; turn uses into ``Trace.uses``."""
    _couple_shared(tracer)
    _pin_other_readers(tracer)
    _note_shuffles(tracer)
    changed = True
    while changed:
        changed = False
        for name, fields in _everything(tracer):
            changed |= _make_rectangular(tracer.trace.labels, fields, name)
        for blocks in tracer.trace.blocks:
            changed |= _pin_unequal(tracer.trace.labels, blocks)
    tracer.trace.uses[:] = [_parameter_use(use, tracer.trace.labels) for use in tracer.uses]


def _everything(tracer: Tracer) -> Iterator[tuple[str, tuple[Field, ...]]]:
    for node in tracer.trace.graph.nodes:
        for tensor in node.outputs:
            fields = tracer.trace.fields.get(id(tensor))
            if fields:
                yield f"tensor '{tensor.name}'", fields
    for use in tracer.uses:
        yield f"the parameter '{use.node.inputs[use.input].name}'", (use.field,)


def _make_rectangular(labels: Labels, fields: tuple[Field, ...], name: str) -> bool:
    changed = False
    for each in fields:
        free = labels.free(each)
        if not free.any():
            continue
        axes = axes_of(compress(free))
        if len(axes) > 1:
            best = max(sorted(axes), key=lambda axis: _classes_left(free, axis))
            why = f"{name} would not stay rectangular"
            rest = [axis for axis in range(each.ndim) if axis != best]
            changed |= labels.couple(each, take_first(each, rest), why)
        elif not axes:
            changed |= labels.pin(each, f"nothing would remain of {name}")
    return changed


def _pin_unequal(labels: Labels, blocks: Blocks) -> bool:
    """A block of a grouped convolution of which nothing can be cut holds all others back."""
    free = labels.free(blocks.labels) > 0
    if free.any() and (blocks.labels.shape[1] == 1 or not free.any(axis=1).all()):
        return labels.pin(blocks.labels, f"the groups of {named(blocks.node)} must stay equal, and one is fixed")
    return False


def _classes_left(free: Field, axis: int) -> int:
    """How many classes can still be cut once labels are coupled along all axes but one."""
    values, places = np.unique(free, return_inverse=True)
    trial = Labels()
    numbers = np.arange(len(values)) if values[0] == 0 else np.arange(1, len(values) + 1)
    trial.new(len(values))
    each = numbers[places].reshape(free.shape)
    trial.couple(each, take_first(each, [other for other in range(each.ndim) if other != axis]), "")
    left = np.unique(trial.free(each))
    return int(np.count_nonzero(left))


def _couple_shared(tracer: Tracer) -> None:
    """A weight that several nodes read stays one weight: its slices go for all of them or for none."""
    uses: dict[int, tuple[gs.Tensor, list[Use]]] = {}
    for use in tracer.uses:
        tensor = use.node.inputs[use.input]
        uses.setdefault(id(tensor), (tensor, []))[1].append(use)
    for tensor, found in uses.values():
        if len(tensor.outputs) < 2 or sum(size > 1 for size in tracer.shape(tensor) or ()) < 2:
            continue
        readers = {id(use.node) for use in found}
        others = [node for node in tensor.outputs if id(node) not in readers]
        for first in found:
            alike = (axes_of(first.field), first.blocks)
            same = [use for use in found if (axes_of(use.field), use.blocks) == alike]
            why = f"the weight '{tensor.name}' is shared"
            for use in same:
                tracer.couple(first.field, use.field, why)
            if others or {id(use.node) for use in same} != readers:
                reader = (others or [use.node for use in found if use.node is not first.node])[0]
                tracer.trace.labels.pin(first.field, f"{named(reader)} reads the weight '{tensor.name}', too")


def _pin_other_readers(tracer: Tracer) -> None:
    """A tensor computed from constants that goes along must go along for all who read it."""
    for tensor, readers in tracer.assigned.values():
        other = next((node for node in tensor.outputs if id(node) not in readers), None)
        if other is not None:
            tracer.trace.pin(tensor, f"{named(other)} reads '{tensor.name}', too")
        fields = tracer.fields(tensor)
        for place, each in enumerate(fields):
            for later in fields[place + 1 :]:
                if axes_of(each) & axes_of(later):
                    tracer.couple(each, later, f"'{tensor.name}' is shared")


def _note_shuffles(tracer: Tracer) -> None:
    """Find chains of data movement that bring the channels of a tensor into another order, and nothing else."""
    trace = tracer.trace
    outputs = {id(tensor) for tensor in trace.graph.outputs}
    for node in trace.graph.nodes:
        if not is_op(node, *_MOVES):
            continue
        source = node.inputs[0]
        fields = trace.of(source)
        if len(fields) != 1 or len(axes_of(fields[0])) != 1:
            continue
        chain = _chain(tracer, node, outputs)
        if chain is None:
            continue
        (axis,) = axes_of(fields[0])
        order = _order(tracer, source, chain, axis)
        if order is not None:
            for inner in chain[:-1]:
                trace.fields.pop(id(inner.outputs[0]), None)
            trace.moved[id(chain[-1].outputs[0])] = Regather(source, axis, order)


def _chain(tracer: Tracer, node: gs.Node, outputs: set[int]) -> list[gs.Node] | None:
    """The nodes from this one to where labels differ along one axis again; None where they never did otherwise."""
    chain = [node]
    while True:
        tensor = chain[-1].outputs[0]
        fields = tracer.trace.of(tensor)
        if len(fields) != 1 or not tracer.trace.labels.free(fields[0]).any():
            return None
        if len(axes_of(compress(tracer.trace.labels.free(fields[0])))) < 2:
            return chain if len(chain) > 1 else None
        if len(tensor.outputs) != 1 or id(tensor) in outputs or not is_op(tensor.outputs[0], *_MOVES):
            return None
        chain.append(tensor.outputs[0])


def _order(tracer: Tracer, source: gs.Tensor, chain: list[gs.Node], axis: int) -> Field | None:
    """Index in the source for each index of the chain's result along ``axis``; None where more moves than that."""
    shape = tracer.shape(source)
    if shape is None or tracer.shape(chain[-1].outputs[0]) != shape:
        return None
    order: Field | None = None
    for place, size in enumerate(shape):
        if size == 1:
            continue
        here = along(np.arange(size, dtype=np.int64), place, len(shape))
        each = here
        for node in chain:
            each = moved_field(tracer, node, each)
        if place == axis and axes_of(each) == {axis}:
            order = each.reshape(-1)
        elif not np.array_equal(each, here):
            return None
    return order


def _parameter_use(use: Use, labels: Labels) -> ParameterUse:
    free = labels.free(use.field)
    axes = axes_of(compress(free)) or axes_of(use.field)
    axis = min(axes) if axes else 0
    vector = take_first(use.field, [other for other in range(use.field.ndim) if other != axis]).reshape(-1)
    return ParameterUse(use.node, use.input, axis, vector, use.role, use.layer)
