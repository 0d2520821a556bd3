"""``optimize`` for targets that are not at hand: estimated speed, rules as a gate, what the runtime rounds itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from support import model, ops

import graphopt
from graphopt.deployment import engine_command, left_in_float32
from graphopt.errors import OutputError
from graphopt.latency import as_placed_by_runtime, estimate, ratio_interval
from graphopt.passes.base import Candidate, Context, PassReport
from graphopt.passes.fix_shapes import FixShapes
from graphopt.report.schema import Stage
from graphopt.speed import EstimatedSpeed, Weighed
from graphopt.targets import Hardware, load_target

TEXT = (
    "g (float[N,16,8,8] x) => (float[N,16,8,8] y) <float[16,16,3,3] v, float[16,16,1,1] w> "
    "{ a = Conv<pads = [1,1,1,1]>(x, v)  b = Relu(a)  y = Conv(b, w) }"
)


def hardware(name: str) -> Hardware:
    return load_target(name).hardware


def samples(count: int = 40) -> dict[str, Any]:
    return {"x": np.random.default_rng(0).normal(size=(count, 16, 8, 8)).astype(np.float32)}


def without_first(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its 3x3 convolution left out."""
    shorter = onnx.ModelProto()
    shorter.CopyFrom(proto)
    del shorter.graph.node[0]
    shorter.graph.node[0].input[0] = "x"
    return shorter


