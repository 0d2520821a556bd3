"""How much each form and rank costs a layer, and how much noise that makes at the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from graphopt import runtime
from graphopt.calibration.collect import observing
from graphopt.passes.quality import Probe, interpolated, make_probe, noise
from graphopt.passes.separable.decompose import decompose
from graphopt.passes.separable.factors import Array, Factors, Form, Geometry
from graphopt.passes.separable.fit import HALF_STEPS, balanced, fit, pulled
from graphopt.passes.separable.places import Place
from graphopt.passes.separable.solvers import Quadratic
from graphopt.recovery.layers import Layer, Weights, read_weights, write_weights
from graphopt.recovery.net import Net
from graphopt.recovery.record import Feed
from graphopt.recovery.restrictions import Normal

# The ridge of fits that only tell how good a form and rank can be.
RIDGE = 1e-3
# Beyond so many unknowns of a fit's largest system the singular values alone have to tell.
MOST_UNKNOWNS = 2600
# Filters times the cube of their unknowns up to which the first factor of "pointwise_first" is fitted, too.
MOST_WORK = 3e9
# Losses like this one are what plans choose.
TYPICAL = 0.05
# Multiply-adds that all probes may take together, and what follows from it: how many samples each is measured on.
WORK = 3e11
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
    power = max(float(np.square(matrix).sum()), 1e-30)
    for form, wanted in ranks.items():
        # The terms of smaller ranks are the first ones of larger ranks.
        widest = decompose(matrix, geometry, form, max(wanted), None if moments is None else moments[0].gram)
        problems = [] if moments is None else _problems(moments[0], geometry)
        for rank in wanted:
            factors = replace(widest, first=widest.first[:, :rank], second=widest.second[:, :rank])
            if moments is None:
                lost = float(np.square(matrix - factors.matrix()).sum() / power)
            else:
                if form == "pointwise_first" and geometry.filters * (geometry.channels * rank) ** 3 <= MOST_WORK:
                    # Its first factor holds most of the weights.
                    factors = fit(factors, moments[0], ridge=RIDGE, sweeps=1)
                elif _unknowns(geometry, form, rank) <= MOST_UNKNOWNS:
                    factors = _refitted(factors, problems)
                lost = moments[1].error(factors.matrix())
            found[form, rank] = Loss(lost, factors)
    return found


def _problems(moments: Normal, geometry: Geometry) -> list[Quadratic]:
    pulls = (pulled(moments, RIDGE, group) for group in range(geometry.groups))
    return [Quadratic.of(gram, cross, geometry.taps, geometry.channels) for gram, cross in pulls]


def _refitted(factors: Factors, problems: Sequence[Quadratic]) -> Factors:
    """The factors with the second ones as good as they can be: most of what a whole fit gains, at a fraction."""
    first, second = factors.first.astype(np.float64), factors.second.astype(np.float64)
    for group, problem in enumerate(problems):
        one, two = balanced(factors.form, first[group], second[group])
        second[group] = HALF_STEPS[factors.form][1](problem, one, two)
        first[group] = one
    fitted = replace(factors, first=first.astype(np.float32), second=second.astype(np.float32))
    return fitted if np.isfinite(fitted.second).all() else factors


def _unknowns(geometry: Geometry, form: Form, rank: int) -> int:
    if form == "depthwise_first":
        return geometry.channels * rank
    if form == "pointwise_first":
        return geometry.taps * rank
    return rank * geometry.taps // geometry.kernel[0]


def typical(found: Iterable[Loss]) -> Loss:
    """The loss to measure a layer's sensitivity with: the nearest to what plans choose, for noise is not linear."""
    return min(found, key=lambda each: abs(np.log(max(each.loss, 1e-12) / TYPICAL)))


def sensitivities(
    model: onnx.ModelProto,
    places: Sequence[Place],
    tries: Mapping[str, Loss],
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
        tries: for each layer, weights to try it with.
        feeds: samples; only the first few are used.
        macs: multiply-adds of one run of the model, which say how many samples are affordable.
        threads: intra-op threads.
        progress: called with (done, total).
    """
    tried = [place for place in places if tries[place.name].loss > 0]
    if len(tried) > MOST_LAYERS:
        tried = [tried[at] for at in np.unique(np.linspace(0, len(tried) - 1, MOST_LAYERS).round().astype(int))]
    if not tried:
        return {place.name: 1.0 for place in places}
    samples = int(np.clip(WORK / max(macs * len(tried), 1.0), LEAST_SAMPLES, MOST_SAMPLES))
    probe = make_probe(model, feeds, samples, threads)
    means = _means(model, [place.layer for place in tried], probe, threads)
    measured: dict[str, float] = {}
    for done, place in enumerate(tried):
        lost = tries[place.name]
        changed = _with_weights(model, place.layer, lost.factors.matrix(), means[place.name], probe, threads)
        found = noise(changed, probe, threads)
        if np.isfinite(found):
            measured[place.name] = found / lost.loss
        progress(done + 1, len(tried))
    return interpolated([place.name for place in places], measured)


def _with_weights(
    model: onnx.ModelProto, layer: Layer, matrix: Array, means: Array, probe: Probe, threads: int
) -> onnx.ModelProto:
    """The model with other weights in one layer, and the bias with which the layer's outputs keep their means."""
    bias = read_weights(Net(model), layer).bias
    after = _means(_written(model, layer, matrix, bias), [layer], probe, threads)[layer.name]
    return _written(model, layer, matrix, (bias + means - after).astype(np.float32))


def _written(model: onnx.ModelProto, layer: Layer, matrix: Array, bias: Array) -> onnx.ModelProto:
    net = Net(model)
    write_weights(net, layer, Weights(matrix.astype(np.float32), bias))
    return net.to_model()


def _means(model: onnx.ModelProto, layers: Sequence[Layer], probe: Probe, threads: int) -> dict[str, Array]:
    """Means of what each filter of some layers gives on the samples, [filters], by the tensors that they write."""
    names = [layer.name for layer in layers]
    opened = observing(model, names, threads)
    total = {layer.name: np.zeros(layer.outputs) for layer in layers}
    count = dict.fromkeys(names, 0)
    for feed in probe.feeds:
        outputs = runtime.run(opened, feed, names)
        for layer in layers:
            values = np.moveaxis(outputs[layer.name], layer.channel_axis, -1)
            total[layer.name] += values.reshape(-1, layer.outputs).sum(axis=0, dtype=np.float64)
            count[layer.name] += values.size // layer.outputs
    return {name: total[name] / max(count[name], 1) for name in names}
