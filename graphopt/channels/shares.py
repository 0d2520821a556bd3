"""How much of a model's weights lies in groups."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.channels.labels import Field
from graphopt.channels.trace import Trace
from graphopt.channels.tracer import REACHED
from graphopt.graph import is_constant, is_op

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "QLinearConv", "ConvInteger"})


def shares(trace: Trace) -> dict[str, float]:
    """Share of the weights of convolutions, and of all layers, whose filter or input channel can be cut."""
    stuck: dict[tuple[int, int], list[tuple[int, Field]]] = {}
    for use in trace.uses:
        found = trace.labels.free(use.labels) == 0
        stuck.setdefault((id(use.node), use.input), []).append((use.axis, found))
    counted = {"convolution": [0, 0], "all": [0, 0]}
    for node in trace.graph.nodes:
        for slot in _weights_of(node):
            reader, number = _root(node, slot)
            tensor = reader.inputs[number]
            shape = trace.shapes.get(id(tensor), ())
            if not is_constant(tensor) or len(shape) < 2:
                continue
            left = _stuck_elements(shape, stuck.get((id(reader), number), []))
            for kind in ("all", "convolution") if node.op in _CONVOLUTIONS else ("all",):
                counted[kind][0] += prod(shape) - left
                counted[kind][1] += prod(shape)
    return {kind: inside / total if total else 0.0 for kind, (inside, total) in counted.items()}


def _stuck_elements(shape: Sequence[int], stuck: Sequence[tuple[int, Field]]) -> int:
    """How many elements of a weight lie at no index that can be cut."""
    left = prod(shape)
    along: dict[int, Field] = {}
    for axis, found in stuck:
        if len(found) > shape[axis]:
            # A grouped convolution has as many slices as there are groups; each is as large as the others.
            found = found.reshape(-1, shape[axis])  # noqa: PLW2901
            left = left * int(np.count_nonzero(found)) // found.size
        else:
            along[axis] = along.get(axis, True) & found
    for axis, found in along.items():
        left = left * int(np.count_nonzero(found)) // shape[axis]
    return left


def _weights_of(node: gs.Node) -> Sequence[int]:
    if node.op in _CONVOLUTIONS:
        return (3,) if node.op == "QLinearConv" else (1,)
    return (0, 1) if node.op in {"Gemm", "MatMul"} else ()


def _root(node: gs.Node, slot: int) -> tuple[gs.Node, int]:
    """The node and input where a weight's constant is read, behind what unpacks it."""
    while (
        slot < len(node.inputs) and len(node.inputs[slot].inputs) == 1 and is_op(node.inputs[slot].inputs[0], *REACHED)
    ):
        node, slot = node.inputs[slot].inputs[0], 0
    return node, slot
