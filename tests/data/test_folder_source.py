"""Directories: .npy and .npz files, images in class folders, ONNX test data."""

import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from graphopt.data import Preprocess, open_data, preprocess_of, read_preprocess
from graphopt.errors import DataError
from graphopt.runtime import TensorSpec

F4 = np.dtype("float32")
GREY = {"size": [4, 4], "colour": "gray", "scale": 1.0}


def save_image(path, value, size=(8, 8), mode="L"):
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, value).save(path)


class TestArrays:
    def test_samples_and_batches_in_natural_order(self, tmp_path, image, pixels):
        np.save(tmp_path / "s_10.npy", pixels[8:])
        np.save(tmp_path / "s_2.npy", pixels[0])
        np.savez(tmp_path / "s_3.npz", x=pixels[1:8])
        source = open_data(tmp_path, image)
        assert source.length == 12
        assert np.array_equal(np.concatenate([sample.inputs["x"] for sample in source]), pixels)

    def test_labels_file(self, tmp_path, image, pixels):
        np.save(tmp_path / "a.npy", pixels[:5])
        np.save(tmp_path / "b.npy", pixels[5])
        np.save(tmp_path / "labels.npy", np.arange(6))
        assert [sample.label for sample in open_data(tmp_path, image)] == list(range(6))

    def test_labels_file_too_short(self, tmp_path, image, pixels):
        np.save(tmp_path / "a.npy", pixels)
        np.save(tmp_path / "labels.npy", np.arange(6))
        with pytest.raises(DataError, match=r"labels\.npy: 6 labels"):
            open_data(tmp_path, image)

    def test_one_wrong_file_is_named_at_once(self, tmp_path, image, pixels):
        np.save(tmp_path / "a.npy", pixels)
        np.save(tmp_path / "b.npy", pixels[:, :, :3])
        with pytest.raises(DataError, match=r"b\.npy.*\[12, 1, 3, 4\].*\[N, 1, 4, 4\]"):
            open_data(tmp_path, image)

    def test_npy_files_cannot_feed_two_inputs(self, tmp_path, pixels):
        np.save(tmp_path / "a.npy", pixels)
        with pytest.raises(DataError, match=r"inputs a, b; save \.npz"):
            open_data(tmp_path, [TensorSpec("a", F4, None), TensorSpec("b", F4, None)])

    def test_truncated_npy(self, tmp_path, image, pixels):
        np.save(tmp_path / "a.npy", pixels)
        (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
        with pytest.raises(DataError, match=r"a\.npy.*truncated"):
            open_data(tmp_path, image)

    def test_pickle_is_never_loaded(self, tmp_path, image):
        np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
        with pytest.raises(DataError, match="never read"):
            open_data(tmp_path, image)


class TestImages:
    def test_class_folders(self, tmp_path, image):
        for label, name in ((10, "10_dog"), (2, "2_cat"), (2, "2_cat")):
            save_image(tmp_path / name / f"{len(list(tmp_path.glob('*/*')))}.png", label)
        source = open_data(tmp_path, image, preprocess=GREY)
        assert source.length == 3
        assert [(sample.label, float(sample.inputs["x"].mean())) for sample in source] == [(2, 2), (2, 2), (10, 10)]

    def test_classes_file(self, tmp_path, image):
        save_image(tmp_path / "cat" / "a.png", 1)
        save_image(tmp_path / "ant" / "a.png", 1)
        (tmp_path / "classes.txt").write_text("dog\ncat\nant\n")
        assert sorted(sample.label for sample in open_data(tmp_path, image, preprocess=GREY)) == [1, 2]

    def test_without_classes(self, tmp_path, image):
        save_image(tmp_path / "a.png", 1)
        assert not open_data(tmp_path, image, preprocess=GREY).labelled

    def test_skipped_images_are_not_decoded(self, tmp_path, image):
        save_image(tmp_path / "0.png", 1)
        (tmp_path / "1.png").write_bytes(b"no image")
        source = open_data(tmp_path, image, preprocess=GREY)
        assert len(list(source.only(lambda index: index == 0, description="", size=1))) == 1
        with pytest.raises(DataError, match=r"1\.png: cannot be read as an image"):
            list(source)

    def test_class_of_a_folder_unknown(self, tmp_path, image):
        save_image(tmp_path / "cat" / "a.png", 1)
        with pytest.raises(DataError, match=r"0_cat.*classes\.txt"):
            open_data(tmp_path, image, preprocess=GREY)

    def test_without_preprocessing(self, tmp_path, image):
        save_image(tmp_path / "a.png", 1)
        with pytest.raises(DataError, match=r"--preprocess"):
            open_data(tmp_path, image)

    def test_wrong_size(self, tmp_path, image):
        save_image(tmp_path / "a.png", 1)
        with pytest.raises(DataError, match=r"a\.png.*\[1, 8, 8\]"):
            open_data(tmp_path, image, preprocess={"colour": "GRAY"})

    def test_without_pillow(self, tmp_path, image, monkeypatch):
        save_image(tmp_path / "a.png", 1)
        monkeypatch.setitem(sys.modules, "PIL", None)
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(DataError, match=r"pip install 'graphopt\[images\]'"):
            open_data(tmp_path, image, preprocess=GREY)


class TestPreprocess:
    def red(self, tmp_path, block, shape=(1, 3, 2, 2)):
        save_image(tmp_path / "a.png", (255, 51, 0), size=(4, 2), mode="RGB")
        return next(iter(open_data(tmp_path, [TensorSpec("x", F4, shape)], preprocess=block))).inputs["x"]

    def test_scale_mean_std_in_channel_order(self, tmp_path):
        block = {"size": [2, 2], "mean": [0.5, 0.1, 0.0], "std": [0.5, 0.1, 2.0]}
        assert self.red(tmp_path, block)[0, :, 0, 0] == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)

    def test_bgr_last(self, tmp_path):
        block = {"size": 2, "colour": "BGR", "layout": "NHWC", "scale": 1}
        assert self.red(tmp_path, block, (1, 2, 2, 3))[0, 0, 0].tolist() == [0, 51, 255]

    def test_pad_keeps_the_aspect(self, tmp_path):
        found = self.red(tmp_path, {"size": [4, 4], "fit": "pad", "scale": 1}, (1, 3, 4, 4))
        assert found[0, 0, :, 0].tolist() == [0, 255, 255, 0]

    def test_resize_then_centre(self, tmp_path):
        Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 10, (4, 1))).save(tmp_path / "a.png")
        block = {"resize": 4, "size": [4, 4], "colour": "GRAY", "scale": 1}
        found = next(iter(open_data(tmp_path, [TensorSpec("x", F4, (1, 1, 4, 4))], preprocess=block)))
        assert found.inputs["x"][0, 0, 0].tolist() == [20, 30, 40, 50]

    def test_from_toml_and_from_the_model(self, tmp_path):
        text = '[preprocess]\nsize = [2, 3]\nmean = 0.5\ncolour = "BGR"\n'
        (tmp_path / "p.toml").write_text(text)
        expected = Preprocess(size=(2, 3), mean=(0.5,), colour="BGR")
        assert read_preprocess(tmp_path / "p.toml") == expected
        model = onnx.ModelProto()
        assert preprocess_of(model) is None
        model.metadata_props.add(key="graphopt.preprocess", value=text)
        assert preprocess_of(model) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("size = ", "not TOML"),
            ("sizes = [1, 1]", "unknown key 'sizes'"),
            ('layout = "CHW"', "choose from NCHW, NHWC"),
            ("mean = [1, 2]", "'mean' has 2 values"),
            ("std = [1, 0, 1]", "divides by zero"),
            ("size = [0, 3]", "whole numbers of pixels"),
            ("size = [1, 2, 3]", "height, width"),
            ('scale = "1/255"', "not a number"),
        ],
    )
    def test_refuses(self, tmp_path, text, message):
        (tmp_path / "p.toml").write_text(text)
        with pytest.raises(DataError, match=message) as error:
            read_preprocess(tmp_path / "p.toml")
        assert "p.toml" in str(error.value)


