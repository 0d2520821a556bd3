"""External data: what is read, and every way in which a model could reach for what is not its own."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.errors import ModelError, UnsafeModelError
from graphopt.model import load, read

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
TEXT = '<ir_version: 10, opset_import: ["": 21]> g (float[N,2] x) => (float[N,3] y) { y = MatMul(x, w) }'


def reference(location: str = "w.bin", **entries: object) -> onnx.TensorProto:
    """An external float[2,3] tensor; keyword arguments are further entries, None leaves one out."""
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": 0, "length": 24, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(folder: Path, tensor: onnx.TensorProto, content: bytes | None = WEIGHT.tobytes()) -> Path:
    """A model with ``tensor`` as its weight, and ``w.bin`` with ``content`` beside it."""
    proto = parser.parse_model(TEXT)
    proto.graph.initializer.append(tensor)
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    if content is not None:
        (folder / "w.bin").write_bytes(content)
    return folder / "model.onnx"


def weight(proto: onnx.ModelProto) -> np.ndarray:
    return numpy_helper.to_array(proto.graph.initializer[0])


# --- What is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "content"),
    [
        pytest.param(reference(), WEIGHT.tobytes(), id="whole file"),
        pytest.param(reference(offset=None, length=None), WEIGHT.tobytes(), id="location alone"),
        pytest.param(reference(length=None), WEIGHT.tobytes() + b"rest", id="length follows from the shape"),
        pytest.param(reference(offset=8), b"padding!" + WEIGHT.tobytes() + b"rest", id="a range"),
        pytest.param(reference("./w.bin"), WEIGHT.tobytes(), id="./ in the path"),
    ],
)
def test_reads_external_weights_into_memory(tensor: onnx.TensorProto, content: bytes, tmp_path: Path) -> None:
    proto = load(write(tmp_path, tensor, content))
    np.testing.assert_array_equal(weight(proto), WEIGHT)
    assert proto.graph.initializer[0].data_location == TensorProto.DEFAULT
    assert not proto.graph.initializer[0].external_data


def test_reads_data_in_a_folder_below_the_model(tmp_path: Path) -> None:
    path = write(tmp_path, reference("weights/w.bin"), None)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(WEIGHT.tobytes())
    np.testing.assert_array_equal(weight(load(path)), WEIGHT)


def test_the_way_to_the_model_may_lead_through_links(tmp_path: Path) -> None:
    write(tmp_path / "real", reference())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    np.testing.assert_array_equal(weight(load(tmp_path / "link" / "model.onnx")), WEIGHT)


def test_a_relative_path_works_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, reference())
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(weight(load("model.onnx")), WEIGHT)


def test_reads_4_bit_tensors(tmp_path: Path) -> None:
    nibbles = helper.make_tensor("w", TensorProto.INT4, [2, 3], [1, -2, 3, -4, 5, -6])
    packed = numpy_helper.from_array(numpy_helper.to_array(nibbles), "w").raw_data
    tensor = reference(length=3)
    tensor.data_type = TensorProto.INT4
    proto = load(write(tmp_path, tensor, packed))
    np.testing.assert_array_equal(weight(proto).astype(int), [[1, -2, 3], [-4, 5, -6]])


def test_tied_weights_may_share_a_range(tmp_path: Path) -> None:
    proto = parser.parse_model(TEXT.replace("MatMul(x, w)", "MatMul(x, v)"))
    proto.graph.initializer.extend([reference(), reference()])
    proto.graph.initializer[1].name = "v"
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    assert [len(tensor.raw_data) for tensor in load(tmp_path / "model.onnx").graph.initializer] == [24, 24]


def test_hash_and_size_cover_the_data(tmp_path: Path) -> None:
    path = write(tmp_path, reference())
    first = read(path)
    (tmp_path / "w.bin").write_bytes((WEIGHT + 1).tobytes())
    second = read(path)
    assert first.sha256 != second.sha256
    assert first.size == path.stat().st_size + 24
    assert first.data_files == (tmp_path / "w.bin",)


# --- Structure only -------------------------------------------------------------------------------------------------


def test_the_structure_can_be_read_without_the_weights(tmp_path: Path) -> None:
    path = write(tmp_path, reference(), content=None)
    result = read(path, weights=False)
    assert result.proto.graph.initializer[0].data_location == TensorProto.EXTERNAL
    assert "external data absent: 'w.bin'" in result.warnings[0]
    with pytest.raises(ModelError, match=r"'w' of the graph is stored in 'w.bin', which is not beside the model"):
        read(path)


def test_the_structure_of_bytes_can_be_read_but_not_their_weights(tmp_path: Path) -> None:
    content = write(tmp_path, reference()).read_bytes()
    assert "absent" in read(content, weights=False).warnings[0]
    with pytest.raises(ModelError, match="not given as a path"):
        read(content)


def test_without_weights_small_tensors_are_read_and_large_ones_are_not(tmp_path: Path) -> None:
    proto = parser.parse_model(TEXT)
    large = reference(offset=24, length=400_000)
    large.name, large.dims[:] = "large", [100_000]
    proto.graph.initializer.extend([reference(), large])
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes() + bytes(400_000))
    result = read(tmp_path / "model.onnx", weights=False)
    locations = [tensor.data_location for tensor in result.proto.graph.initializer]
    assert locations == [TensorProto.DEFAULT, TensorProto.EXTERNAL]
    assert result.sha256 == read(tmp_path / "model.onnx").sha256


def test_without_weights_what_is_present_is_vetted_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(UnsafeModelError, match="outside the model's folder"):
        read(write(tmp_path, reference("../w.bin")), weights=False)


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        pytest.param(reference("/etc/passwd"), "absolute path '/etc/passwd'", id="absolute"),
        pytest.param(reference("C:\\weights\\w.bin"), "absolute path", id="absolute on Windows"),
        pytest.param(reference("\\\\host\\share\\w.bin"), "absolute path", id="network share"),
        pytest.param(reference("../w.bin"), "outside the model's folder", id="parent"),
        pytest.param(reference("sub/../../w.bin"), "outside the model's folder", id="parent in the middle"),
        pytest.param(reference("..\\w.bin"), "outside the model's folder", id="parent on Windows"),
        pytest.param(reference(""), "names no file", id="no location"),
        pytest.param(reference("."), "names no file", id="the folder itself"),
        pytest.param(reference("w.bin\0.txt"), "names no file", id="NUL"),
        pytest.param(reference(offset=-1), "impossible offset '-1'", id="negative offset"),
        pytest.param(reference(length=-24), "impossible length '-24'", id="negative length"),
        pytest.param(reference(offset="1e3"), "impossible offset", id="no number"),
        pytest.param(reference(offset="9" * 5000), "impossible offset", id="endless number"),
        pytest.param(reference(offset=1), "claims bytes 1 to 25 of 'w.bin', which has only 24", id="past the end"),
        pytest.param(reference(offset=2**62), "which has only 24", id="far past the end"),
        pytest.param(reference(length=20), "needs 24 bytes, but its external data has length 20", id="too short"),
        pytest.param(reference(length=2**62), "needs 24 bytes", id="too long"),
    ],
)
def test_refuses(tensor: onnx.TensorProto, reason: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())  # what '../w.bin' would reach
    path = write(tmp_path / "models", tensor)
    with pytest.raises(UnsafeModelError) as caught:
        read(path)
    assert str(caught.value).startswith("model.onnx: initializer 'w' of the graph")
    assert reason in str(caught.value)


def test_refuses_a_shape_larger_than_the_file(tmp_path: Path) -> None:
    tensor = reference(length=None)
    tensor.dims[:] = [2**31, 2**31]
    with pytest.raises(UnsafeModelError, match="which has only 24"):
        read(write(tmp_path, tensor))


def test_refuses_a_negative_shape(tmp_path: Path) -> None:
    tensor = reference()
    tensor.dims[:] = [-2, -3]
    with pytest.raises(UnsafeModelError, match="negative dimension"):
        read(write(tmp_path, tensor))


def test_refuses_4_bit_data_of_unpacked_length(tmp_path: Path) -> None:
    tensor = reference(length=6)
    tensor.data_type = TensorProto.INT4
    with pytest.raises(UnsafeModelError, match="needs 3 bytes"):
        read(write(tmp_path, tensor))


def test_refuses_external_strings(tmp_path: Path) -> None:
    tensor = reference()
    tensor.data_type = TensorProto.STRING
    with pytest.raises(UnsafeModelError, match="strings"):
        read(write(tmp_path, tensor))


def test_refuses_two_answers_to_one_question(tmp_path: Path) -> None:
    tensor = reference()
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(UnsafeModelError, match="gives 'location' of its external data twice"):
        read(write(tmp_path, tensor))


def test_refuses_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "models", reference(), None)
    (path.parent / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeModelError, match="is a symbolic link; copy the real file"):
        read(path)


def test_refuses_a_symbolic_link_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.bin").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "models", reference("sub/w.bin"), None)
    (path.parent / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeModelError, match="sub is a symbolic link"):
        read(path)


def test_refuses_a_dangling_link_even_without_weights(tmp_path: Path) -> None:
    path = write(tmp_path, reference(), None)
    (tmp_path / "w.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnsafeModelError, match="is a symbolic link"):
        read(path, weights=False)


def test_refuses_a_hard_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "models", reference(), None)
    os.link(tmp_path / "secret", path.parent / "w.bin")
    with pytest.raises(UnsafeModelError, match="is a hard link"):
        read(path)


def test_refuses_a_folder_and_a_pipe(tmp_path: Path) -> None:
    path = write(tmp_path, reference(), None)
    (tmp_path / "w.bin").mkdir()
    with pytest.raises(UnsafeModelError, match="not a regular file"):
        read(path)
    (tmp_path / "w.bin").rmdir()
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(UnsafeModelError, match="not a regular file"):
        read(path)


def test_refuses_a_file_used_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnsafeModelError, match="is not a folder"):
        read(write(tmp_path, reference("w.bin/w.bin")))


def test_refuses_a_file_that_is_swapped_after_it_was_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, reference())
    (tmp_path / "other").write_bytes(WEIGHT.tobytes())
    judge = os.lstat

    def judge_then_swap(name: Path) -> os.stat_result:
        status = judge(name)
        os.replace(tmp_path / "other", name)
        return status

    monkeypatch.setattr(os, "lstat", judge_then_swap)
    with pytest.raises(UnsafeModelError, match="was replaced or changed"):
        read(path)


def test_refuses_more_than_the_memory_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.model.external._physical_memory", lambda: 23)
    with pytest.raises(ModelError, match="need 24 bytes, more than this machine's 23"):
        read(write(tmp_path, reference()))


def constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = parser.parse_model(TEXT)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    return proto


def subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]> g (bool c, float[4] x) => (float[4] y) {
        y = If(c) <then_branch = t () => (float[4] a) { a = Abs(x) },
            else_branch = e () => (float[4] b) { b = Neg(x) }> }""")
    proto.graph.node[0].attribute[1].g.initializer.append(tensor)
    return proto


