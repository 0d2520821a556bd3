"""``graphopt check`` as a user and a pipeline see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support import model

import graphopt
from graphopt.cli import main

SOUND = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
UNUSED = "g (float[2] x) => (float[2] y) { y = Relu(x) z = Neg(x) }"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sound model, one with a warning, and one that is none."""
    onnx.save_model(model(SOUND), tmp_path / "sound.onnx")
    onnx.save_model(model(UNUSED), tmp_path / "unused.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_line_a_finding_on_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "sound.onnx", "unused.onnx", "broken.onnx"]) == 1
    streams = capsys.readouterr()
    assert streams.out.splitlines() == [
        "unused.onnx: GO110 z: 1 node leads to no output: z",
        "broken.onnx: GO101 the file is a text file, not a model",
    ]
    assert streams.err.splitlines() == ["checked 3 files: 1 error, 1 warning"]


def test_warnings_alone_hold_unless_strict(folder: Path) -> None:
    assert main(["check", "unused.onnx"]) == 0
    assert main(["check", "unused.onnx", "--strict"]) == 1
    assert main(["check", "unused.onnx", "--strict", "--ignore", "GO110"]) == 0


def test_quiet_prints_findings_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "-q", "unused.onnx"])
    streams = capsys.readouterr()
    assert streams.out.startswith("unused.onnx: GO110")
    assert streams.err == ""


def test_json_has_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", "sound.onnx", "broken.onnx", "--max-macs", "5"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "graphopt.check/1"
    assert told["result"] == "failed"
    assert told["counts"] == {"files": 2, "error": 2, "warning": 0, "note": 0}
    sound, broken = told["files"]
    assert (sound["path"], sound["bytes"], sound["macs"]) == ("sound.onnx", Path("sound.onnx").stat().st_size, 3888)
    assert [one["code"] for one in sound["findings"]] == ["GO903"]
    assert set(sound["findings"][0]) == {"code", "rule", "where", "message", "level"}
    assert (broken["sha256"], broken["macs"], broken["findings"][0]["rule"]) == (None, None, "unreadable")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["none.onnx"], 3),
        (["none.onnx", "--ignore", "GO101"], 0),
        (["sound.onnx", "--ignore", "GO777"], 2),
        (["sound.onnx", "--target", "jetson-9000"], 2),
        (["sound.onnx", "--config", "none.toml"], 2),
        (["sound.onnx", "--max-bytes", "plenty"], 2),
        ([], 2),
        (["--explain", "GO777"], 2),
        (["--explain", "GO113"], 0),
        (["--rules"], 0),
    ],
)
def test_exit_codes(folder: Path, arguments: list[str], code: int) -> None:
    assert main(["check", *arguments]) == code


def test_a_wrong_configuration_is_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "graphopt.toml").write_text("[check]\nmax-byte = 1\n")
    assert main(["check", "sound.onnx"]) == 2
    assert "graphopt.toml, line 2: 'check.max-byte' is not known" in capsys.readouterr().err
    assert main(["check", "sound.onnx", "--no-config"]) == 0


def test_explain_tells_why_and_where_it_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("GO113", "unfolded_batchnorm"):
        main(["check", "--explain", name])
        told = capsys.readouterr().out
        assert told.startswith("GO113 unfolded_batchnorm (warning): ")
        assert "Source: https://" in told
        assert "Mended by: fold_batchnorm" in told


def test_the_rules_are_all_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--rules", "--json"])
    rules = json.loads(capsys.readouterr().out)
    codes = [rule["code"] for rule in rules]
    assert codes == sorted(set(codes))
    assert {"GO101", "GO201", "GO301", "GO901"} <= set(codes)
    assert all(rule["summary"] and rule["explanation"] and rule["source"] for rule in rules)
    assert {name for rule in rules for name in rule["fix"]} <= set(graphopt.PASSES)


def test_no_runtime_is_loaded(folder: Path) -> None:
    """Checks are for machines that only check: neither ONNX Runtime nor a framework is imported."""
    code = (
        "import sys; from graphopt.cli import main; main(['check', 'unused.onnx', '--target', 'jetson-orin-nano']);"
        "print([name for name in ('onnxruntime', 'torch', 'networkx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_has_the_same(folder: Path) -> None:
    result = graphopt.check(["sound.onnx", "unused.onnx"], max_parameters=1)
    assert [[found.code for found in file.findings] for file in result.files] == [["GO902"], ["GO110"]]
    assert not result.ok
    assert str(result).splitlines()[1] == "unused.onnx: GO110 z: 1 node leads to no output: z"
