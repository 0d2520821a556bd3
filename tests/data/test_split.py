"""Three disjoint parts, deterministic by seed, in one pass."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.data import Caps, assemble, open_data, split
from graphopt.errors import DataError, UsageError
from graphopt.runtime import TensorSpec

SPECS = (TensorSpec("x", np.dtype("int64"), ("N",)),)


def numbers(count):
    return open_data({"x": np.arange(count)}, SPECS)


def stream(count):
    return open_data(({"x": np.array([i])} for i in range(count)), SPECS)


def indices(part):
    return [int(sample.inputs["x"][0]) for sample in part]


def dealt(parts):
    return [indices(part) for part in (parts.calibration, parts.selection, parts.evaluation)]


@given(count=st.integers(3, 60), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_complete_and_never_empty(count, seed):
    parts = dealt(split(numbers(count), seed=seed))
    assert sorted(itertools.chain(*parts)) == list(range(count))
    assert all(parts)
    assert abs(len(parts[0]) - count / 4) <= 1
    assert abs(len(parts[1]) - count / 4) <= 1


def test_the_split_never_changes():
    assert dealt(split(numbers(12), seed=0)) == [[2, 7, 11], [0, 4, 9], [1, 3, 5, 6, 8, 10]]
    assert dealt(split(numbers(12), seed=1)) != dealt(split(numbers(12), seed=0))


@pytest.mark.parametrize("count", [3, 10, 101])
def test_a_stream_is_split_like_a_file(count):
    assert dealt(split(stream(count), seed=3)) == dealt(split(numbers(count), seed=3))


def test_parts_know_their_length_and_can_be_read_again():
    parts = split(numbers(50))
    assert [part.length for part in (parts.calibration, parts.selection, parts.evaluation)] == [
        len(part) for part in dealt(parts)
    ]
    assert dealt(parts) == dealt(parts)


def test_caps_spread_over_the_data_and_give_the_rest_to_evaluation():
    parts = dealt(split(numbers(1000), caps=Caps(calibration=10, selection=20)))
    assert [len(part) for part in parts] == [10, 20, 970]
    assert sorted(itertools.chain(*parts)) == list(range(1000))
    assert [index // 100 for index in parts[0]] == list(range(10))


def test_caps_of_an_endless_stream():
    source = open_data(({"x": np.array([i])} for i in itertools.count()), SPECS)
    parts = split(source, caps=Caps(calibration=5, selection=5, evaluation=30))
    found = dealt(parts)
    assert [len(part) for part in found] == [5, 5, 30]
    assert len(set(itertools.chain(*found))) == 40


def test_data_sorted_by_class_is_spread():
    labels = np.repeat(np.arange(10), 40)
    source = open_data({"x": np.arange(400), "labels": labels}, SPECS)
    parts = split(source)
    assert np.bincount([sample.label for sample in parts.calibration]).tolist() == [10] * 10


def test_calibration_sees_no_labels():
    source = open_data({"x": np.arange(8), "labels": np.arange(8)}, SPECS)
    assert all(set(feed) == {"x"} for feed in split(source).calibration.feeds)


@pytest.mark.parametrize("make", [numbers, stream])
def test_too_few(make):
    with pytest.raises(DataError, match="2 samples cannot be split into 3 parts"):
        split(make(2))


class TestAssemble:
    def parts(self, **sources):
        return assemble(**sources, opener=lambda count: numbers(int(count)))

    def test_data_alone_feeds_everything(self):
        assert dealt(self.parts(data="40")) == dealt(split(numbers(40)))

    def test_calibration_data_alone(self):
        parts = self.parts(calibration_data="10")
        assert parts.evaluation is None
        assert sorted(indices(parts.calibration) + indices(parts.selection)) == list(range(10))
        assert len(indices(parts.calibration)) == 5

    @pytest.mark.parametrize("make", [numbers, stream])
    def test_what_calibration_leaves_goes_to_selection(self, make):
        caps = Caps(calibration=10, selection=100)
        parts = assemble(calibration_data=90, opener=make, caps=caps)
        assert len(indices(parts.calibration)) == 10
        assert sorted(indices(parts.calibration) + indices(parts.selection)) == list(range(90))
        assert parts.selection.length in (80, None)

    def test_of_many_samples_selection_is_spread_over_the_data(self):
        parts = assemble(calibration_data=4000, opener=numbers, caps=Caps(calibration=10, selection=40))
        chosen = indices(parts.selection)
        assert 30 <= len(chosen) <= 40
        assert not set(chosen) & set(indices(parts.calibration))
        assert {index // 400 for index in chosen} == set(range(10))

    def test_eval_data_alone(self):
        parts = self.parts(eval_data="10")
        assert (parts.calibration, parts.selection) == (None, None)
        assert indices(parts.evaluation) == list(range(10))

    def test_data_fills_what_is_left_open(self):
        parts = self.parts(data="7", calibration_data="10")
        assert indices(parts.evaluation) == list(range(7))
        parts = self.parts(data="7", eval_data="10")
        assert len(indices(parts.calibration) + indices(parts.selection)) == 7
        assert indices(parts.evaluation) == list(range(10))

    def test_nothing(self):
        assert self.parts() == assemble(opener=numbers)
        assert self.parts().evaluation is None

    def test_refuses_to_judge_on_what_was_tuned_on(self):
        with pytest.raises(UsageError, match="give it once as --data"):
            self.parts(calibration_data="10", eval_data="./10")

    def test_refuses_all_three(self):
        with pytest.raises(UsageError, match="leave it out"):
            self.parts(data="1", calibration_data="2", eval_data="3")
