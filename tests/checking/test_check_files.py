"""Files that are no models, are unsafe, or break the specification: a finding each, never an exception."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import model

from graphopt.checking import CheckedFile, CheckResult, check

NET = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


def checked(source: object) -> CheckedFile:
    result: CheckResult = check(source, use_config=False)  # type: ignore[arg-type]
    return result.files[0]


def codes(source: object) -> list[str]:
    return [found.code for found in checked(source).findings]


def save_external(folder: Path, proto: onnx.ModelProto | None = None) -> Path:
    path = folder / "net.onnx"
    onnx.save_model(proto or model(NET), path, save_as_external_data=True, location="net.data", size_threshold=0)
    return path


def test_a_sound_model_has_no_findings(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(model(NET), path)
    result = check(path, use_config=False)
    assert result.files[0].findings == ()
    assert (result.ok, result.exit_code, str(result)) == (True, 0, "")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08", b"<html></html>", bytes(range(256)) * 9])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert codes(path) == ["GO101"]
    assert check(path, use_config=False).exit_code == 1


def test_the_beginning_of_a_model_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model(NET).SerializeToString()[:-20])
    found = checked(path).findings[0]
    assert found.code == "GO101"
    assert "cut short" in found.message


def test_a_file_that_cannot_be_read_is_a_finding_and_exit_code_3(tmp_path: Path) -> None:
    sound = tmp_path / "net.onnx"
    onnx.save_model(model(NET), sound)
    result = check([tmp_path / "none.onnx", sound], use_config=False)
    assert [[found.code for found in file.findings] for file in result.files] == [["GO101"], []]
    assert "no such file" in str(result)
    assert result.exit_code == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.onnx")
    assert "not a regular file" in checked(tmp_path / "net.onnx").findings[0].message


def test_git_lfs_pointers_in_place_of_the_model_and_of_its_data(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text(POINTER)
    assert codes(path) == ["GO102"]
    assert "git lfs pull" in checked(path).findings[0].message

    save_external(tmp_path)
    (tmp_path / "net.data").write_text(POINTER)
    assert codes(path) == ["GO102"]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "C:\\secret"])
def test_data_outside_the_folder_is_unsafe(tmp_path: Path, location: str) -> None:
    path = save_external(tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    next(entry for entry in proto.graph.initializer[0].external_data if entry.key == "location").value = location
    path.write_bytes(proto.SerializeToString())
    assert codes(path) == ["GO103"]


def test_a_weight_with_too_little_data_is_unsafe() -> None:
    proto = model(NET)
    proto.graph.initializer[0].raw_data = b"abc"
    assert codes(proto) == ["GO103"]


def test_an_unknown_operator_domain_is_unsupported() -> None:
    proto = model(
        '<ir_version: 8, opset_import: ["" : 17, "mine" : 1]> g (float[2] x) => (float[2] y) { y = mine.F(x) }'
    )
    assert codes(proto) == ["GO104"]


def test_an_opset_of_the_future_is_unsupported() -> None:
    assert codes(model(NET, opset=999)) == ["GO104"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("g (float[2] x) => (float[2] y) { y = Add(x, z) }", id="reads what nothing writes"),
        pytest.param("g (float[2] x) => (float[2] y) { y = Concat(x, x) }", id="an attribute is missing"),
        pytest.param("g (float[2] x) => (float[2] y) { a = Relu(b) b = Relu(a) y = Add(x, a) }", id="a cycle"),
        pytest.param("g (float[2] x, int64[2] i) => (float[2] y) { y = Add(x, i) }", id="types that do not fit"),
        pytest.param("g (float[2,3] x) => (float[2,3] y) <float[4,5] w> { y = MatMul(x, w) }", id="shapes neither"),
    ],
)
def test_breaches_of_the_specification(text: str) -> None:
    assert codes(model(text)) == ["GO105"]


def test_a_wrong_declaration_of_a_result_is_not_held_against_the_model() -> None:
    assert codes(model("g (float[2,3] x) => (float[7,7] y) { y = Relu(x) }")) == []


def test_a_sparse_weight_is_no_breach() -> None:
    proto = model("g (float[1,64] x) => (float[1,8] y) { y = MatMul(x, w) }")
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    places = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [2], [3, 500])
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [64, 8]))
    assert codes(proto) == []


def test_missing_data_is_an_error_and_the_structure_is_checked_all_the_same(tmp_path: Path) -> None:
    path = save_external(tmp_path, model("g (float[2] x) => (float[2] y) <float[2] w> { y = Add(x, w) z = Relu(x) }"))
    (tmp_path / "net.data").unlink()
    assert codes(path) == ["GO106", "GO110"]


def test_nodes_out_of_order_are_told_from_a_cycle() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(a) a = Relu(x) }")
    assert codes(proto) == ["GO107"]


def test_an_old_opset_is_a_warning_that_strict_fails_on() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=6)
    result = check(proto, use_config=False)
    assert [(found.code, found.level) for found in result.files[0].findings] == [("GO108", "warning")]
    assert result.exit_code == 0
    assert check(proto, use_config=False, fail_on="warning").exit_code == 1


def test_large_external_weights_are_vetted_but_not_read(tmp_path: Path) -> None:
    proto = model("g (float[N,512] x) => (float[N,512] y) <float[512,512] w> { y = MatMul(x, w) }")
    path = save_external(tmp_path, proto)
    file = checked(path)
    assert file.findings == ()
    assert file.figures is not None
    assert file.figures.size == path.stat().st_size + (tmp_path / "net.data").stat().st_size
    with (tmp_path / "net.data").open("r+b") as data:
        data.truncate(1000)
    assert codes(path) == ["GO103"]


def test_a_folder_stands_for_the_models_below_it(tmp_path: Path) -> None:
    for name in ("b.onnx", "a/c.onnx", ".hidden/d.onnx", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(model(NET).SerializeToString())
    found = [Path(file.path).relative_to(tmp_path).as_posix() for file in check(tmp_path, use_config=False).files]
    assert found == ["a/c.onnx", "b.onnx"]


def test_the_model_given_is_not_changed() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Relu(a) a = Relu(x) }")
    before = proto.SerializeToString()
    check(proto, use_config=False)
    assert proto.SerializeToString() == before


def test_bytes_are_a_model_too() -> None:
    assert checked(model(NET).SerializeToString()).path == "<bytes>"
    assert np.isclose(checked(model(NET)).figures.size, len(model(NET).SerializeToString()), rtol=0.1)  # type: ignore[union-attr]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data())
def test_damaged_files_have_findings_or_none_but_never_an_exception(data: st.DataObject) -> None:
    """Half of a net is bytes of structure: anything may stand where something is expected."""
    content = bytearray(model(NET).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    result = check(bytes(content), target="jetson-orin-nano", max_macs=1, max_latency_ms=1.0, use_config=False)
    assert all(found.message for found in result.files[0].findings)
