"""What is known while channels are followed through a graph: the labels of every tensor and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Role
from graphopt.channels.labels import Field, Labels


@dataclass(frozen=True)
class ParameterUse:
    """A constant of which a node reads one slice for each channel.

    Attributes:
        node: the node that reads it.
        input: which of its inputs.
        axis: axis of the constant, counted from the first.
        labels: one label for each index along ``axis``, [size]; all labels of one index are coupled. A grouped
            convolution's weight has more: each of its blocks of filters reads channels of its own, so that label
            ``n`` stands for slice ``n % size`` of block ``n // size`` (likewise for what a grouped ConvTranspose
            writes).
        role: what the constant is to the channels.
        layer: the layer that it is a parameter of; not ``node`` where that only unpacks it (DequantizeLinear, Cast).
    """

    node: gs.Node
    input: int
    axis: int
    labels: Field
    role: Role
    layer: gs.Node | None = None


@dataclass(frozen=True)
class Blocks:
    """The channels that a grouped convolution reads or writes, in equal blocks: labels [blocks, channels of each]."""

    node: gs.Node
    side: Literal["reads", "writes"]
    labels: Field


@dataclass(frozen=True)
class Frozen:
    """An input that is computed from the number of channels, and must be written as a constant once these are cut.

    An operator that is told the shape of its result (Reshape, Expand, Resize) is told what remains; any other gets
    what it got before, ``Trace.values`` of the tensor's name.

    Attributes:
        node: the node that reads it.
        input: which of its inputs.
        entries: which of its entries depend on the number of channels alone (the others on none), as booleans of its
            shape.
        told: whether the node is told the shape of its result by this input; then other entries may be open sizes.
    """

    node: gs.Node
    input: int
    entries: npt.NDArray[np.bool_]
    told: bool = False


@dataclass
class Trace:
    """All that is known of the channels of one opened graph.

    Attributes:
        graph: the graph, not edited while it is traced.
        shapes: ``id`` of a tensor -> its concrete shape for one size of input.
        labels: which labels belong together.
        fields: ``id`` of a tensor -> its label arrays. An element goes when any of its labels is cut; arrays of one
            tensor differ along different axes (a matrix product hands on the labels of its rows, and makes new ones
            for its columns). A tensor without an entry has no labels.
        uses: all slices of parameters.
        blocks: what must stay balanced.
        moved: output tensors (by ``id``) of data movement whose channels come out in another order than a narrower
            version of the same operators would give: they are written as one Gather from the tensor and along the axis
            given here, with the source index for each index of the output's channel axis.
        frozen: sizes of axes that are read as data.
        values: tensor name -> value, of small tensors that are computed from sizes alone, for that size of input.
    """

    graph: gs.Graph
    shapes: dict[int, tuple[int, ...]]
    labels: Labels = field(default_factory=Labels)
    fields: dict[int, tuple[Field, ...]] = field(default_factory=dict)
    uses: list[ParameterUse] = field(default_factory=list)
    blocks: list[Blocks] = field(default_factory=list)
    moved: dict[int, Regather] = field(default_factory=dict)
    frozen: list[Frozen] = field(default_factory=list)
    values: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def of(self, tensor: gs.Tensor) -> tuple[Field, ...]:
        """The label arrays of a tensor; none for inputs, constants and what is not understood."""
        return self.fields.get(id(tensor), ())

    def put(self, tensor: gs.Tensor, fields: Iterable[Field]) -> None:
        """Label a tensor; arrays that say nothing are left out."""
        kept = tuple(field for field in fields if field.any())
        if kept and not tensor.is_empty():
            self.fields[id(tensor)] = kept

    def pin(self, tensor: gs.Tensor, why: str) -> None:
        """Forbid that any channel of a tensor is cut."""
        for each in self.of(tensor):
            self.labels.pin(each, why)

    def removed(self, tensor: gs.Tensor, axis: int, cut: frozenset[int]) -> Field:
        """Which indices along an axis of a tensor go when the classes ``cut`` do, as a boolean array [size]."""
        gone = np.zeros(self.shapes[id(tensor)][axis], dtype=bool)
        for each in self.of(tensor):
            if each.shape[axis] > 1:
                classes = np.moveaxis(self.labels.classes(each), axis, 0).reshape(each.shape[axis], -1)
                gone |= np.isin(classes, list(cut)).any(axis=1)
        return gone


@dataclass(frozen=True)
class Regather:
    """A tensor whose channels are those of another in a new order.

    Attributes:
        source: the tensor.
        axis: channel axis of both.
        order: index in the source for each index of the result.
    """

    source: gs.Tensor
    axis: int
    order: Field
