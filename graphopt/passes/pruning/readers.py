"""The layers that read channels, each seen as one matrix product: Y = X W, a row of X for every output position.

A row of X is [taps, channels]: the window of a convolution, or the positions that a Flatten put into one vector for
each channel. Grouped convolutions are several such products side by side (blocks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.channels import Dependencies
from graphopt.graph.cost.kinds import attribute
from graphopt.graph.cost.shapes import scopes
from graphopt.passes.pruning.weights import Weights

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Owner:
    """The part of a group that one block of a reader reads.

    Attributes:
        group: number of the group.
        block: which block.
        channels: positions in the group, [m].
        columns: channels of the block, [m, columns of each]; -1 where a channel has fewer.
    """

    group: int
    block: int
    channels: Indices
    columns: Indices


@dataclass(frozen=True)
class Reader:
    """A layer with constant weights that reads channels of some group.

    Attributes:
        name: the tensor that it writes; names the layer.
        node: its node.
        tensor: the tensor whose channels it reads.
        axis: their axis there, counted from the first.
        weight: name of the weight.
        form: "window" (Conv), "scatter" (ConvTranspose), "right" (X W), "left" (W X).
        blocks: products side by side.
        bundles: index along ``axis`` for each channel and tap of a flattened tensor, [channels, taps]; None: each
            index is a channel.
        owners: whose channels they are.
    """

    name: str
    node: onnx.NodeProto
    tensor: str
    axis: int
    weight: str
    form: Literal["window", "scatter", "right", "left"]
    blocks: int
    bundles: Indices | None
    owners: tuple[Owner, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """Numbers of the groups that it reads."""
        return tuple(dict.fromkeys(owner.group for owner in self.owners))


def find_readers(dependencies: Dependencies) -> tuple[Reader, ...]:
    """Find every layer that reads channels of some group, in the order of the graph.

    Layers whose weights are computed, or that multiply by a weight for each sample, are left out.
    """
    return tuple(_Search(dependencies).readers())


class _Search:
    def __init__(self, dependencies: Dependencies) -> None:
        self.model = dependencies.model
        self.weights = Weights(self.model)
        self.held: dict[str, list[tuple[int, int, Indices]]] = {}
        for group in dependencies:
            for place in group.tensors:
                self.held.setdefault(place.tensor, []).append((group.number, place.axis, place.indices))

    def readers(self) -> Iterable[Reader]:
        for node in self.model.graph.node:
            found = self._form(node)
            if found is None:
                continue
            form, tensor, weight, channels, blocks = found
            axes = {axis for _, axis, _ in self.held.get(tensor, ())}
            axis = self._axis(node, form, tensor, axes)
            places = [(group, indices) for group, at, indices in self.held.get(tensor, ()) if at == axis]
            if not places or axis is None:
                continue
            bundles = _bundles(channels, [indices for _, indices in places]) if form in ("right", "left") else None
            owners = tuple(_owners(places, channels // blocks, bundles))
            yield Reader(node.output[0], node, tensor, axis, weight, form, blocks, bundles, owners)

    def _form(
        self, node: onnx.NodeProto
    ) -> tuple[Literal["window", "scatter", "right", "left"], str, str, int, int] | None:
        """Form, tensor read, weight, channels read and blocks; None for nodes that are no readers."""
        if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            return None
        first, second = node.input[0], node.input[1]
        shape = self.weights.shape(second)
        if node.op_type == "Conv" and shape is not None:
            blocks = attribute(node, "group", 1)
            return None if shape[1] == 1 and blocks > 1 else ("window", first, second, shape[1] * blocks, blocks)
        if node.op_type == "ConvTranspose" and shape is not None:
            blocks = attribute(node, "group", 1)
            return None if shape[0] == blocks and blocks > 1 else ("scatter", first, second, shape[0], blocks)
        if node.op_type == "Gemm" and shape is not None:
            return "right", first, second, shape[1 if attribute(node, "transB", 0) else 0], 1
        if node.op_type == "MatMul" and shape is not None and len(shape) == 2:
            return "right", first, second, shape[0], 1
        shape = self.weights.shape(first)
        if node.op_type == "MatMul" and shape is not None and len(shape) == 2:
            return "left", second, first, shape[1], 1
        return None

    def _axis(self, node: onnx.NodeProto, form: str, tensor: str, axes: set[int]) -> int | None:
        """The axis that the layer sums over, if a group's channels lie along it."""
        if form in ("window", "scatter"):
            return 1 if 1 in axes else None
        if node.op_type == "Gemm":
            wanted = 0 if attribute(node, "transA", 0) else 1
            return wanted if wanted in axes else None
        rank = self.ranks.get(tensor)
        if rank is None:
            return None
        wanted = rank - 1 if form == "right" or rank == 1 else rank - 2
        return wanted if wanted in axes else None

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Rank of each computed tensor, as far as shape inference knows."""
        return {name: len(shape) for name, shape in scopes(self.model)[0].shapes.items()}


def _bundles(channels: int, indices: Sequence[Indices]) -> Indices | None:
    """Channels by taps where all of a vector belongs to channels with equally many places; None where not."""
    widths = {each.shape[1] for each in indices}
    together = np.concatenate([each.reshape(-1) for each in indices])
    if len(widths) != 1 or widths == {1} or len(together) != channels:
        return None
    bundles = np.concatenate(indices)
    return bundles if len(np.unique(together)) == channels else None


def _owners(places: Iterable[tuple[int, Indices]], block_size: int, bundles: Indices | None) -> Iterable[Owner]:
    first = 0
    for group, indices in places:
        if bundles is not None:
            count = len(indices)
            yield Owner(group, 0, np.arange(count), np.arange(first, first + count)[:, None])
            first += count
            continue
        blocks = indices // block_size
        for block in np.unique(blocks):
            inside = blocks == block
            channels = np.flatnonzero(inside.any(axis=1))
            columns = np.full((len(channels), int(inside.sum(axis=1).max())), -1)
            for row, channel in enumerate(channels):
                found = indices[channel][inside[channel]] % block_size
                columns[row, : len(found)] = found
            yield Owner(group, int(block), channels, columns)
