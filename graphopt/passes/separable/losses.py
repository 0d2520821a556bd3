"""How much each form and rank costs a layer, and how much noise that makes at the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from graphopt import runtime
from graphopt.calibration.collect import with_outputs
from graphopt.passes.quality import Probe, make_probe, noise
from graphopt.passes.separable.decompose import decompose
from graphopt.passes.separable.factors import Array, Factors, Form, Geometry
from graphopt.passes.separable.fit import fit
from graphopt.passes.separable.places import Place
from graphopt.recovery.layers import Layer, Weights, read_weights, write_weights
from graphopt.recovery.net import Net
from graphopt.recovery.record import Feed
from graphopt.recovery.restrictions import Normal

# The ridge and the sweeps of fits that only tell how good a form and rank can be.
RIDGE, SWEEPS = 1e-3, 1
# Beyond so many unknowns of a fit's largest system the singular values alone have to tell.
MOST_UNKNOWNS = 3000
# Multiply-adds that all probes may take together, and what follows from it: how many samples each is measured on.
WORK = 1e12
LEAST_SAMPLES, MOST_SAMPLES = 6, 48
# Layers that are probed; the others get what their neighbours have.
MOST_LAYERS = 96

Ranks = Mapping[Form, Sequence[int]]


@dataclass(frozen=True)
class Loss:
    """What a form and rank cost a layer.

    Attributes:
        loss: squared error of its output over the power of its output about the mean.
        factors: weights with that loss.
    """

    loss: float
    factors: Factors


def losses(
    matrix: Array, geometry: Geometry, ranks: Ranks, moments: tuple[Normal, Normal] | None
) -> dict[tuple[Form, int], Loss]:
    """Losses of a layer by form and rank.

    Args:
        matrix: its weights in the common form.
        geometry: their sizes.
        ranks: ranks of each form.
        moments: of the positions to fit to and of those held out; None: every input counts alike.
    """
    found: dict[tuple[Form, int], Loss] = {}
    for form, wanted in ranks.items():
        for rank in wanted:
            if moments is None:
                factors = decompose(matrix, geometry, form, rank)
                lost = float(np.square(matrix - factors.matrix()).sum() / max(np.square(matrix).sum(), 1e-30))
            else:
                fitting, held_out = moments
                factors = decompose(matrix, geometry, form, rank, fitting.gram)
                if _unknowns(geometry, form, rank) <= MOST_UNKNOWNS:
                    factors = fit(factors, fitting, ridge=RIDGE, sweeps=SWEEPS)
                lost = held_out.error(factors.matrix())
            found[form, rank] = Loss(lost, factors)
    return found


def _unknowns(geometry: Geometry, form: Form, rank: int) -> int:
    if form == "depthwise_first":
        return geometry.channels * rank
    if form == "pointwise_first":
        return geometry.channels
    return rank * geometry.taps // geometry.kernel[0]


def sensitivities(
    model: onnx.ModelProto,
    places: Sequence[Place],
    worst: Mapping[str, Loss],
    feeds: Iterable[Feed],
    *,
    macs: float,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Measure, for each layer, noise-to-signal power at the outputs over the layer's own loss.

    Each layer in turn gets weights that lose much, its outputs' means kept, and the model's outputs are compared with
    the original's.

    Args:
        model: the original.
        places: the layers, in the order of the graph.
        worst: for each layer, weights to try it with.
        feeds: samples; only the first few are used.
        macs: multiply-adds of one run of the model, which say how many samples are affordable.
        threads: intra-op threads.
        progress: called with (done, total).
    """
    tried = [place for place in places if worst[place.name].loss > 0]
    if len(tried) > MOST_LAYERS:
        tried = [tried[at] for at in np.unique(np.linspace(0, len(tried) - 1, MOST_LAYERS).round().astype(int))]
    if not tried:
        return {place.name: 1.0 for place in places}
    samples = int(np.clip(WORK / max(macs * len(tried), 1.0), LEAST_SAMPLES, MOST_SAMPLES))
    probe = make_probe(model, feeds, samples, threads)
    measured: dict[str, float] = {}
    for done, place in enumerate(tried):
        lost = worst[place.name]
        found = noise(_with_weights(model, place.layer, lost.factors.matrix(), probe, threads), probe, threads)
        if np.isfinite(found):
            measured[place.name] = found / lost.loss
        progress(done + 1, len(tried))
    return _filled([place.name for place in places], measured)


def _with_weights(model: onnx.ModelProto, layer: Layer, matrix: Array, probe: Probe, threads: int) -> onnx.ModelProto:
    """The model with other weights in one layer, and the bias with which the layer's outputs keep their means."""
    bias = read_weights(Net(model), layer).bias
    before, after = (_means(each, layer, probe, threads) for each in (model, _written(model, layer, matrix, bias)))
    return _written(model, layer, matrix, (bias + before - after).astype(np.float32))


def _written(model: onnx.ModelProto, layer: Layer, matrix: Array, bias: Array) -> onnx.ModelProto:
    net = Net(model)
    write_weights(net, layer, Weights(matrix.astype(np.float32), bias))
    return net.to_model()


def _means(model: onnx.ModelProto, layer: Layer, probe: Probe, threads: int) -> Array:
    opened = runtime.session(with_outputs(model, [layer.name]), threads=threads)
    total, count = np.zeros(layer.outputs), 0
    for feed in probe.feeds:
        values = np.moveaxis(runtime.run(opened, feed, [layer.name])[layer.name], layer.channel_axis, -1)
        total += values.reshape(-1, layer.outputs).sum(axis=0, dtype=np.float64)
        count += values.size // layer.outputs
    return total / max(count, 1)


def _filled(names: list[str], measured: Mapping[str, float]) -> dict[str, float]:
    """Sensitivities of all layers: those between two measured ones get values between, on a logarithmic scale."""
    known = [at for at, name in enumerate(names) if name in measured]
    if not known:
        return dict.fromkeys(names, 1.0)
    logs = [np.log(max(measured[names[at]], 1e-12)) for at in known]
    return {name: float(np.exp(np.interp(at, known, logs))) for at, name in enumerate(names)}