class TestOnnxTestData:
    def write(self, folder, number, array, name=""):
        folder.mkdir(exist_ok=True, parents=True)
        tensor = onnx.numpy_helper.from_array(array, name)
        (folder / f"input_{number}.pb").write_bytes(tensor.SerializeToString())

    def test_inputs_by_name_else_by_position(self, tmp_path):
        specs = [TensorSpec("a", F4, (1, 2)), TensorSpec("b", np.dtype("int64"), (3,))]
        for folder in ("test_data_set_10", "test_data_set_2"):
            self.write(tmp_path / folder, 0, np.full((1, 2), int(folder[14:]), np.float32))
            self.write(tmp_path / folder, 1, np.arange(3))
        self.write(tmp_path / "test_data_set_2", 0, np.arange(3), "b")
        self.write(tmp_path / "test_data_set_2", 1, np.full((1, 2), 2, np.float32), "a")
        source = open_data(tmp_path, specs)
        assert [float(sample.inputs["a"][0, 0]) for sample in source] == [2, 10]
        assert [sample.inputs["b"].tolist() for sample in source] == [[0, 1, 2]] * 2
        assert open_data(tmp_path / "test_data_set_10", specs).length == 1

    def test_text_inputs(self, tmp_path):
        self.write(tmp_path, 0, np.array(["é", "b"], dtype=object))
        sample = next(iter(open_data(tmp_path, [TensorSpec("t", np.dtype(object), (2,))])))
        assert sample.inputs["t"].tolist() == ["é", "b"]

    @pytest.mark.parametrize(
        "content",
        [b"\x00\xff junk", b"", onnx.numpy_helper.from_array(np.zeros((1, 2), np.float32)).SerializeToString()[:-4]],
    )
    def test_damaged(self, tmp_path, content):
        (tmp_path / "input_0.pb").write_bytes(content)
        with pytest.raises(DataError, match=r"input_0\.pb"):
            open_data(tmp_path, [TensorSpec("a", F4, (1, 2))])

    def test_external_data_is_refused(self, tmp_path):
        tensor = onnx.TensorProto(dims=[2], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
        with pytest.raises(DataError, match="outside the file; refused"):
            open_data(tmp_path, [TensorSpec("a", F4, (2,))])

    def test_wrong_number_of_files(self, tmp_path):
        self.write(tmp_path, 0, np.zeros(2, np.float32))
        with pytest.raises(DataError, match=r"1 input_\*\.pb for the model's inputs a, b"):
            open_data(tmp_path, [TensorSpec("a", F4, (2,)), TensorSpec("b", F4, (2,))])


def test_folder_without_data(tmp_path, image):
    with pytest.raises(DataError, match=r"holds no \.npy"):
        open_data(tmp_path, image)
