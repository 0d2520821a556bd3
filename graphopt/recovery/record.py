"""What the original gives: run once over all samples, of every layer the outputs at some positions are kept."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from graphopt import runtime
from graphopt.calibration.collect import observing, shapes
from graphopt.errors import DataError
from graphopt.recovery.behind import behind
from graphopt.recovery.columns import Places
from graphopt.recovery.layers import Array, Layer, find_layers
from graphopt.recovery.net import Net
from graphopt.recovery.options import RefitOptions
from graphopt.recovery.store import Store

# Beyond so many inputs of a filter their Gram matrix takes more memory than this many rows, and their Gram matrix.
WIDE, WIDE_ROWS = 6144, 4096

Feed: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Target:
    """What is recorded of a layer of the original.

    Attributes:
        channel_axis: axis of the output that holds the filters.
        rows: positions wanted, over all samples.
        sum: the sum that the layer goes straight into, recorded at the same positions.
    """

    channel_axis: int
    rows: int
    sum: str | None


class Recorded:
    """Samples in batches, and the original's outputs for them. Serves any number of refits of the same original.

    Attributes:
        net: the original.
        batches: how many batches.
        starts: number of the first sample of each batch.
        samples: how many samples in all.
        inputs: the feeds, by input and batch.
        targets: layers by the tensor they write.
    """

    def __init__(self, net: Net, targets: Mapping[str, Target], options: RefitOptions, seed: int) -> None:
        self.net = net
        self.targets = targets
        self.inputs = Store(options.memory // 4)
        self.starts: list[int] = []
        self.samples = 0
        self._outputs = Store(options.memory // 4)
        self._seed = seed

    @property
    def batches(self) -> int:
        """How many batches."""
        return len(self.starts)

    def add_batch(self, feed: Feed, count: int) -> None:
        """Take in ``count`` samples, joined to one feed."""
        for name, values in feed.items():
            self.inputs.put(name, self.batches, values)
        self.starts.append(self.samples)
        self.samples += count

    def count(self, batch: int) -> int:
        """Samples in a batch."""
        return [*self.starts, self.samples][batch + 1] - self.starts[batch]

    def keep(self, layer: str, batch: int, outputs: Mapping[str, Array]) -> None:
        """Keep what a layer, and the sum behind it, gave at the chosen positions."""
        target = self.targets[layer]
        values = np.moveaxis(outputs[layer], target.channel_axis, -1)
        self._outputs.put(f"shape of {layer}", batch, np.array(values.shape, dtype=np.int64))
        places = self.places(layer, batch)
        self._outputs.put(f"layer {layer}", batch, _take(values, places))
        if target.sum is not None and outputs[target.sum].shape == outputs[layer].shape:
            values = np.moveaxis(outputs[target.sum], target.channel_axis, -1)
            self._outputs.put(f"sum {layer}", batch, _take(values, places))

    def shape(self, layer: str, batch: int) -> tuple[int, ...]:
        """Shape of a layer's output with the channels last."""
        return tuple(int(size) for size in self._outputs.get(f"shape of {layer}", batch))

    def places(self, layer: str, batch: int) -> Places:
        """The chosen positions: ascending indices into the flattened axes of ``shape`` before the last."""
        total = int(np.prod(self.shape(layer, batch)[:-1], dtype=np.int64))
        wanted = -(-self.targets[layer].rows * self.count(batch) // self.samples)
        if wanted >= total:
            return np.arange(total, dtype=np.int64)
        generator = np.random.default_rng([self._seed, batch, zlib.crc32(layer.encode())])
        return np.sort(generator.choice(total, wanted, replace=False)).astype(np.int64)

    def values(self, layer: str, batch: int) -> Array:
        """Outputs of a layer, [positions, filters]."""
        return self._outputs.get(f"layer {layer}", batch)

    def sums(self, layer: str, batch: int) -> Array:
        """The sums behind a layer, [positions, filters]."""
        return self._outputs.get(f"sum {layer}", batch)

    def has(self, layer: str) -> bool:
        """Whether the layer was recorded."""
        return f"layer {layer}" in self._outputs

    def has_sum(self, layer: str) -> bool:
        """Whether the sum behind a layer was recorded."""
        return f"sum {layer}" in self._outputs

    def close(self) -> None:
        """Give memory and files back."""
        self.inputs.close()
        self._outputs.close()


def _take(values: Array, places: Places) -> Array:
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1])[places], dtype=np.float32)


