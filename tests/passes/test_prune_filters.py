"""``prune_filters``: how far it cuts, what it says, and that recovery makes up for what went."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import runtime
from graphopt.errors import PassWarning, UsageError
from graphopt.graph.cost import cost
from graphopt.passes.base import Candidate, Context, Declined, Goals
from graphopt.passes.prune_filters import PruneFilters
from graphopt.targets import load_target
from tests.support import model, outputs

# Twelve of the 32 filters of ``a`` say what the others say, a little louder or softer.
NET = """g (float[N,3,12,12] x) => (float[N,10] y)
    <float[32,3,3,3] wa, float[32] ba, float[32,32,3,3] wb, float[32] bb, float[10,32] wc, float[10] bc>
    { a = Conv<pads=[1,1,1,1]>(x, wa, ba)   ra = Relu(a)
      b = Conv<pads=[1,1,1,1]>(ra, wb, bb)  rb = Relu(b)
      p = GlobalAveragePool(rb)             f = Flatten(p)
      y = Gemm<transB=1>(f, wc, bc) }"""


def net() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(32, 3, 3, 3))
    filters[20:] = filters[:12] * rng.uniform(0.8, 1.2, size=(12, 1, 1, 1))
    bias = rng.normal(size=32) * 0.1
    bias[20:] = 0
    bias[:12] = 0
    return model(
        NET,
        wa=filters,
        ba=bias,
        wb=rng.normal(size=(32, 32, 3, 3)) / 17,
        bb=rng.normal(size=32) * 0.1,
        wc=rng.normal(size=(10, 32)),
        bc=rng.normal(size=10),
    )


def samples(count: int = 48, seed: int = 1) -> list[Mapping[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


def context(**goals: Any) -> Context:
    return Context(
        hardware=load_target("cpu").hardware,
        calibration=samples(),
        goals=Goals(**goals),
        shapes={"x": (1, 3, 12, 12)},
    )


def macs(proto: onnx.ModelProto) -> int:
    found = cost(proto, shapes={"x": (1, 3, 12, 12)}).macs
    assert found is not None
    return found


def first(one: PruneFilters, proto: onnx.ModelProto, given: Context) -> Candidate:
    return next(one.candidates(proto, given))


def error(proto: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Noise-to-signal power of the outputs on samples that nothing was fitted to."""
    fed = {"x": np.concatenate([sample["x"] for sample in samples(64, seed=9)])}
    wanted, found = outputs(proto, fed)["y"], outputs(other, fed)["y"]
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def test_cuts_to_the_share_asked_for_and_reports_what_went() -> None:
    found = first(PruneFilters(max_macs=0.6), net(), context())

    assert macs(found.model) <= 0.6 * macs(net())
    assert runtime.output_specs(found.model) == runtime.output_specs(net())
    details = found.report.details
    assert details["macs_share"] == round(macs(found.model) / macs(net()), 4)
    before_after = details["channels"].values()
    assert found.report.changes == sum(before - after for before, after in before_after) > 0
    assert details["recovery"] == "refit"
    assert details["refit"]["layers"] > 0


def test_what_others_can_say_goes_first() -> None:
    # 20 of the filters of ``a`` say all there is: cutting to these costs next to nothing once the readers are refitted.
    found = first(PruneFilters(max_macs=0.63, align=4), net(), context())

    assert error(net(), found.model) < 1e-3


@pytest.mark.parametrize("importance", ["l1", "l2", "activation", "refit"])
def test_recovery_makes_up_for_much(importance: str) -> None:
    bare = first(PruneFilters(max_macs=0.5, importance=importance, recovery="none"), net(), context())
    refitted = first(PruneFilters(max_macs=0.5, importance=importance), net(), context())

    assert error(net(), refitted.model) < 0.5 * error(net(), bare.model)


def test_without_samples_it_works_on_weights_and_random_inputs() -> None:
    blind = replace(context(), calibration=None)

    bare = first(PruneFilters(max_macs=0.6, recovery="none"), net(), blind)
    refitted = first(PruneFilters(max_macs=0.6), net(), blind)

    assert refitted.report.details["importance"] == "l2"
    assert refitted.report.details["recovery"] == "data_free"
    assert error(net(), refitted.model) < error(net(), bare.model)


def test_the_goal_of_the_run_counts_where_no_option_is_set() -> None:
    # A quarter of an original that had twice as many is half of what is there.
    found = first(PruneFilters(), net(), context(max_macs=0.25, original_macs=2 * macs(net())))

    assert 0.3 * macs(net()) < macs(found.model) <= 0.5 * macs(net())


