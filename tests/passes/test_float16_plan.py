"""What float16 saves is more than its Casts take: the cut against all assignments; noise as predicted."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import model

from graphopt.calibration.collect import Statistics
from graphopt.calibration.statistics import TensorStatistics
from graphopt.graph import Index, import_graph, types_of
from graphopt.passes.float16 import plan
from graphopt.passes.float16.gentler import worst
from graphopt.passes.float16.ranges import Ranges, rounding_noise, to_half
from graphopt.passes.float16.sites import find_sites
from graphopt.passes.float16.write import write_half

STEPS = ("Relu", "MatMul", "CumSum", "Add", "Sigmoid")
Steps = list[tuple[str, int, int]]


def random_net(steps: Steps) -> onnx.ModelProto:
    """A net of 4 values a tensor, in which running sums must stay float32."""
    names, body = ["x"], []
    for number, (op, left, right) in enumerate(steps):
        first, second = names[left % len(names)], names[right % len(names)]
        rest = {"MatMul": ", w", "CumSum": ", axis", "Add": f", {second}"}.get(op, "")
        body.append(f"t{number} = {op}({first}{rest})")
        names.append(f"t{number}")
    head = "g (float[1,4] x) => (float[1,4] y) <float[4,4] w, int64 axis = {1}>"
    proto = model(f"{head} {{ {'  '.join(body)}  y = Tanh({names[-1]}) }}", opset=14)
    read = {tensor for node in proto.graph.node for tensor in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.booleans(),
)
def test_no_assignment_costs_less(steps: Steps, launch: float, keep_io: bool) -> None:
    """Counted with the Casts that are really written: one for a tensor, however many read it."""
    proto = random_net(steps)
    graph = import_graph(proto).gs
    sites = find_sites(graph)
    reasons = {site.number: site.blocked for site in sites if site.blocked}
    ranges, costs = Ranges(Statistics({}, 0), types_of(graph), 1.0), plan.Prices(byte=0.05, mac=0.02, launch=launch)
    cast = launch + 6 * 4 * costs.byte
    saved = {site.number: plan._saved(site, plan._Sizes(ranges), costs) for site in sites}

    def total(half: frozenset[int]) -> float:
        lost = sum(value for number, value in saved.items() if number not in half and number not in reasons)
        return lost + cast * write_half(proto, half, keep_io=keep_io).casts

    free = [site.number for site in sites if site.number not in reasons]
    every = (frozenset(n for n, on in zip(free, bits, strict=True) if on) for bits in product((0, 1), repeat=len(free)))
    chosen = plan.choose(sites, reasons, ranges, Index(graph), costs, keep_io=keep_io)
    assert chosen <= set(free)
    assert total(chosen) == pytest.approx(min(map(total, every)))


@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-3, 1e-5, 1e-6, 1e-7])
def test_noise_is_predicted_from_a_histogram(scale: float) -> None:
    values = (np.random.default_rng(0).normal(size=20_000) * scale).astype(np.float32)
    seen = TensorStatistics()
    seen.add(values)
    error = to_half(values).astype(np.float64) - values
    measured = float(np.square(error).sum() / np.square(values.astype(np.float64)).sum())
    assert measured / 1.6 < rounding_noise(seen) < measured * 1.6


def test_the_worst_are_as_few_as_needed() -> None:
    added = [(3, 0.6), (1, 0.3), (2, 0.1)]
    assert worst(added, 0.5) == {3}
    assert worst(added, 0.8) == {3, 1}
    assert worst([(5, np.inf), (3, 0.6)], 0.5) == {5}
    assert worst([], 0.5) == frozenset()
