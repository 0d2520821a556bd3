"""The pipeline: what becomes of passes that hold, that do not, that fail, and of the result as a whole.

The passes here are made up; the judge is told what to find. Data and clocks have their own tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from graphopt.equality import why_different
from graphopt.errors import DataError
from graphopt.graph import Index, replace_uses
from graphopt.passes.base import Candidate, Context, Declined, Goals, Pass, PassReport, Skip
from graphopt.pipeline import MAX_VERDICTS, Attempt, search
from graphopt.report.schema import Stage
from graphopt.stages import StageRunner, Trial
from graphopt.targets import load_target

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w> { z = MatMul(x, w)  i = Identity(z)  y = Relu(i) }"""


def tiny() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return model


def named(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A valid variant of the model that a fake judge can tell from others."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.name = f"{model.graph.name}/{name}"
    return copy


@dataclass(frozen=True)
class DropIdentity:
    """Exact, and right."""

    name: ClassVar[str] = "drop_identity"
    summary: ClassVar[str] = "drop Identity"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        index = Index(graph)
        found = [node for node in graph.nodes if node.op == "Identity"]
        for node in found:
            replace_uses(index, node.outputs[0], node.inputs[0])
        return PassReport(len(found), (Skip("z", "is dear to me"),), {"seen": 3})


@dataclass(frozen=True)
class Broken:
    """Calls itself exact, and is not, each time in another way."""

    how: str
    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "break the model"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        match self.how:
            case "outputs":
                graph.nodes[-1].op = "Sigmoid"
            case "invalid":
                graph.nodes[-1].op = "Reluu"
            case "raises":
                raise ValueError("I lost my way")
            case "data":
                raise DataError("samples.npz: sample 3 holds NaN")
            case "interrupted":
                raise KeyboardInterrupt
        return PassReport(1)


@dataclass(frozen=True)
class Propose:
    """Approximate: proposes the candidates called ``labels``; at ``!`` it fails, at ``-`` it declines."""

    labels: tuple[str, ...]
    name: ClassVar[str] = "propose"
    summary: ClassVar[str] = "propose candidates"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        for label in self.labels:
            if label == "!":
                raise RuntimeError("out of ideas")
            if label == "-":
                raise Declined("nothing gentler is faster")
            yield Candidate(named(model, label), PassReport(2), label)


@dataclass(frozen=True)
class Other(Propose):
    name: ClassVar[str] = "other"


@dataclass
class FakeJudge:
    """Finds what it is told: label -> problem, on the selection samples and in the verdict."""

    trials: Mapping[str, str] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    unjudged: str | None = None
    tried: list[str] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)

    def why_different(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
        feed = {"x": np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)}
        return why_different(before, after, [feed])

    def why_unjudged(self, needs: frozenset[str]) -> str | None:
        return self.unjudged

    def trial(self, candidate: onnx.ModelProto, current: onnx.ModelProto, *, faster: bool) -> Trial:
        label = candidate.graph.name.rpartition("/")[2]
        self.tried.append(label)
        return Trial(self.trials.get(label), metric=0.9, latency_ms=1.5)

    def verdict(self, model: onnx.ModelProto, stages: Sequence[Stage]) -> str | None:
        self.looked_at.append(model.graph.name)
        return self.verdicts.get(model.graph.name)


def run(passes: list[Pass], judge: FakeJudge, model: onnx.ModelProto | None = None) -> Attempt:
    context = Context(hardware=load_target("cpu").hardware)
    return search(model or tiny(), passes, StageRunner(context, judge))


def statuses(attempt: Attempt) -> list[str]:
    return [stage.status for stage in attempt.stages]


def test_an_exact_pass_is_applied_and_its_figures_told() -> None:
    original = tiny()
    before = original.SerializeToString()
    attempt = run([DropIdentity()], FakeJudge(), original)
    (stage,) = attempt.stages
    assert [node.op_type for node in attempt.model.graph.node] == ["MatMul", "Relu"]
    assert (stage.name, stage.status, stage.changes, stage.nodes, stage.parameters) == (
        "drop_identity",
        "applied",
        1,
        2,
        12,
    )
    assert stage.details == {"seen": 3, "skipped": [{"where": "z", "reason": "is dear to me"}]}
    assert (attempt.refusal, attempt.warnings) == (None, ())
    assert original.SerializeToString() == before, "the original is a checkpoint"


