"""Choosing channels: the lowest scores go, each group keeps what it must, and grouped convolutions stay whole."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.channels import Balance, Dependencies, Group
from graphopt.channels.balance import check_selection
from graphopt.channels.select import random_selection, select
from graphopt.errors import UsageError

EVERY = settings(derandomize=True, deadline=None, max_examples=60)


def dependencies(sizes: Sequence[int], *balances: Balance, keep: int = 1) -> Dependencies:
    groups = tuple(Group(number, f"layer{number}", size, (), (), keep=keep) for number, size in enumerate(sizes))
    return Dependencies(onnx.ModelProto(), groups, balances=balances)


def blocks_of(places: Mapping[int, np.ndarray], count: int) -> tuple[dict[int, np.ndarray], ...]:
    """For each block how often every position of every group occurs, given the block of each position."""
    return tuple(
        {group: (where == block).astype(np.int64) for group, where in places.items()} for block in range(count)
    )


def partition(node: str, where: Sequence[int], count: int) -> Balance:
    return Balance(node, "reads", blocks_of({0: np.asarray(where)}, count))


def test_the_lowest_scores_go_first() -> None:
    found = select(dependencies([5]), {0: np.array([3.0, 1.0, 2.0, 0.5, 9.0])}, {0: 2})
    assert found == {0: [1, 3]}


def test_equal_scores_go_in_order() -> None:
    assert select(dependencies([4]), {0: np.zeros(4)}, {0: 2}) == {0: [0, 1]}


def test_a_group_keeps_what_it_must() -> None:
    assert select(dependencies([4], keep=3), {0: np.arange(4.0)}, {0: 4}) == {0: [0]}


def test_groups_that_lose_nothing_are_left_out() -> None:
    assert select(dependencies([4, 4]), {0: np.arange(4.0)}, {0: 1}) == {0: [0]}


def test_each_block_of_a_grouped_convolution_loses_as_many() -> None:
    grouped = dependencies([6], partition("conv", [0, 0, 0, 1, 1, 1], 2))
    # By score alone 0, 1 and 2 would go, all of one block; three cannot be shared, so two go.
    assert select(grouped, {0: np.arange(6.0)}, {0: 3}) == {0: [0, 3]}


def test_no_block_loses_all_its_channels() -> None:
    grouped = dependencies([4], partition("conv", [0, 0, 1, 1], 2))
    assert select(grouped, {0: np.arange(4.0)}, {0: 4}) == {0: [0, 2]}


def test_two_crossing_partitions_lose_the_channels_of_least_score_in_all() -> None:
    """A channel shuffle between two grouped convolutions: channel c is written in block c // 4, read in block c % 2."""
    rows, columns = [0] * 4 + [1] * 4, [0, 1] * 4
    crossing = dependencies([8], partition("before", rows, 2), partition("after", columns, 2))
    scores = np.array([1.0, 9, 9, 9, 9, 2, 1.5, 9])
    # The two lowest are 0 and 6, both read in block 0; 0 with 5 is the cheapest pair of both rows and both columns.
    assert select(crossing, {0: scores}, {0: 3}) == {0: [0, 5]}


@EVERY
@given(st.data())
def test_crossing_partitions_are_solved_to_the_least_sum(data: st.DataObject) -> None:
    rows = np.repeat(np.arange(2), 4)
    columns = np.asarray(data.draw(st.permutations([0, 0, 0, 0, 1, 1, 1, 1])))
    scores = np.array(data.draw(st.lists(st.integers(0, 20), min_size=8, max_size=8)), dtype=float)
    crossing = dependencies([8], partition("before", rows, 2), partition("after", columns, 2))
    asked = data.draw(st.integers(1, 8))

    def fits(picked: tuple[int, ...]) -> bool:
        return all(len(set(np.bincount(where[list(picked)], minlength=2).tolist())) == 1 for where in (rows, columns))

    ways = [picked for count in range(asked + 1) for picked in itertools.combinations(range(8), count)]
    ways = [picked for picked in ways if len(picked) <= 6 and fits(picked)]
    most = max(map(len, ways))
    found = select(crossing, {0: scores}, {0: asked}).get(0, [])
    assert len(found) == most
    assert scores[list(found)].sum() == min(scores[list(each)].sum() for each in ways if len(each) == most)


