"""Second moments of what layers read, and with them what a layer loses with its inputs.

Moments stream over samples: memory does not grow with them. Layers whose rows are too long for a whole Gram matrix
keep one over channels and one over taps, whose Kronecker product stands for it (as in K-FAC, arXiv 1503.05671).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphopt import runtime
from graphopt.calibration.collect import observing, shapes
from graphopt.channels import Dependencies
from graphopt.passes.pruning.readers import Reader
from graphopt.passes.pruning.rows import matrix, rows
from graphopt.passes.pruning.weights import Weights

Feed = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[Any]

# Longest rows (taps times channels) of which the whole Gram matrix is kept.
LONGEST = 1152
# Rows drawn for each unknown, and least and most rows of a layer in all.
ROWS_EACH, LEAST_ROWS, MOST_ROWS = 8, 4096, 16384
# Least ridge on the covariance, relative to its mean diagonal.
RIDGE = 1e-3
# Activations and Gram matrices that one sweep over the samples may hold.
SWEEP_BYTES = 96 << 20
GRAM_BYTES = 384 << 20


@dataclass(frozen=True)
class Moments:
    """What was learned of the rows that one layer reads.

    Attributes:
        reader: the layer.
        inverse: inverse of their covariance with a ridge, [blocks, d, d]; d: taps * channels (tap first), or channels
            where ``taps`` is given.
        taps: second moments over taps, their mean diagonal 1, [taps, taps]; None where ``inverse`` holds all.
        mean: mean row, [blocks, taps, channels].
        power: mean square of each element of a row, [blocks, taps, channels].
        energy: power of the layer's output about its mean, summed over outputs weighed by ``scale``.
        scale: what one unit of each output is worth behind it (a BatchNormalization's factor), [blocks, outputs].
    """

    reader: Reader
    inverse: Floats
    taps: Floats | None
    mean: Floats
    power: Floats
    energy: float
    scale: Floats


def collect_moments(
    dependencies: Dependencies,
    readers: Sequence[Reader],
    feeds: Iterable[Feed],
    *,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Moments]:
    """Run samples through the model and keep the moments of what ``readers`` read, by name of the reader.

    Readers that saw nothing, NaN or infinity are left out.
    """
    weights = Weights(dependencies.model)
    result: dict[str, Moments] = {}
    listed = list(feeds)
    if not listed or not readers:
        return result
    sizes = shapes(dependencies.model, [reader.tensor for reader in readers], listed[0], threads)
    inputs = {value.name for value in dependencies.model.graph.input}
    behind = _normalizations(dependencies.model)
    for sweep in _sweeps(readers, sizes, weights):
        names = [name for name in dict.fromkeys(reader.tensor for reader in sweep) if name not in inputs]
        opened = observing(dependencies.model, names, threads) if names else None
        sums = [_Sum(reader, weights, len(listed), seed) for reader in sweep]
        for feed in listed:
            found = dict(feed) if opened is None else {**feed, **runtime.run(opened, feed, names)}
            for each in sums:
                each.add(found[each.reader.tensor])
        for each in sums:
            if each.usable():
                scale = _scale(behind.get(each.reader.name), each.reader, weights)
                result[each.reader.name] = each.moments(scale)
    return {reader.name: result[reader.name] for reader in readers if reader.name in result}


def _sweeps(
    readers: Sequence[Reader], sizes: Mapping[str, tuple[int, ...]], weights: Weights
) -> Iterator[list[Reader]]:
    """Readers in lots that fit in memory together."""
    lot: list[Reader] = []
    tensors: set[str] = set()
    held = grams = 0
    for reader in readers:
        size = 0 if reader.tensor in tensors else 4 * int(np.prod(sizes[reader.tensor]))
        gram = 8 * _Sum.elements(reader, weights)
        if lot and (held + size > SWEEP_BYTES or grams + gram > GRAM_BYTES):
            yield lot
            lot, tensors, held, grams = [], set(), 0, 0
            size = 4 * int(np.prod(sizes[reader.tensor]))
        lot.append(reader)
        tensors.add(reader.tensor)
        held, grams = held + size, grams + gram
    if lot:
        yield lot


class _Sum:
    """Running sums of one reader."""

    def __init__(self, reader: Reader, weights: Weights, samples: int, seed: int) -> None:
        self.reader = reader
        self.weight = matrix(reader, weights[reader.weight])
        self.shape = weights.shape(reader.weight) or ()
        blocks, taps, channels, _ = self.weight.shape
        self.whole = taps * channels <= LONGEST
        size = taps * channels if self.whole else channels
        wanted = min(max(ROWS_EACH * size, LEAST_ROWS), MOST_ROWS)
        self.each = -(-wanted // samples)
        self.rng = np.random.default_rng([seed, *reader.name.encode()])
        self.count = 0
        self.total = np.zeros((blocks, taps, channels))
        self.square = np.zeros((blocks, taps, channels))
        self.gram = np.zeros((blocks, size, size))
        self.taps = np.zeros((taps, taps))
        self.waiting: list[Floats] = []

    @staticmethod
    def elements(reader: Reader, weights: Weights) -> int:
        """Elements of the Gram matrix that the reader's moments need."""
        shape = weights.shape(reader.weight) or ()
        blocks, taps, channels, _ = matrix(reader, np.broadcast_to(np.float32(0), shape)).shape
        size = taps * channels if taps * channels <= LONGEST else channels
        return int(blocks * size * size)

    def add(self, values: Floats) -> None:
        """Draw rows from one sample. Rows wait until a matrix product over them is worth its while."""
        drawn = rows(self.reader, values, self.shape, self.each, self.rng)
        self.waiting.append(np.asarray(drawn, dtype=np.float32))
        if sum(each.shape[1] for each in self.waiting) >= self.gram.shape[-1]:
            self.flush()

    def flush(self) -> None:
        """Add the waiting rows to the sums."""
        drawn = np.ascontiguousarray(np.concatenate(self.waiting, axis=1))
        self.waiting.clear()
        blocks, count, taps, _ = drawn.shape
        self.count += count
        self.total += drawn.sum(axis=1, dtype=np.float64)
        self.square += np.square(drawn).sum(axis=1, dtype=np.float64)
        flat = drawn.reshape(blocks, -1, self.gram.shape[-1])
        self.gram += flat.transpose(0, 2, 1) @ flat
        if not self.whole:
            along = drawn.transpose(0, 1, 3, 2).reshape(-1, taps)
            self.taps += along.T @ along

    def usable(self) -> bool:
        """Whether there were rows at all, and all of them finite; called once all samples were added."""
        if self.waiting:
            self.flush()
        return self.count > 0 and bool(np.isfinite(self.gram).all())

    def moments(self, scale: Floats) -> Moments:
        """What the sums say, outputs being worth ``scale``."""
        blocks, taps, channels, outputs = self.weight.shape
        scale = scale.reshape(blocks, -1) if scale.size > 1 else scale.reshape(1, 1)
        scale = np.broadcast_to(scale, (blocks, outputs))
        mean = self.total / self.count
        weight = self.weight.astype(np.float64) * scale[:, None, None, :]
        kron: Floats | None = None
        if self.whole:
            flat_mean = mean.reshape(blocks, -1)
            cov = self.gram / self.count - flat_mean[:, :, None] * flat_mean[:, None, :]
            flat = weight.reshape(blocks, -1, outputs)
            energy = float(np.sum((cov @ flat) * flat))
        else:
            count = self.count * taps
            middle = mean.mean(axis=1)
            cov = self.gram / count - middle[:, :, None] * middle[:, None, :]
            kron = self.taps / (self.count * blocks * channels) - float(np.mean(np.square(middle)))
            kron = kron / max(float(np.trace(kron)) / taps, 1e-30)
            spread = np.einsum("st,gtco->gsco", kron, weight, optimize=True)
            energy = float(sum(np.sum((cov @ weight[:, tap]) * spread[:, tap]) for tap in range(taps)))
        ridge = np.array([_ridge(each, self.count) for each in cov])
        inverse = np.linalg.inv(cov + ridge[:, None, None] * np.eye(cov.shape[-1]))
        return Moments(
            self.reader, inverse.astype(np.float32), kron, mean, self.square / self.count, max(energy, 0.0), scale
        )


def _ridge(covariance: Floats, rows: int) -> float:
    """Ridge that makes up for having few rows: oracle approximating shrinkage (Chen et al. 2010, arXiv 0907.4698).

    Without it a layer of 2,048 inputs seen on 256 samples would seem to do without most of them.
    """
    size = len(covariance)
    trace, square = float(np.trace(covariance)), float(np.square(covariance).sum())
    spread = square - trace * trace / size
    top = (1 - 2 / size) * square + trace * trace
    share = min(top / ((rows + 1 - 2 / size) * spread), 0.95) if spread > 0 and size > 2 else 0.0
    return max(RIDGE, share / (1 - share)) * trace / size + 1e-12


def _normalizations(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Tensors that nothing but one BatchNormalization reads, with that node."""
    found: dict[str, onnx.NodeProto | None] = {value.name: None for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            alone = name not in found and node.op_type == "BatchNormalization"
            found[name] = node if alone else None
    return {name: node for name, node in found.items() if node is not None}


def _scale(node: onnx.NodeProto | None, reader: Reader, weights: Weights) -> Floats:
    """Factors of the BatchNormalization ``node`` right behind a convolution; [1] where there is none."""
    if node is None or reader.form not in ("window", "scatter"):
        return np.ones(1)
    if any(weights.shape(node.input[at]) is None for at in (1, 4)):
        return np.ones(1)
    epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
    factor, variance = (weights[node.input[at]].astype(np.float64) for at in (1, 4))
    scaled = factor / np.sqrt(variance + epsilon)
    if reader.form == "scatter":
        shape = weights.shape(reader.weight) or ()
        scaled = np.repeat(scaled, int(np.prod(shape[2:])))
    return np.asarray(scaled)