def test_a_pass_that_finds_nothing_leaves_the_very_model() -> None:
    once = run([DropIdentity()], FakeJudge()).model
    attempt = run([DropIdentity()], FakeJudge(), once)
    assert attempt.model is once
    assert attempt.stages[0].reason == "nothing to do"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        pytest.param("outputs", "it changed the outputs: output 'y' is off by", id="other outputs"),
        pytest.param("invalid", "it failed with ModelError: the model is not valid ONNX", id="invalid graph"),
        pytest.param("raises", "it failed with ValueError: I lost my way", id="exception"),
    ],
)
def test_a_broken_exact_pass_is_rolled_back_and_named(how: str, reason: str) -> None:
    attempt = run([Broken(how), DropIdentity()], FakeJudge())
    assert statuses(attempt) == ["rolled_back", "applied"]
    assert attempt.stages[0].reason.startswith(reason)
    assert attempt.stages[0].changes == 0
    assert [warning.startswith(f"broken was rolled back: {reason}") for warning in attempt.warnings] == [True]
    assert [node.op_type for node in attempt.model.graph.node] == ["MatMul", "Relu"]


@pytest.mark.parametrize(("how", "error"), [("data", DataError), ("interrupted", KeyboardInterrupt)])
def test_what_the_user_must_mend_or_wants_is_not_swallowed(how: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        run([Broken(how)], FakeJudge())


def test_the_first_candidate_that_holds_is_taken_and_no_other_tried() -> None:
    judge = FakeJudge()
    attempt = run([Propose(("all", "mixed"))], judge)
    (stage,) = attempt.stages
    assert attempt.model.graph.name == "g/all"
    assert (stage.status, stage.reason, stage.changes, stage.metric, stage.latency_ms) == (
        "applied",
        "all",
        2,
        0.9,
        1.5,
    )
    assert judge.tried == ["all"]
    assert judge.looked_at == ["g/all"]


def test_a_candidate_that_costs_too_much_accuracy_is_backed_off_from() -> None:
    attempt = run([Propose(("all", "mixed"))], FakeJudge(trials={"all": "top1 fell 2.30 points (may fall 1.00)"}))
    (stage,) = attempt.stages
    assert attempt.model.graph.name == "g/mixed"
    assert stage.status == "backed_off"
    assert stage.reason == "all: top1 fell 2.30 points (may fall 1.00); kept: mixed"


def test_where_no_candidate_holds_the_pass_is_rolled_back_with_every_reason() -> None:
    judge = FakeJudge(trials={"all": "top1 fell 2.30 points", "mixed": "0.93x as fast as the model without it"})
    attempt = run([DropIdentity(), Propose(("all", "mixed"))], judge)
    assert statuses(attempt) == ["applied", "rolled_back"]
    reason = "all: top1 fell 2.30 points; mixed: 0.93x as fast as the model without it"
    assert attempt.stages[1].reason == reason
    assert attempt.warnings == (f"propose was rolled back: {reason}",)
    assert attempt.model.graph.name == "g"
    assert attempt.refusal is None


def test_a_pass_that_fails_between_candidates_keeps_the_reasons_so_far() -> None:
    attempt = run([Propose(("all", "!"))], FakeJudge(trials={"all": "too slow"}))
    assert statuses(attempt) == ["rolled_back"]
    assert attempt.stages[0].reason == "all: too slow; it failed with RuntimeError: out of ideas"


def test_a_pass_that_declines_is_skipped_unless_something_was_tried() -> None:
    (skipped,) = run([Propose(("-",))], FakeJudge()).stages
    assert (skipped.status, skipped.reason) == ("skipped", "nothing gentler is faster")
    (tried,) = run([Propose(("all", "-"))], FakeJudge(trials={"all": "too slow"})).stages
    assert (tried.status, tried.reason) == ("rolled_back", "all: too slow; nothing gentler is faster")


def test_without_data_an_approximate_pass_is_skipped_with_the_reason() -> None:
    judge = FakeJudge(unjudged="it needs data")
    attempt = run([Propose(("all",))], judge)
    assert (attempt.stages[0].status, attempt.stages[0].reason) == ("skipped", "it needs data")
    assert judge.tried == []


def test_a_pass_without_candidates_found_nothing_to_do() -> None:
    attempt = run([Propose(())], FakeJudge())
    assert (attempt.stages[0].status, attempt.stages[0].reason) == ("applied", "it found nothing to do")


def test_when_the_verdict_is_against_it_the_next_candidate_is_taken() -> None:
    judge = FakeJudge(verdicts={"g/all": "top1 fell 1.20 points (may fall 1.00)"})
    attempt = run([Propose(("all", "mixed"))], judge)
    assert attempt.model.graph.name == "g/mixed"
    assert statuses(attempt) == ["backed_off"]
    assert (
        "all: top1 fell 1.20 points (may fall 1.00) on the evaluation samples; kept: mixed" in attempt.stages[0].reason
    )
    assert len(attempt.warnings) == 1
    assert judge.looked_at == ["g/all", "g/mixed"]


def test_when_every_candidate_falls_the_exact_model_is_the_answer() -> None:
    judge = FakeJudge(verdicts={"g/all": "worse"})
    attempt = run([DropIdentity(), Propose(("all",)), DropIdentity()], judge)
    assert statuses(attempt) == ["applied", "rolled_back", "applied"]
    assert (attempt.model.graph.name, attempt.refusal) == ("g", None)


def test_the_search_goes_back_to_the_pass_before() -> None:
    verdicts = {"g/a/c": "worse", "g/a/d": "worse", "g/a": "worse"}
    judge = FakeJudge(verdicts=verdicts)
    attempt = run([Propose(("a", "b")), Other(("c", "d"))], judge)
    assert judge.looked_at == ["g/a/c", "g/a/d", "g/a", "g/b/c"]
    assert attempt.model.graph.name == "g/b/c"
    assert statuses(attempt) == ["backed_off", "applied"]


def test_the_evaluation_samples_are_looked_at_a_limited_number_of_times() -> None:
    labels = tuple(f"candidate {number}" for number in range(20))
    judge = FakeJudge(verdicts={f"g/{label}": "worse" for label in labels})
    attempt = run([Propose(labels)], judge)
    assert len(judge.looked_at) == MAX_VERDICTS
    assert len(judge.tried) < len(labels)
    assert (attempt.model.graph.name, attempt.refusal) == ("g", None)


def test_where_the_exact_model_does_not_hold_the_original_is_the_answer() -> None:
    original = named(tiny(), "original")
    seen: list[onnx.ModelProto] = []

    class OnlyTheOriginal(FakeJudge):
        def verdict(self, model: onnx.ModelProto, stages: Sequence[Stage]) -> str | None:
            seen.append(model)
            return None if model is original else "0.90x as fast as the original"

    attempt = run([DropIdentity()], OnlyTheOriginal(), original)
    assert attempt.model is original
    assert statuses(attempt) == ["rolled_back"]
    assert attempt.refusal is None
    assert "the answer is the original model" in attempt.warnings[-1]


def test_where_nothing_holds_the_first_attempt_is_returned_with_its_refusal() -> None:
    judge = FakeJudge(verdicts={"g/all": "1.50x as fast (needs 3.00x)", "g": "1.00x as fast (needs 3.00x)"})
    attempt = run([Propose(("all",))], judge)
    assert attempt.refusal == "1.50x as fast (needs 3.00x)"
    assert attempt.model.graph.name == "g/all"
    assert statuses(attempt) == ["applied"]


def test_without_passes_the_model_is_the_answer() -> None:
    original = tiny()
    assert run([], FakeJudge(), original).model is original


def test_the_same_run_gives_the_same_bytes() -> None:
    first, second = (run([DropIdentity(), Propose(("all",))], FakeJudge()).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@dataclass(frozen=True)
class Quantize(Propose):
    name: ClassVar[str] = "quantize"
    quantizes: ClassVar[bool] = True


@dataclass(frozen=True)
class Half(Propose):
    name: ClassVar[str] = "half"
    vouches_for_float16: ClassVar[bool] = True


@dataclass
class Strict(FakeJudge):
    """Int8 and float16 together cost too much."""

    def trial(self, candidate: onnx.ModelProto, current: onnx.ModelProto, *, faster: bool) -> Trial:
        both = {"int8", "float16"} <= set(candidate.graph.name.split("/"))
        return Trial("it falls by 0.02" if both else None, metric=0.9, latency_ms=1.5)


@pytest.mark.parametrize(("int8", "expected"), [(1.2, "g/float16"), (2.03, "g/float16"), (3.0, "g/int8")])
def test_where_int8_leaves_float16_no_accuracy_it_must_be_clearly_faster(int8: float, expected: str) -> None:
    """What stays in float32 is twice as slow."""

    def speedup(model: onnx.ModelProto) -> float:
        return int8 if "int8" in model.graph.name else 1.0

    goals = Goals(speedup=speedup, without_float16=lambda model: speedup(model) / 2)
    context = Context(hardware=load_target("a10").hardware, goals=goals)
    passes: list[Pass] = [DropIdentity(), Quantize(("int8",)), Half(("float16",))]
    attempt = search(tiny(), passes, StageRunner(context, Strict()))
    assert attempt.model.graph.name == expected
    assert [stage.name for stage in attempt.stages] == ["drop_identity", "quantize", "half"]
    if expected == "g/float16":
        assert [stage.status for stage in attempt.stages] == ["applied", "skipped", "applied"]
        assert "float16" in attempt.stages[1].reason
