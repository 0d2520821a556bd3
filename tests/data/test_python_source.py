"""Mappings, iterables, generators and MODULE:FUNCTION."""

import errno
import io
import itertools
import os
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from graphopt.data import DataWarning, open_data, random_feeds, split
from graphopt.errors import DataError, UsageError
from graphopt.runtime import TensorSpec

F4 = np.dtype("float32")


def labels_of(source):
    return [sample.label for sample in source]


def stack(source):
    return np.concatenate([sample.inputs["x"] for sample in source])


class TestIterables:
    def test_mapping_of_arrays(self, image, pixels):
        source = open_data({"x": pixels, "labels": np.arange(12)}, image)
        assert (source.length, labels_of(source)) == (12, list(range(12)))

    def test_bare_array(self, image, pixels):
        assert np.array_equal(stack(open_data(pixels, image)), pixels)

    @pytest.mark.parametrize("batch", [1, 5, 12])
    def test_batches_are_split_into_samples(self, image, pixels, batch):
        items = [(pixels[i : i + batch], np.arange(i, min(i + batch, 12))) for i in range(0, 12, batch)]
        source = open_data(items, image)
        assert labels_of(source) == list(range(12))
        assert np.array_equal(stack(source), pixels)

    def test_labels_beside_the_inputs(self, image, pixels):
        assert labels_of(open_data([{"x": pixels, "labels": np.arange(12)}], image)) == list(range(12))

    def test_samples_without_batch_axis(self, image, pixels):
        assert np.array_equal(stack(open_data([({"x": row}, 0) for row in pixels], image)), pixels)

    def test_one_label_for_several_rows_keeps_the_feed_whole(self):
        clouds = open_data(
            [(np.zeros((30, 3), "f4"), 4), (np.zeros((20, 3), "f4"), 5)], [TensorSpec("x", F4, ("P", 3))]
        )
        assert [(sample.inputs["x"].shape, sample.label) for sample in clouds] == [((30, 3), 4), ((20, 3), 5)]

    def test_inputs_without_a_common_batch_axis_are_fed_whole(self):
        specs = [TensorSpec("x", F4, ("T", 1, 3)), TensorSpec("h", F4, (2, 1, 5))]
        source = open_data([{"x": np.zeros((9, 1, 3), "f4"), "h": np.zeros((2, 1, 5), "f4")}], specs)
        assert [sample.inputs["x"].shape for sample in source] == [(9, 1, 3)]

    def test_text_labels_for_a_custom_metric(self, image, pixels):
        assert labels_of(open_data([(pixels[:1], "one"), (pixels[1:2], "two")], image)) == ["one", "two"]

    def test_generator_is_read_once_and_again_from_disk(self, image, pixels):
        started = []

        def stream():
            started.append(1)
            yield from (({"x": row}, index) for index, row in enumerate(pixels))

        source = open_data(stream(), image)
        assert source.length is None
        assert np.array_equal(stack(source), stack(source))
        assert (source.length, labels_of(source), started) == (12, list(range(12)), [1])

    def test_generator_is_pulled_no_further_than_read(self, image, pixels):
        pulled = itertools.count()
        source = open_data(({"x": pixels[next(pulled) % 12]} for _ in itertools.count()), image)
        assert len(list(itertools.islice(source, 3))) == 3
        assert next(pulled) == 3

    def test_stream_of_batches_that_shuffles_itself_is_kept(self, image, pixels):
        class Loader:
            def __iter__(self):
                yield from np.random.default_rng().permutation(pixels)

        source = open_data(Loader(), image)
        assert np.array_equal(stack(source), stack(source))

    def test_a_stream_that_failed_fails_again(self, image, pixels):
        pixels[5] = np.nan
        source = open_data(iter(pixels), image)
        for _ in range(2):
            with pytest.raises(DataError, match="item 5: input 'x' holds NaN"):
                list(source)

    def test_no_space_left(self, image, pixels, monkeypatch):
        class Full(io.BytesIO):
            def write(self, data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full())
        with pytest.raises(DataError, match=r"No space left on device; free some space, or point TMPDIR"):
            open_data(iter(pixels), image)

    def test_two_readers_at_once(self, image, pixels):
        source = open_data(iter([{"x": row} for row in pixels]), image)
        for first, second in zip(source, source, strict=True):
            assert np.array_equal(first.inputs["x"], second.inputs["x"])

    def test_readers_in_threads(self, image, pixels):
        source = open_data(iter(np.tile(pixels, (20, 1, 1, 1))), image)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: stack(source), range(8)):
                assert np.array_equal(found, np.tile(pixels, (20, 1, 1, 1)))

    def test_memory_of_a_long_stream_is_flat(self):
        specs = [TensorSpec("x", F4, (1, 100_000))]
        tracemalloc.start()
        source = open_data((np.full((1, 100_000), i, "f4") for i in range(200)), specs)
        assert [int(sample.inputs["x"][0, 0]) for sample in source] == list(range(200))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # the stream has 80 MB
        tracemalloc.stop()

    def test_bfloat16_and_text_survive_the_disk(self):
        import ml_dtypes

        specs = [TensorSpec("x", np.dtype(ml_dtypes.bfloat16), (1, 2)), TensorSpec("t", np.dtype(object), (1, 1))]
        item = {"x": np.array([[1.5, -2]], ml_dtypes.bfloat16), "t": np.array([["é"]])}
        sample = next(iter(open_data(iter([item]), specs)))
        assert sample.inputs["x"].dtype == ml_dtypes.bfloat16
        assert sample.inputs["x"].astype("f4").tolist() == [[1.5, -2]]
        assert sample.inputs["t"].tolist() == [["é"]]

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            pytest.param([], "no samples", id="empty"),
            pytest.param([{}], "item 0: holds no arrays", id="empty item"),
            pytest.param([(1, 2, 3)], "a tuple of 3", id="triple"),
            pytest.param([{"x": object()}], "no array of numbers", id="object"),
            pytest.param([np.zeros((1, 1, 4, 4), "f4"), np.zeros((1, 4), "f4")], r"item 1.*\[1, 4\]", id="shape"),
            pytest.param([np.full((1, 1, 4, 4), b"a")], "float32, the data is", id="bytes"),
            pytest.param([np.zeros((1, 1, 4, 4), "i4")], "float32, the data is int32", id="integers"),
            pytest.param(
                [(np.zeros((1, 1, 4, 4), "f4"), 1), np.zeros((1, 1, 4, 4), "f4")], "item 1: has no label", id="label"
            ),
        ],
    )
    def test_refuses(self, image, items, message):
        with pytest.raises(DataError, match=message):
            list(open_data(items, image))

    def test_number(self, image):
        with pytest.raises(DataError, match="data is a int"):
            open_data(3, image)

    def test_an_error_in_the_stream_is_told_in_one_line(self, image, pixels):
        def stream():
            yield pixels[0]
            raise ZeroDivisionError("by zero")

        with pytest.raises(DataError, match=r"item 1: ZeroDivisionError: by zero \(test_python_source\.py, line \d+\)"):
            list(open_data(stream(), image))


