"""``optimize`` and ``run`` as a user calls them, on a tiny net with passes made up for the purpose.

The clock counts multiply-adds, so that speed is what it should be on every machine; one test takes the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

import graphopt
from graphopt import speed
from graphopt.errors import DataError, GateError, OutputError, PassError, UnsupportedModelError, UsageError
from graphopt.graph import Index, replace_uses
from graphopt.graph.cost import cost
from graphopt.passes.base import Candidate, Context, Declined, PassReport, Skip
from graphopt.validation import Latency, Timing, measure

# 'wide' is a detour that hardly matters: what a fast candidate leaves out.
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,16] x) => (float[N,4] y) <float[16,4] w, float[16,256] a, float[256,256] b, float[256,4] c> {
  i = Identity(x)  z = MatMul(i, w)
  d = MatMul(i, a)  e = MatMul(d, b)  wide = MatMul(e, c)
  y = Add(z, wide)
}"""


def net() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    del model.graph.initializer[:]
    draw = np.random.default_rng(0).normal
    for name, shape, scale in [
        ("w", (16, 4), 1),
        ("a", (16, 256), 0.01),
        ("b", (256, 256), 0.001),
        ("c", (256, 4), 0.01),
    ]:
        model.graph.initializer.append(onnx.numpy_helper.from_array(draw(0, scale, shape).astype(np.float32), name))
    model.metadata_props.add(key="author", value="someone")
    return model


def samples(count: int = 60) -> dict[str, Any]:
    """Inputs with the labels that the net itself gives them, so that its top-1 is 1."""
    inputs = np.random.default_rng(1).normal(size=(count, 16)).astype(np.float32)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in net().graph.initializer}
    scores = inputs @ weights["w"] + inputs @ weights["a"] @ weights["b"] @ weights["c"]
    return {"x": inputs, "labels": scores.argmax(axis=1)}


