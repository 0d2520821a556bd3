"""How much noise at the model's outputs one unit of error inside a layer makes, measured once.

Each layer in turn does without some of its inputs, the others refitted (the error that pruning leaves behind), and the
model's outputs are compared with the original's. Errors of different layers are taken to add up, as in
``quantize_int8``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx

from graphopt.passes.pruning.moments import Feed, Moments
from graphopt.passes.pruning.probes import cheapest, refit_without, with_layer
from graphopt.passes.pruning.weights import Weights
from graphopt.passes.quality import interpolated, make_probe, noise

# Shares of a layer's inputs tried, until its error is that large.
SHARES = (1 / 3, 1 / 2, 2 / 3, 5 / 6)
ENOUGH = 0.02
# Multiply-adds that all probes may take together, and what follows from it: how many layers are probed (the others get
# what their neighbours have), on how many samples each.
WORK = 1e12
LEAST_LAYERS, MOST_LAYERS = 32, 96
LEAST_SAMPLES, MOST_SAMPLES = 6, 48


def sensitivities(
    model: onnx.ModelProto,
    moments: Mapping[str, Moments],
    feeds: Iterable[Feed],
    *,
    macs: float,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Measure, for each layer, noise-to-signal power at the outputs over that of the layer's own output.

    Args:
        model: the original.
        moments: moments of the layers, in the order of the graph.
        feeds: samples; only the first few are used.
        macs: multiply-adds of one run of the model, which say how many samples are affordable.
        threads: intra-op threads.
        progress: called with (done, total).
    """
    weights = Weights(model)
    names = [name for name, found in moments.items() if found.energy > 0]
    most = int(np.clip(WORK / max(macs * LEAST_SAMPLES, 1.0), LEAST_LAYERS, MOST_LAYERS))
    if len(names) > most:
        names = [names[at] for at in np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))]
    samples = int(np.clip(WORK / max(macs * len(names), 1.0), LEAST_SAMPLES, MOST_SAMPLES))
    probe = make_probe(model, feeds, samples, threads)
    measured: dict[str, float] = {}
    for done, name in enumerate(names):
        for share in SHARES:
            refit = refit_without(moments[name], weights, cheapest(moments[name], weights, share))
            if refit.loss >= ENOUGH:
                break
        found = noise(with_layer(model, moments[name].reader, refit), probe, threads)
        if refit.loss > 0 and np.isfinite(found):
            measured[name] = found / refit.loss
        progress(done + 1, len(names))
    return interpolated(list(moments), measured)
