"""The command line: what goes to which stream, exit codes, files written and not written."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.cli import main

COMMANDS = ["optimize", "inspect", "compare", "bench", "check", "passes", "targets", "calibrate-target"]
TEXT = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,4] y)
{
    c = Conv(x, w)
    b = BatchNormalization(c, s, t, m, v)
    r = Relu(b)
    p = GlobalAveragePool(r)
    y = Flatten(p)
}"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A convolution, its normalization, and a mean: four scores for each picture."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    shapes = {"w": (4, 3, 3, 3), "s": (4,), "t": (4,), "m": (4,), "v": (4,)}
    for name, shape in shapes.items():
        values = generator.uniform(0.5, 1.5, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path = tmp_path / "net.onnx"
    onnx.save_model(proto, path)
    return path


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    path = tmp_path / "data.npz"
    np.savez(path, x=generator.standard_normal((32, 3, 8, 8)).astype(np.float32))
    return path


def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it."""
    command = [sys.executable, "-m", "graphopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_with_an_example(command, capsys):
    assert main([command, "--help"]) == 0

    text = capsys.readouterr().out
    assert f"Usage: graphopt {command}" in text
    assert f"Example:\n    graphopt {command}" in text


def test_every_option_has_an_explanation():
    from graphopt.cli.commands import graphopt

    unexplained = [
        f"{name} {option.opts[0]}"
        for name, command in graphopt.commands.items()
        for option in command.params
        if option.param_type_name == "option" and not option.help
    ]
    assert unexplained == []


def test_the_script_of_the_project_is_this_program():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())

    assert project["project"]["scripts"] == {"graphopt": "graphopt.cli:main"}


def test_python_m_graphopt_is_the_same_program():
    done = run("--version")

    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "graphopt,", "")


# Exit code 2: wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["frobnicate"], "No such command 'frobnicate'", id="unknown command"),
        pytest.param(["inspect", "m.onnx", "--frob"], "No such option", id="unknown option"),
        pytest.param(["inspect"], "Missing argument 'MODEL'", id="no model"),
        pytest.param(["optimize", "m.onnx", "-t", "toaster"], "unknown target 'toaster'", id="unknown target"),
        pytest.param(
            ["optimize", "m.onnx", "-t", "jetson@9.9"], "no release and no power mode '9.9'", id="unknown release"
        ),
        pytest.param(["optimize", "m.onnx", "--passes", "frob"], "unknown pass 'frob'", id="unknown pass"),
        pytest.param(["optimize", "m.onnx", "--skip", "frob"], "unknown pass 'frob'", id="unknown pass to skip"),
        pytest.param(["optimize", "m.onnx", "--metric", "frob"], "frob", id="unknown metric"),
        pytest.param(["optimize", "m.onnx", "--option", "frob"], "not of the form PASS.KEY=VALUE", id="option's form"),
        pytest.param(["optimize", "m.onnx", "--option", "a.b=1"], "option 'a.b'", id="option of no pass"),
        pytest.param(["optimize", "m.onnx", "--max-drop", "7"], "--max-drop", id="drop beyond the scale"),
        pytest.param(["optimize", "m.onnx", "--max-drop", "nan"], "not a finite number", id="no number"),
        pytest.param(["check", "m.onnx", "--max-latency-ms", "nan"], "not a finite number", id="budget of no number"),
        pytest.param(["optimize", "m.onnx", "--min-speedup", "inf"], "not a finite number", id="infinite"),
        pytest.param(["optimize", "m.onnx", "--max-size", "large"], "'large' is not a size", id="no size"),
        pytest.param(["optimize", "m.onnx", "--input-shape", "x:a,b"], "not of the form NAME:1,3", id="no shape"),
        pytest.param(["optimize", "m.onnx", "--input-shape", "x:0,3"], "sizes of at least 1", id="empty shape"),
        pytest.param(["optimize", "m.onnx", "--report", "r.pdf"], "a report ends in", id="unknown kind of report"),
        pytest.param(["check"], "Missing argument 'MODEL...'", id="nothing to check"),
        pytest.param(["targets", "toaster"], "unknown target 'toaster'", id="profile of an unknown target"),
    ],
)  # fmt: skip
def test_wrong_usage(arguments, message, capsys, tmp_path, monkeypatch, model_file):
    model_file.rename(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 2

    streams = capsys.readouterr()
    assert streams.out == ""
    assert message in streams.err
    assert "Traceback" not in streams.err
    assert sorted(os.listdir()) == ["m.onnx"]


# optimize


def test_optimize_writes_beside_the_input_and_prints_the_table(model_file, data_file, capsys):
    before = model_file.read_bytes()

    assert main(["optimize", str(model_file), "--data", str(data_file)]) == 0

    streams = capsys.readouterr()
    output = model_file.with_name("net.cpu.onnx")
    onnx.checker.check_model(output, full_check=True)
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(output).graph.node]
    assert "latency" in streams.out
    assert "fold_batchnorm" in streams.out
    assert streams.err == f"wrote {output}\n"
    assert model_file.read_bytes() == before
    assert sorted(os.listdir(model_file.parent)) == ["data.npz", "net.cpu.onnx", "net.onnx"]


