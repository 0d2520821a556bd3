"""Cutting a model that was approximated before, and cutting as far as a price says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest

from graphopt.passes.base import Candidate, Context, Dial, Goals, Origin, Priced
from graphopt.passes.prune_filters import PruneFilters
from graphopt.passes.pruning.curves import UNIT, Curve
from graphopt.passes.pruning.path import Path, Step
from graphopt.passes.pruning.settings import Settings
from graphopt.passes.pruning.work import Pruning
from graphopt.targets import load_target
from tests.passes.pruning.nets import samples
from tests.support import initializer, model, outputs

NET = """g (float[1,3,12,12] x) => (float[1,8,12,12] y)
    <float[32,3,3,3] wa, float[32,32,3,3] wb, float[8,32,1,1] wc, float[8] bc>
    { a = Conv<pads=[1,1,1,1]>(x, wa)   ra = Relu(a)
      b = Conv<pads=[1,1,1,1]>(ra, wb)  rb = Relu(b)
      y = Conv(rb, wc, bc) }"""


def net() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    sizes = {"wa": (32, 3, 3, 3), "wb": (32, 32, 3, 3), "wc": (8, 32, 1, 1), "bc": (8,)}
    return model(NET, **{name: rng.normal(size=size) / 9 for name, size in sizes.items()})


def context(proto: onnx.ModelProto, origin: Origin | None = None) -> Context:
    return Context(load_target("cpu").hardware, calibration=samples(proto, 24), origin=origin)


def pruned(proto: onnx.ModelProto, share: float, origin: Origin | None = None, **options: str) -> Candidate:
    one = PruneFilters(max_macs=share, **options)  # type: ignore[arg-type]
    return next(one.candidates(proto, context(proto, origin)))


def pruning(proto: onnx.ModelProto) -> Pruning:
    return Pruning(proto, Settings("refit", "refit", "global", "both", 24, 1, 4, frozenset()), context(proto))


def error(wanted: onnx.ModelProto, found: onnx.ModelProto) -> float:
    feed = samples(wanted, 1, seed=5)[0]
    right, given = outputs(wanted, feed)["y"], outputs(found, feed)["y"]
    return float(np.square(given - right).sum() / np.square(right).sum())


def test_what_remains_is_said_in_terms_of_the_origin() -> None:
    original = net()
    once = pruned(original, 0.7, recovery="none")
    twice = pruned(once.model, 0.6, Origin(original, once.kept), recovery="none")

    assert len(twice.kept["a"][1]) < len(once.kept["a"][1]) < 32
    rows = twice.kept.get("b", {}).get(1, np.arange(32))
    weights = initializer(original, "wb")[rows][:, twice.kept["a"][1]]
    assert any(np.array_equal(each, weights) for each in constants(twice.model))


def constants(proto: onnx.ModelProto) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]


def test_layers_are_refitted_towards_the_origin() -> None:
    original = net()
    once = pruned(original, 0.7)
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(once.model)
    (last,) = [tensor for tensor in spoiled.graph.initializer if tensor.dims[0] == 8 and len(tensor.dims) == 4]
    last.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(last), last.name))

    towards_origin = pruned(spoiled, 0.9, Origin(original, once.kept))
    towards_itself = pruned(spoiled, 0.9)

    assert error(original, towards_origin.model) < 0.2
    assert error(original, towards_itself.model) > 0.5


def test_the_higher_the_price_of_noise_the_less_is_cut() -> None:
    work = pruning(net())
    plans = [work.step_at(price) for price in (0.0, 0.1, 1.0, 10.0, 1e3, 1e9)]
    work.close()

    assert plans[0].time == min(step.time for step in work.path.steps)
    assert plans[-1].kept == {}
    for one, other in pairwise(plans):
        assert one.time <= other.time
        assert one.noise >= other.noise
    assert len({step.time for step in plans}) > 2


def test_no_other_plan_is_worth_more_at_the_price() -> None:
    work = pruning(net())
    chosen = work.step_at(2.0)
    work.close()

    assert all(chosen.time + 2.0 * chosen.harm <= step.time + 2.0 * step.harm for step in work.path.steps)


def test_a_model_for_a_price_is_cut_refitted_and_made_once() -> None:
    original = net()
    work = pruning(original)
    found, again = work.at_price(1.0), work.at_price(1.0)
    whole = work.at_price(1e9)
    work.close()

    assert again is found
    assert found.macs == pytest.approx(work.step_at(1.0).macs * work.macs)
    assert found.fits is not None
    assert error(original, found.model) < 0.2
    assert whole.model is original
    assert whole.kept == {}


def test_harm_is_noise_that_weighs_more_where_there_is_much() -> None:
    curve = Curve(0, 3, np.arange(3), np.array([0.0, UNIT / 4, UNIT, 4 * UNIT]))

    assert [curve.harm(kept) for kept in (3, 2, 1, 0)] == pytest.approx([0.0, UNIT / 8, UNIT, 8 * UNIT])
    assert np.isinf(replace(curve, noise=curve.noise[:2]).harm(1))


def dial(proto: onnx.ModelProto) -> Dial:
    return PruneFilters(align=4).dial(proto, context(proto))


def test_a_dial_cuts_with_and_without_recovery() -> None:
    original = net()
    opened = dial(original)
    recovered = opened.at(0.5, original, {}, recover=True)
    bare = opened.at(0.5, original, {}, recover=False)
    nothing = opened.at(1e9, original, {}, recover=True)
    opened.close()

    assert nothing is None
    assert recovered is not None
    assert bare is not None
    assert recovered.report.details["channels"] == bare.report.details["channels"] != {}
    assert error(original, recovered.model) < 0.5 * error(original, bare.model)


def test_a_dial_goes_on_with_what_another_pass_made() -> None:
    original = net()
    once = pruned(original, 0.8, recovery="none")
    opened = dial(original)
    found = opened.at(0.5, once.model, once.kept, recover=True)
    opened.close()

    assert found is not None
    for tensor, axes in once.kept.items():
        assert set(found.kept[tensor][1]) <= set(axes[1])
    (weights,) = [each for each in constants(found.model) if each.shape[2:] == (3, 3) and each.shape[1] != 3]
    assert weights.shape[1] == len(found.kept["a"][1])
    assert error(original, found.model) < 0.2


def test_pruning_is_open_ended_unless_told_how_far() -> None:
    assert isinstance(PruneFilters(), Priced)
    assert PruneFilters().open_ended(Goals())
    assert not PruneFilters().open_ended(Goals(max_macs=0.5))
    assert not PruneFilters(max_macs=0.5).open_ended(Goals())
    assert not PruneFilters(share=0.5).open_ended(Goals())


def test_a_dial_plans_by_time_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Pruning, "__post_init__", lambda self: asked.append(self.settings.price))
    monkeypatch.setattr(Pruning, "path", Path((Step({}, 1.0, 1.0, 0.0),) * 2, 1.0))
    original = net()
    for one in (PruneFilters(), PruneFilters(price="macs")):
        one.dial(original, context(original))

    assert asked == ["latency", "macs"]
