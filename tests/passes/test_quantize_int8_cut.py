"""The cut: the cheapest assignment of precisions, on times made up here, and held against trying them all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from int8_nets import net, units_of

from graphopt.passes.quantize_int8.cut import TIE, cheapest
from graphopt.passes.quantize_int8.kernels import BoundaryTime, UnitTime
from graphopt.passes.quantize_int8.sensitivity import Sensitivity, noise_groups
from graphopt.passes.quantize_int8.units import Role, Units

CHAIN = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] u, float[4,4,1,1] v, float[4,4,1,1] w> {
    a = Conv(x, u)  b = Conv(a, v)  y = Conv(b, w) }"""
FREE = BoundaryTime(0.0, 0.0)


def times(*pairs: tuple[float, float | None]) -> dict[int, UnitTime]:
    """(float, int8) of each unit in order."""
    return {index: UnitTime(*pair) for index, pair in enumerate(pairs)}


def at(cost: float) -> Callable[[str], BoundaryTime]:
    return lambda name: BoundaryTime(cost, cost)


def test_int8_where_it_pays_and_float_where_it_does_not() -> None:
    chosen = cheapest(units_of(net(CHAIN)), times((10, 3), (10, 12), (10, 3)), at(0.0))
    assert chosen == {0, 2}


def test_a_tie_goes_to_int8_for_its_smaller_file() -> None:
    assert cheapest(units_of(net(CHAIN)), times((5, 5), (5, 5), (5, 5)), at(0.0)) == {0, 1, 2}


def test_conversions_decide() -> None:
    """Saving 3 at a cost of 2 conversions of 2 does not pay; saving 5 does."""
    units = units_of(net(CHAIN))
    assert cheapest(units, times((10, 12), (10, 7), (10, 12)), at(2.0)) == set()
    assert cheapest(units, times((10, 12), (10, 5), (10, 12)), at(2.0)) == {1}


def test_a_slower_unit_between_two_fast_ones_stays_in_int8_when_going_back_costs_more() -> None:
    units = units_of(net(CHAIN))
    assert cheapest(units, times((20, 5), (4, 6), (20, 5)), at(2.0)) == {0, 1, 2}
    assert cheapest(units, times((20, 5), (4, 9), (20, 5)), at(2.0)) == {0, 2}


def test_a_unit_without_int8_kernel_stays_in_float() -> None:
    assert cheapest(units_of(net(CHAIN)), times((10, 1), (10, None), (10, 1)), at(0.0)) == {0, 2}


def test_units_that_are_not_measured_or_forbidden_stay_in_float() -> None:
    units = units_of(net(CHAIN))
    assert cheapest(units, {0: UnitTime(10, 1), 1: UnitTime(10, 1)}, at(0.0)) == {0, 1}
    assert cheapest(units, times((10, 1), (10, 1), (10, 1)), at(0.0), frozenset({1})) == {0, 2}


FAN = """g (float[1,4,8,8] x) => (float[1,4,8,8] p, float[1,4,8,8] q, float[1,4,8,8] r)
    <float[4,4,1,1] u, float[4,4,1,1] v, float[4,4,1,1] w> {
    t = Tanh(x)  p = Conv(t, u)  q = Conv(t, v)  r = Conv(t, w) }"""


def test_a_tensor_is_quantized_once_for_all_its_readers() -> None:
    """Each reader saves 2; quantizing costs 5: not worth it for two of them, but for three."""

    def boundary(name: str) -> BoundaryTime:
        return BoundaryTime(5.0, 0.0) if name == "t" else FREE

    units = units_of(net(FAN))
    saving = {1: UnitTime(10, 8), 2: UnitTime(10, 8), 3: UnitTime(10, 8)}
    assert cheapest(units, saving, boundary) == {1, 2, 3}
    assert cheapest(units, saving, boundary, frozenset({3})) == set()


def test_a_tensor_from_int8_is_dequantized_for_every_reader_in_float() -> None:
    """ONNX Runtime gives each reader a DequantizeLinear of its own."""
    text = """g (float[1,4,8,8] x) => (float[1,4,8,8] p, float[1,4,8,8] q) <float[4,4,1,1] u> {
        t = Conv(x, u)  p = Exp(t)  q = Tanh(t) }"""

    def boundary(name: str) -> BoundaryTime:
        return BoundaryTime(0.0, 2.0)

    units = units_of(net(text))
    assert cheapest(units, {0: UnitTime(10, 7)}, boundary) == set()
    assert cheapest(units, {0: UnitTime(10, 5)}, boundary) == {0}


def test_a_matrix_product_answers_in_float_for_nothing() -> None:
    text = "g (float[2,4] x) => (float[2,6] y) <float[4,6] w> { y = MatMul(x, w) }"
    assert cheapest(units_of(net(text)), {0: UnitTime(10, 8)}, lambda name: BoundaryTime(1.0, 100.0)) == {0}


