"""Bad input ends in a message, the right exit code, no output and an untouched input; never in a traceback."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.cli import main

TEXT = """<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) y = Relu(c) }"""


def save(path: Path, text: str = TEXT) -> Path:
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return save(tmp_path / "net.onnx")


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, to see that nothing was added and nothing changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and message of a command that must leave ``folder`` as it is."""
    before = files(folder)
    code = main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    assert files(folder) == before
    assert streams.out == ""
    assert "Traceback" not in streams.err
    assert streams.err.startswith("graphopt: ")
    return code, streams.err


# Models

UNKNOWN_OPERATOR = TEXT.replace("Relu(c)", "Frobnicate(c)")
UNKNOWN_DOMAIN = TEXT.replace('["" : 17]', '["" : 17, "acme" : 1]').replace("Relu(c)", "acme.Relu(c)")


def truncated(path: Path) -> None:
    save(path)
    path.write_bytes(path.read_bytes()[:-100])


def empty_graph(path: Path) -> None:
    graph = onnx.helper.make_graph([], "empty", [], [])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def lfs_pointer(path: Path) -> None:
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n")


@pytest.mark.parametrize("command", ["optimize", "inspect", "bench"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, "no such file", id="absent"),
        pytest.param(lambda path: path.mkdir(), "folder", id="a folder"),
        pytest.param(lambda path: path.write_bytes(b""), "empty", id="an empty file"),
        pytest.param(lambda path: path.write_text("hello, world\n" * 99), "a text file, not a model", id="a text"),
        pytest.param(lambda path: path.write_bytes(b"PK\x03\x04" + bytes(999)), "ZIP", id="a ZIP archive"),
        pytest.param(truncated, "cut short", id="a truncated model"),
        pytest.param(lfs_pointer, "git lfs pull", id="a Git LFS pointer"),
        pytest.param(empty_graph, "no nodes", id="an empty graph"),
        pytest.param(lambda path: save(path, UNKNOWN_OPERATOR), "Frobnicate", id="an unknown operator"),
        pytest.param(lambda path: save(path, UNKNOWN_DOMAIN), "acme", id="an unknown domain"),
    ],
)
def test_a_model_that_cannot_be_read(command, make, message, tmp_path, capsys):
    path = tmp_path / "bad.onnx"
    make(path)

    code, text = refused(tmp_path, capsys, command, path)

    assert code == 3
    assert message.lower() in text.lower()
    assert "bad.onnx" in text


def test_a_dynamic_shape_that_nobody_gave(tmp_path, capsys):
    path = save(tmp_path / "dynamic.onnx", TEXT.replace("[N,3,8,8]", "[N,3,H,W]").replace("[N,4,6,6]", "[N,4,P,Q]"))

    code, text = refused(tmp_path, capsys, "optimize", path)

    assert code == 2
    assert "--input-shape x:" in text


def test_a_shape_for_an_input_that_is_not_there(model_file, tmp_path, capsys):
    code, text = refused(tmp_path, capsys, "optimize", model_file, "--input-shape", "picture:1,3,8,8")

    assert code == 2
    assert "picture" in text


# Data


def arrays(**values: np.ndarray) -> dict[str, np.ndarray]:
    return values


PICTURES = np.zeros((8, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(arrays(a=PICTURES, b=PICTURES), "x", id="wrong names"),
        pytest.param(arrays(x=PICTURES[:, :, :4]), "shape", id="wrong shape"),
        pytest.param(arrays(x=PICTURES.astype(np.complex64)), "complex64", id="wrong dtype"),
        pytest.param(arrays(x=PICTURES * np.nan), "NaN", id="NaN"),
        pytest.param(arrays(x=PICTURES, labels=np.zeros(3, int)), "labels", id="too few labels"),
        pytest.param(arrays(x=PICTURES[:0]), "sample", id="no samples"),
        pytest.param(arrays(x=PICTURES[:1]), "sample", id="too few samples to split"),
    ],
)
def test_data_that_does_not_fit(content, message, model_file, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", **content)

    code, text = refused(tmp_path, capsys, "optimize", model_file, "--data", tmp_path / "data.npz")

    assert code == 3
    assert message in text
    assert "data.npz" in text


def test_data_that_is_not_there(model_file, tmp_path, capsys):
    code, text = refused(tmp_path, capsys, "optimize", model_file, "--data", tmp_path / "absent.npz")

    assert code == 3
    assert "absent.npz" in text


def test_data_that_would_run_code_when_read(model_file, tmp_path, capsys):
    np.savez(tmp_path / "objects.npz", x=np.array([print, print], dtype=object))

    code, text = refused(tmp_path, capsys, "optimize", model_file, "--data", tmp_path / "objects.npz")

    assert code == 3
    assert "objects.npz" in text


# Outputs


@pytest.mark.parametrize("option", ["--output", "--report"])
@pytest.mark.parametrize("place", ["absent/result", "net.onnx/result", "folder"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    option, place, model_file, tmp_path, capsys, monkeypatch
):
    def work(*_: object, **__: object) -> None:
        pytest.fail("the work began although its result cannot be written")

    monkeypatch.setattr(importlib.import_module("graphopt.optimize"), "optimize", work)
    suffix = ".onnx" if option == "--output" else ".json"
    (tmp_path / f"folder{suffix}").mkdir()

    code, text = refused(tmp_path, capsys, "optimize", model_file, option, tmp_path / f"{place}{suffix}")

    assert code == 3
    assert "folder" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(model_file, tmp_path, capsys):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)

    code, text = refused(tmp_path, capsys, "optimize", model_file, "--output", closed / "out.onnx")

    assert code == 3
    assert "Permission denied" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("stage", ["model", "report"])
def test_no_space_left(stage, model_file, tmp_path, capsys, monkeypatch):
    """The disk fills up while the result is written."""
    fsync = os.fsync
    written = {"model": ".tmp", "report": ".part"}[stage]

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(written):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)

    code, text = refused(tmp_path, capsys, "optimize", model_file, "--report", tmp_path / "report.html")

    assert code == 3
    assert "no space left" in text.lower()


# Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_in_the_middle(number, model_file, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "slow.py").write_text(
        "import pathlib, time, numpy\n"
        "def samples():\n"
        "    while True:\n"
        "        pathlib.Path('started').touch()\n"
        "        time.sleep(0.01)\n"
        "        yield {'x': numpy.zeros((1, 3, 8, 8), numpy.float32)}\n"
    )
    before = files(tmp_path)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.modules[main.__module__].__file__).parents[2])])
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "graphopt", "optimize", str(model_file), "--data", "slow:samples"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    (tmp_path / "started").unlink()

    assert (process.returncode, out) == (130, "")
    assert err.strip() == "graphopt: interrupted; nothing was written"
    assert files(tmp_path) == before
