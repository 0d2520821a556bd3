"""Times of convolutions, whole and separated, on a device that is not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.cache import Store
from graphopt.latency import estimate
from graphopt.passes.separable.predicted import PredictedTimes, with_float_precision
from graphopt.targets import load_target
from tests.support import model

NET = (
    "g (float[N,64,64,64] x) => (float[N,64,64,64] y) <float[64,64,3,3] w, float[64,64,3,3] v> "
    "{ a = Conv<pads = [1,1,1,1]>(x, w)  r = Relu(a)  y = Conv<pads = [1,1,1,1]>(r, v) }"
)
FEED = {"x": np.zeros((1, 64, 64, 64), np.float32)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    return Store("kernels", "here")


def test_in_float_a_net_takes_what_is_estimated(store: Store) -> None:
    hardware = load_target("jetson-nano").hardware
    found = PredictedTimes(hardware, False, store).net(model(NET), FEED)
    assert found == pytest.approx(1e3 * estimate(model(NET), hardware, shapes={"x": (1, 64, 64, 64)}).ms)


def test_int8_is_taken_where_it_is_faster(store: Store) -> None:
    hardware = load_target("jetson-orin-nano").hardware
    in_float, in_int8 = (PredictedTimes(hardware, int8, store).net(model(NET), FEED) for int8 in (False, True))
    assert in_int8 < in_float


def test_layers_of_strongly_typed_runtimes_are_timed_in_the_type_they_will_have(store: Store) -> None:
    hardware = load_target("a10").hardware
    assert hardware.strongly_typed
    shapes = {"x": (8, 64, 64, 64)}
    as_declared, as_written = (estimate(model(NET), one, shapes=shapes).ms
                               for one in (hardware, with_float_precision(hardware)))  # fmt: skip
    assert as_written < as_declared


def test_nothing_is_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import runtime

    monkeypatch.setattr(runtime, "profile", None)
    monkeypatch.setattr(runtime, "session", None)
    times = PredictedTimes(load_target("jetson-orin-nano").hardware, True, store)
    assert times.net(model(NET), FEED) > 0
