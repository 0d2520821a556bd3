"""Which form and rank each layer gets: prices, paths and budgets, on layers whose costs and noises are given."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.separable.ranks import Choice, Option, Plan, Totals, made, path, plan, within

WHOLE = Totals(time=100.0, macs=1000)


def option(time: float, noise: float, rank: int = 1) -> Option:
    return Option("depthwise_first", rank, "sum", time, round(10 * time), noise)


def layer(name: str, time: float, *options: Option) -> Choice:
    return Choice(name, time, round(10 * time), options)


def ranks(found: Plan) -> dict[str, int]:
    return {name: option.rank for name, option in found.chosen.items()}


# ``a`` saves 30 % of the time for a noise of 0.1, or 20 % for 0.01; ``b`` saves 20 % for 0.2.
A = layer("a", 40, option(10, 0.1, rank=1), option(20, 0.01, rank=2))
B = layer("b", 40, option(20, 0.2, rank=1))


@pytest.mark.parametrize(
    ("price", "chosen"),
    [
        pytest.param(30, {}, id="noise is dear: nothing pays"),
        pytest.param(10, {"a": 2}, id="the option that saves most for its noise"),
        pytest.param(1.2, {"a": 2}, id="10 % more time for 0.09 more noise is too little"),
        pytest.param(1.05, {"a": 1}, id="now it pays"),
        pytest.param(0.9, {"a": 1, "b": 1}, id="and so does the other layer"),
    ],
)
def test_each_layer_takes_what_saves_most_for_its_noise(price: float, chosen: dict[str, int]) -> None:
    assert ranks(plan([A, B], WHOLE, price)) == chosen


def test_a_plan_tells_shares_of_the_whole_model_and_the_sum_of_noises() -> None:
    found = plan([A, B], WHOLE, 0.1)

    assert found.time == pytest.approx(1 - 0.3 - 0.2)
    assert found.macs == pytest.approx(1 - 0.3 - 0.2)
    assert found.noise == pytest.approx(0.1 + 0.2)


def test_what_is_not_faster_is_never_chosen() -> None:
    slow = layer("slow", 20, option(25, 0.0), option(20, 0.0))

    assert not plan([slow], WHOLE, 0.0).chosen
    assert [ranks(each) for each in path([slow], WHOLE)] == [{}]


def test_the_path_goes_from_the_whole_model_to_the_most_that_is_saved() -> None:
    assert [ranks(each) for each in path([A, B], WHOLE)] == [{}, {"a": 2}, {"a": 1}, {"a": 1, "b": 1}]


def test_a_budget_is_met_with_the_least_noise() -> None:
    # 70 % of the multiply-adds: rank 1 of ``a`` alone; both gentler options leave 60 % and add twice the noise.
    found = within([A, B], WHOLE, 0.7)

    assert found is not None
    assert ranks(found) == {"a": 1}


def test_what_the_budget_leaves_is_given_back() -> None:
    # The path reaches 50 % at its last step, with both layers at their boldest; 60 % leaves room to take ``a`` back.
    found = within([A, B], WHOLE, 0.6)

    assert found is not None
    assert ranks(found) == {"a": 2, "b": 1}


def test_a_budget_out_of_reach_is_none() -> None:
    assert within([A, B], WHOLE, 0.4) is None


@st.composite
def layers(draw: st.DrawFn) -> list[Choice]:
    """A few layers with options whose noise falls as their time rises, and others that make no sense."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        time = draw(st.integers(5, 25))
        given = draw(st.lists(st.tuples(st.integers(1, 25), st.integers(0, 50)), max_size=4))
        options = (option(cost, noise / 1000, rank) for rank, (cost, noise) in enumerate(given, 1))
        found.append(layer(str(number), time, *options))
    return found


@settings(derandomize=True, deadline=None, max_examples=60)
@given(layers(), st.floats(0.01, 50))
def test_no_other_plan_is_better_at_a_price(choices: list[Choice], price: float) -> None:
    chosen = plan(choices, WHOLE, price)
    every = itertools.product(*([None, *choice.options] for choice in choices))
    costs = []
    for options in every:
        named = {choice.layer: each for choice, each in zip(choices, options, strict=True) if each is not None}
        other = made(choices, WHOLE, named)
        costs.append(other.time + price * other.noise)

    assert chosen.time + price * chosen.noise == pytest.approx(min(costs))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(layers())
def test_every_step_of_the_path_saves_more_and_adds_noise(choices: list[Choice]) -> None:
    steps = path(choices, WHOLE)

    assert steps[0] == Plan()
    for before, after in itertools.pairwise(steps):
        assert after.time < before.time
    for step in steps:
        again = made(choices, WHOLE, step.chosen)
        assert (step.time, step.macs, step.noise) == pytest.approx((again.time, again.macs, again.noise))
    assert min(each.time for each in steps) == pytest.approx(plan(choices, WHOLE, 0.0).time)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(layers(), st.floats(0.3, 1))
def test_a_budget_is_kept(choices: list[Choice], share: float) -> None:
    found = within(choices, WHOLE, share)

    least = path(choices, WHOLE, by_macs=True)[-1].macs
    assert (found is None) == (least > share)
    assert found is None or found.macs <= share + 1e-9