def test_json_is_alone_on_standard_output(model_file, data_file, tmp_path):
    report = tmp_path / "report.json"
    done = run("optimize", model_file, "-d", data_file, "-o", tmp_path / "out.onnx", "--report", report, "--json", "-v")

    printed = json.loads(done.stdout)
    assert (done.returncode, printed["schema"], printed["result"]) == (0, "graphopt.report/1", "ok")
    assert printed["output"]["path"] == str(tmp_path / "out.onnx")
    assert printed == json.loads(report.read_text())


def test_quiet_is_quiet(model_file, capsys):
    assert main(["optimize", str(model_file), "--quiet"]) == 0

    streams = capsys.readouterr()
    assert (streams.out, streams.err) == ("", "")
    assert model_file.with_name("net.cpu.onnx").exists()


def test_dry_run_writes_nothing(model_file, tmp_path, capsys):
    assert main(["optimize", str(model_file), "--dry-run", "--report", str(tmp_path / "r.html")]) == 0

    assert "fold_batchnorm" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_a_failed_gate_writes_nothing(model_file, tmp_path, capsys):
    arguments = ["optimize", str(model_file), "--min-speedup", "1000", "--report", str(tmp_path / "r.md")]

    assert main(arguments) == 1

    streams = capsys.readouterr()
    assert "no candidate held the gates; nothing was written" in streams.err
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_keep_failed_writes_what_failed(model_file, tmp_path, capsys):
    assert main(["optimize", str(model_file), "--min-speedup", "1000", "--keep-failed"]) == 1

    assert sorted(os.listdir(tmp_path)) == ["net.cpu.onnx", "net.onnx"]


def test_an_earlier_output_stays_when_a_gate_fails(model_file, capsys):
    output = model_file.with_name("net.cpu.onnx")
    output.write_bytes(b"from an earlier run")

    assert main(["optimize", str(model_file), "--min-speedup", "1000"]) == 1

    assert output.read_bytes() == b"from an earlier run"


def test_the_same_command_writes_the_same_bytes(model_file, tmp_path, capsys):
    for name in ("one.onnx", "two.onnx"):
        assert main(["optimize", str(model_file), "-o", str(tmp_path / name)]) == 0

    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


@pytest.mark.parametrize("how", ["the same path", "a symbolic link", "a hard link", "a relative path"])
def test_never_writes_over_the_input(how, model_file, tmp_path, capsys):
    alias = tmp_path / "alias.onnx"
    if how == "the same path":
        alias = model_file
    elif how == "a symbolic link":
        alias.symlink_to(model_file)
    elif how == "a hard link":
        alias.hardlink_to(model_file)
    else:
        (tmp_path / "folder").mkdir()
        alias = tmp_path / "folder" / ".." / model_file.name
    before = model_file.read_bytes()

    assert main(["optimize", str(model_file), "-o", str(alias)]) == 2

    assert "never overwritten" in capsys.readouterr().err
    assert model_file.read_bytes() == before


