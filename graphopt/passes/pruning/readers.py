"""The layers that read channels, each seen as one matrix product: Y = X W, a row of X for every output position.

A row of X is [taps, channels]: the window of a convolution, or the positions that a Flatten put into one vector for
each channel. Grouped convolutions are several such products side by side (blocks).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphopt.channels import Dependencies

Floats = npt.NDArray[Any]
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


class Weights:
    """Constants of a model by name, and where they are needed as arrays."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self._stored.update((node.output[0], each.t) for each in node.attribute if each.name == "value")

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a constant; None where the name is none."""
        return tuple(self._stored[name].dims) if name in self._stored else None

    def __getitem__(self, name: str) -> Floats:
        return numpy_helper.to_array(self._stored[name])


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
        from graphopt.graph.cost.shapes import scopes

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


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    return next((each.i for each in node.attribute if each.name == name), default)


def integers(node: onnx.NodeProto, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute of integers."""
    found = next((each.ints for each in node.attribute if each.name == name), None)
    return tuple(found) if found else tuple(default)


def matrix(reader: Reader, weight: Floats) -> Floats:
    """The weight as [blocks, taps, channels, outputs]."""
    if reader.form == "window":
        out, inside = weight.shape[:2]
        taps = prod(weight.shape[2:])
        split = weight.reshape(reader.blocks, out // reader.blocks, inside, taps)
        return np.asarray(split.transpose(0, 3, 2, 1))
    if reader.form == "scatter":
        return weight.reshape(reader.blocks, 1, weight.shape[0] // reader.blocks, -1)
    plain = weight.T if _turned(reader) else weight
    if reader.bundles is None:
        return plain[None, None]
    return plain[reader.bundles].transpose(1, 0, 2)[None]


def unmatrix(reader: Reader, values: Floats, shape: Sequence[int]) -> Floats:
    """The inverse of ``matrix``: [blocks, taps, channels, outputs] as a weight of ``shape``."""
    if reader.form == "window":
        return values.transpose(0, 3, 2, 1).reshape(shape)
    if reader.form == "scatter":
        return values.reshape(shape)
    plain = values[0, 0]
    if reader.bundles is not None:
        plain = np.empty((reader.bundles.size, values.shape[-1]), values.dtype)
        plain[reader.bundles] = values[0].transpose(1, 0, 2)
    return np.asarray(plain.T if _turned(reader) else plain)


def _turned(reader: Reader) -> bool:
    """Whether a matrix product's weight is stored [outputs, channels]."""
    if reader.node.op_type == "Gemm":
        return attribute(reader.node, "transB", 0) == 1
    return reader.form == "left"


def rows(reader: Reader, values: Floats, weight_shape: Sequence[int], count: int, rng: np.random.Generator) -> Floats:
    """Rows of X at up to ``count`` output positions, drawn without repetition: [blocks, rows, taps, channels].

    Args:
        reader: the layer.
        values: the tensor that it reads.
        weight_shape: shape of its weight.
        count: how many rows.
        rng: draws the positions.
    """
    if reader.form == "window":
        windows = _windows(reader.node, values, tuple(weight_shape[2:]), count, rng)
        split = windows.reshape(*windows.shape[:2], reader.blocks, -1)
        return np.asarray(split.transpose(2, 0, 1, 3))
    flat = np.moveaxis(values, reader.axis, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    if len(flat) > count:
        flat = flat[np.sort(rng.choice(len(flat), count, replace=False))]
    if reader.bundles is not None:
        return flat[:, reader.bundles.T][None]
    split = flat.reshape(len(flat), 1, reader.blocks, -1)
    return split.transpose(2, 0, 1, 3)


def _windows(
    node: onnx.NodeProto, values: Floats, kernel: tuple[int, ...], count: int, rng: np.random.Generator
) -> Floats:
    """Windows of a convolution at drawn output positions, [positions, taps, channels]."""
    dims = len(kernel)
    strides = integers(node, "strides", [1] * dims)
    dilations = integers(node, "dilations", [1] * dims)
    size = values.shape[2:]
    before, out = _extent(node, size, kernel, strides, dilations)
    total = values.shape[0] * prod(out)
    drawn = np.arange(total) if total <= count else np.sort(rng.choice(total, count, replace=False))
    sample, *at = np.unravel_index(drawn, (values.shape[0], *out))
    flat = np.zeros((len(drawn), prod(kernel)), dtype=np.int64)
    valid = np.ones(flat.shape, dtype=bool)
    for axis, taps in enumerate(np.unravel_index(np.arange(prod(kernel)), kernel)):
        index = at[axis][:, None] * strides[axis] - before[axis] + taps[None] * dilations[axis]
        valid &= (index >= 0) & (index < size[axis])
        flat = flat * size[axis] + np.clip(index, 0, size[axis] - 1)
    found = values.reshape(*values.shape[:2], -1)[sample[:, None], :, flat]
    found[~valid] = 0
    return np.asarray(found)


def _extent(
    node: onnx.NodeProto,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before the first element, and output size, along each spatial axis."""
    dims = len(kernel)
    auto = next((each.s for each in node.attribute if each.name == "auto_pad"), b"NOTSET")
    pads = integers(node, "pads", [0] * (2 * dims)) if auto in (b"NOTSET", b"") else (0,) * (2 * dims)
    before, out = [], []
    for axis in range(dims):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            count = -(-size[axis] // strides[axis])
            whole = max(0, (count - 1) * strides[axis] + reach - size[axis])
            before.append(whole // 2 if auto == b"SAME_UPPER" else whole - whole // 2)
        else:
            count = (size[axis] + pads[axis] + pads[dims + axis] - reach) // strides[axis] + 1
            before.append(pads[axis])
        out.append(max(0, count))
    return tuple(before), tuple(out)
