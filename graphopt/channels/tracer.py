"""What the rules for operators work with: labels read, moved, coupled and pinned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.channels.fields import along, axes_of, compress, reshaped, take_first
from graphopt.channels.groups import Role
from graphopt.channels.labels import Field
from graphopt.channels.shapes import Values
from graphopt.channels.trace import Blocks, Trace
from graphopt.graph import is_constant, is_op, values_of

# Operators that may stand between a constant and the layer that reads it.
REACHED = (
    "Cast", "DequantizeLinear", "Expand", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """A small tensor computed from sizes.

    Attributes:
        depends: what each entry depends on: bit 0: the number of channels, bit 1: sizes that are open.
        sources: the labels of the channels.
    """

    depends: npt.NDArray[np.uint8]
    sources: tuple[Field, ...]


@dataclass(frozen=True)
class Use:
    """A constant that goes along with labels: a field of the constant's shape.

    Attributes:
        node: the node that reads it.
        input: which of its inputs.
        field: the labels; once all are coupled they differ along one axis.
        role: what the constant is to the channels.
        layer: the layer it is a parameter of; not ``node`` where that only unpacks it.
        blocks: how often ``field`` is longer than the constant along the axis where it differs; see ``ParameterUse``.
    """

    node: gs.Node
    input: int
    field: Field
    role: Role
    layer: gs.Node
    blocks: int = 1


@dataclass
class Tracer:
    """A trace in the making.

    Attributes:
        trace: what is known so far.
        values: values of tensors that are computed from sizes alone, by name.
        opset: version of the standard operators.
        is_open: whether sizes of inputs were chosen, and so may be others.
        uses: constants that go along.
        zeros: ``id`` of the tensors that hold zeros wherever a channel is cut, in the model with the channel zeroed.
        assigned: ``id`` of tensors computed from constants alone that go along -> the nodes that let them, by ``id``.
        sizes: ``id`` of small tensors computed from sizes that depend on channels.
    """

    trace: Trace
    values: Values
    opset: int
    is_open: bool
    uses: list[Use] = field(default_factory=list)
    zeros: set[int] = field(default_factory=set)
    assigned: dict[int, tuple[gs.Tensor, set[int]]] = field(default_factory=dict)
    sizes: dict[int, Sizes] = field(default_factory=dict)

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The concrete shape, if it is known."""
        return self.trace.shapes.get(id(tensor))

    def fields(self, tensor: gs.Tensor) -> tuple[Field, ...]:
        """The label arrays of a tensor."""
        return self.trace.of(tensor)

    def value(self, tensor: gs.Tensor) -> npt.NDArray[Any] | None:
        """The value of a constant, or of a small tensor computed from sizes."""
        found = values_of(tensor)
        return self.values.get(tensor.name) if found is None else found

    def integers(self, tensor: gs.Tensor) -> list[int | None] | None:
        """The entries of a vector of integers, None for those that depend on open sizes; None where it is unknown."""
        found = values_of(tensor)
        if found is not None:
            return [int(one) for one in found.reshape(-1)]
        found, holds = self.values.entries(tensor.name)
        if found is None:
            return None
        return [int(one) if sure else None for one, sure in zip(found.reshape(-1), holds.reshape(-1), strict=True)]

    def put(self, tensor: gs.Tensor, fields: Iterable[Field], *, zero: bool = False) -> None:
        """Label a tensor. A label that is all of a tensor is pinned: nothing would remain of it."""
        kept = []
        for each in map(compress, fields):
            if axes_of(each):
                kept.append(each)
            else:
                self.trace.labels.pin(each, f"nothing would remain of tensor '{tensor.name}'")
        self.trace.put(tensor, kept)
        if zero:
            self.zeros.add(id(tensor))

    def is_zero(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor holds zeros wherever a channel is cut, once the channel is zeroed."""
        return id(tensor) in self.zeros

    def is_fixed(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor is a constant, or computed from one by operators that ``assign`` reaches through."""
        while not is_constant(tensor):
            producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
            if producer is None or not is_op(producer, *REACHED) or not producer.inputs:
                return False
            tensor = producer.inputs[0]
        return True

    def couple(self, one: Field, other: Field, why: str) -> None:
        """Couple labels element by element; see ``Labels.couple``."""
        self.trace.labels.couple(one, other, why)

    def pin_inputs(self, node: gs.Node, why: str) -> None:
        """Forbid that any channel of what a node reads is cut."""
        for tensor in node.inputs:
            self.trace.pin(tensor, why)

    def even(self, each: Field, axes: Sequence[int], why: str) -> Field:
        """Couple labels along some axes, so that the field no longer differs there."""
        first = take_first(each, axes)
        if first.size < each.size:
            self.couple(each, first, why)
        return first

    def vector(self, each: Field, axis: int, why: str) -> Field:
        """The labels along one axis, [size], coupled along all others."""
        return self.even(each, [other for other in range(each.ndim) if other != axis], why).reshape(-1)

    def without(self, each: Field, axes: Sequence[int], why: str) -> Field | None:
        """The field where the given axes must stay whole: coupled along them, or pinned where it has no others."""
        bad = axes_of(each) & set(axes)
        if not bad:
            return each
        if bad == axes_of(each):
            self.trace.labels.pin(each, why)
            return None
        return self.even(each, sorted(bad), why)

    def write(self, node: gs.Node, weight: int, axis: int, bias: int | None, blocks: int = 1) -> Field | None:
        """New labels for what a layer computes, along ``axis`` of its weight; None where its weight is computed."""
        shape = self.shape(node.inputs[weight])
        if shape is None:
            return None
        count = shape[axis] * blocks
        if count < 2:
            return None
        made = self.trace.labels.new(count)
        if not self.assign(node, weight, along(made, axis, len(shape)), "writes", blocks):
            self.trace.labels.pin(made, f"the weight of {named(node)} is computed")
        if bias is not None and len(node.inputs) > bias and not node.inputs[bias].is_empty():
            size = self.shape(node.inputs[bias])
            if size != (count,) or not self.assign(node, bias, made, "writes"):
                self.trace.labels.pin(made, f"the bias of {named(node)} is computed")
        return made

    def read(self, node: gs.Node, weight: int, axis: int, labels: Field, blocks: int = 1) -> None:
        """End labels, [size], in slices of a weight along one of its axes."""
        shape = self.shape(node.inputs[weight])
        if shape is None or shape[axis] * blocks != len(labels):
            self.trace.labels.pin(labels, f"the shape of the weight of {named(node)} is not known")
        elif not self.assign(node, weight, along(labels, axis, len(shape)), "reads", blocks):
            self.trace.labels.pin(labels, f"the weight of {named(node)} is computed")

    def balance(self, node: gs.Node, side: Any, labels: Field, blocks: int) -> None:
        """Note that a grouped convolution's channels, [size], go in equal numbers from every block."""
        self.trace.blocks.append(Blocks(node, side, labels.reshape(blocks, -1)))

    def assign(self, node: gs.Node, slot: int, each: Field, role: Role, blocks: int = 1) -> bool:
        """Let an input that is fixed by the model go along with labels; return whether that can be.

        Reaches through operators that compute the input from constants: DequantizeLinear, Cast, Transpose, Expand,
        Reshape and the like.
        """
        pending = [(node, slot, each)]
        while pending:
            reader, number, wanted = pending.pop()
            tensor = reader.inputs[number]
            if is_constant(tensor):
                self.uses.append(Use(reader, number, wanted, role, node, blocks))
                continue
            producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
            sources = None if producer is None else self._sources(producer, wanted, blocks)
            if producer is None or sources is None:
                return False
            self.assigned.setdefault(id(tensor), (tensor, set()))[1].add(id(reader))
            if blocks == 1:
                self.trace.put(tensor, (*self.fields(tensor), wanted))
            pending.extend((producer, number, source) for number, source in sources)
        return True

    def _sources(self, node: gs.Node, wanted: Field, blocks: int) -> list[tuple[int, Field]] | None:
        """For the inputs of a node the fields that give its output the field ``wanted``; None where none can."""
        shape = self.shape(node.inputs[0]) if node.inputs else None
        target = self.shape(node.outputs[0])
        if shape is None or target is None or self.fields(node.inputs[0]):
            return None
        if is_op(node, "Identity", "Cast"):
            return [(0, wanted)]
        if is_op(node, "DequantizeLinear", "QuantizeLinear"):
            return self._scales(node, wanted, blocks)
        if blocks > 1:
            return None
        if is_op(node, "Transpose"):
            order = node.attrs.get("perm") or list(range(len(shape)))[::-1]
            return [(0, np.transpose(wanted, np.argsort(order)))]
        if is_op(node, "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            return [(0, reshaped(wanted, target, shape, self.trace.labels))]
        if is_op(node, "Expand"):
            padded = (1,) * (len(target) - len(shape)) + shape
            if any(padded[axis] == 1 for axis in axes_of(wanted)):
                return None
            return [(0, wanted.reshape(wanted.shape[len(target) - len(shape) :]))]
        return None

    def _scales(self, node: gs.Node, wanted: Field, blocks: int) -> list[tuple[int, Field]] | None:
        found = [(0, wanted)]
        for number in (1, 2):
            if len(node.inputs) <= number or node.inputs[number].is_empty():
                continue
            size = self.shape(node.inputs[number])
            if size is None or (len(size) > 1 and axes_of(wanted) and max(size) > 1):
                return None
            axis = int(node.attrs.get("axis", 1)) % wanted.ndim
            if len(size) == 1 and size[0] > 1 and wanted.shape[axis] > 1 and blocks == 1:
                found.append((number, wanted.reshape(-1) if axes_of(wanted) == {axis} else wanted))
                if axes_of(wanted) != {axis}:
                    return None
            elif len(size) == 1 and size[0] > 1 and wanted.shape[axis] > 1:
                return None
        return found


def named(node: gs.Node) -> str:
    """A node for people: its operator and name, or its first output where it has none."""
    return f"{node.op} '{name_of(node)}'"


def name_of(node: gs.Node) -> str:
    """The name of a node, its first output where it has none."""
    return node.name or next((tensor.name for tensor in node.outputs if tensor.name), "")
