"""merge_groups: narrow groups become whole blocks of channels; each guard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import apply, assert_same, context, feeds, initializer, model, ops, outputs

from graphopt.graph import export_graph, import_graph
from graphopt.passes.base import Goals
from graphopt.passes.merge_groups import MergeGroups, merged_weights

GROUPED = (
    "g (float[N,128,8,8] x) => (float[N,32,H,W] y) <float[32,32,1,1] w, float[32] b> "
    "{{ y = Conv<group = {}>(x, w, b) }}"
)


def groups_of(proto: object) -> int:
    return next(each.i for each in proto.graph.node[0].attribute if each.name == "group")  # type: ignore[attr-defined]


def test_four_groups_of_eight_outputs_become_two_of_sixteen() -> None:
    run = apply(MergeGroups(), model(GROUPED.format(4)))
    assert ops(run.after) == ["Conv"]
    assert groups_of(run.after) == 2
    merged = next(each for each in run.after.graph.initializer if len(each.dims) == 4)
    assert list(merged.dims) == [32, 64, 1, 1]
    assert np.count_nonzero(initializer(run.after, merged.name)) == 32 * 32
    assert run.report.details["growth_bytes"] == 32 * 32 * 4


def test_narrow_groups_of_a_wide_kernel_become_blocks() -> None:
    text = (
        "g (float[1,32,6,6] x) => (float[1,32,6,6] y) <float[32,4,3,3] w> "
        "{ y = Conv<group = 8, pads = [1,1,1,1]>(x, w) }"
    )
    run = apply(MergeGroups(), model(text))
    assert groups_of(run.after) == 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "g (float[1,32,6,6] x) => (float[1,32,6,6] y) <float[32,1,3,3] w> "
            "{ y = Conv<group = 32, pads = [1,1,1,1]>(x, w) }",
            id="depthwise",
        ),
        pytest.param(
            "g (float[1,64,6,6] x) => (float[1,64,6,6] y) <float[64,16,3,3] w> "
            "{ y = Conv<group = 4, pads = [1,1,1,1]>(x, w) }",
            id="whole blocks",
        ),
        pytest.param(
            "g (float[1,48,6,6] x) => (float[1,256,6,6] y) <float[256,12,1,1] w> { y = Conv<group = 4>(x, w) }",
            id="more to multiply than is saved",
        ),
        pytest.param(
            "g (float[1,24,6,6] x) => (float[1,24,6,6] y) <float[24,8,3,3] w> "
            "{ y = Conv<group = 3, pads = [1,1,1,1]>(x, w) }",
            id="never whole blocks",
        ),
        pytest.param(
            "g (float[1,32,6,6] x, float[32,4,3,3] w) => (float[1,32,4,4] y) { y = Conv<group = 8>(x, w) }",
            id="weights given",
        ),
        pytest.param(
            "g (double[1,32,6,6] x) => (double[1,32,4,4] y) <double[32,4,3,3] w> { y = Conv<group = 8>(x, w) }",
            id="double",
        ),
    ],
)
def test_left_alone(text: str) -> None:
    assert apply(MergeGroups(), model(text), compare=False).report.changes == 0


def test_a_budget_of_multiply_adds_counts_zeros_too() -> None:
    work = import_graph(model(GROUPED.format(4)))
    assert MergeGroups().apply(work.gs, replace(context(), goals=Goals(max_macs=0.5))).changes == 0


def test_kernels_without_blocks_gain_nothing() -> None:
    work = import_graph(model(GROUPED.format(4)))
    plain = replace(context(), hardware=replace(context().hardware, channel_multiple={}))
    assert MergeGroups().apply(work.gs, plain).changes == 0


def test_weights_that_others_read_are_copied() -> None:
    proto = model(
        "g (float[N,128,8,8] x) => (float[N,32,H,W] y, float[32,32,1,1] z) <float[32,32,1,1] w> "
        "{ y = Conv<group = 4>(x, w)  z = Relu(w) }"
    )
    run = apply(MergeGroups(), proto)
    assert groups_of(run.after) == 2


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    groups=st.sampled_from([2, 4, 6, 8]),
    outside=st.integers(1, 9),
    inside=st.integers(1, 5),
    taps=st.sampled_from([(1,), (3,), (2, 3)]),
    by=st.sampled_from([1, 2]),
)
def test_merged_weights_convolve_alike(groups: int, outside: int, inside: int, taps: tuple[int, ...], by: int) -> None:
    shape = ",".join(map(str, (groups * outside, inside, *taps)))
    space = ",".join("5" for _ in taps)
    given_shape = f"float[2,{groups * inside},{space}]"
    before = model(f"g ({given_shape} x) => (float y) <float[{shape}] w> {{ y = Conv<group = {groups}>(x, w) }}")
    work = import_graph(before)
    node = work.gs.nodes[0]
    node.inputs[1].values = merged_weights(node.inputs[1].values, groups, by)
    node.attrs["group"] = groups // by
    after = export_graph(work)
    fed = feeds(before)
    assert_same(outputs(before, fed), outputs(after, fed))
