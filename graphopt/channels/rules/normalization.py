"""Normalization: parameters follow the channels; statistics that run over channels count the cut ones as zeros."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_graphsurgeon as gs

from graphopt.channels.fields import along, axes_of
from graphopt.channels.labels import Field
from graphopt.channels.tracer import Tracer, named


def batch_normalization(tracer: Tracer, node: gs.Node) -> None:
    """BatchNormalization and InstanceNormalization: parameters for each channel."""
    size = tracer.shape(node.inputs[0])
    training = node.attrs.get("training_mode", 0) or any(not one.is_empty() for one in node.outputs[1:])
    if training or size is None or not node.attrs.get("spatial", 1):
        tracer.pin_inputs(node, f"{named(node)} is in training mode, or of an unknown shape")
        return
    axes = range(2, len(size)) if node.op == "InstanceNormalization" else ()
    found, zero = [], True
    for each in _whole(tracer, node, axes):
        found.append(each)
        if len(size) > 1 and each.shape[1] > 1:
            labels = tracer.vector(each, 1, f"{named(node)} has one parameter for them")
            _follow(tracer, node, range(1, len(node.inputs)), labels)
        else:
            zero = False
    tracer.put(node.outputs[0], found, zero=zero)


def group_normalization(tracer: Tracer, node: gs.Node) -> None:
    """GroupNormalization: a whole group of channels is what can be cut.

    Its parameters are for each group in operator set 18, for each channel from 21 on.
    """
    size = tracer.shape(node.inputs[0])
    groups = int(node.attrs.get("num_groups", 1))
    if size is None or size[1] % groups:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    found, zero = [], True
    for each in _whole(tracer, node, range(2, len(size))):
        found.append(each)
        if each.shape[1] == 1:
            zero = False
            continue
        why = f"{named(node)} normalizes them together"
        labels = tracer.vector(each, 1, why).reshape(groups, -1)
        tracer.couple(labels, labels[:, :1], why)
        whole = tracer.shape(node.inputs[1]) == (groups,) and groups < size[1]
        _follow(tracer, node, (1, 2), labels[:, 0] if whole else labels.reshape(-1))
    tracer.put(node.outputs[0], found, zero=zero)


def layer_normalization(tracer: Tracer, node: gs.Node) -> None:
    """LayerNormalization, RMSNormalization: over the last axes, with parameters for each of their elements.

    The statistics stay what they are with zeros in place of the cut channels, so these must be zero before, too.
    """
    source = node.inputs[0]
    size = tracer.shape(source)
    if size is None:
        tracer.pin_inputs(node, f"the shapes of {named(node)} are not known")
        return
    first = int(node.attrs.get("axis", -1)) % len(size)
    found, zero = [], True
    for each in tracer.fields(source):
        inner = axes_of(each) & set(range(first, len(size)))
        if not inner:
            zero = False
        elif not tracer.is_zero(source):
            tracer.trace.labels.pin(each, f"{named(node)} averages over them, and they are not zero once zeroed")
            continue
        else:
            for slot in range(1, min(3, len(node.inputs))):
                zero &= _follow_behind(tracer, node, slot, each)
        found.append(each)
    for number, target in enumerate(node.outputs):
        # Mean and deviation are for whole rows.
        outer = [each for each in found if not axes_of(each) & set(range(first, len(size)))] if number else found
        tracer.put(target, outer, zero=zero and number == 0)


def _follow_behind(tracer: Tracer, node: gs.Node, slot: int, each: Field) -> bool:
    """Let a parameter of the last axes follow; return whether it is there at all, or adds nothing."""
    tensor = node.inputs[slot]
    shape = tracer.shape(tensor)
    if tensor.is_empty():
        return True
    rank = each.ndim
    if shape is None:
        tracer.trace.labels.pin(each, f"a parameter of {named(node)} is computed")
        return False
    # A parameter that is the same for all does not follow, but the result is zero where the other one is.
    own = [axis for axis in range(rank) if axis >= rank - len(shape) and shape[axis - rank + len(shape)] > 1]
    if not axes_of(each) & set(own):
        return slot == 1
    part = tracer.even(each, [axis for axis in range(rank) if axis not in own], f"a constant of {named(node)}")
    if not tracer.assign(node, slot, part.reshape(part.shape[rank - len(shape) :]), "follows"):
        tracer.trace.labels.pin(each, f"a parameter of {named(node)} is computed")
    return True


def mean_variance_normalization(tracer: Tracer, node: gs.Node) -> None:
    """MeanVarianceNormalization: no parameters; over the batch and the image unless told otherwise."""
    axes = [int(axis) for axis in node.attrs.get("axes", (0, 2, 3))]
    size = tracer.shape(node.inputs[0])
    rank = 4 if size is None else len(size)
    found = _whole(tracer, node, [axis % rank for axis in axes])
    tracer.put(node.outputs[0], found, zero=tracer.is_zero(node.inputs[0]))


def lp_normalization(tracer: Tracer, node: gs.Node) -> None:
    """LpNormalization: divides by a norm, to which zeros add nothing."""
    source = node.inputs[0]
    if tracer.is_zero(source):
        tracer.put(node.outputs[0], tracer.fields(source), zero=True)
        return
    size = tracer.shape(source)
    rank = 1 if size is None else len(size)
    tracer.put(node.outputs[0], _whole(tracer, node, [int(node.attrs.get("axis", -1)) % rank]))


def _whole(tracer: Tracer, node: gs.Node, axes: Iterable[int]) -> Sequence[Field]:
    """The fields of the input, where the given axes must stay whole."""
    why = f"{named(node)} works along that axis"
    kept = [tracer.without(each, list(axes), why) for each in tracer.fields(node.inputs[0])]
    return [each for each in kept if each is not None]


def _follow(tracer: Tracer, node: gs.Node, slots: Iterable[int], labels: Field) -> None:
    for slot in slots:
        shape = tracer.shape(node.inputs[slot])
        if shape != labels.shape or not tracer.assign(node, slot, along(labels, 0, 1), "follows"):
            tracer.trace.labels.pin(labels, f"a parameter of {named(node)} is computed")