def record(
    original: onnx.ModelProto,
    feeds: Iterable[Feed],
    *,
    options: RefitOptions = RefitOptions(),  # noqa: B008, frozen
    layers: Collection[str] | None = None,
    threads: int = 1,
    seed: int = 0,
) -> Recorded:
    """Run the original over all samples and record what its layers give.

    Args:
        original: the model whose answers are right.
        feeds: samples; each feeds the model once. Read once.
        options: how many positions, how much memory.
        layers: tensors written by the layers to record; by default all, but for normalizations right behind another.
        threads: intra-op threads.
        seed: seed of the choice of positions.

    Raises:
        DataError: there is no sample.
        UnsupportedModelError: ONNX Runtime cannot run the model.
    """
    net = Net(original)
    every = find_layers(net)[0]
    if layers is None:
        names = {layer.name for layer in every if layer.kind != "normalization"}
        layers = names | {layer.name for layer in every if layer.input not in names}
    found = [layer for layer in every if layer.name in layers]
    recorded = Recorded(net, {layer.name: _target(net, layer, options) for layer in found}, options, seed)
    outputs = list(dict.fromkeys(name for layer in found for name in _names(recorded, layer.name)))
    if not outputs:
        return recorded
    waiting = iter(feeds)
    first = next(waiting, None)
    if first is None:
        raise DataError("calibration data holds no sample; give at least one")
    sizes = {name: 4 * int(np.prod(shape)) for name, shape in shapes(original, outputs, first, threads).items()}
    most = max(1, min(options.batch, options.run_memory // max(1, sum(sizes.values())))) if _free_batch(net) else 1
    for group in _joined(_chain(first, waiting), most):
        recorded.add_batch({name: np.concatenate([one[name] for one in group]) for name in group[0]}, len(group))
    for group_names in _groups(recorded, found, sizes, options.run_memory):
        _run(recorded, group_names, threads)
    return recorded


def _target(net: Net, layer: Layer, options: RefitOptions) -> Target:
    rows = min(max(options.rows_per_unknown * layer.unknowns, options.least_rows), options.most_rows)
    rows = min(rows, max(options.record_bytes // (4 * layer.outputs), 4 * layer.unknowns))
    if layer.unknowns > WIDE:
        rows = min(rows, WIDE_ROWS)
    return Target(layer.channel_axis, rows, behind(net, layer).sum if options.residual else None)


def _names(recorded: Recorded, layer: str) -> list[str]:
    total = recorded.targets[layer].sum
    return [layer] if total is None else [layer, total]


def _free_batch(net: Net) -> bool:
    """Whether the first axis of every input and output is open."""
    specs = [*runtime.input_specs(net.model), *runtime.output_specs(net.model)]
    return all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs)


def _chain(first: Feed, rest: Iterable[Feed]) -> Iterator[Feed]:
    yield first
    yield from rest


def _joined(feeds: Iterable[Feed], most: int) -> Iterator[list[Feed]]:
    """Group samples that follow each other and have the same shapes."""
    group: list[Feed] = []
    for feed in feeds:
        alike = group and {name: one.shape for name, one in group[0].items()} == {
            name: one.shape for name, one in feed.items()
        }
        if group and (len(group) == most or not alike):
            yield group
            group = []
        group.append(feed)
    if group:
        yield group


def _groups(recorded: Recorded, layers: Sequence[Layer], sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Split the layers so that what one run hands out stays within the limit."""
    largest = max((recorded.count(batch) for batch in range(recorded.batches)), default=1)
    group: list[str] = []
    used = 0
    for layer in layers:
        size = largest * sum(sizes[name] for name in _names(recorded, layer.name))
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group.append(layer.name)
        used += size
    if group:
        yield group


def _run(recorded: Recorded, layers: Sequence[str], threads: int) -> None:
    names = list(dict.fromkeys(name for layer in layers for name in _names(recorded, layer)))
    opened = observing(recorded.net.model, names, threads)
    for batch in range(recorded.batches):
        feed = {name: recorded.inputs.get(name, batch) for name in recorded.net.inputs if name in recorded.inputs}
        outputs = runtime.run(opened, feed, names)
        for layer in layers:
            recorded.keep(layer, batch, outputs)