@EVERY
@given(st.data())
def test_any_balances_end_in_a_selection_that_can_be_cut(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(4, 24), min_size=1, max_size=3))
    balances = []
    for number in range(data.draw(st.integers(1, 3))):
        count = data.draw(st.sampled_from([2, 3, 4]))
        groups = data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))
        total = sum(sizes[group] for group in groups)
        if total % count:
            continue
        order = np.array(data.draw(st.permutations(range(total))))
        blocks = order // (total // count)
        first, places = 0, {}
        for group in sorted(groups):
            places[group] = blocks[first : first + sizes[group]]
            first += sizes[group]
        balances.append(Balance(f"conv{number}", "reads", blocks_of(places, count)))
    linked = dependencies(sizes, *balances)
    rng = np.random.default_rng(data.draw(st.integers(0, 5)))
    scores = {number: rng.random(size) for number, size in enumerate(sizes)}
    remove = {number: data.draw(st.integers(0, size)) for number, size in enumerate(sizes)}
    found = select(linked, scores, remove)
    check_selection(linked, found)
    assert all(len(found.get(number, [])) <= count for number, count in remove.items())
    assert found == select(linked, scores, remove)


def test_balances_over_several_groups_that_mesh() -> None:
    """A Concat of a narrow and a wide tensor in three blocks, the wide one written in three blocks of its own."""
    joined = np.arange(24 + 216) // 80
    concat = Balance("next", "reads", blocks_of({0: joined[:24], 1: joined[24:]}, 3))
    own = Balance("conv", "writes", blocks_of({1: np.arange(216) // 72}, 3))
    linked = dependencies([24, 216], concat, own)
    rng = np.random.default_rng(0)
    found = select(linked, {0: rng.random(24), 1: rng.random(216)}, {0: 12, 1: 108})
    check_selection(linked, found)
    assert len(found[1]) >= 90
    assert len(found[0]) >= 6


def test_groups_that_balances_tie_together_lose_equal_shares_where_too_different_ones_were_asked() -> None:
    joined = np.arange(24 + 216) // 80
    concat = Balance("next", "reads", blocks_of({0: joined[:24], 1: joined[24:]}, 3))
    own = Balance("conv", "writes", blocks_of({1: np.arange(216) // 72}, 3))
    linked = dependencies([24, 216], concat, own)
    found = select(linked, {0: np.arange(24.0), 1: np.arange(216.0)}, {0: 12, 1: 12})
    check_selection(linked, found)
    assert found


def test_two_thousand_channels_in_crossing_blocks_are_chosen_in_time() -> None:
    where = np.arange(2048)
    crossing = dependencies([2048], partition("before", where // 256, 8), partition("after", where % 8, 8))
    found = select(crossing, {0: np.random.default_rng(0).random(2048)}, {0: 1024})
    assert len(found[0]) == 1024
    check_selection(crossing, found)


def test_channels_that_cannot_be_cut_count_for_their_block() -> None:
    where = np.array([0, 0, 0, 1, 1])
    fixed = Balance("conv", "reads", blocks_of({0: where}, 2), extra=(0, 1))
    assert select(dependencies([5], fixed), {0: np.arange(5.0)}, {0: 5}) == {0: [0, 1, 3, 4]}


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        pytest.param({7: [0]}, "there is no group 7", id="unknown group"),
        pytest.param({0: [6]}, "has no channel 6; it has 6", id="unknown channel"),
        pytest.param({0: [0, 1, 2, 3, 4, 5]}, "must keep at least 1 of its 6", id="nothing left"),
        pytest.param({0: [0]}, "'conv' reads its channels in 2 blocks, which must lose equally many", id="unequal"),
    ],
)
def test_a_selection_that_cannot_be_cut_is_refused(selection: dict[int, list[int]], message: str) -> None:
    grouped = dependencies([6], partition("conv", [0, 0, 0, 1, 1, 1], 2))
    with pytest.raises(UsageError, match=message):
        check_selection(grouped, selection)


def test_scores_must_be_there_for_every_channel() -> None:
    with pytest.raises(UsageError, match="has 4 channels, its scores"):
        select(dependencies([4]), {0: np.zeros(3)}, {0: 1})


def test_random_selections_can_be_cut_and_repeat() -> None:
    grouped = dependencies([6, 8], partition("conv", [0, 0, 0, 1, 1, 1], 2))
    for seed in range(10):
        found = random_selection(grouped, seed)
        check_selection(grouped, found)
        assert found == random_selection(grouped, seed)