def function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21, "f": 1]> g (float[4] x) => (float[4] y) {
        y = f.one(x) } <domain: "f", opset_import: ["": 21]> one (a) => (b) { b = Relu(a) }""")
    proto.functions[0].node.append(helper.make_node("Constant", [], ["w"], value=tensor))
    return proto


def sparse_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = parser.parse_model(TEXT)
    sparse = proto.graph.sparse_initializer.add(dims=[2, 3])
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(6)))
    return proto


@pytest.mark.parametrize("place", [constant, subgraph, function, sparse_initializer])
@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd"])
def test_no_place_in_the_model_is_overlooked(place, location: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensor = reference(location)
    if place is sparse_initializer:
        tensor.dims[:] = [6]
    (tmp_path / "model.onnx").write_bytes(place(tensor).SerializeToString())
    with pytest.raises(UnsafeModelError) as caught:
        read(tmp_path / "model.onnx")
    assert location in str(caught.value)


@pytest.mark.parametrize("place", [constant, subgraph, function, sparse_initializer])
def test_external_tensors_are_read_in_every_place(place, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensor = reference()
    if place is sparse_initializer:
        tensor.dims[:] = [6]
    (tmp_path / "model.onnx").write_bytes(place(tensor).SerializeToString())
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    embedded = load(tmp_path / "model.onnx").SerializeToString()
    assert WEIGHT.tobytes() in embedded
    assert b"w.bin" not in embedded


def test_nothing_is_allocated_before_the_judgement(tmp_path: Path) -> None:
    proto = parser.parse_model(TEXT)
    good, bad = reference(length=50_000_000), reference(length=50_000_000, offset=2**40)
    good.dims[:], bad.dims[:], bad.name = [12_500_000], [12_500_000], "bad"
    proto.graph.initializer.extend([good, bad])
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "w.bin", "wb") as stream:
        stream.truncate(60_000_000)
    tracemalloc.start()
    with pytest.raises(UnsafeModelError, match="initializer 'bad'"):
        read(tmp_path / "model.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