# Every unit here may run in either precision, except for Exp; tensors have several readers and outputs in the middle.
BRAID = """g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] c, float[4,4] m)
    <float[4,4,1,1] u, float[4,4,1,1] v, float[4,4,1,1] w, float[64,4] k> {
    a = Conv(x, u)  r = Relu(a)  b = Conv(r, v)  c = Add(b, r)  e = Exp(c)  s = Sigmoid(e)  d = Mul(s, c)
    y = Conv(d, w)  f = Flatten<axis = 2>(d)  m = MatMul(f, k) }"""


def cost_of(
    units: Units,
    in_int8: frozenset[int],
    measured: Mapping[int, UnitTime],
    boundary: Callable[[str], BoundaryTime],
    sensitivity: Sensitivity | None,
    price: float,
) -> float:
    """What an assignment costs, written down from the rules, not from the cut."""
    total = 0.0
    for index, time in measured.items():
        total += (time.int8 or 0.0) if index in in_int8 else time.float32 + TIE
    for name in (*units.graph_inputs, *units.producer):
        maker = units.producer.get(name)
        readers = units.consumers.get(name, ())
        made_in_int8 = maker in in_int8
        if not made_in_int8 and any(reader in in_int8 and name in units.all[reader].inputs for reader in readers):
            total += boundary(name).to_int8
        if maker is not None and made_in_int8 and units.all[maker].node.op_type not in ("Gemm", "MatMul"):
            in_float = sum(reader not in in_int8 for reader in readers) + (name in units.graph_outputs)
            total += in_float * boundary(name).to_float
    if sensitivity is not None:
        total += price * sensitivity.predicted(in_int8)
    return total


@pytest.mark.parametrize("seed", range(40))
def test_no_assignment_is_cheaper(seed: int) -> None:
    """All 2^n assignments of a small graph, with random times, conversions and noise."""
    generator = np.random.default_rng(seed)
    units = units_of(net(BRAID))
    able = [unit.index for unit in units.all if unit.role is not Role.FLOAT]
    measured = {
        index: UnitTime(
            float(generator.uniform(1, 10)), None if generator.random() < 0.1 else float(generator.uniform(1, 10))
        )
        for index in able
    }
    crossing = {
        name: BoundaryTime(*generator.uniform(0, 3, size=2).tolist()) for name in (*units.graph_inputs, *units.producer)
    }
    sensitivity = Sensitivity(
        tuple((group, float(generator.uniform(0, 2))) for group in noise_groups(units)),
        {index: float(generator.uniform(0, 2)) for index in able if units.all[index].role is Role.HEAVY},
    )
    price = float(generator.choice([0.0, 0.3, 2.0]))
    chosen = cheapest(units, measured, crossing.__getitem__, frozenset(), sensitivity, price)
    free = [index for index in able if measured[index].int8 is not None]
    assert chosen <= set(free)

    def cost(assignment: frozenset[int]) -> float:
        return cost_of(units, assignment, measured, crossing.__getitem__, sensitivity, price)

    best = min(
        cost(frozenset(picked)) for count in range(len(free) + 1) for picked in itertools.combinations(free, count)
    )
    assert cost(chosen) == pytest.approx(best, abs=1e-9)


def test_a_rising_price_on_noise_moves_units_to_float_and_never_back() -> None:
    generator = np.random.default_rng(0)
    units = units_of(net(BRAID))
    able = [unit.index for unit in units.all if unit.role is not Role.FLOAT]
    measured = {index: UnitTime(10.0, float(generator.uniform(1, 6))) for index in able}
    sensitivity = Sensitivity(
        tuple((group, float(generator.uniform(0, 1))) for group in noise_groups(units)),
        {index: float(generator.uniform(0, 1)) for index in able},
    )
    chosen = [
        cheapest(units, measured, at(0.5), frozenset(), sensitivity, price) for price in np.geomspace(0.01, 1e4, 30)
    ]
    assert chosen[0] == cheapest(units, measured, at(0.5))
    assert chosen[-1] == frozenset()
    assert len(set(chosen)) > 3, "step by step"
    for milder, gentler in itertools.pairwise(chosen):
        assert gentler <= milder
        assert sensitivity.predicted(gentler) <= sensitivity.predicted(milder)


def test_the_same_question_gets_the_same_answer() -> None:
    units = units_of(net(BRAID))
    able = [unit.index for unit in units.all if unit.role is not Role.FLOAT]
    equal = {index: UnitTime(5.0, 5.0) for index in able}
    assert len({cheapest(units, equal, at(TIE)) for _ in range(5)}) == 1
