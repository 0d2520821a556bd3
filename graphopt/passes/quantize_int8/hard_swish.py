"""HardSwish in int8: a Clip of integers and one product, exactly what DequantizeLinear, HardSwish, QuantizeLinear give.

::

    before   x -> HardSwish -> y
    after    x -> Q ────────────────────────> DQ(s) ──────> Mul -> Q -> DQ -> y
                  Q -> Clip(z - k, z + k) -> DQ(1/2k, z - k) ──┘

``x * clip(x + 3, 0, 6) / 6`` is x times its gate. Where 3 is a whole number k of steps s, the gate is the very integers
of x, cut to k levels on both sides of zero and read with another scale: (q - (z - k)) / 2k. No float kernel, no table.
Below -3 HardSwish is 0, so that a tensor which only HardSwish reads needs no levels there.

ONNX Runtime has no int8 kernel for HardSwish and none for HardSigmoid. Behind a QLinearConv of [1, 64, 28, 28] they and
their conversions take 30 microseconds in float, Clip and QLinearMul 13 (ONNX Runtime 1.31, AVX512-VNNI, one thread).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from graphopt.calibration.observers import Range
from graphopt.calibration.statistics import TensorStatistics
from graphopt.passes.quantize_int8.numbers import Parameters
from graphopt.passes.quantize_int8.units import FLOAT_DOMAINS, Units

# From here on ONNX has HardSwish (ONNX operator changelog).
OPSET = 14
KNEE = 3.0
LEVELS = 255


@dataclass(frozen=True)
class Gate:
    """The integers of a gate: those of the input between ``low`` and ``high``, on this scale above ``low``."""

    low: int
    high: int
    scale: np.float32


def gate(parameters: Parameters) -> Gate | None:
    """Return the gate of a tensor so quantized; None where its integers cannot tell it."""
    lowest, highest = (0, 255) if parameters.dtype == "uint8" else (-128, 127)
    steps = round(KNEE / float(parameters.scale))
    low, high = parameters.zero_point - steps, parameters.zero_point + steps
    if steps < 1 or low < lowest or abs(steps * float(parameters.scale) - KNEE) > 1e-4:
        return None
    return Gate(low, min(high, highest), np.float32(1.0 / (2 * steps)))


def on_grid(low: float, high: float) -> Range | None:
    """Return the range at least as wide, -3 in it, in which 3 is a whole number of steps; None where a step is over 3.

    Its lowest level is 0 or a whole number of steps below it, so that the quantizer takes it as it is.
    """
    low, high = min(low, -KNEE), max(high, 0.0)
    steps = int(LEVELS * KNEE / (high - low))  # rounded down: the step no finer than the range needs
    while steps:
        step = KNEE / steps
        below = int(np.ceil(-low / step - 1e-6))
        if below + high / step <= LEVELS + 1e-6:
            return -below * step, (LEVELS - below) * step
        steps -= 1
    return None


def reads_alone(units: Units, name: str) -> bool:
    """Whether nothing but HardSwish reads tensor ``name``: what lies below -3 in it is then 0 to all readers."""
    readers = units.consumers.get(name, ())
    return (
        bool(readers)
        and name not in units.graph_outputs
        and all(_is_hard_swish(units.all[index].node) for index in readers)
    )


def without_tail(statistics: TensorStatistics) -> TensorStatistics:
    """Return the statistics as they were if all values below -3 had been -3."""
    histogram = replace(statistics.histogram, minimum=max(statistics.histogram.minimum, -KNEE))
    return replace(statistics, histogram=histogram, average_minimum=max(statistics.average_minimum, -KNEE))


def merge(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with ``Mul(x, HardSigmoid(x))`` as HardSwish; the same object where there is none.

    Args:
        model: opset 14 or later.
    """
    gates = _gates(model.graph)
    if not gates:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    replaced = {name for _, name in gates.values()}
    for node in model.graph.node:
        if node.output and node.output[0] in gates:
            source, _ = gates[node.output[0]]
            result.graph.node.append(onnx.helper.make_node("HardSwish", [source], list(node.output), name=node.name))
        elif not (node.output and node.output[0] in replaced):
            result.graph.node.append(node)
    return result


def is_written_out(model: onnx.ModelProto) -> bool:
    """Whether the main graph holds ``Mul(x, HardSigmoid(x))``."""
    return bool(_gates(model.graph))


def _gates(graph: onnx.GraphProto) -> Mapping[str, tuple[str, str]]:
    """Return output of the product -> (x, output of HardSigmoid), where nobody else reads the latter."""
    sigmoids = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "HardSigmoid" and node.domain in FLOAT_DOMAINS and _is_sixth(node)
    }
    if not sigmoids:
        return {}
    reads: dict[str, int] = {value.name: 2 for value in graph.output}
    for node in graph.node:
        for name in node.input:
            reads[name] = reads.get(name, 0) + 1
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return {}  # a subgraph may read anything
    found: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        if node.op_type == "Mul" and node.domain in FLOAT_DOMAINS and len(node.input) == 2:
            for source, name in (tuple(node.input), tuple(node.input)[::-1]):
                if sigmoids.get(name) == source and reads[name] == 1:
                    found[node.output[0]] = (source, name)
    return found


def _is_hard_swish(node: onnx.NodeProto) -> bool:
    return node.op_type == "HardSwish" and node.domain in FLOAT_DOMAINS


def _is_sixth(node: onnx.NodeProto) -> bool:
    """Whether HardSigmoid is clip(x / 6 + 1 / 2, 0, 1)."""
    given = {attribute.name: float(attribute.f) for attribute in node.attribute}
    return abs(given.get("alpha", 0.2) - 1 / 6) < 1e-6 and abs(given.get("beta", 0.5) - 0.5) < 1e-6
