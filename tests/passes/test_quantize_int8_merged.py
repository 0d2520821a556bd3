"""Pairs that ONNX Runtime merges in float: which they are, what they save, and how the cut counts it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from int8_nets import U8, feed_for, net, own_cache, units_of

from graphopt.cache import Store
from graphopt.calibration.collect import shapes
from graphopt.passes.quantize_int8.cut import cheapest
from graphopt.passes.quantize_int8.kernels import BoundaryTime, KernelTimes, UnitTime
from graphopt.passes.quantize_int8.merged import Pair, measured_pairs, pairs
from graphopt.passes.quantize_int8.units import Role

__all__ = ["own_cache"]

HEAD = "g (float[1,16,8,8] x) => (float[1,16,8,8] y{more}) <float[16,16,1,1] u, float[16,16,1,1] v> "


def told(body: str, more: str = "") -> list[tuple[str, str]]:
    model = net(HEAD.format(more=more) + "{ " + body + " }")
    return [(first.node.output[0], second.node.output[0]) for first, second in pairs(units_of(model))]


@pytest.mark.parametrize(
    ("body", "more"),
    [
        pytest.param("a = Conv(x, u)  b = HardSwish(a)  y = Add(a, b)", "", id="the convolution has another reader"),
        pytest.param("a = Conv(x, u)  y = HardSwish(a)", ", float[1,16,8,8] a", id="the convolution is an output"),
        pytest.param("a = Conv(x, u)  r = Relu(a)  y = HardSwish(r)", "", id="the convolution has a Relu"),
        pytest.param("y = HardSwish(x)", "", id="a graph input"),
        pytest.param("s = Sigmoid(x)  y = Mul(s, s)", "", id="the sigmoid of another tensor"),
        pytest.param("s = Sigmoid(x)  t = Mul(x, s)  y = Add(t, s)", "", id="the sigmoid has another reader"),
        pytest.param("s = Tanh(x)  y = Mul(x, s)", "", id="no sigmoid"),
        pytest.param("a = GlobalAveragePool(x)  y = Add(x, a)", "", id="no convolution"),
    ],
)
def test_no_pair(body: str, more: str) -> None:
    assert told(body, more) == []


@pytest.mark.parametrize(
    ("body", "pair"),
    [
        ("a = Conv(x, u)  y = HardSwish(a)", ("a", "y")),
        ("a = Conv(x, u)  y = LeakyRelu(a)", ("a", "y")),
        ("a = Conv(x, u)  y = Sigmoid(a)", ("a", "y")),
        ("a = Conv(x, u)  y = Add(x, a)", ("a", "y")),
        ("a = Conv(x, u)  b = Conv(x, v)  y = Add(b, a)", ("b", "y")),
        ("s = Sigmoid(x)  y = Mul(s, x)", ("s", "y")),
    ],
)
def test_pairs(body: str, pair: tuple[str, str]) -> None:
    assert told(body) == [pair]


@pytest.mark.parametrize("body", ["a = Conv(x, u)  y = HardSwish(a)", "a = Conv(x, u)  b = Conv(x, v)  y = Add(a, b)"])
def test_what_a_pair_saves_is_measured_once_and_at_most_the_second(body: str) -> None:
    model = net(HEAD.format(more="") + "{ " + body + " }")
    units = units_of(model)
    names = [name for unit in units.all if unit.role is not Role.FLOAT for name in (*unit.inputs, *unit.outputs)]
    store = Store("kernels", "here")
    times = KernelTimes(model, units, shapes(model, names, feed_for(model)), U8, store)
    ((first, second),) = pairs(units)
    saved = times.saved(first, second, 1)
    assert 0 <= saved <= times.unit(second, 1).float32
    assert times.saved(first, second, 1) == saved


def test_a_pair_that_saves_nothing_is_left_out() -> None:
    units = units_of(net(HEAD.format(more="") + "{ a = Conv(x, u)  y = HardSwish(a) }"))
    assert measured_pairs(units, lambda first, second: 0.0) == ()
    assert measured_pairs(units, lambda first, second: 2.0) == (Pair(0, 1, 2.0),)


@pytest.mark.parametrize("seed", range(20))
def test_no_assignment_is_cheaper(seed: int) -> None:
    """All assignments of a chain, with what is saved where both of a pair are in float."""
    generator = np.random.default_rng(seed)
    body = "a = Conv(x, u)  b = HardSwish(a)  c = Conv(b, v)  d = LeakyRelu(c)  y = Add(d, b)"
    units = units_of(net(HEAD.format(more="") + "{ " + body + " }"))
    times = {index: UnitTime(*generator.uniform(1, 10, 2)) for index in range(len(units.all))}
    found = [Pair(0, 1, times[1].float32 * 0.8), Pair(2, 3, times[3].float32 * 0.8)]
    crossing = BoundaryTime(*generator.uniform(0, 3, 2))

    def cost(chosen: frozenset[int]) -> float:
        total = sum(float(time.int8 or 0) if index in chosen else time.float32 for index, time in times.items())
        total -= sum(pair.saved for pair in found if not chosen & {pair.first, pair.second})
        for name, readers in units.consumers.items():
            made = units.producer.get(name)
            if made is None and name not in units.graph_inputs:
                continue
            in_int8 = [index for index in readers if index in chosen]
            if made not in chosen and in_int8:
                total += crossing.to_int8
            if made in chosen:
                total += crossing.to_float * (len(readers) - len(in_int8))
        return total + crossing.to_float * (units.producer["y"] in chosen)

    chosen = cheapest(units, times, lambda name: crossing, pairs=found)
    every = (frozenset(some) for size in range(6) for some in itertools.combinations(range(5), size))
    assert cost(chosen) <= min(map(cost, every)) + 0.06