class TestDtypes:
    def one(self, array, dtype):
        return next(iter(open_data([array], [TensorSpec("x", np.dtype(dtype), ("N", 2))]))).inputs["x"]

    @pytest.mark.parametrize(
        ("have", "want"),
        [
            ("f8", "f4"),
            ("f2", "f4"),
            ("f4", "f2"),
            (">f4", "f4"),
            ("i4", "i8"),
            ("i8", "i4"),
            ("u1", "i8"),
            ("?", "f4"),
        ],
    )
    def test_converts(self, have, want):
        found = self.one(np.array([[1, 0]], have), want)
        assert found.dtype == np.dtype(want)
        assert found.tolist() == [[1, 0]]

    @pytest.mark.parametrize(
        ("value", "have", "want"), [(300, "i8", "u1"), (-1, "i8", "u1"), (1 << 40, "i8", "i4"), (1e30, "f4", "f2")]
    )
    def test_values_that_do_not_fit(self, value, have, want):
        with pytest.raises(DataError, match="cannot hold"):
            self.one(np.array([[0, value]], have), want)

    @pytest.mark.parametrize(("have", "want"), [("f4", "i8"), ("i8", "f4"), ("u1", "f4"), ("f4", "?")])
    def test_refuses(self, have, want):
        with pytest.raises(DataError, match="wants"):
            self.one(np.zeros((1, 2), have), want)


