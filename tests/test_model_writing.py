"""Saving is all or nothing, deterministic, and never touches the input."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.errors import OutputError
from graphopt.model import load, read, save, stamp

EXTERNAL = 1000  # a threshold that the test model exceeds


def model(value: float = 1.0) -> onnx.ModelProto:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21], metadata_props: ["owner": "me"]> '
        "g (float[N,32] x) => (float[N,32] z) { y = MatMul(x, w) z = Add(y, b) }"
    )
    rng = np.random.default_rng(0)
    proto.graph.initializer.append(numpy_helper.from_array(rng.random((32, 32), np.float32) + value, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(rng.random(32, np.float32), "b"))
    proto.graph.initializer[0].doc_string = "the weight"
    return proto


def run(path: Path) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((2, 32), np.float32)})[0]


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- What is written ------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    saved = save(model(), tmp_path / "out.onnx")
    result = read(saved.path)
    assert result.proto == model()
    assert (result.sha256, result.size) == (saved.sha256, saved.size)
    assert saved.data_path is None
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_a_large_model_goes_to_two_files(tmp_path: Path) -> None:
    saved = save(model(), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    assert saved.data_path == tmp_path / "out.onnx.data"
    assert saved.data_path.stat().st_size == 32 * 32 * 4  # the bias is small and stays in the model
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]
    result = read(saved.path)
    assert result.proto == model()
    assert (result.sha256, result.size) == (saved.sha256, saved.size)


def test_both_forms_give_the_same_answers(tmp_path: Path) -> None:
    one = save(model(), tmp_path / "one.onnx")
    two = save(model(), tmp_path / "two.onnx", external_data_threshold=EXTERNAL)
    np.testing.assert_array_equal(run(one.path), run(two.path))


def test_offsets_are_aligned_to_pages(tmp_path: Path) -> None:
    proto = model()
    for name in ("u", "v"):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(300, np.float32), name))
    save(proto, tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    raw = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    offsets = {
        tensor.name: int(entry.value)
        for tensor in raw.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    }
    assert offsets == {"w": 0, "u": 4096, "v": 8192}
    assert load(tmp_path / "out.onnx") == proto


def test_typed_values_strings_and_4_bit_tensors_survive_in_external_form(tmp_path: Path) -> None:
    proto = model()
    wide, packed = np.linspace(0, 1, 500), np.arange(3000) % 8
    proto.graph.initializer.append(helper.make_tensor("typed", TensorProto.DOUBLE, [500], wide))
    proto.graph.initializer.append(helper.make_tensor("nibbles", TensorProto.INT4, [3000], packed))
    proto.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT16, [1000], np.ones(1000)))
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [500], [b"word"] * 500))
    save(proto, tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    back = {tensor.name: numpy_helper.to_array(tensor) for tensor in load(tmp_path / "out.onnx").graph.initializer}
    np.testing.assert_array_equal(back["typed"], wide)
    np.testing.assert_array_equal(back["nibbles"].astype(int), packed)
    np.testing.assert_array_equal(back["half"], np.ones(1000, np.float16))
    assert set(back["words"].tolist()) == {"word"}


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(model(), tmp_path / name / "out.onnx", external_data_threshold=EXTERNAL)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("threshold", [EXTERNAL, 10**9])
def test_the_callers_model_is_not_changed(threshold: int, tmp_path: Path) -> None:
    proto = model()
    save(proto, tmp_path / "out.onnx", external_data_threshold=threshold)
    assert proto == model()


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    saved = save(model(), tmp_path / "out.onnx")
    assert saved.path.stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- What is replaced -----------------------------------------------------------------------------------------------


def test_an_earlier_result_is_replaced(tmp_path: Path) -> None:
    save(model(1.0), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    save(model(2.0), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    assert load(tmp_path / "out.onnx") == model(2.0)
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]


def test_the_data_of_an_earlier_result_does_not_stay_behind(tmp_path: Path) -> None:
    save(model(), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    save(model(), tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_a_file_of_that_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"no model")
    (tmp_path / "out.onnx.data").write_bytes(b"someone's notes")
    save(model(), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == b"someone's notes"


# --- What is refused ------------------------------------------------------------------------------------------------


def by_name(source: Path) -> Path:
    return source


def through_a_dot(source: Path) -> Path:
    return source.parent / "." / source.name


def through_a_symbolic_link(source: Path) -> Path:
    (source.parent / "soft.onnx").symlink_to(source)
    return source.parent / "soft.onnx"


def through_a_hard_link(source: Path) -> Path:
    os.link(source, source.parent / "hard.onnx")
    return source.parent / "hard.onnx"


def through_a_linked_folder(source: Path) -> Path:
    (source.parent / "here").symlink_to(source.parent)
    return source.parent / "here" / source.name


@pytest.mark.parametrize(
    "way", [by_name, through_a_dot, through_a_symbolic_link, through_a_hard_link, through_a_linked_folder]
)
def test_never_overwrites_the_input(way: Callable[[Path], Path], tmp_path: Path) -> None:
    source = save(model(), tmp_path / "in.onnx").path
    before = source.read_bytes()
    with pytest.raises(OutputError, match="belongs to the input"):
        save(model(2.0), way(source), protect=[source])
    assert source.read_bytes() == before


def test_never_overwrites_the_data_of_the_input(tmp_path: Path) -> None:
    source = save(model(), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    os.rename(source.path, tmp_path / "in.onnx")
    before = content(tmp_path)
    with pytest.raises(OutputError, match=r"out\.onnx\.data would overwrite"):
        save(model(2.0), tmp_path / "out.onnx", external_data_threshold=EXTERNAL, protect=[source.data_path])
    assert content(tmp_path) == before


def test_protected_data_is_not_tidied_away(tmp_path: Path) -> None:
    source = save(model(), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    (tmp_path / "in.onnx").write_bytes(source.path.read_bytes())
    save(model(2.0), source.path, protect=[tmp_path / "in.onnx", source.data_path])
    assert load(tmp_path / "in.onnx") == model()


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        save(model(), tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*absent; create it first"):
        save(model(), tmp_path / "absent" / "out.onnx")


def test_a_device_or_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.onnx")
    with pytest.raises(OutputError, match="not a regular file"):
        save(model(), tmp_path / "out.onnx")


def test_weights_that_are_not_in_memory(tmp_path: Path) -> None:
    save(model(), tmp_path / "in.onnx", external_data_threshold=EXTERNAL)
    structure = onnx.load(tmp_path / "in.onnx", load_external_data=False)
    with pytest.raises(OutputError, match="'w' of the graph is not in memory"):
        save(structure, tmp_path / "out.onnx")


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # chmod would not stop root
    with pytest.raises(OutputError, match=f"the folder {tmp_path} is not writable; choose another path"):
        save(model(), tmp_path / "out.onnx")


# --- What happens when it fails half way ----------------------------------------------------------------------------


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond ``size`` bytes: a full disk, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("threshold", [EXTERNAL, 10**9])
def test_a_full_disk_leaves_nothing(threshold: int, tmp_path: Path) -> None:
    with file_size_limit(2048), pytest.raises(OutputError, match="no space left"):
        save(model(), tmp_path / "out.onnx", external_data_threshold=threshold)
    assert os.listdir(tmp_path) == []


FAILURES = [
    pytest.param(OSError(errno.ENOSPC, "No space left on device"), OutputError, id="disk full"),
    pytest.param(OSError(errno.EIO, "Input/output error"), OutputError, id="broken disk"),
    pytest.param(KeyboardInterrupt(), KeyboardInterrupt, id="Ctrl-C"),
]
STEPS = [  # with an earlier result its data file is moved aside first, so there is one rename more
    *[(True, function, call) for function, call in (("fsync", 0), ("fsync", 1), ("replace", 0), ("replace", 1))],
    (True, "replace", 2),
    *[(False, function, call) for function, call in (("fsync", 0), ("fsync", 1), ("replace", 0), ("replace", 1))],
]


@pytest.mark.parametrize(("failure", "raised"), FAILURES)
@pytest.mark.parametrize(("earlier", "function", "call"), STEPS)
def test_a_failure_at_any_step_leaves_everything_as_it_was(
    failure: BaseException,
    raised: type[BaseException],
    earlier: bool,
    function: str,
    call: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if earlier:
        save(model(1.0), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    before = content(tmp_path)
    real, calls = getattr(os, function), []

    def fail_once(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == call + 1:
            raise failure
        return real(*arguments)

    monkeypatch.setattr(os, function, fail_once)
    with pytest.raises(raised):
        save(model(2.0), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    monkeypatch.undo()
    assert len(calls) > call
    assert content(tmp_path) == before


def test_an_interruption_after_the_last_rename_keeps_the_new_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(model(1.0), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("graphopt.model.transaction._sync_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model(2.0), tmp_path / "out.onnx", external_data_threshold=EXTERNAL)
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]
    assert load(tmp_path / "out.onnx") == model(2.0)


# --- Provenance -----------------------------------------------------------------------------------------------------


def stamped(proto: onnx.ModelProto, target: str = "cpu") -> dict[str, str]:
    stamp(proto, target=target, passes=["fold_constants", "quantize_int8"], source_sha256="ab12", version="0.1.0")
    return {entry.key: entry.value for entry in proto.metadata_props}


def test_a_stamp_says_where_a_model_came_from_and_keeps_the_users_keys() -> None:
    assert stamped(model()) == {
        "owner": "me",
        "graphopt.version": "0.1.0",
        "graphopt.target": "cpu",
        "graphopt.passes": "fold_constants,quantize_int8",
        "graphopt.source_sha256": "ab12",
    }


def test_a_second_stamp_replaces_the_first() -> None:
    proto = model()
    stamped(proto)
    assert stamped(proto, target="gpu")["graphopt.target"] == "gpu"
    assert len(proto.metadata_props) == 5


def test_a_stamp_survives_saving(tmp_path: Path) -> None:
    proto = model()
    stamped(proto)
    save(proto, tmp_path / "out.onnx")
    session = ort.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["graphopt.target"] == "cpu"


# --- More than 2 GB -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_of_more_than_2_gb_goes_through_whole(tmp_path: Path) -> None:
    count = 550_000_000
    proto = parser.parse_model(
        '<ir_version: 6, opset_import: ["": 11]> g (int64[1] i, float[1,1] x) => (float[1] y) '
        "{ v = Gather(w, i) s = Squeeze<axes = [0]>(x) y = Add(v, s) }"
    )
    tensor = proto.graph.initializer.add(
        name="w", data_type=TensorProto.FLOAT, dims=[count], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="in.bin")
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "in.bin", "wb") as stream:  # sparse: zeros that take no room, then a last value
        stream.seek(4 * (count - 1))
        stream.write(np.float32(41).tobytes())

    from graphopt.model import upgrade_opset

    upgraded, _ = upgrade_opset(load(tmp_path / "in.onnx"), 13)
    saved = save(upgraded, tmp_path / "out.onnx")
    del upgraded
    session = ort.InferenceSession(saved.path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"i": np.array([count - 1]), "x": np.ones((1, 1), np.float32)})
    assert answer == [42]
    assert saved.size > 2**31
    for file in tmp_path.iterdir():
        file.unlink()  # pytest keeps its folders for a while
