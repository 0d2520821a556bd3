"""The path of plans: nested, within budgets, on counts that kernels reward, cheapest noise first."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.channels import Balance, Dependencies, Group, TensorAxis
from graphopt.graph.cost import cost
from graphopt.passes.pruning.alignment import ladders
from graphopt.passes.pruning.curves import Curve
from graphopt.passes.pruning.path import Path
from graphopt.passes.pruning.plan import plan_path
from graphopt.passes.pruning.times import costs
from tests.passes.pruning.nets import chain
from tests.support import model


def curve(group: int, size: int, height: float) -> Curve:
    """Noise grows with the square of the share removed, up to ``height``."""
    return Curve(group, size, np.arange(size - 1), height * np.square(np.arange(size) / size))


def planned(dependencies: Dependencies, heights: dict[int, float], **options: str) -> Path:
    curves = {number: curve(number, dependencies[number].size, height) for number, height in heights.items()}
    return plan_path(dependencies, curves, costs(dependencies), ladders(dependencies), **options)  # type: ignore[arg-type]


def test_each_plan_is_a_cut_of_the_one_before() -> None:
    path = planned(chain(), {0: 1.0, 1: 1.0})
    assert path.steps[0].kept == {}
    for before, after in zip(path.steps, path.steps[1:], strict=False):
        assert all(after.kept[number] <= kept for number, kept in before.kept.items())
        assert after.macs < before.macs
        assert after.noise >= before.noise


@pytest.mark.parametrize("price", ["macs", "latency", "both"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
def test_a_budget_is_met(price: str, share: float) -> None:
    dependencies = chain()
    step = planned(dependencies, {0: 1.0, 1: 1.0}, price=price).at(macs=share)
    assert step.macs <= share
    smaller = chain(step.kept.get(0, 32), step.kept.get(1, 64))
    assert step.macs == pytest.approx((cost(smaller.model).macs or 0) / (cost(dependencies.model).macs or 1))


@pytest.mark.parametrize("share", [0.8, 0.55, 0.3])
def test_what_fits_into_a_budget_is_given_back(share: float) -> None:
    dependencies = chain(64, 256)
    path = planned(dependencies, {0: 1.0, 1: 1.0})
    plain, filled = path.at(macs=share), path.within(share)
    assert plain.macs <= filled.macs <= share
    assert filled.noise <= plain.noise
    smaller = chain(filled.kept.get(0, 64), filled.kept.get(1, 256))
    assert filled.macs == pytest.approx((cost(smaller.model).macs or 0) / (cost(dependencies.model).macs or 1))
    step = max(before.macs - after.macs for before, after in zip(path.steps, path.steps[1:], strict=False))
    assert share - filled.macs < step


def test_what_costs_least_goes_first() -> None:
    step = planned(chain(64, 64), {0: 100.0, 1: 0.01}).at(macs=0.6)
    assert step.kept[1] < 64
    assert 0 not in step.kept


def test_uniform_takes_the_same_share_everywhere() -> None:
    step = planned(chain(64, 64), {0: 100.0, 1: 0.01}, scope="uniform").at(macs=0.3)
    assert step.kept[0] == step.kept[1] == 32


def test_latency_asks_for_steps_that_save_time() -> None:
    counts = {
        count
        for step in planned(chain(64, 96), {0: 1.0, 1: 1.0}, price="latency").steps
        for count in step.kept.values()
    }
    assert all(count % 16 == 0 for count in counts)


def test_groups_without_a_curve_stay_whole() -> None:
    assert all(0 not in step.kept for step in planned(chain(), {1: 1.0}).steps)


def test_the_last_plan_answers_budgets_that_cannot_be_met() -> None:
    path = planned(chain(), {0: 1.0, 1: 1.0})
    assert path.at(macs=0.0) is path.steps[-1]
    assert path.at(speedup=1e6) is path.steps[-1]


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        pytest.param(256, list(range(256, 16, -16)), id="wide"),
        pytest.param(48, [48, 40, 32, 24, 16, 8], id="in steps of 8"),
        pytest.param(24, [24, 20, 16, 12, 8, 4], id="in steps of 4"),
        pytest.param(100, [100, 96, 80, 64, 48, 32, 16], id="odd width"),
        pytest.param(6, [6, 5, 4, 3, 2, 1], id="too small for steps"),
    ],
)
def test_counts_are_multiples_that_kernels_reward(size: int, counts: list[int]) -> None:
    places = (TensorAxis("t", 1, np.arange(size)[:, None]),)
    (found,) = ladders(
        Dependencies(model("g (float[1] x) => (float[1] y) { y = Relu(x) }"), (Group(0, "g", size, (), places),))
    )
    assert [count for count in found.counts.tolist() if count >= counts[-1]] == counts


def test_keep_is_respected() -> None:
    places = (TensorAxis("t", 1, np.arange(32)[:, None]),)
    group = Group(0, "g", 32, (), places, keep=20)
    (found,) = ladders(Dependencies(chain().model, (group,)))
    assert found.counts.min() >= 20


def test_blocks_of_a_grouped_convolution_lose_equally() -> None:
    places = (TensorAxis("t", 1, np.arange(48)[:, None]),)
    block = np.repeat(np.eye(3, dtype=np.int64), 16, axis=1)
    balance = Balance("conv", "reads", tuple({0: row} for row in block))
    (found,) = ladders(Dependencies(chain().model, (Group(0, "g", 48, (), places),), balances=(balance,)))
    assert all((48 - count) % 3 == 0 for count in found.counts.tolist())


def test_groups_that_fill_different_blocks_go_together() -> None:
    groups = tuple(Group(n, "g", 32, (), (TensorAxis(f"t{n}", 1, np.arange(32)[:, None]),)) for n in range(2))
    ones = np.ones(32, dtype=np.int64)
    balance = Balance("conv", "reads", ({0: ones}, {1: ones}))
    (found,) = ladders(Dependencies(chain().model, groups, balances=(balance,)))
    assert found.groups == (0, 1)
    assert (found.kept[:, 0] == found.kept[:, 1]).all()


def test_groups_of_different_sizes_in_one_grouped_convolution_lose_the_same_share() -> None:
    groups = tuple(
        Group(n, "g", size, (), (TensorAxis(f"t{n}", 1, np.arange(size)[:, None]),)) for n, size in enumerate((32, 64))
    )
    halves = np.repeat(np.eye(2, dtype=np.int64), 32, axis=1)
    balance = Balance("conv", "reads", ({0: np.ones(32, np.int64)}, {1: halves[0]}, {1: halves[1]}))
    (found,) = ladders(Dependencies(chain().model, groups, balances=(balance,)))
    assert len(found.kept) >= 4
    assert (found.kept[:, 1] == 2 * found.kept[:, 0]).all()
