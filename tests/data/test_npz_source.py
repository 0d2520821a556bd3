"""FILE.npz and FILE.npy: one array for each input, the first axis counts samples."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from graphopt.data import open_data, split
from graphopt.errors import DataError
from graphopt.runtime import TensorSpec

F4 = np.dtype("float32")


def test_yields_rows_with_a_batch_axis_and_labels(tmp_path, image, pixels):
    np.savez(tmp_path / "d.npz", x=pixels, labels=np.arange(12))
    source = open_data(tmp_path / "d.npz", image)
    assert (source.length, source.labelled) == (12, True)
    for index, sample in enumerate(source):
        assert sample.inputs["x"].shape == (1, 1, 4, 4)
        assert np.array_equal(sample.inputs["x"][0], pixels[index])
        assert sample.label == index
    assert index == 11


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_compressed_and_column_major_arrays(tmp_path, image, pixels, save, order):
    save(tmp_path / "d.npz", anything=np.asarray(pixels, order=order))
    found = np.concatenate([sample.inputs["x"] for sample in open_data(str(tmp_path / "d.npz"), image)])
    assert np.array_equal(found, pixels)


def test_npy_file(tmp_path, image, pixels):
    np.save(tmp_path / "d.npy", pixels)
    assert open_data(tmp_path / "d.npy", image).length == 12


def test_several_inputs(tmp_path):
    specs = [TensorSpec("ids", np.dtype("int64"), ("N", "T")), TensorSpec("threshold", F4, ())]
    np.savez(tmp_path / "d.npz", ids=np.ones((3, 7), np.int32), threshold=np.zeros(3, np.float32))
    sample = next(iter(open_data(tmp_path / "d.npz", specs)))
    assert sample.inputs["ids"].shape == (1, 7)
    assert sample.inputs["ids"].dtype == np.int64
    assert sample.inputs["threshold"].shape == ()


def test_names_as_tensorflow_gives_them(tmp_path):
    specs = [TensorSpec("x:0", F4, ("N", 3)), TensorSpec("serving/mask:0", F4, ("N", 2))]
    np.savez(tmp_path / "d.npz", **{"x:0": np.ones((4, 3), "f4"), "serving/mask:0": np.zeros((4, 2), "f4")})
    sample = next(iter(open_data(tmp_path / "d.npz", specs)))
    assert {name: array.shape for name, array in sample.inputs.items()} == {"x:0": (1, 3), "serving/mask:0": (1, 2)}


def test_rows_of_the_inputs_rank_are_fed_as_they_are(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((5, 30, 3), np.float32))
    points = open_data(tmp_path / "d.npz", [TensorSpec("x", F4, ("points", 3))])
    assert [sample.inputs["x"].shape for sample in points] == [(30, 3)] * 5


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    specs = [TensorSpec("x", F4, ("N", 3, 32, 32))]
    peaks = {}
    for count in (100, 1000):
        path = tmp_path / f"{count}.npz"
        np.savez_compressed(path, x=np.ones((count, 3, 32, 32), np.float32), labels=np.zeros(count, int))
        tracemalloc.start()
        for part in (parts := split(open_data(path, specs))).calibration, parts.selection, parts.evaluation:
            assert sum(1 for _ in part) == part.length
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[1000] < 2_000_000  # the array has 12 MB
    assert peaks[1000] < peaks[100] + 50_000  # of which the labels are 16 kB


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param({"x": np.zeros((4, 4), "f4"), "z": np.zeros((4, 4), "f4")}, "'z' is no input", id="extra key"),
        pytest.param({"x": np.zeros((5, 1, 4, 5), "f4")}, r"\[samples, 1, 4, 4\]", id="wrong size"),
        pytest.param({"x": np.zeros((1, 4, 4), "f4")}, "first axis counts samples", id="no sample axis"),
        pytest.param({"x": np.zeros((5, 1, 4, 4), "u1")}, "astype", id="bytes for floats"),
        pytest.param({"x": np.zeros((5, 1, 4, 4), "c8")}, "complex64", id="complex"),
        pytest.param({"x": np.full((5, 1, 4, 4), "a")}, "<U1", id="text"),
        pytest.param({"x": np.full((5, 1, 4, 4), np.nan, "f4")}, "sample 0: input 'x' holds NaN", id="NaN"),
        pytest.param({"x": np.full((5, 1, 4, 4), np.inf, "f4")}, "infinite", id="infinity"),
        pytest.param({"x": np.full((5, 1, 4, 4), 1e300)}, "float32 cannot hold", id="overflow"),
        pytest.param({"x": np.zeros((0, 1, 4, 4), "f4")}, "no samples", id="empty"),
        pytest.param({"x": np.zeros((5, 1, 4, 4), "f4"), "labels": np.arange(4)}, "4 labels for 5", id="labels"),
        pytest.param({"x": np.zeros((5, 1, 4, 4), "f4"), "labels": np.eye(5)}, "argmax", id="one-hot labels"),
        pytest.param({"x": np.array([{}], object)}, "pickled", id="objects"),
    ],
)
def test_refuses(tmp_path, image, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        list(open_data(tmp_path / "d.npz", image))
    assert "d.npz" in str(error.value)


def test_names_the_missing_input(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.zeros((2, 3), "f4"), c=np.zeros((2, 3), "f4"))
    specs = [TensorSpec("a", F4, (None, 3)), TensorSpec("b", F4, (None, 3))]
    with pytest.raises(DataError, match=r"no array named 'b'; 'c' is no input.*'a' float32\[\?, 3\]"):
        open_data(tmp_path / "d.npz", specs)


def test_a_later_sample_with_nan_is_named(tmp_path, image, pixels):
    pixels[7, 0, 1, 2] = np.nan
    np.savez(tmp_path / "d.npz", x=pixels)
    with pytest.raises(DataError, match=r"sample 7: input 'x' holds NaN, first at \[0, 0, 1, 2\]"):
        list(open_data(tmp_path / "d.npz", image))


@pytest.mark.parametrize("keep", [0, 10, 200, 900])
def test_truncated_file(tmp_path, image, pixels, keep):
    np.savez(tmp_path / "d.npz", x=pixels)
    data = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(data[:keep])
    with pytest.raises(DataError, match=r"d\.npz"):
        open_data(tmp_path / "d.npz", image)


def test_damaged_content(tmp_path, image, pixels):
    np.savez_compressed(tmp_path / "d.npz", x=pixels)
    data = bytearray((tmp_path / "d.npz").read_bytes())
    data[200:210] = b"0123456789"
    (tmp_path / "d.npz").write_bytes(bytes(data))
    with pytest.raises(DataError, match="'x'"):
        list(open_data(tmp_path / "d.npz", image))


def test_header_that_declares_more_than_there_is(tmp_path, image):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 1, 4, 4)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    with pytest.raises(DataError, match="declares"):
        open_data(tmp_path / "d.npz", image)


def test_a_sample_too_large_to_be_one_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("graphopt.data.npz.MAX_SAMPLE_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((1, 16 << 20), np.int8))
    tracemalloc.start()
    with pytest.raises(DataError, match="one sample of 16777216 bytes"):
        open_data(tmp_path / "d.npz", [TensorSpec("x", np.dtype("int8"), ("N", "T"))])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name", ["../x.npy", "/x.npy", "a/../../x.npy", "..\\x.npy", "\\x.npy", "C:\\x.npy", "c:/x.npy"]
)
def test_members_that_point_outside(tmp_path, image, pixels, name):
    content = io.BytesIO()
    np.save(content, pixels)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr(name, content.getvalue())
    with pytest.raises(DataError, match="outside the archive"):
        open_data(tmp_path / "d.npz", image)


def test_not_an_archive(tmp_path, image):
    (tmp_path / "d.npz").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        open_data(tmp_path / "d.npz", image)