@dataclass(frozen=True)
class RoundedByTheTarget:
    """The graph stays as it is; the runtime rounds as the simulation does, told by a file beside the model."""

    answers: str
    name: ClassVar[str] = "rounded"
    summary: ClassVar[str] = "rounded by the runtime"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def candidates(self, proto: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        for each in self.answers.split():
            simulation = onnx.ModelProto()
            simulation.CopyFrom(proto)
            if each == "wrong":
                simulation.graph.node[-1].output[0] = "turned"
                simulation.graph.node.append(onnx.helper.make_node("Neg", ["turned"], ["y"]))
            files = {".calibration": each.encode()}
            yield Candidate(proto, PassReport(1), each, faster=False, files=files, simulation=simulation)


def test_latency_of_a_device_is_estimated_and_says_so() -> None:
    result = graphopt.optimize(model(TEXT), target="jetson-orin-nano", data=samples(), skip=["prune_filters"])
    latency = result.report.latency
    assert latency is not None
    assert latency.source == "estimated"
    assert latency.provider.startswith("tensorrt")
    assert result.report.environment["latency"] == "estimated"
    assert "(estimated" in str(result.report)
    assert any("estimated" in warning for warning in result.report.warnings)


def test_estimates_of_one_model_are_equal_and_of_half_of_it_are_not() -> None:
    proto = model(TEXT)
    shapes = {"x": (1, 16, 8, 8)}
    clock = EstimatedSpeed(hardware("jetson-tx1"), shapes)
    whole, half = Weighed(proto, "whole"), Weighed(without_first(proto), "half")
    same, other = clock.compare(whole, whole, 1), clock.compare(whole, half, 1)
    assert same is not None
    assert other is not None
    assert (same.speedup, same.low, same.high) == (1.0, 1.0, 1.0)
    assert other.low < other.speedup < other.high
    assert other.speedup > 1
    found = [estimate(each, hardware("jetson-tx1"), shapes=shapes) for each in (proto, half.model)]
    assert (other.low, other.high) == ratio_interval(found[0], found[1])


def test_sizes_that_are_not_known_leave_the_latency_open() -> None:
    proto = model("g (float[N,4,H,W] x) => (float[M,L] y) { n = NonZero(x)  y = Cast<to = 1>(n) }")
    clock = EstimatedSpeed(hardware("jetson-tx1"), {"x": (1, 4, 5, 5)})
    assert clock.compare(Weighed(proto, "a"), Weighed(proto, "b"), 0) is None
    assert "cannot be estimated" in clock.warnings[0]


def test_what_the_runtime_rounds_by_itself_is_judged_on_its_simulation(tmp_path: Path) -> None:
    result = graphopt.optimize(
        model(TEXT),
        target="jetson-agx-orin-dla",
        data=samples(),
        passes=[FixShapes(), RoundedByTheTarget("wrong right")],
    )
    stage = result.report.stages[1]
    assert stage.status == "backed_off"
    assert "cosine falls" in stage.reason
    assert result.files == {".calibration": b"right"}
    report = result.save(tmp_path / "net.onnx")
    assert (tmp_path / "net.calibration").read_bytes() == b"right"
    assert report.deployment is not None
    assert report.deployment.files == ("net.calibration",)
    assert "--calib=net.calibration" in (report.deployment.command or "")
    assert not [entry.key for entry in onnx.load(tmp_path / "net.onnx").metadata_props if "simulated" in entry.key]


def test_a_file_beside_the_model_never_overwrites_the_input(tmp_path: Path) -> None:
    source = tmp_path / "net.calibration"
    onnx.save(model(TEXT), source)
    result = graphopt.optimize(
        source, target="jetson-agx-orin-dla", data=samples(), passes=[FixShapes(), RoundedByTheTarget("right")]
    )
    with pytest.raises(OutputError, match="belongs to the input"):
        result.save(tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_result_that_breaks_a_rule_of_the_target_is_rejected() -> None:
    proto = model("g (float[1,4] x) => (string[1,4] y) { y = Cast<to = 8>(x) }")
    taken = graphopt.optimize(proto, target="cpu")
    assert taken.report.result == "ok"
    lacking = model("g (float[2,4] x) => (float[K] y) { u, i, j, k = Unique<sorted = 1>(x)  y = Relu(u) }")
    refused = graphopt.optimize(lacking, target="jetson-orin-nano")
    assert refused.report.result == "rejected"
    assert any(finding.code.startswith("GO2") and finding.level == "error" for finding in refused.report.findings)
    assert "GO2" in refused.report.warnings[-1]


@pytest.mark.parametrize(
    ("target", "wanted", "unwanted"),
    [
        ("jetson-nano", ["--fp16", "--minShapes=x:1x16x8x8", "--optShapes=x:4x16x8x8"], ["--int8", "--stronglyTyped"]),
        ("a10", ["--stronglyTyped", "--maxShapes=x:8x16x8x8"], ["--fp16"]),
        ("a10@11.0", [], ["--fp16", "--stronglyTyped"]),
        ("jetson-agx-orin-dla", ["--useDLACore=0", "--allowGPUFallback"], []),
    ],
)
def test_the_command_that_builds_an_engine(target: str, wanted: list[str], unwanted: list[str]) -> None:
    command = engine_command(model(TEXT), "some/net.onnx", hardware(target), {"x": (4, 16, 8, 8)}, float32=())
    assert command is not None
    words = command.split()
    assert words[:3] == ["trtexec", "--onnx=net.onnx", "--saveEngine=net.engine"]
    assert set(wanted) <= set(words)
    assert not set(unwanted) & set(words)


def test_a_runtime_that_chooses_types_is_told_what_float16_would_spoil() -> None:
    """And that nothing may run in it, where accuracy did not hold; an accelerator has no other float."""
    shapes = {"x": (4, 16, 8, 8)}

    def words(target: str, *stages: Stage) -> list[str]:
        command = engine_command(model(TEXT), "n.onnx", hardware(target), shapes, float32=left_in_float32(stages))
        assert command is not None
        return command.split()

    def vouched(*names: str) -> Stage:
        details = {"written": "runtime option", "keep_float32": list(names)}
        return Stage("convert_float16", "applied", "", changes=3, details=details)

    kept = words("jetson-agx-xavier", vouched("a", "b"))
    assert {"--fp16", "--precisionConstraints=obey", "--layerPrecisions=a:fp32,b:fp32"} <= set(kept)
    assert "--fp16" in words("jetson-nano", vouched())
    refused = replace(vouched("a"), status="rolled_back", changes=0)
    assert "--fp16" not in words("jetson-nano", refused)
    assert "--fp16" not in words("jetson-nano", Stage("convert_float16", "skipped", "no samples"))
    # Before 8.4 trtexec ends at options that tell of single layers.
    assert not {"--fp16", "--precisionConstraints=obey"} & set(words("jetson-nano", vouched("a")))
    # A name that trtexec would read as several cannot be kept, so nothing leaves float32.
    assert not {"--fp16", "--precisionConstraints=obey"} & set(words("jetson-agx-xavier", vouched("conv:1")))
    assert "--fp16" in words("jetson-agx-orin-dla", refused)


def test_positions_and_truth_values_are_not_told_to_be_float32() -> None:
    """trtexec would give the type to indices as well, which the builder refuses."""
    text = """g (float[2,8] x) => (float[2,3] y, int64[2,3] i, int64[2,1] m) <int64[1] k = {3}> {
      [scale] s = Exp(x)  [top] y, i = TopK(s, k)  [most] m = ArgMax<axis = 1>(s) }"""
    facts = hardware("jetson-agx-xavier")
    command = engine_command(model(text), "net.onnx", facts, {"x": (2, 8)}, float32=("scale", "top", "most"))
    assert command is not None
    assert "--layerPrecisions=scale:fp32,top:fp32,most:fp32" in command.split()
    assert "--layerOutputTypes=scale:fp32" in command.split()
    command = engine_command(model(text), "net.onnx", facts, {"x": (2, 8)}, float32=("top",))
    assert command is not None
    assert "--layerOutputTypes" not in command


def test_what_stays_in_float32_is_estimated_in_float32() -> None:
    proto = model(TEXT)
    shapes = {"x": (1, 16, 8, 8)}
    nano = hardware("jetson-nano")
    first = proto.graph.node[0].name or proto.graph.node[0].output[0]
    found = [estimate(proto, nano, shapes=shapes, float32=kept) for kept in (frozenset(), frozenset({first}), None)]
    assert [{kernel.precision for kernel in each.kernels} for each in found] == [
        {"float16"},
        {"float16", "float32"},
        {"float32"},
    ]
    accelerator = hardware("jetson-agx-orin-dla")
    assert estimate(proto, accelerator, shapes=shapes, float32=None) == estimate(proto, accelerator, shapes=shapes)


def test_float16_counts_only_where_the_result_may_run_in_it() -> None:
    """And then for the original too: what an option of the runtime alone brings is no merit of the result."""

    large = model(TEXT.replace("8,8", "64,64"))

    def latency(**how: Any) -> tuple[str, float, float]:
        result = graphopt.optimize(large, target="jetson-nano", passes=["lower_opset", "convert_float16"], **how)
        report = result.report
        assert report.latency is not None
        assert report.deployment is not None
        return report.deployment.command or "", report.latency.baseline_ms, report.latency.optimized_ms

    without, half = (
        latency(),
        latency(data={"x": np.random.default_rng(0).normal(size=(30, 16, 64, 64)).astype(np.float32)}),
    )
    assert "--fp16" not in without[0]
    assert "--fp16" in half[0]
    shapes = {"x": (1, 16, 64, 64)}
    assert without[1] == without[2] == estimate(large, hardware("jetson-nano"), shapes=shapes, float32=None).ms
    assert half[1] == half[2] == estimate(large, hardware("jetson-nano"), shapes=shapes).ms


def test_what_float16_would_spoil_stays_in_float32_in_the_original_too() -> None:
    """Else a model that has to keep it there would be slower than an original that overflows."""
    large = model(TEXT.replace("8,8", "64,64"), v=np.full((16, 16, 3, 3), 100.0), w=np.ones((16, 16, 1, 1)))
    data = {"x": np.random.default_rng(0).uniform(1, 2, size=(30, 16, 64, 64)).astype(np.float32)}
    report = graphopt.optimize(
        large, target="jetson-agx-xavier", passes=["lower_opset", "convert_float16"], data=data
    ).report
    assert report.stages[1].details["keep_float32"]
    assert report.latency is not None
    assert report.latency.baseline_ms == report.latency.optimized_ms


def test_runtimes_that_read_onnx_need_no_command() -> None:
    assert engine_command(model(TEXT), "net.onnx", hardware("cpu"), {"x": (1, 16, 8, 8)}, float32=()) is None


def test_open_sizes_are_fixed_where_the_target_takes_none() -> None:
    from graphopt.graph import export_graph, import_graph

    shapes = {"x": (1, 16, 8, 8)}
    for target, expected in (("jetson-agx-orin-dla", [1, 16, 8, 8]), ("jetson-agx-orin", [0, 16, 8, 8])):
        work = import_graph(model(TEXT))
        FixShapes().apply(work.gs, Context(hardware=hardware(target), shapes=shapes))
        sizes = [axis.dim_value for axis in export_graph(work).graph.input[0].type.tensor_type.shape.dim]
        assert sizes == expected


def test_integers_placed_by_the_runtime_leave_what_runs_in_one_kernel_together() -> None:
    text = (
        "g (float[1,16,8,8] x) => (float[1,16,8,8] y) <float s, int8 z, float[16,16,1,1] w> { "
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  a = Conv(d, w) "
        "r = QuantizeLinear(a, s, z)  e = DequantizeLinear(r, s, z)  y = Relu(e) }"
    )
    placed = as_placed_by_runtime(model(text))
    relu, convolution = placed.graph.node[-1], placed.graph.node[2]
    assert ops(placed) == ops(model(text))
    assert list(relu.input) == ["a"]
    assert convolution.input[0] == "d"


def test_no_target_but_its_facts_decide() -> None:
    """The same facts under another name give the same command."""
    facts = replace(hardware("a10"), name="something else")
    shapes = {"x": (4, 16, 8, 8)}
    assert engine_command(model(TEXT), "net.onnx", facts, shapes, float32=()) == engine_command(
        model(TEXT), "net.onnx", hardware("a10"), shapes, float32=()
    )
