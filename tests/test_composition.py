"""Several approximate passes under one accuracy budget: what is tried, what is kept, what is told.

The passes are made up: what they do to a model is written into its graph's name, from which a fake judge reads how
accurate and how fast it is. At price p a pass with appetite a shortens the name by a/p points of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx
import onnx.parser
import pytest

from graphopt.composition import composable
from graphopt.passes.base import Candidate, Context, Declined, Dial, Goals, Kept, Pass, PassReport
from graphopt.pipeline import Attempt, search
from graphopt.report.schema import Stage
from graphopt.stages import StageRunner, Trial
from graphopt.targets import load_target

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x) => (float[4] y) { y = Relu(x) }"""
MAX_DROP = 0.01


def with_part(model: onnx.ModelProto, part: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.name = f"{model.graph.name}/{part}"
    return copy


def parts_of(model: onnx.ModelProto) -> dict[str, float]:
    """Name of each pass that had a part -> points of accuracy that it cost."""
    found = (part.partition("=") for part in model.graph.name.split("/")[1:])
    return {name: float(cost or 0) for name, _, cost in found}


def drop(model: onnx.ModelProto) -> float:
    return sum(parts_of(model).values())


@dataclass(frozen=True)
class Spend:
    """Costs ``appetite / price`` of accuracy, and makes the model as many times faster as the judge says."""

    name: str
    appetite: float = 1.0
    open: bool = True
    summary: ClassVar[str] = "spend accuracy"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def open_ended(self, goals: Goals) -> bool:
        return self.open

    def dial(self, model: onnx.ModelProto, context: Context) -> Dial:
        if self.appetite == 0:
            raise Declined("there is nothing to cut")
        return SpendDial(self)

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        yield Candidate(with_part(model, f"{self.name}=0.001"), PassReport(1), "by itself")


@dataclass(frozen=True)
class SpendDial:
    spend: Spend

    def at(self, price: float, model: onnx.ModelProto, kept: Kept, *, recover: bool) -> Candidate | None:
        if math.isinf(self.spend.appetite):
            raise RuntimeError("out of memory")
        name = f"{self.spend.name}={self.spend.appetite / price}"
        return Candidate(with_part(model, name), PassReport(1), f"at {price:.3g}", kept=kept)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Quantize:
    """Has no price, like int8 quantization."""

    cost: float = 0.002
    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "quantize"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        yield Candidate(with_part(model, f"quantize={self.cost}"), PassReport(1), "all int8")


@dataclass
class Judge:
    """Knows how fast each pass makes a model, for each point of accuracy that it may spend: log speed-up per point."""

    faster: Mapping[str, float] = field(default_factory=dict)
    refuse: int = 0
    looked_at: list[str] = field(default_factory=list)

    def speedup(self, model: onnx.ModelProto) -> float:
        gains = (self.faster.get(name, 1.0) * (cost * 100) ** 0.5 for name, cost in parts_of(model).items())
        return math.exp(sum(gains))

    def why_different(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
        return None

    def why_unjudged(self, needs: frozenset[str]) -> str | None:
        return None

    def trial(self, candidate: onnx.ModelProto, current: onnx.ModelProto, *, faster: bool) -> Trial:
        metric = 1 - drop(candidate)
        if drop(candidate) > MAX_DROP:
            return Trial(f"falls by {drop(candidate):.4f}", metric)
        if faster and self.speedup(candidate) <= self.speedup(current):
            return Trial("0.9x as fast as the model without it", metric)
        return Trial(None, metric, latency_ms=1 / self.speedup(candidate))

    def verdict(self, model: onnx.ModelProto, stages: Sequence[Stage]) -> str | None:
        self.looked_at.append(model.graph.name)
        return "it fell" if len(self.looked_at) <= self.refuse and parts_of(model) else None


def run(passes: list[Pass], judge: Judge, target: str = "cpu") -> Attempt:
    model = onnx.parser.parse_model(TEXT)
    goals = Goals(
        max_drop=MAX_DROP,
        drop=drop,
        speedup=judge.speedup,
        without_float16=lambda one: judge.speedup(one) / 2,
        int8_follows=True,
    )
    context = Context(hardware=load_target(target).hardware, calibration=[{}], goals=goals)
    return search(model, passes, StageRunner(context, judge))


def test_passes_spend_one_budget_together() -> None:
    """Two passes at one price spend what quantization leaves of the budget, and the one with more to offer more."""
    attempt = run([Spend("prune", 3.0), Spend("separate", 1.0), Quantize(0.002)], Judge())
    spent = parts_of(attempt.model)
    assert set(spent) == {"prune", "separate", "quantize"}
    assert spent["prune"] == 3 * spent["separate"]
    assert 0.009 < sum(spent.values()) <= MAX_DROP
    assert [stage.status for stage in attempt.stages] == ["applied"] * 3


@dataclass(frozen=True)
class QuantizeForgiving(Quantize):
    """Costs accuracy on the whole model, less on what is left of it."""

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        cost = 0.0005 if parts_of(model) else self.cost
        yield Candidate(with_part(model, f"quantize={cost}"), PassReport(1), "all int8")


def test_what_quantization_does_not_use_up_is_spent() -> None:
    attempt = run([Spend("prune", 3.0), QuantizeForgiving(0.004)], Judge())
    assert 0.006 < parts_of(attempt.model)["prune"] <= MAX_DROP


def test_each_stage_tells_what_it_contributed() -> None:
    attempt = run([Spend("prune"), Spend("separate"), Quantize()], Judge())
    metrics = [stage.metric for stage in attempt.stages]
    assert all(metric is not None for metric in metrics)
    assert metrics == sorted(metrics, reverse=True), "each costs some accuracy"
    latencies = [stage.latency_ms for stage in attempt.stages]
    assert latencies == sorted(latencies, reverse=True), "and saves some time"


def test_a_pass_that_does_more_alone_is_taken_alone() -> None:
    attempt = run([Spend("prune"), Spend("separate"), Quantize()], Judge(faster={"separate": -2.0}))
    assert set(parts_of(attempt.model)) == {"prune", "quantize"}
    assert "without it was faster" in attempt.stages[1].reason
    assert attempt.stages[1].status == "skipped"


def test_where_nothing_priced_pays_what_has_no_price_still_has_its_turn() -> None:
    attempt = run([Spend("prune"), Quantize()], Judge(faster={"prune": -1.0}))
    assert set(parts_of(attempt.model)) == {"quantize"}


def test_a_pass_that_brings_next_to_nothing_is_not_worth_its_accuracy() -> None:
    attempt = run([Spend("prune"), Quantize()], Judge(faster={"prune": 0.01}))
    assert set(parts_of(attempt.model)) == {"quantize"}
    assert "all but as fast" in attempt.stages[0].reason


@dataclass(frozen=True)
class QuantizeLayers(Quantize):
    quantizes: ClassVar[bool] = True


@dataclass(frozen=True)
class Half(Quantize):
    """Holds on the whole model only."""

    cost: float = 0.0
    name: ClassVar[str] = "half"
    vouches_for_float16: ClassVar[bool] = True

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        cost = 0.1 if parts_of(model) else self.cost
        yield Candidate(with_part(model, f"half={cost}"), PassReport(1), "all float16", faster=False)


@dataclass(frozen=True)
class Forgiving(Half):
    """Holds on every model."""

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        yield Candidate(with_part(model, "half=0.0"), PassReport(1), "all float16", faster=False)


def test_a_mixture_that_keeps_float16_away_is_as_slow_as_that() -> None:
    assert set(parts_of(run([Spend("prune"), Half()], Judge(faster={"prune": 0.5})).model)) == {"half"}
    assert set(parts_of(run([Spend("prune"), Half()], Judge(faster={"prune": 2.0})).model)) == {"prune"}


def test_where_int8_leaves_float16_no_accuracy_it_must_be_clearly_faster() -> None:
    """Float16 holds on the whole model only; without it everything left in float is twice as slow."""
    for gain, expected in ((0.5, {"half"}), (3.0, {"quantize"})):
        attempt = run([Spend("prune", 0.0), QuantizeLayers(), Half()], Judge(faster={"quantize": gain}))
        assert set(parts_of(attempt.model)) == expected
    assert (
        "float16 without it is faster"
        in run([Spend("prune", 0.0), QuantizeLayers(), Half()], Judge(faster={"quantize": 0.5})).stages[1].reason
    )


@pytest.mark.parametrize("appetite", [0.0, 3.0])
def test_float16_alone_is_the_last_resort_where_int8_does_not_hold_on_the_evaluation_samples(appetite: float) -> None:
    """However many gentler mixtures with int8 there are: looks at the evaluation samples are counted."""

    class Refuses(Judge):
        def verdict(self, model: onnx.ModelProto, stages: Sequence[Stage]) -> str | None:
            return "it fell" if "quantize" in parts_of(model) else None

    passes: list[Pass] = [Spend("prune", appetite), QuantizeLayers(), Forgiving()]
    attempt = run(passes, Refuses())
    assert set(parts_of(attempt.model)) == {"half"}
    assert [stage.status for stage in attempt.stages] == ["skipped", "skipped", "backed_off"]


@dataclass(frozen=True)
class Looks(Spend):
    """Notes whether it is told that int8 follows."""

    told: list[bool] = field(default_factory=list)

    def dial(self, model: onnx.ModelProto, context: Context) -> Dial:
        self.told.append(context.goals.int8_follows)
        return super().dial(model, context)


def test_what_a_device_runs_in_int8_is_known_however_little_it_gains() -> None:
    """So channels are cut to int8's multiples there; on this machine the clock tells whether most runs in int8."""
    for target, expected in (("cpu", False), ("jetson-orin-nano", True)):
        looks = Looks("prune")
        run([looks, QuantizeLayers()], Judge(faster={"quantize": 0.01}), target)
        assert looks.told == [expected]


def test_a_refused_result_is_followed_by_a_gentler_one_or_another_mixture() -> None:
    judge = Judge(refuse=1)
    attempt = run([Spend("prune", 3.0), Quantize()], judge)
    assert attempt.model.graph.name != judge.looked_at[0]
    assert attempt.stages[0].status == "backed_off"
    assert "it fell" in attempt.stages[0].reason
    assert any("it fell" in warning for warning in attempt.warnings)


def test_in_the_end_the_model_without_them_is_the_answer() -> None:
    attempt = run([Spend("prune"), Quantize()], Judge(refuse=100))
    assert parts_of(attempt.model) == {}
    assert {stage.status for stage in attempt.stages} == {"rolled_back"}
    assert "it fell" in attempt.stages[0].reason


def test_a_pass_that_declines_or_fails_costs_only_itself() -> None:
    attempt = run([Spend("prune", 0.0), Spend("separate", math.inf), Spend("other"), Quantize()], Judge())
    assert set(parts_of(attempt.model)) == {"other", "quantize"}
    assert attempt.stages[0].reason == "there is nothing to cut"
    assert "RuntimeError: out of memory" in attempt.stages[1].reason


def test_what_is_told_how_far_to_go_is_not_composed() -> None:
    context = Context(hardware=load_target("cpu").hardware, calibration=[{}], goals=Goals(drop=drop))
    assert composable([Spend("prune"), Quantize()], context)
    assert not composable([Spend("prune", open=False), Quantize()], context)
    assert not composable([Spend("prune")], context), "alone it has the budget to itself"
    assert not composable([Quantize(), Spend("prune")], context), "what has no price comes last"
    attempt = run([Spend("prune", open=False), Quantize()], Judge())
    assert parts_of(attempt.model) == {"prune": 0.001, "quantize": 0.002}
