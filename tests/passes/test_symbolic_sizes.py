"""symbolic_sizes: what a formula says holds for every size; where it says nothing, both happen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.sizes import symbolic as sizes
from graphopt.passes.sizes.symbolic import Open, Size, symbol

NAMES = ("N", "H", "W")


def at(size: Size, values: dict[str, int]) -> int:
    """The number that a formula of sums and products stands for."""
    if isinstance(size, int):
        return size
    total = 0
    for names, count in size.terms:
        total += count * math.prod(values[name] for name in names)
    return total


leaf = st.one_of(st.integers(-6, 6), st.sampled_from(NAMES).map(symbol))
OPERATORS: dict[str, tuple[Callable[[Size, Size], Any], Callable[[int, int], int]]] = {
    "add": (sizes.add, lambda a, b: a + b),
    "subtract": (sizes.subtract, lambda a, b: a - b),
    "multiply": (sizes.multiply, lambda a, b: a * b),
}
formula = st.recursive(
    leaf,
    lambda inner: st.tuples(st.sampled_from(sorted(OPERATORS)), inner, inner).map(
        lambda each: OPERATORS[each[0]][0](each[1], each[2]) if None not in each else None
    ),
    max_leaves=6,
).filter(lambda size: size is not None)
values = st.fixed_dictionaries({name: st.integers(0, 9) for name in NAMES})


@given(st.sampled_from(sorted(OPERATORS)), formula, formula, values)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_sums_and_products(name: str, first: Size, second: Size, given_values: dict[str, int]) -> None:
    symbolic, numeric = OPERATORS[name]
    result = symbolic(first, second)
    if result is not None:
        assert at(result, given_values) == numeric(at(first, given_values), at(second, given_values))


@given(formula, formula, values)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_what_is_said_of_two_sizes_holds(first: Size, second: Size, given_values: dict[str, int]) -> None:
    left, right = at(first, given_values), at(second, given_values)
    same = sizes.equal(first, second)
    assert same is None or same == (left == right)
    times = sizes.ratio(first, second)
    assert times is None or left == times * right
    quotient = sizes.quotient(first, second)
    assert quotient is None or left == at(quotient, given_values) * right
    for name, choose in (("max", max), ("min", min)):
        chosen = sizes.pick(name, choose, first, second)
        if chosen is not None and not (isinstance(chosen, Open) and "(" in str(chosen)):
            assert at(chosen, given_values) == choose(left, right)


@given(formula, st.integers(1, 6), values)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_division_by_a_number(first: Size, by: int, given_values: dict[str, int]) -> None:
    left = at(first, given_values)
    quotient, rest = sizes.divide(first, by), sizes.modulo(first, by)
    if quotient is not None and "(" not in str(quotient):
        assert at(quotient, given_values) == int(left / by)
    if rest is not None and "(" not in str(rest):
        assert at(rest, given_values) == left % by


def test_the_same_computed_twice_is_the_same() -> None:
    n = symbol("N")
    half = sizes.divide(n, 2)
    assert isinstance(half, Open)
    assert half.is_size
    assert half == sizes.divide(n, 2) != sizes.divide(n, 3)
    assert sizes.divide(sizes.multiply(n, 6) or 0, 3) == sizes.multiply(n, 2)


@pytest.mark.parametrize(("a", "b", "quotient"), [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3), (0, 5, 0)])
def test_numbers_divide_towards_zero(a: int, b: int, quotient: int) -> None:
    assert sizes.divide(a, b) == quotient


def test_nothing_is_said_where_it_depends() -> None:
    n, unknown = symbol("N"), symbol("?0")
    assert sizes.equal(n, 3) is None
    assert sizes.equal(n, -1) is False
    assert sizes.equal(unknown, -1) is None
    assert sizes.divide(unknown, 2) is None
    assert sizes.divide(5, 0) is None
    assert sizes.pick("max", max, n, 0) == n
    assert sizes.pick("max", max, unknown, 0) is None
    long: Size | None = 1
    for place in range(20):
        long = None if long is None else sizes.multiply(long, sizes.add(symbol(f"A{place}"), 1) or 0)
    assert long is None