def test_never_writes_over_the_data(model_file, data_file, capsys):
    before = data_file.read_bytes()

    assert main(["optimize", str(model_file), "-d", str(data_file), "-o", str(data_file)]) == 2

    assert "never overwritten" in capsys.readouterr().err
    assert data_file.read_bytes() == before


def test_two_outputs_cannot_be_one_file(model_file, tmp_path, capsys):
    report = str(tmp_path / "r.json")

    assert main(["optimize", str(model_file), "--report", report, "--report", report]) == 2

    assert "named for two outputs" in capsys.readouterr().err


def test_the_file_of_a_target_names_the_output(model_file, tmp_path, capsys):
    profile = tmp_path / "mine.toml"
    profile.write_text('inherits = "cpu"\nname = "mine"\nrecipe = ["eliminate_dead"]\n')

    assert main(["optimize", str(model_file), "--target", str(profile)]) == 0

    assert model_file.with_name("net.mine.onnx").exists()


# The other commands


def test_inspect_prints_the_json_of_the_contract(model_file, capsys):
    assert main(["inspect", str(model_file), "--json", "--batch", "2"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["model"]["macs"]) == ("graphopt.inspect/1", 2 * 4 * 36 * 27)


def test_compare_holds_the_gates(model_file, data_file, capsys):
    arguments = ["compare", str(model_file), str(model_file), "-d", str(data_file), "--json", "--seconds", "0.3"]

    assert main(arguments) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["result"], found["accuracy"]["drop"]) == ("graphopt.compare/1", "ok", 0)
    assert found["latency"]["source"] == "measured"


def test_compare_fails_with_code_1(model_file, capsys):
    assert main(["compare", str(model_file), str(model_file), "--min-speedup", "1000", "--seconds", "0.3"]) == 1

    text = capsys.readouterr().out
    assert "does not hold: speed" in text
    assert "accuracy was not compared" in text


def test_bench_prints_times_and_kernels(model_file, capsys):
    assert main(["bench", str(model_file), "--seconds", "0.2", "--batch", "3", "--profile", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["p10_ms"] <= found["median_ms"] <= found["p90_ms"]
    assert found["inputs"] == {"x": [3, 3, 8, 8]}
    assert "Conv" in {layer["operator"] for layer in found["layers"]}


def test_passes_and_targets_are_listed(capsys):
    assert main(["passes"]) == 0
    assert main(["targets"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fold_batchnorm ") and " exact " in line for line in lines)
    assert any(line.startswith("cpu ") for line in lines)


def test_a_target_is_shown_whole(capsys):
    assert main(["targets", "cpu", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["hardware"]["runtime"]) == ("cpu", "onnxruntime")
    assert "fold_batchnorm" in found["recipe"]


# Streams and codes


def test_a_bug_is_one_line_and_says_how_to_see_more(model_file, monkeypatch, capsys):
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("the graph\nis not what it was")

    monkeypatch.setattr("graphopt.inspection.inspect", broken)

    assert main(["inspect", str(model_file)]) == 4
    brief = capsys.readouterr().err
    assert main(["inspect", str(model_file), "--traceback"]) == 4
    whole = capsys.readouterr().err

    assert brief.splitlines()[0] == "graphopt: internal error, AssertionError: the graph"
    assert "--traceback" in brief
    assert "Traceback" not in brief
    assert "Traceback" in whole


def test_what_libraries_print_does_not_reach_standard_output():
    code = """
import os
from graphopt.cli.terminal import Terminal, only_results_on_stdout
with only_results_on_stdout() as results:
    print("from Python", flush=True)
    os.write(1, b"from native code\\n")
    Terminal(results).result("the result")
print("afterwards")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "the result\nafterwards\n"
    assert done.stderr == "from Python\nfrom native code\n"


def test_a_reader_that_goes_away_is_no_error(model_file):
    command = f"{sys.executable} -m graphopt inspect {model_file} --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")


def test_no_colour_and_no_bars_where_there_is_no_terminal(model_file, data_file):
    done = run("optimize", model_file, "-d", data_file)

    assert "\x1b" not in done.stdout + done.stderr


def test_import_is_quick_and_leaves_onnxruntime_for_later():
    code = "import sys, graphopt, graphopt.cli; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
