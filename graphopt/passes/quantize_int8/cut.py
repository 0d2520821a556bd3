"""Which units run in int8: the cheapest assignment, exactly, as a minimum cut.

Each unit pays its time in the precision it runs in. A tensor from float is quantized once, however many readers in int8
it has; a tensor from int8 is dequantized once for every reader in float, for ONNX Runtime gives each its own
DequantizeLinear (its transformer EnsureUniqueDQForNodeUnit). Accuracy enters as a price: every quantized tensor and
every rounded weight pays for the noise that it puts into the outputs. Two units that ONNX Runtime merges in float pay
for being apart where the second alone is in float. With two precisions this is a minimum s-t cut
(Picard & Ratliff 1975): the source side is float, the sink side int8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import networkx as nx

from graphopt.passes.quantize_int8.kernels import BoundaryTime, UnitTime
from graphopt.passes.quantize_int8.merged import Pair
from graphopt.passes.quantize_int8.sensitivity import Sensitivity
from graphopt.passes.quantize_int8.units import Role, Unit, Units

FLOAT = "float"
INT8 = "int8"
# Where both precisions take the same time int8 wins: its file is smaller. Microseconds a unit.
TIE = 0.01


def cheapest(
    units: Units,
    times: Mapping[int, UnitTime],
    boundary: Callable[[str], BoundaryTime],
    forced_float: frozenset[int] = frozenset(),
    sensitivity: Sensitivity | None = None,
    price: float = 0.0,
    pairs: Iterable[Pair] = (),
) -> frozenset[int]:
    """Return the indexes of the units that run in int8.

    Args:
        units: the graph.
        times: measured times of every unit that could run in int8, microseconds.
        boundary: tensor name -> cost of converting it.
        forced_float: units that must stay in float whatever they cost.
        sensitivity: output noise of quantized tensors and rounded weights.
        price: microseconds that one unit of output noise-to-signal power is worth.
        pairs: units that take less time together than apart where both are in float.
    """
    merged = {pair.second: pair for pair in pairs}
    graph = nx.DiGraph()
    graph.add_node(FLOAT)
    graph.add_node(INT8)
    for unit in units.all:
        time = times.get(unit.index)
        if unit.role is Role.FLOAT or time is None or time.int8 is None or unit.index in forced_float:
            graph.add_edge(FLOAT, unit.index)  # no capacity: infinite
            continue
        noise = sensitivity.weights.get(unit.index, 0.0) if sensitivity else 0.0
        graph.add_edge(FLOAT, unit.index, capacity=time.int8 + price * noise)
        saved = merged[unit.index].saved if unit.index in merged else 0.0
        graph.add_edge(unit.index, INT8, capacity=time.float32 - saved + TIE)
    for name in (*units.graph_inputs, *units.producer):
        _add_tensor(graph, units, name, boundary)
    for pair in merged.values():
        if units.all[pair.first].role is not Role.FLOAT:
            _add(graph, pair.second, pair.first, pair.saved)
    if sensitivity and price > 0:
        for number, (group, noise) in enumerate(sensitivity.groups):
            graph.add_edge(FLOAT, ("noise", number), capacity=price * noise)
            for index in group.touched_by:
                graph.add_edge(("noise", number), index)
    _, (_, in_int8) = nx.minimum_cut(graph, FLOAT, INT8)
    return frozenset(index for index in in_int8 if isinstance(index, int))


def microseconds(
    units: Units,
    times: Mapping[int, UnitTime],
    boundary: Callable[[str], BoundaryTime],
    pairs: Iterable[Pair],
    int8: frozenset[int],
) -> float:
    """Return the time of all units in ``times``, and of the conversions between them, when ``int8`` run in int8."""
    total = 0.0
    for index, time in times.items():
        total += time.int8 if index in int8 and time.int8 is not None else time.float32
    total -= sum(pair.saved for pair in pairs if not int8 & {pair.first, pair.second})
    for name in (*units.graph_inputs, *units.producer):
        producer = units.producer.get(name)
        readers = units.consumers.get(name, ())
        made_in_int8 = producer is not None and producer in int8
        read_in_int8 = any(index in int8 and name in units.all[index].inputs for index in readers)
        in_float = sum(index not in int8 for index in readers) + (name in units.graph_outputs)
        if read_in_int8 and not made_in_int8:
            total += boundary(name).to_int8
        if made_in_int8 and _answers_in_int8(units.all[producer or 0]):
            total += in_float * boundary(name).to_float
    return total


def _add_tensor(graph: nx.DiGraph, units: Units, name: str, boundary: Callable[[str], BoundaryTime]) -> None:
    producer = units.producer.get(name)
    readers = units.consumers.get(name, ())
    in_int8 = [index for index in readers if name in units.all[index].inputs]
    if in_int8:
        crossing = ("to int8", name)
        graph.add_edge(FLOAT if producer is None else producer, crossing, capacity=boundary(name).to_int8)
        for index in in_int8:
            graph.add_edge(crossing, index)
    if producer is None or units.all[producer].role is Role.FLOAT or not _answers_in_int8(units.all[producer]):
        return
    to_float = boundary(name).to_float
    for index in readers:
        _add(graph, index, producer, to_float)
    if name in units.graph_outputs:
        _add(graph, FLOAT, producer, to_float)


def _add(graph: nx.DiGraph, tail: str | int, head: int, capacity: float) -> None:
    """Add to the capacity of an edge; an edge without one stays infinite."""
    if graph.has_edge(tail, head):
        if "capacity" in graph[tail][head]:
            graph[tail][head]["capacity"] += capacity
    else:
        graph.add_edge(tail, head, capacity=capacity)


def _answers_in_int8(unit: Unit) -> bool:
    """Matrix products may answer in float at no extra cost."""
    return unit.node.op_type not in ("Gemm", "MatMul")
