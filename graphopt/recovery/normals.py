"""Second moments of layers: all that a fit of restricted weights needs to know of the samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.recovery.behind import Behind
from graphopt.recovery.goals import rows_of
from graphopt.recovery.layers import Array, Layer, Weights, find_layers, read_weights
from graphopt.recovery.least_squares import Moments, Rows
from graphopt.recovery.net import Net
from graphopt.recovery.options import RefitOptions
from graphopt.recovery.record import Recorded
from graphopt.recovery.restrictions import Normal
from graphopt.recovery.runner import Runner
from graphopt.recovery.store import Store


@dataclass(frozen=True)
class Seen:
    """What was seen of one layer.

    Attributes:
        fitting: moments of the positions to fit to.
        held_out: moments of those that choose among fits.
        inputs: mean of what a filter sees, over both, [groups, unknowns].
        target: mean of the target, over both, [groups, filters of a group].
    """

    fitting: Normal
    held_out: Normal
    inputs: Array
    target: Array

    def bias(self, matrix: Array) -> Array:
        """The bias with which weights meet the target in the mean, [filters]."""
        missing = self.target - (self.inputs[:, None, :] @ matrix)[:, 0]
        return np.asarray(missing, dtype=np.float32).reshape(-1)


def collect(blocks: Iterable[Rows], weights: Weights) -> Seen | None:
    """Sum up the moments of a layer.

    Args:
        blocks: its rows; their residual is what the weights leave unexplained.
        weights: the present weights.

    Returns:
        the moments, or None where there are too few rows to hold some out, or they are not finite.
    """
    # Products with the residual are small beside those with the target: float32 loses less on them.
    both = Moments(), Moments()
    for rows in blocks:
        both[rows.held_out].add(rows)
    if not all(each.count for each in both) or not all(np.isfinite(each.power) for each in both):
        return None
    fitting, held_out = (_normal(each, weights) for each in both)
    # Squares of large values may overflow where the values themselves do not.
    if not all(np.isfinite(each.power) and np.isfinite(np.einsum("gii->", each.gram)) for each in (fitting, held_out)):
        return None
    (own_inputs, own_rest), (inputs, rest) = (each.means() for each in both)
    share = fitting.count / (fitting.count + held_out.count)
    inputs, rest = share * own_inputs + (1 - share) * inputs, share * own_rest + (1 - share) * rest
    present = (inputs[:, None, :] @ weights.matrix)[:, 0] + weights.bias.reshape(rest.shape)
    return Seen(fitting, held_out, inputs, present + rest)


def _normal(moments: Moments, weights: Weights) -> Normal:
    gram, rest = moments.centred()
    matrix = weights.matrix.astype(np.float64)
    given = gram @ matrix
    offset = moments.means()[1]
    power = np.vdot(matrix, given) + 2 * np.vdot(matrix, rest) + moments.power / moments.count - np.vdot(offset, offset)
    return Normal(gram, given + rest, float(power), matrix, moments.count)


def normals(
    recorded: Recorded,
    layers: Collection[str] | None = None,
    *,
    options: RefitOptions = RefitOptions(),  # noqa: B008, frozen
    threads: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Iterator[tuple[str, Normal, Normal]]:
    """Yield the moments of layers of the original, whose target is what they give themselves.

    Args:
        recorded: the original and the samples.
        layers: tensors written by the layers wanted, of those recorded; None: all.
        options: how much memory activations may take.
        threads: intra-op threads.
        progress: called with (what, done, total).

    Yields:
        layer, moments of the positions to fit to, moments of those held out; layers with too few positions, or with
        values that are not finite, are left out.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot run a part of the model.
    """
    net = Net(recorded.net.model)
    wanted = [
        layer for layer in find_layers(net)[0] if recorded.has(layer.name) and (layers is None or layer.name in layers)
    ]
    store = Store(options.memory // 2)
    for name in net.inputs:
        for batch in range(recorded.batches if name in recorded.inputs else 0):
            store.put(name, batch, recorded.inputs.get(name, batch))
    runner = Runner(net, store, recorded.batches, [layer.input for layer in wanted], threads)
    try:
        for number, layer in enumerate(wanted):
            runner.reach([layer.input])
            seen = _seen(net, store, recorded, layer)
            runner.release(layer.input)
            progress("moments", number + 1, len(wanted))
            if seen is not None:
                yield layer.name, seen.fitting, seen.held_out
    finally:
        store.close()


def _seen(net: Net, store: Store, recorded: Recorded, layer: Layer) -> Seen | None:
    weights = read_weights(net, layer)
    nothing = Behind(np.ones(layer.outputs, np.float32), np.zeros(layer.outputs, np.float32))
    return collect(rows_of(net, store, recorded, {}, layer, nothing, weights), weights)
