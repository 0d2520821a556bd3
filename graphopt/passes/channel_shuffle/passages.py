"""A permutation of channels seen from one node: what a rule is given, and what it answers.

A *slot* is an axis of a tensor whose size is channels x ``inner``: channels in order, ``inner`` entries each (a Flatten
leaves height x width of them).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import shape_of, values_of
from graphopt.passes.channel_shuffle.shapes import Known


@dataclass(frozen=True)
class Slot:
    """An axis of a tensor that holds channels, ``inner`` entries for each."""

    tensor: gs.Tensor
    axis: int
    inner: int = 1


@dataclass(frozen=True)
class Edit:
    """A constant input that is to be permuted along an axis, ``inner`` entries for each channel.

    ``groups`` above 1: the axis holds the channels of one group, and axis 0 tells which group.
    """

    node: gs.Node
    input: int
    axis: int
    inner: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Passage:
    """How a permutation passes a node; see the module."""

    slots: tuple[Slot, ...] = ()
    edits: tuple[Edit, ...] = ()
    block: int | None = None


@dataclass(frozen=True)
class View:
    """A node seen from one of its slots.

    Attributes:
        node: the node.
        slot: where the channels are.
        written: whether the node writes the tensor (else it reads it).
        place: number of the input or output.
        channels: number of channels.
        known: opset and types.
    """

    node: gs.Node
    slot: Slot
    written: bool
    place: int
    channels: int
    known: Known

    @property
    def length(self) -> int:
        """Size of the axis."""
        return self.channels * self.slot.inner

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Number of axes, None where unknown."""
        shape = self.known.shape(tensor)
        return None if shape is None else len(shape)

    def other(self, axis: int, inner: int | None = None) -> Slot:
        """The slot on the other side of a node with one data input and one output."""
        tensor = self.node.inputs[0] if self.written else self.node.outputs[0]
        return Slot(tensor, axis, self.slot.inner if inner is None else inner)


def used(node: gs.Node, number: int) -> bool:
    """Whether the node has this input."""
    return len(node.inputs) > number and not node.inputs[number].is_empty()


def extra_outputs(node: gs.Node) -> bool:
    """Whether the node has more than one output."""
    return any(not tensor.is_empty() for tensor in node.outputs[1:])


def is_scalar(tensor: gs.Tensor) -> bool:
    """Whether the tensor is a constant of one element."""
    shape = shape_of(tensor) if isinstance(tensor, gs.Constant) else None
    if shape is None:
        values = values_of(tensor)
        shape = None if values is None else values.shape
    return shape is not None and all(size == 1 for size in shape)