class TestFixedBatch:
    specs = (TensorSpec("x", F4, (4, 1, 4, 4)),)

    def test_samples_are_joined_and_the_rest_is_told(self, pixels):
        with pytest.warns(DataWarning, match="last 2 of 10 samples"):
            source = open_data({"x": pixels[:10], "labels": np.arange(10)}, self.specs)
        found = list(source)
        assert source.length == 2
        assert [sample.label.tolist() for sample in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert found[0].count == 4
        assert np.array_equal(stack(source), pixels[:8])

    def test_batches_of_another_size_are_regrouped(self, pixels):
        assert np.array_equal(stack(open_data([pixels[:5], pixels[5:]], self.specs)), pixels)

    def test_the_rest_of_a_stream(self, pixels):
        source = open_data(iter(pixels[:9]), self.specs)
        with pytest.warns(DataWarning, match="last 1 of 9"):
            assert len(list(source)) == 2

    def test_too_few(self, pixels):
        with pytest.raises(DataError, match="fixed to 4, give at least"), pytest.warns(DataWarning):
            open_data(iter(pixels[:3]), self.specs)

    def test_a_shape_from_the_user(self, image, pixels):
        assert open_data(pixels, image, shapes={"x": (6, 1, 4, 4)}).length == 2

    @pytest.mark.parametrize("shapes", [{"y": (1, 1, 4, 4)}, {"x": (1, 1, 4, 5)}, {"x": (4, 4)}])
    def test_a_shape_that_contradicts_the_model(self, image, pixels, shapes):
        with pytest.raises(UsageError, match="input shape"):
            open_data(pixels, image, shapes=shapes)


class TestFunctions:
    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        def write(text):
            name = f"user_data_{len(os.listdir(tmp_path))}_{abs(hash(text))}"
            (tmp_path / f"{name}.py").write_text(f"import numpy as np\n{text}")
            return name

        monkeypatch.chdir(tmp_path)
        return write

    def test_generator_function_in_the_current_directory(self, module, image):
        name = module("def data():\n for i in range(5): yield {'x': np.full((1, 1, 4, 4), i, 'f4')}, i")
        assert labels_of(open_data(f"{name}:data", image)) == [0, 1, 2, 3, 4]

    def test_function_that_returns_arrays(self, module, image):
        name = module("def data(): return {'x': np.zeros((5, 1, 4, 4), 'f4'), 'labels': np.arange(5)}")
        assert labels_of(open_data(f"{name}:data", image)) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("def other(): pass", "no function 'data'"),
            ("import nothing_like_it", "no module named 'nothing_like_it'"),
            ("1 / 0", "importing .* failed: ZeroDivisionError"),
            ("def data(path): pass", "TypeError"),
            ("def data(): return 3", "returned a int"),
            ("def data(): return iter(())", "no samples"),
        ],
    )
    def test_refuses(self, module, image, text, message):
        name = module(text)
        with pytest.raises(DataError, match=message):
            open_data(f"{name}:data", image)

    @pytest.mark.parametrize("name", ["no/such.npz", "nosuch.npz", "no_such_module:data", "C:\\data.npz"])
    def test_nothing_of_that_name(self, image, name):
        with pytest.raises(DataError, match=r"no such file or directory|no module named"):
            open_data(name, image)

    def test_unknown_kind_of_file(self, tmp_path, image):
        (tmp_path / "d.csv").write_text("1,2")
        with pytest.raises(DataError, match=r"d\.csv: not a data source"):
            open_data(tmp_path / "d.csv", image)


class TestRandomFeeds:
    def test_is_flagged_deterministic_and_shaped(self):
        specs = [TensorSpec("x", F4, ("N", 2)), TensorSpec("i", np.dtype("int64"), (3,))]
        source = random_feeds(specs, seed=1, count=2)
        assert source.synthetic
        for first, second in zip(source, random_feeds(specs, seed=1, count=2), strict=True):
            assert first.inputs["x"].shape == (1, 2)
            assert first.inputs["i"].dtype == np.int64
            assert np.array_equal(first.inputs["x"], second.inputs["x"])

    def test_cannot_be_split(self):
        with pytest.raises(DataError, match="random data"):
            split(random_feeds([TensorSpec("x", F4, (1, 2))], count=9))

    def test_asks_for_dynamic_dimensions(self):
        with pytest.raises(UsageError, match=r"--input-shape x:1,3,224,224"):
            random_feeds([TensorSpec("x", F4, ("N", 3, "H", "W"))])