def test_nothing_to_do_is_said() -> None:
    with pytest.raises(Declined, match="as it is"):
        first(PruneFilters(), net(), context(max_macs=0.5, original_macs=2 * macs(net())))


def test_without_a_budget_nothing_is_cut_and_the_reason_says_what_to_give() -> None:
    with pytest.raises(Declined, match="--max-macs"):
        first(PruneFilters(), net(), context())


def test_a_budget_out_of_reach_is_declined_with_the_share_that_is_possible() -> None:
    with pytest.raises(Declined, match=r"the smallest cut leaves \d"):
        first(PruneFilters(max_macs=0.001), net(), context())


def test_run_warns_where_a_pass_declines() -> None:
    with pytest.warns(PassWarning, match="smallest cut"):
        same = graphopt.run(net(), ["prune_filters"], data=samples(), options={"prune_filters.max_macs": 0.001})
    assert macs(same) == macs(net())


def test_goes_as_far_as_the_accuracy_allows_and_backs_off_from_there() -> None:
    original = net()
    asked: list[float] = []

    def drop(candidate: onnx.ModelProto) -> float:
        asked.append(error(original, candidate))
        return asked[-1]

    found = list(PruneFilters().candidates(original, context(max_drop=5e-4, to_threshold=True, drop=drop)))

    assert max(asked) > 5e-4, "some cut must have been too much"
    assert error(original, found[0].model) <= 5e-4
    shares = [macs(candidate.model) for candidate in found]
    assert shares == sorted(shares)
    assert shares[0] < macs(original)


def test_stops_at_the_speed_asked_for() -> None:
    original = net()

    def speedup(candidate: onnx.ModelProto) -> float:
        return macs(original) / macs(candidate)

    goals = {"to_threshold": True, "min_speedup": 1.5, "speedup": speedup, "drop": lambda candidate: 0.0}
    found = first(PruneFilters(), original, context(**goals))

    assert 1.5 <= speedup(found.model) < 2.2


def test_excluded_layers_keep_their_filters() -> None:
    proto = net()
    proto.graph.node[0].name = "first"
    found = first(PruneFilters(max_macs=0.7, exclude="first"), proto, context())

    weights = {tensor.name: tuple(tensor.dims) for tensor in found.model.graph.initializer}
    assert all(size[0] == 32 for size in weights.values() if size[1:] == (3, 3, 3))
    with pytest.raises(UsageError, match="no node"):
        first(PruneFilters(max_macs=0.7, exclude="second"), proto, context())


def test_steps_go_down_to_the_same_budget() -> None:
    found = first(PruneFilters(max_macs=0.4, steps=3), net(), context())

    assert macs(found.model) <= 0.4 * macs(net())
    assert error(net(), found.model) < 0.5


def test_an_even_share_of_every_group() -> None:
    found = first(PruneFilters(share=0.5), net(), context())

    assert list(found.report.details["channels"].values()) == [[32, 16], [32, 16]]
    assert error(net(), found.model) < 0.5


def test_same_input_same_bytes() -> None:
    one, other = (first(PruneFilters(max_macs=0.5), net(), context()).model for _ in range(2))

    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "options",
    [
        {"max_macs": 0.0},
        {"max_macs": 1.5},
        {"share": 1.0},
        {"share": 0.5, "max_macs": 0.5},
        {"steps": 0},
        {"samples": 0},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PruneFilters(**options)


def test_optimize_prunes_to_the_budget_and_judges_the_result() -> None:
    data = {"x": np.concatenate([sample["x"] for sample in samples(96)])}

    settings: dict[str, Any] = {
        "metric": "cosine",
        "max_drop": 0.2,
        "skip": ["separate_convolutions", "quantize_int8"],
        "min_speedup": 0.5,
    }
    asked = graphopt.optimize(net(), data=data, max_macs=0.3, **settings)
    free = graphopt.optimize(net(), data=data, **settings)

    assert asked.report.result == "ok"
    assert asked.report.output is not None
    assert asked.report.output.macs <= 0.3 * asked.report.input.macs
    (stage,) = [stage for stage in asked.report.stages if stage.name == "prune_filters"]
    assert (stage.status, stage.details["recovery"]) == ("applied", "refit")
    (stage,) = [stage for stage in free.report.stages if stage.name == "prune_filters"]
    assert stage.status == "skipped"
    assert "--max-macs" in stage.reason
