"""What a net costs as a function of the channels removed: multiply-adds as counted, time in the kernels' steps."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.channels import Dependencies, Group, TensorAxis
from graphopt.graph.cost import cost
from graphopt.passes.pruning import kernels
from graphopt.passes.pruning.times import Target, costs
from tests.passes.pruning.nets import chain
from tests.support import model


@pytest.mark.parametrize("removed", [(0, 0), (8, 0), (0, 48), (17, 33)])
def test_multiply_adds_are_those_of_the_smaller_net(removed: tuple[int, int]) -> None:
    smaller = chain(32 - removed[0], 64 - removed[1])
    assert costs(chain()).macs(removed) == cost(smaller.model).macs


def test_time_falls_in_steps_of_the_kernels_blocks() -> None:
    found = costs(chain())
    step = found.time([0, 0]) - found.time([0, 16])
    assert found.time([0, 0]) - found.time([0, 4]) < 0.05 * step
    assert costs(chain(), Target(multiple=1)).time([0, 4]) < costs(chain(), Target(multiple=1)).time([0, 0])


def test_counts_off_the_blocked_kernels_cost_more_than_the_next_above() -> None:
    found = costs(chain())
    assert found.time([0, 2]) > found.time([0, 0])


def test_what_a_step_saves_depends_on_the_other_side() -> None:
    found = costs(chain())
    whole = found.saved([0, 0], [1], np.array([[16], [32]]))
    halved = found.saved([16, 0], [1], np.array([[16], [32]]))
    assert whole[0][1] == pytest.approx(2 * whole[0][0])
    assert halved[0][1] < whole[0][1]
    assert whole[0][1] == found.macs([0, 0]) - found.macs([0, 32])
    assert whole[1][1] == pytest.approx(found.time([0, 0]) - found.time([0, 32]))


@pytest.mark.parametrize(
    ("weight", "group", "width"),
    [
        pytest.param("32,1,3,3", 32, 32, id="depthwise"),
        pytest.param("32,16,3,3", 2, 32, id="grouped"),
        pytest.param("16,32,3,3", 1, 16, id="narrower"),
    ],
)
def test_multiply_adds_of_grouped_convolutions(weight: str, group: int, width: int) -> None:
    text = f"g (float[1,32,9,9] x) => (float[1,{width},7,7] y) <float[{weight}] w> {{ y = Conv<group={group}>(x, w) }}"
    proto = model(text)
    both = tuple(TensorAxis(name, 1, np.arange(32)[:, None]) for name in (("x", "y") if width == 32 else ("x",)))
    found = costs(Dependencies(proto, (Group(0, "x", 32, (), both),)))
    assert found.macs([0]) == cost(proto).macs
    share = 0.25 if group == 2 else 0.5
    assert found.macs([16]) == pytest.approx(share * found.macs([0]))


def test_products_of_two_computed_matrices_count() -> None:
    proto = model("g (float[2,8,6] q, float[2,6,8] k) => (float[2,8,8] y) { y = MatMul(q, k) }")
    group = Group(
        0, "heads", 6, (), (TensorAxis("q", 2, np.arange(6)[:, None]), TensorAxis("k", 1, np.arange(6)[:, None]))
    )
    found = costs(Dependencies(proto, (group,)))
    assert found.macs([0]) == cost(proto).macs
    assert found.macs([2]) == pytest.approx(found.macs([0]) * 4 / 6)


def layer(weight: str, read: int, written: int, group: int = 1) -> Dependencies:
    """One convolution whose inputs are group 0 and, unless it is depthwise, outputs group 1."""
    text = f"g (float[1,{read},20,20] x) => (float[1,{written},18,18] y) <float[{weight}] w>"
    proto = model(text + f" {{ y = Conv<group={group}>(x, w) }}")
    axes = [TensorAxis("x", 1, np.arange(read)[:, None]), TensorAxis("y", 1, np.arange(written)[:, None])]
    if group == read:
        return Dependencies(proto, (Group(0, "x", read, (), tuple(axes)),))
    return Dependencies(
        proto, tuple(Group(n, axis.tensor, len(axis.indices), (), (axis,)) for n, axis in enumerate(axes))
    )


def test_int8_kernels_take_less_time_and_smaller_steps_of_their_inputs() -> None:
    dense = layer("64,64,3,3", 64, 64)
    wide, int8 = costs(dense), costs(dense, Target(int8=True))

    assert int8.time([0, 0]) < 0.35 * wide.time([0, 0])
    assert wide.time([4, 0]) == wide.time([0, 0])
    assert int8.time([4, 0]) < int8.time([0, 0])
    assert int8.time([0, 4]) == pytest.approx(int8.time([0, 0]), rel=0.02)
    assert int8.time([2, 0]) > int8.time([0, 0])


def test_depthwise_convolutions_gain_nothing_from_int8() -> None:
    depthwise = layer("64,1,3,3", 64, 64, group=64)

    assert costs(depthwise, Target(int8=True)).time([0]) > costs(depthwise).time([0])


def test_every_node_costs_something_however_narrow() -> None:
    found = costs(layer("8,8,1,1", 8, 8))

    assert found.time([7, 7]) > kernels.NODE
