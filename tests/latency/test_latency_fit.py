"""Constants fitted to measurements, and the published ones that they were fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from latency_devices import EAGER, ENGINE, board
from support import model

from benchmarks.latency_data import DEVICES, measured, nets, points
from benchmarks.latency_scores import scores
from graphopt.errors import DataError
from graphopt.latency import estimate
from graphopt.latency.constants import constants
from graphopt.latency.refitting import refit

PLAIN = """plain (float[N,32,{size},{size}] x) => (float[N,32,{size},{size}] y)
<float[64,32,3,3] w, float[32,64,1,1] v> {{ a = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(a)  y = Conv(r, v) }}"""
DEPTHWISE = """depthwise (float[N,64,{size},{size}] x) => (float[N,64,{size},{size}] y)
<float[64,1,3,3] w, float[64,64,1,1] v> {{ a = Conv<pads=[1,1,1,1], group=64>(x, w)  y = Conv(a, v) }}"""
SMALL = ("AlexNet", "GoogLeNet", "MobileNet-v2", "ResNet-18", "ResNet-50", "SE-ResNet-50", "SqueezeNet-v1.1", "VGG-13",
         "VGG-16_BN", "VGG-19")  # fmt: skip
NETS = [model(text.format(size=size)) for text in (PLAIN, DEPTHWISE) for size in (16, 56, 112)]


def test_a_refit_finds_a_device_that_is_slower_than_it_should_be() -> None:
    """Half the compute, a third of the bandwidth, launches that take four times as long: told by six measurements."""
    true = {**constants("tensorrt")}
    for name in true:
        true[name] *= 0.5 if name.startswith("compute.") else 1 / 3 if name.startswith(("memory.", "cache.")) else 1
    true["launch.product_us"] = 20.0
    device = board(replace(ENGINE, latency=true))
    seen = [(proto, batch, estimate(proto, device, batch=batch).ms) for proto in NETS for batch in (1, 16)]
    found = refit(seen, board(ENGINE))
    after = board(replace(ENGINE, latency=found))
    for proto in NETS:
        wanted = estimate(proto, device, batch=4).ms
        assert estimate(proto, board(ENGINE), batch=4).ms < 0.7 * wanted
        assert estimate(proto, after, batch=4).ms == pytest.approx(wanted, rel=0.1)
    before, now = (estimate(NETS[0], each) for each in (board(ENGINE), after))
    assert now.interval[1] / now.ms < before.interval[1] / before.ms


def test_one_odd_measurement_does_not_bend_the_rest() -> None:
    hardware = board(EAGER)
    seen = [(proto, 16, estimate(proto, hardware, batch=16).ms) for proto in NETS]
    seen[0] = (seen[0][0], 16, 5 * seen[0][2])
    after = board(replace(EAGER, latency=refit(seen, hardware)))
    for proto, batch, ms in seen[2:]:
        assert estimate(proto, after, batch=batch).ms == pytest.approx(ms, rel=0.15)


def test_a_refit_is_deterministic_and_says_what_it_cannot_use() -> None:
    seen = [(NETS[0], 1, 1.0), (NETS[3], 1, 2.0)]
    assert refit(seen, board(ENGINE)) == refit(seen, board(ENGINE))
    with pytest.raises(DataError, match="no measured latency"):
        refit([], board(ENGINE))
    with pytest.raises(DataError, match="0 ms cannot be"):
        refit([(NETS[0], 1, 0)], board(ENGINE))


def test_the_constants_in_the_package_reproduce_the_published_latencies() -> None:
    """In the fit, and nets of few nodes only; ``benchmarks/latency.py`` leaves families out and tells all figures."""
    kernels_of = nets(SMALL)
    for device, every in points().items():
        found = [point for point in every if point.net in SMALL]
        sample = measured(device, found, kernels_of)
        predicted = sample.predict(constants(f"{DEVICES[device].name}-eager"))
        for batch, mape in ((1, 0.09), (16, 0.06)):
            chosen = [i for i, point in enumerate(found) if point.batch == batch]
            row = scores([found[i] for i in chosen], predicted[chosen])
            assert row.mape < mape
            assert row.spearman > 0.95
            assert row.ratio < 1.6
            assert row.ordered >= 0.98 * row.pairs
        assert np.isfinite(predicted).all()
