"""The report: its JSON is the contract's, key for key; people read it as text, HTML or Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import OutputError, UsageError
from graphopt.report import AccuracyFacts, LatencyFacts, ModelFacts, Report, Stage, write_report
from graphopt.report.figures import readable_bytes, readable_count

BEFORE = ModelFacts("/data/net.onnx", "a" * 64, 4_510_000, 64, 1_100_000, 80_100_000, 17)
AFTER = ModelFacts("/data/net.cpu.onnx", "b" * 64, 1_200_000, 41, 1_090_000, 80_100_000, 17)
LEFT = [{"where": f"conv_{number}", "reason": "<depthwise> is [faster] in float"} for number in range(8)]
REPORT = Report(
    graphopt_version="1.2.3",
    environment={"cpu": "Some CPU", "onnxruntime": "1.31.1"},
    result="ok",
    target="cpu",
    input=BEFORE,
    output=AFTER,
    stages=(
        Stage("fold_constants", "applied", "", changes=12, seconds=0.2, nodes=52),
        Stage("fold_batchnorm", "rolled_back", "it failed with ValueError: no"),
        Stage(
            "quantize_int8",
            "backed_off",
            "all int8: top1 fell 2.30 points (may fall 1.00); kept: mixed",
            changes=30,
            seconds=12.2,
            metric=0.911,
            latency_ms=0.82,
            details={"skipped": LEFT, "sqnr_db": {"conv_1": math.inf}},
        ),
    ),
    accuracy=AccuracyFacts("top1", 0.912, 0.911, 0.001, 0.01, 1000, math.inf, (-0.001, 0.003), True),
    latency=LatencyFacts("measured", "CPUExecutionProvider", 1, 2.31, 0.82, 2.82, (2.75, 2.9), 1.0, True),
    warnings=("fold_batchnorm was rolled back: it failed",),
)


def test_the_json_has_the_keys_of_the_contract() -> None:
    found = json.loads(REPORT.to_json())
    model = {"path", "sha256", "bytes", "nodes", "parameters", "macs", "opset"}
    assert found["schema"] == "graphopt.report/1"
    assert found.keys() == {
        *("schema", "graphopt_version", "environment", "result", "target", "input", "output"),
        *("stages", "accuracy", "latency", "warnings", "findings", "deployment"),
    }
    assert found["input"].keys() == found["output"].keys() == model
    for stage in found["stages"]:
        assert stage.keys() == {
            *("name", "status", "reason", "changes", "seconds", "nodes", "parameters", "macs"),
            *("metric", "latency_ms", "details"),
        }
    assert found["accuracy"].keys() == {
        *("metric", "baseline", "optimized", "drop", "max_drop", "samples", "sqnr_db", "ci95", "passed"),
    }
    assert found["latency"].keys() == {
        *("source", "provider", "threads", "baseline_ms", "optimized_ms", "speedup", "ci95", "min_speedup", "passed"),
    }
    assert found["latency"]["ci95"] == [2.75, 2.9]


def test_what_was_not_measured_is_null() -> None:
    found = replace(REPORT, output=None, accuracy=None, latency=None).to_dict()
    assert (found["output"], found["accuracy"], found["latency"]) == (None, None, None)


def test_what_is_not_known_of_the_surroundings_is_not_shown(tmp_path: Path) -> None:
    report = replace(REPORT, environment={"cpu": "Some CPU", "latency": None})
    for name in ("r.md", "r.html"):
        write_report(report, tmp_path / name)
        text = (tmp_path / name).read_text()
        assert "cpu Some CPU" in text
        assert "latency None" not in text


def test_json_never_holds_nan_or_infinity_and_takes_numpy() -> None:
    details = {"nan": np.float32("nan"), "array": np.array([1.5, np.inf]), "count": np.int64(3), "set": {"b", "a"}}
    stage = Stage("x", "applied", details=details)
    found = json.loads(replace(REPORT, stages=(stage,)).to_json())
    assert found["stages"][0]["details"] == {"nan": None, "array": [1.5, None], "count": 3, "set": ["a", "b"]}
    assert found["accuracy"]["sqnr_db"] is None


def test_attributes_are_those_of_the_json() -> None:
    assert REPORT.latency is not None
    assert REPORT.latency.speedup > 2


def test_the_text_tells_everything_at_a_glance() -> None:
    text = str(REPORT)
    assert text.isascii(), "logs and old terminals must be able to show it"
    assert max(map(len, text.splitlines())) <= 110
    assert text.startswith("net.onnx for cpu: 2.82x as fast, 3.76x smaller, top1 -0.10 points")
    for expected in (
        *("91.20 %", "91.10 %", "2.310 ms", "0.820 ms", "4.51 MB", "1.20 MB", "-73.4 %", "80.1 M", "unchanged"),
        *("rolled back", "backed off", "it failed with ValueError: no", "kept: mixed", "1,000 samples"),
        *("conv_0: <depthwise> is [faster] in float", "and 3 more", "warning: fold_batchnorm was rolled back"),
    ):
        assert expected in " ".join(text.split()), expected
    assert "conv_5" not in text, "places left alone are capped; the JSON report has all"


def test_a_rejected_result_says_which_gate_does_not_hold() -> None:
    assert REPORT.accuracy is not None
    assert REPORT.latency is not None
    text = str(
        replace(
            REPORT,
            result="rejected",
            output=None,
            accuracy=replace(REPORT.accuracy, passed=False),
            latency=replace(REPORT.latency, passed=False, min_speedup=3.0),
        )
    )
    assert text.startswith("net.onnx for cpu: rejected, no candidate held the gates")
    assert "may fall 1.00: NOT HELD" in text
    assert "needs 3.00x: NOT HELD" in " ".join(text.split())


def test_an_estimate_is_called_one() -> None:
    assert REPORT.latency is not None
    assert "(estimated)" in str(replace(REPORT, latency=replace(REPORT.latency, source="estimated")))


@pytest.mark.parametrize("name", ["report.json", "report.html", "report.md"])
def test_a_report_is_written_by_its_suffix(tmp_path: Path, name: str) -> None:
    path = write_report(REPORT, tmp_path / name)
    text = path.read_text()
    assert "quantize_int8" in text.replace("\\", "")
    assert [entry.name for entry in tmp_path.iterdir()] == [name], "no temporary file stays behind"
    if name.endswith("json"):
        assert json.loads(text) == REPORT.to_dict()
    else:
        assert "<depthwise>" not in text, "names from a model must not be read as markup"
        assert "2.82x as fast" in text
        assert "http" not in text, "the page needs nothing from elsewhere"


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"report.pdf: a report ends in .html, .json or .md"):
        write_report(REPORT, tmp_path / "report.pdf")


def test_a_report_that_cannot_be_written_names_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"the folder .*none does not exist"):
        write_report(REPORT, tmp_path / "none" / "report.md")
    (tmp_path / "report.md").mkdir()
    with pytest.raises(OutputError, match="the report cannot be written"):
        write_report(REPORT, tmp_path / "report.md")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]


def test_sizes_are_readable() -> None:
    assert [readable_bytes(count) for count in (0, 999, 1000, 4_510_000, 2_500_000_000)] == [
        *("0 bytes", "999 bytes", "1.00 kB", "4.51 MB", "2.50 GB"),
    ]
    assert [readable_count(count) for count in (64, 9999, 10_000, 80_100_000, 4_100_000_000)] == [
        *("64", "9,999", "10.0 k", "80.1 M", "4.1 G"),
    ]


def test_passes_that_found_nothing_share_one_line(tmp_path: Path) -> None:
    idle = replace(REPORT.stages[0], name="fuse_gemm", reason="nothing to do", changes=0)
    report = replace(REPORT, stages=(*REPORT.stages, idle))
    write_report(report, tmp_path / "report.md")
    for text in (str(report), (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "nothing to do: fuse_gemm" in text.lower().replace("\\", "")
        assert text.count("fuse") == 1
