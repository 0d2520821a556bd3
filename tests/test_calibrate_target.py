"""``bench --csv`` and ``calibrate-target``: what was measured on a device, and a profile refitted to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphopt.cli import main
from graphopt.errors import DataError, UsageError
from graphopt.latency import estimate
from graphopt.measured import (
    COLUMNS,
    Measurement,
    append,
    choose_runtime,
    find_models,
    read_measurements,
    refit_target,
    with_constants,
)
from graphopt.targets import load_target
from tests.support import model

TITAN = load_target("titan-xp")
EAGER = "eager-fp32"
# Nets that differ in what they spend their time on.
NETS = {
    "dense": """g (float[N,64,56,56] x) => (float[N,64,56,56] y) <float[64,64,3,3] v, float[64,64,3,3] w>
        { a = Conv<pads = [1,1,1,1]>(x, v) b = Relu(a) y = Conv<pads = [1,1,1,1]>(b, w) }""",
    "pointwise": """g (float[N,256,28,28] x) => (float[N,256,28,28] y) <float[512,256,1,1] v, float[256,512,1,1] w>
        { a = Conv(x, v) b = Relu(a) y = Conv(b, w) }""",
    "depthwise": """g (float[N,128,28,28] x) => (float[N,128,28,28] y) <float[128,1,3,3] v, float[128,128,1,1] w>
        { a = Conv<group = 128, pads = [1,1,1,1]>(x, v) y = Conv(a, w) }""",
    "connected": """g (float[N,4096] x) => (float[N,1000] y) <float[4096,4096] v, float[4096,1000] w>
        { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }""",
}


@pytest.fixture
def nets(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for name, text in NETS.items():
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save_model(model(text), paths[name])
    return paths


def slower_titan() -> Any:
    """The same card with launches that take three times as long and half the speed in products."""
    from graphopt.latency.constants import constants

    own = next(runtime for runtime in TITAN.hardware.runtimes if runtime.name == EAGER)
    values = constants(own.constants, own.latency)
    factors = {"compute.": 0.5, "launch.product_us": 3.0}
    changed = {
        name: value * factor for name, value in values.items() for part, factor in factors.items() if part in name
    }
    return with_constants(TITAN.hardware, EAGER, changed)


def write_table(folder: Path, nets: dict[str, Path], device: Any, runtime: str = EAGER) -> Path:
    """What somebody would have measured on ``device``."""
    path = folder / "measured.csv"
    lines = ["model,batch,median_ms,runtime"]
    for file in nets.values():
        for batch in (1, 16):
            ms = estimate(onnx.load(file), device, runtime=EAGER, batch=batch).ms
            lines.append(f"{file.name},{batch},{ms:.6f},{runtime}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bench_appends_a_row_for_each_model_and_calibrate_target_reads_it(nets, tmp_path):
    table = tmp_path / "measured.csv"
    for _ in range(2):
        code = main(["bench", str(nets["depthwise"]), "--batch", "2", "--seconds", "0.1", "--csv", str(table), "-q"])
        assert code == 0

    first, second = read_measurements(table)

    assert table.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert (first.model, first.batch, first.runtime) == (str(nets["depthwise"]), 2, "onnxruntime")
    assert (first.provider, first.threads, len(first.sha256)) == ("CPUExecutionProvider", 1, 64)
    assert 0 < first.p10_ms <= first.median_ms <= first.p90_ms
    assert second.sha256 == first.sha256


def test_bench_of_several_models_is_a_list(nets, capfd):
    assert main(["bench", str(nets["depthwise"]), str(nets["depthwise"]), "--seconds", "0.1", "--json"]) == 0

    assert len(json.loads(capfd.readouterr().out)) == 2


def test_a_table_with_other_columns_is_left_alone(tmp_path):
    table = tmp_path / "notes.csv"
    table.write_text("what,when\nlunch,noon\n")
    row = Measurement("a.onnx", "", "", "", 1, None, 1.0, None, None)

    with pytest.raises(DataError, match="no column 'model'"):
        append(table, row)
    assert table.read_text() == "what,when\nlunch,noon\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("model,batch\na.onnx,1\n", "no column 'median_ms'", id="column missing"),
        pytest.param("model,batch,median_ms\na.onnx,1,fast\n", "line 2: 'median_ms' is 'fast'", id="no number"),
        pytest.param("model,batch,median_ms\na.onnx,1,-3\n", "positive", id="negative"),
        pytest.param("model,batch,median_ms\na.onnx,1,nan\n", "positive", id="not finite"),
        pytest.param("model,batch,median_ms\na.onnx,1.5,3\n", "whole number", id="half a sample"),
        pytest.param("model,batch,median_ms\na.onnx,1\n", "2 values for 3 columns", id="short line"),
        pytest.param("model,batch,median_ms\n,1,2\n", "'model' must be", id="no model"),
        pytest.param("model,batch,median_ms\n", "no measurements", id="empty"),
        pytest.param("", "no column", id="nothing"),
    ],
)
def test_a_wrong_table_is_refused_with_the_line(text, reason, tmp_path):
    table = tmp_path / "measured.csv"
    table.write_text(text)

    with pytest.raises(DataError, match=reason):
        read_measurements(table)


def test_refitting_predicts_nets_that_it_has_not_seen_better(nets, tmp_path):
    table = write_table(tmp_path, nets, slower_titan())
    measured, warnings = find_models(read_measurements(table), table, None)

    found = refit_target(TITAN, measured, EAGER)

    assert warnings == ()
    assert found.error("before") > 0.3
    assert found.error("after") < 0.1
    assert found.error("left_out") < found.error("before") / 2


def test_the_profile_that_is_written_is_a_target(nets, tmp_path, capfd):
    device = slower_titan()
    table, output = write_table(tmp_path, nets, device), tmp_path / "my-titan.toml"

    assert main(["calibrate-target", "titan-xp", str(table), "-o", str(output), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    mine = load_target(str(output))

    assert mine.name == "my-titan"
    assert mine.recipe == TITAN.recipe
    dense = onnx.load(nets["dense"])
    true = estimate(dense, device, runtime=EAGER).ms
    assert estimate(dense, mine.hardware, runtime=EAGER).ms == pytest.approx(true, rel=0.15)
    assert told["error"]["left_out"] < told["error"]["before"]
    assert "left out of the fit" in output.read_text()


def test_a_profile_can_be_refitted_again(nets, tmp_path):
    table = write_table(tmp_path, nets, slower_titan())
    folder = tmp_path / "profiles"
    folder.mkdir()

    assert main(["calibrate-target", "titan-xp", str(table), "-o", str(folder / "one.toml"), "-q"]) == 0
    assert main(["calibrate-target", str(folder / "one.toml"), str(table), "-o", str(tmp_path / "two.toml"), "-q"]) == 0

    assert load_target(str(tmp_path / "two.toml")).recipe == TITAN.recipe


def test_models_are_found_by_their_hash_where_they_lie_elsewhere(nets, tmp_path):
    import hashlib

    digest = hashlib.sha256(nets["dense"].read_bytes()).hexdigest()
    row = Measurement("/on/the/device/renamed.onnx", digest, EAGER, "", 1, None, 1.0, None, None)

    ((found,), warnings) = find_models([row], tmp_path / "measured.csv", tmp_path)

    assert (found.name, warnings) == ("dense", ())


def test_another_file_of_the_same_name_is_taken_with_a_warning(nets, tmp_path):
    row = Measurement("there/dense.onnx", "0" * 64, EAGER, "", 1, None, 1.0, None, None)

    ((found,), warnings) = find_models([row], tmp_path / "measured.csv", tmp_path)

    assert found.name == "dense"
    assert "another file than was measured" in warnings[0]


def test_open_axes_take_the_shapes_that_are_given_and_the_batch_that_was_measured(tmp_path):
    path = tmp_path / "open.onnx"
    text = "g (float[N,8,H,W] x) => (float[N,8,P,Q] y) <float[8,8,3,3] w> { y = Conv<pads = [1,1,1,1]>(x, w) }"
    onnx.save_model(model(text), path)
    row = Measurement(str(path), "", EAGER, "", 16, None, 1.0, None, None)

    ((found,), _) = find_models([row], tmp_path / "measured.csv", None, {"x": (1, 8, 64, 64)})

    (kernel,) = estimate(found.model, TITAN.hardware, runtime=EAGER, batch=16).kernels
    assert kernel.macs == 16 * 64 * 64 * 8 * 8 * 9
    with pytest.raises(UsageError, match="contradicts"):
        find_models([row], tmp_path / "measured.csv", None, {"x": (1, 3, 64, 64)})


def test_a_model_that_is_nowhere_is_named(tmp_path):
    row = Measurement("gone.onnx", "", EAGER, "", 1, None, 1.0, None, None)

    with pytest.raises(DataError, match=r"gone\.onnx is not found; say where models lie with --models"):
        find_models([row], tmp_path / "measured.csv", None)


@pytest.mark.parametrize(
    ("target", "runtimes", "asked", "reason"),
    [
        pytest.param("titan-xp", ["onnxruntime"], None, "no runtime 'onnxruntime'; it has", id="not of this target"),
        pytest.param("titan-xp", [EAGER, "tensorrt"], None, "several runtimes", id="two"),
        pytest.param("titan-xp", [""], "tpu", "no runtime 'tpu'", id="asked for"),
        pytest.param("cpu", [""], None, "times are measured", id="CPU"),
    ],
)
def test_a_runtime_that_does_not_fit_is_refused(target, runtimes, asked, reason):
    rows = [Measurement("a.onnx", "", runtime, "", 1, None, 1.0, None, None) for runtime in runtimes]

    with pytest.raises(UsageError, match=reason):
        choose_runtime(rows, load_target(target).hardware, asked)


def test_one_net_is_too_few(nets, tmp_path):
    table = write_table(tmp_path, {"dense": nets["dense"]}, TITAN.hardware)
    measured, _ = find_models(read_measurements(table), table, None)

    with pytest.raises(DataError, match="1 net measured; measure at least 2"):
        refit_target(TITAN, measured, EAGER)


def test_nets_of_one_file_name_in_several_folders_are_several(nets, tmp_path):
    rows = []
    for name in ("dense", "depthwise"):
        (tmp_path / name).mkdir()
        path = nets[name].rename(tmp_path / name / "model.onnx")
        rows.append(Measurement(str(path), "", EAGER, "", 1, None, 1.0, None, None))

    measured, _ = find_models(rows, tmp_path / "measured.csv", None)

    assert [one.name for one in measured] == ["dense/model", "depthwise/model"]
    assert refit_target(TITAN, measured, EAGER).constants


def test_a_row_is_appended_on_a_line_of_its_own(tmp_path):
    table = tmp_path / "measured.csv"
    row = Measurement("a.onnx", "", EAGER, "", 1, None, 1.0, None, None)
    append(table, row)
    table.write_text(table.read_text().rstrip("\n"))  # as many editors leave it

    append(table, row)

    assert read_measurements(table) == (row, row)


def test_times_in_another_unit_are_refused(nets, tmp_path):
    table = write_table(tmp_path, nets, TITAN.hardware)
    rows = [replace(row, median_ms=row.median_ms / 1000) for row in read_measurements(table)]
    measured, _ = find_models(rows, table, None)

    with pytest.raises(DataError, match=r"0\.001 times those estimated .* must be in milliseconds"):
        refit_target(TITAN, measured, EAGER)


def test_rows_that_contradict_each_other_are_named(nets, tmp_path, capfd):
    table = write_table(tmp_path, nets, TITAN.hardware)
    with table.open("a") as file:
        file.write(f"dense.onnx,1,100,{EAGER}\n")
    output = tmp_path / "mine.toml"

    assert main(["calibrate-target", "titan-xp", str(table), "-o", str(output), "--json"]) == 0

    contradiction, far = json.loads(capfd.readouterr().out)["warnings"]
    assert "dense at batch 1 was measured as" in contradiction
    assert "and as 100 ms" in contradiction
    assert "1 of 9 measurements are more than 2 times off after refitting, dense at batch 1" in far
    assert f"# Warning: {far}" in output.read_text()


def test_the_profile_is_never_written_over_what_it_is_made_from(nets, tmp_path, capfd):
    table, mine = write_table(tmp_path, nets, TITAN.hardware), tmp_path / "mine.toml"
    mine.write_text('inherits = "titan-xp"\n')

    assert main(["calibrate-target", str(mine), str(table), "-o", str(mine)]) == 2
    assert "never overwritten" in capfd.readouterr().err
    assert mine.read_text() == 'inherits = "titan-xp"\n'
    assert main(["calibrate-target", "titan-xp", str(table), "-o", str(tmp_path / "mine")]) == 2
    assert "ends in .toml" in capfd.readouterr().err


def test_a_profile_may_have_any_file_name(nets, tmp_path):
    table, output = write_table(tmp_path, nets, TITAN.hardware), tmp_path / "our board.toml"

    assert main(["calibrate-target", "titan-xp", str(table), "-o", str(output), "-q"]) == 0

    assert load_target(str(output)).recipe == TITAN.recipe