def edited(model: onnx.ModelProto, keep: list[str], output: str) -> onnx.ModelProto:
    """The model with only the nodes that write ``keep``, and ``y`` read from ``output``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(node for node in model.graph.node if node.output[0] in keep)
    copy.graph.node.append(onnx.helper.make_node(*output.split()[:1], output.split()[1:], ["y"]))
    used = {name for node in copy.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


@dataclass(frozen=True)
class DropIdentity:
    name: ClassVar[str] = "drop_identity"
    summary: ClassVar[str] = "drop Identity"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        index = Index(graph)
        found = [node for node in graph.nodes if node.op == "Identity"]
        for node in found:
            replace_uses(index, node.outputs[0], node.inputs[0])
        return PassReport(len(found))


@dataclass(frozen=True)
class Shortcut:
    """Approximate. ``right`` leaves out the detour, ``wrong`` also turns the answers round, ``slow`` adds work."""

    kinds: str = "right"
    name: ClassVar[str] = "shortcut"
    summary: ClassVar[str] = "leave out the detour"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        assert context.calibration is not None
        if self.kinds == "nothing":
            raise Declined("there is no detour", PassReport(0, (Skip("z", "is short already"),)))
        for kind in self.kinds.split():
            if kind == "right":
                changed = edited(model, ["i", "z"], "Identity z")
            elif kind == "wrong":
                changed = edited(model, ["i", "z"], "Neg z")
            else:
                changed = edited(model, ["i", "z", "d", "e", "wide"], "Add z wide")
                (second,) = (node for node in changed.graph.node if node.output[0] == "e")
                place = list(changed.graph.node).index(second)
                changed.graph.node.insert(place, onnx.helper.make_node("MatMul", ["d", "b"], ["more"]))
                changed.graph.node[place + 1].input[0] = "more"
            yield Candidate(changed, PassReport(1), kind)


def by_multiply_adds(baseline: onnx.ModelProto, optimized: onnx.ModelProto, feed: Any, **settings: Any) -> Latency:
    before, after = (float(cost(model).known_macs + 1) for model in (baseline, optimized))
    timing = Timing(1.0, 1.0, 1.0, 10, 1, "cpu")
    ratio = before / after
    return Latency(
        "measured",
        "CPUExecutionProvider",
        1,
        before,
        after,
        ratio,
        (0.99 * ratio, 1.01 * ratio),
        1.0,
        True,
        timing,
        timing,
    )


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "measure", by_multiply_adds)


def statuses(result: graphopt.Result) -> list[str]:
    return [stage.status for stage in result.report.stages]


def test_exact_passes_need_no_data() -> None:
    model = net()
    before = model.SerializeToString()
    result = graphopt.optimize(model, passes=[DropIdentity()])
    report = result.report
    assert (report.result, statuses(result), report.accuracy) == ("ok", ["applied"], None)
    assert report.latency is not None
    assert report.latency.passed
    assert report.output is not None
    assert (report.input.nodes, report.output.nodes, report.output.opset) == (6, 5, 17)
    assert model.SerializeToString() == before, "the input is never touched"
    kept = {entry.key: entry.value for entry in result.model.metadata_props}
    assert kept["author"] == "someone"
    assert kept["graphopt.passes"] == "drop_identity"
    assert kept["graphopt.source_sha256"] == report.input.sha256


def test_without_data_an_approximate_pass_is_skipped_and_the_report_says_so() -> None:
    result = graphopt.optimize(net(), passes=[DropIdentity(), Shortcut()])
    assert statuses(result) == ["applied", "skipped"]
    assert "give samples with --data" in result.report.stages[1].reason
    assert any("only passes that change nothing beyond rounding ran" in text for text in result.report.warnings)
    assert "shortcut" in str(result.report)


def test_with_data_an_approximate_pass_is_judged_on_samples_it_has_not_seen() -> None:
    result = graphopt.optimize(net(), data=samples(), passes=[DropIdentity(), Shortcut()])
    report = result.report
    assert (report.result, statuses(result)) == ("ok", ["applied", "applied"])
    assert report.accuracy is not None
    assert report.latency is not None
    assert (report.accuracy.metric, report.accuracy.baseline, report.accuracy.drop) == ("top1", 1.0, 0.0)
    assert report.accuracy.samples == 30
    assert report.latency.speedup > 100
    assert report.stages[1].metric == 1.0
    assert report.stages[1].latency_ms is not None


def test_a_candidate_that_is_wrong_is_backed_off_from() -> None:
    result = graphopt.optimize(net(), data=samples(), passes=[Shortcut("wrong right")])
    (stage,) = result.report.stages
    assert stage.status == "backed_off"
    assert "wrong: top1 falls by" in stage.reason
    assert stage.reason.endswith("kept: right")
    assert result.report.accuracy is not None
    assert result.report.accuracy.drop == 0


@pytest.mark.parametrize("kinds", ["slow", "wrong", "wrong slow"])
def test_the_result_is_never_slower_or_less_accurate(kinds: str) -> None:
    result = graphopt.optimize(net(), data=samples(), passes=[DropIdentity(), Shortcut(kinds)])
    assert (result.report.result, statuses(result)) == ("ok", ["applied", "rolled_back"])
    assert result.report.latency is not None
    assert result.report.latency.speedup == 1
    if "slow" in kinds:
        assert "slow: 0.52x as fast as the model without it" in result.report.stages[1].reason
    assert any(text.startswith("shortcut was rolled back") for text in result.report.warnings)


def test_a_pass_that_declines_says_why_and_what_it_looked_at() -> None:
    result = graphopt.optimize(net(), data=samples(), passes=[Shortcut("nothing")])
    (stage,) = result.report.stages
    assert (stage.status, stage.reason) == ("skipped", "there is no detour")
    assert stage.details["skipped"] == [{"where": "z", "reason": "is short already"}]


def test_separate_data_for_choices_and_verdict() -> None:
    result = graphopt.optimize(
        net(), calibration_data=samples(20), eval_data={"x": samples(50)["x"][20:]}, passes=[Shortcut()]
    )
    assert statuses(result) == ["applied"]
    assert result.report.accuracy is not None
    assert (result.report.accuracy.metric, result.report.accuracy.samples) == ("agreement", 30)


def test_calibration_data_alone_does_not_prove_accuracy() -> None:
    result = graphopt.optimize(net(), calibration_data=samples(), passes=[Shortcut()])
    assert statuses(result) == ["skipped"]
    assert "no samples to judge it by" in result.report.stages[0].reason


def test_unvalidated_passes_run_when_allowed_but_not_without_samples_to_calibrate_on() -> None:
    allowed = graphopt.optimize(net(), calibration_data=samples(), passes=[Shortcut()], allow_unvalidated=True)
    assert (statuses(allowed), allowed.report.accuracy) == (["applied"], None)
    assert any("accuracy was not validated" in text for text in allowed.report.warnings)
    without = graphopt.optimize(net(), passes=[Shortcut()], allow_unvalidated=True)
    assert statuses(without) == ["skipped"]


@pytest.mark.parametrize(
    ("gate", "failure"),
    [
        pytest.param({"min_speedup": 5000.0}, "as fast as the original .* wanted is 5000x", id="speed"),
        pytest.param({"max_size": 100}, "bytes, allowed are 100", id="size"),
        pytest.param({"max_macs": 1e-6}, "of the original's multiply-accumulates", id="multiply-adds"),
    ],
)
def test_a_gate_that_nothing_holds_rejects_the_result(tmp_path: Path, gate: dict[str, Any], failure: str) -> None:
    result = graphopt.optimize(net(), data=samples(), passes=[Shortcut()], **gate)
    assert (result.report.result, result.report.output) == ("rejected", None)
    with pytest.raises(GateError, match=f"no candidate held the gates: .*{failure}"):
        result.save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    report = result.save(tmp_path / "out.onnx", keep_failed=True)
    assert report.result == "rejected"
    assert report.output is not None
    assert report.output.bytes == (tmp_path / "out.onnx").stat().st_size


def test_a_size_that_the_saved_file_has_is_held() -> None:
    size = graphopt.optimize(net(), data=samples(), passes=[Shortcut()]).report.output
    assert size is not None
    assert graphopt.optimize(net(), data=samples(), passes=[Shortcut()], max_size=size.bytes).report.result == "ok"


def test_save_writes_what_the_report_says(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    result = graphopt.optimize(tmp_path / "net.onnx", passes=[DropIdentity()])
    foretold = result.report.output
    report = result.save(tmp_path / "net.cpu.onnx")
    assert report is result.report
    assert report.output is not None
    assert foretold is not None
    assert (report.output.path, report.output.sha256) == (str(tmp_path / "net.cpu.onnx"), foretold.sha256)
    assert report.output.bytes == (tmp_path / "net.cpu.onnx").stat().st_size
    assert report.input.path == str(tmp_path / "net.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "net.cpu.onnx"), full_check=True)
    json.loads(report.to_json())


def test_the_input_is_never_overwritten(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    before = (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(OutputError):
        graphopt.optimize(tmp_path / "net.onnx", passes=[DropIdentity()]).save(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == before


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        graphopt.optimize(net().SerializeToString(), data=samples(), passes=[DropIdentity(), Shortcut()]).save(
            tmp_path / name
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_decision_once_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = graphopt.optimize(net(), data=samples(), passes=[Shortcut()])
    assert first.report.environment["latency"] == "measured in this run"
    monkeypatch.setattr(speed, "measure", None)
    second = graphopt.optimize(net(), data=samples(), passes=[Shortcut()])
    assert second.report.latency == first.report.latency
    assert "recalled" in second.report.environment["latency"]


def test_an_unchanged_model_is_not_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    timings = [Timing(median, median, median, 10, 1, "cpu") for median in (4.0, 3.0)]
    monkeypatch.setattr(speed, "measure", None)
    monkeypatch.setattr(speed, "bench", lambda model, feed, **settings: timings.pop(0))
    for _ in range(2):  # the second run recalls it
        report = graphopt.optimize(net(), passes=[]).report
        assert report.latency is not None
        assert (report.latency.baseline_ms, report.latency.optimized_ms) == (4.0, 4.0)
        assert (report.latency.speedup, report.latency.ci95, report.latency.passed) == (1.0, (1.0, 1.0), True)
        assert "unchanged (measured, 1 thread, CPUExecutionProvider)" in str(report)
    assert graphopt.optimize(net(), passes=[], min_speedup=1.1).report.result == "rejected"


def test_a_latency_gate_must_fail_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def disturbed(baseline: onnx.ModelProto, optimized: onnx.ModelProto, feed: Any, **settings: Any) -> Latency:
        seen.append(1)
        found = by_multiply_adds(baseline, optimized, feed)
        shift = 0.5 if len(seen) == 1 else 1.0
        low, high = found.ci95
        return Latency(**{**vars(found), "speedup": shift * found.speedup, "ci95": (shift * low, shift * high)})

    monkeypatch.setattr(speed, "measure", disturbed)
    result = graphopt.optimize(net(), passes=[DropIdentity()])
    assert (result.report.result, statuses(result), len(seen)) == ("ok", ["applied"], 2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        pytest.param({"target": "jetson@9"}, UsageError, "no release and no power mode", id="unknown release"),
        pytest.param({"passes": ["fold"]}, UsageError, "unknown pass 'fold'; there are: .*eliminate_dead", id="pass"),
        pytest.param({"passes": "eliminate_dead"}, UsageError, "a list of names", id="passes as text"),
        pytest.param({"skip": ["fold"]}, UsageError, "unknown pass 'fold'", id="skipped pass"),
        pytest.param({"options": {"shortcut.speed": 1}}, UsageError, "no option 'speed'; it has kinds", id="option"),
        pytest.param({"metric": "top2"}, UsageError, "unknown metric", id="metric"),
        pytest.param({"threads": 0}, UsageError, "threads is 0; it must be at least 1", id="threads"),
        pytest.param({"providers": ["TPU"]}, UsageError, "execution provider TPU is not available", id="provider"),
        pytest.param({"data": {"x": np.zeros((9, 15), np.float32)}}, DataError, "15", id="data of another shape"),
    ],
)
def test_what_is_wrong_is_said_before_any_pass_runs(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    ran = []

    class Watched(Shortcut):
        def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
            ran.append(1)
            return super().candidates(model, context)

    arguments = {"data": samples(), "passes": [Watched()], **settings}
    with pytest.raises(error, match=message):
        graphopt.optimize(net(), **arguments)
    assert not ran


def test_options_reach_passes_that_were_given_as_objects() -> None:
    result = graphopt.optimize(net(), data=samples(), passes=[Shortcut("wrong")], options={"shortcut.kinds": "right"})
    assert statuses(result) == ["applied"]


def test_a_dynamic_input_needs_a_shape_and_then_works() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,C] x) => (float[N,C] y) { y = Relu(x) }'
    )
    with pytest.raises(UsageError, match=r"--input-shape x:1,"):
        graphopt.optimize(model, passes=[DropIdentity()])
    assert graphopt.optimize(model, passes=[DropIdentity()], input_shapes={"x": (2, 5)}).report.result == "ok"


def test_a_model_that_the_runtime_cannot_run_is_named(tmp_path: Path) -> None:
    model = net()
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    onnx.save(model, tmp_path / "strange.onnx")
    with pytest.raises(UnsupportedModelError, match=r"strange\.onnx"):
        graphopt.optimize(tmp_path / "strange.onnx", passes=[DropIdentity()])


def test_a_dry_run_plans_and_has_nothing_to_save(tmp_path: Path) -> None:
    result = graphopt.optimize(net(), passes=[DropIdentity(), Shortcut()], dry_run=True)
    assert [stage.reason.partition(":")[0] for stage in result.report.stages] == ["planned", "would be skipped"]
    assert result.report.output is None
    assert str(result.report).startswith("the model for cpu: planned, nothing was run")
    assert result.report.latency is None
    assert result.report.to_dict()["environment"]["latency"] is None
    with pytest.raises(UsageError, match="dry run"):
        result.save(tmp_path / "out.onnx")


def test_what_the_data_layer_warns_of_is_in_the_report() -> None:
    model = net()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    report = graphopt.optimize(model, data=samples(62), passes=[DropIdentity()]).report
    assert report.accuracy is not None
    assert any("62" in text for text in report.warnings), report.warnings


def test_progress_is_told() -> None:
    told: list[str] = []
    graphopt.optimize(net(), data=samples(), passes=[Shortcut()], progress=lambda what, done, total: told.append(what))
    assert {"shortcut", "evaluating", "measuring latency"} <= set(told)


def test_run_applies_passes_without_gates() -> None:
    model = net()
    before = model.SerializeToString()
    found = graphopt.run(model, [DropIdentity(), Shortcut("wrong right")], data=samples())
    assert [node.op_type for node in found.graph.node] == ["MatMul", "Neg"]
    assert model.SerializeToString() == before


def test_a_profile_gives_its_passes_options_unless_the_user_does(tmp_path: Path) -> None:
    profile = tmp_path / "board.toml"
    profile.write_text('inherits = "cpu"\n[options.raise_opset]\nto = 18\n')
    raised = graphopt.run(net(), ["raise_opset"], target=str(profile))
    assert raised.opset_import[0].version == 18
    asked = graphopt.run(net(), ["raise_opset"], target=str(profile), options={"raise_opset.to": 20})
    assert asked.opset_import[0].version == 20
    assert graphopt.run(net(), ["eliminate_dead"], target=str(profile)).opset_import[0].version == 17


def test_run_takes_names_and_options() -> None:
    found = graphopt.run(net(), ["eliminate_dead"])
    assert "Identity" not in [node.op_type for node in found.graph.node]


def test_run_says_that_a_pass_needs_data() -> None:
    with pytest.raises(UsageError, match="shortcut calibrates on samples; give data="):
        graphopt.run(net(), [Shortcut()])


def test_run_names_the_pass_that_fails() -> None:
    class Failing(DropIdentity):
        def apply(self, graph: gs.Graph, context: Context) -> PassReport:
            raise ValueError("I lost my way")

    with pytest.raises(PassError, match="drop_identity: it failed with ValueError: I lost my way"):
        graphopt.run(net(), [Failing()])


def test_the_real_clock_sees_the_detour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", partial(measure, seconds=0.5))
    result = graphopt.optimize(net(), data=samples(), passes=[Shortcut("slow right")])
    assert statuses(result) == ["backed_off"]
    assert result.report.latency is not None
    assert result.report.latency.speedup > 1.5
