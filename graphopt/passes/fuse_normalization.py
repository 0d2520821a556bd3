"""Write normalizations that are spelled out with Reduce operators as one operator.

| written | becomes | opset |
|---|---|---|
| ``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + e) * s + b`` along the last axes | LayerNormalization | 17 |
| the same along all axes but the first two, ``s`` and ``b`` one value a channel | InstanceNormalization | 7 |
| ``x / sqrt(mean(x^2) + e) * s`` along the last axes | RMSNormalization | 23 |

With or without scale and bias, squares by Pow or Mul, division or product with the reciprocal. Both operators take the
mean first, as the spelled-out form does (errors against float64 at a mean of 1000: 1e-4 spelled out, 3e-5 as
operator). A variance as mean(x^2) - mean(x)^2 is another number and stays.

Microseconds in ONNX Runtime 1.31 (CPU, one thread, optimized), 197x384, before and after: LayerNormalization 51, 52
(fused there too), without bias 56, 52, bare 110, 52; RMSNormalization 32, 33, by reciprocal 104, 33;
InstanceNormalization (64x56x56) 184, 67. Never made: GroupNormalization, which ONNX Runtime expands (34 for Reshape,
InstanceNormalization, Reshape, Mul, Add; 77 for it).

Left alone: sizes of normalized axes that are not known, values in between that anything else reads, other dtypes than
float32, bare ones where the scale of ones that the operator wants would be larger than the nodes saved, and operators
that the target does not take.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, constant, walk
from graphopt.passes.accepted import exists, highest_opset, unwanted
from graphopt.passes.base import Context, PassReport
from graphopt.passes.patterns.idle import drop_with_idle
from graphopt.passes.patterns.normalizations import Normalization, Parameter, read_normalization
from graphopt.passes.patterns.scalar_terms import Terms

_OLDEST = 7
_OPERATORS = frozenset({"InstanceNormalization", "LayerNormalization", "RMSNormalization"})
# What the new node takes in a file beside the names that it shares with the old ones.
_NEW_NODE_BYTES = 90


@dataclass(frozen=True)
class FuseNormalization:
    """Write normalizations that are spelled out as one operator."""

    name: ClassVar[str] = "fuse_normalization"
    summary: ClassVar[str] = "write normalizations that are spelled out as one operator"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        roots = [node for home in walk(graph) for node in home.nodes if _worth_a_look(node)]
        if not roots or graph.opset < _OLDEST:
            return PassReport(changes=0)
        index, terms, hardware = Index(graph), Terms(graph), context.hardware
        allowed = _OPERATORS - unwanted(hardware)
        allowed = frozenset(op for op in allowed if exists(op, highest_opset(graph.opset, hardware)))
        matches = (read_normalization(index, terms, root, allowed) for root in roots)
        found = [match for match in matches if match is not None]
        counts: Counter[str] = Counter()
        made: dict[tuple[float, tuple[int, ...]], gs.Constant] = {}
        dead: list[gs.Node] = []
        taken: set[int] = set()
        for match in _worth_their_bytes(found):
            if taken.isdisjoint(id(node) for node in match.nodes):
                _write(index, match, made)
                dead += match.nodes
                taken.update(id(node) for node in match.nodes)
                counts[match.op] += 1
        drop_with_idle(index, dead)
        index.finish()
        return PassReport(sum(counts.values()), details=dict(sorted(counts.items())))


def _worth_a_look(node: gs.Node) -> bool:
    """Whether the node is the square root of a mean plus something; cheap."""
    if node.op != "Sqrt" or not node.inputs or len(node.inputs[0].inputs) != 1:
        return False
    add = node.inputs[0].inputs[0]
    return add.op == "Add" and any(
        len(tensor.inputs) == 1 and tensor.inputs[0].op == "ReduceMean" for tensor in add.inputs
    )


def _worth_their_bytes(found: Sequence[Normalization]) -> list[Normalization]:
    """Those matches whose new constants, shared between equal ones, take less than the nodes they save."""
    saved: Counter[tuple[int, ...]] = Counter()
    for match in found:
        saved[match.dims] += sum(_file_bytes(node) for node in match.nodes) - _NEW_NODE_BYTES
        saved[match.dims] -= len(match.source.name) + 2 * len(match.nodes[-1].outputs[0].name)
    return [match for match in found if match.scale is not None or 4 * math.prod(match.dims) <= saved[match.dims]]


def _file_bytes(node: gs.Node) -> int:
    """What a node takes in a file, at least: tags, texts, attributes."""
    texts = [node.op, node.name, *(tensor.name for tensor in (*node.inputs, *node.outputs))]
    return 2 + sum(2 + len(text) for text in texts if text) + 12 * len(node.attrs)


def _write(index: Index, match: Normalization, made: dict[tuple[float, tuple[int, ...]], gs.Constant]) -> None:
    """Let one node write what the match writes."""
    last = match.nodes[-1]
    target = last.outputs[0]
    name = last.name or target.name

    def tensor(given: Parameter | None, default: float, word: str) -> gs.Tensor:
        if isinstance(given, gs.Tensor):
            return given
        if given is not None:
            return constant(index, f"{name}_{word}", given)
        key = (default, match.dims)
        if key not in made:
            made[key] = constant(index, f"{word}_{default:g}", np.full(match.dims, default, np.float32))
        return made[key]

    inputs = [match.source, tensor(match.scale, 1.0, "scale")]
    attrs: dict[str, Any] = {"epsilon": match.epsilon}
    if match.op == "InstanceNormalization":
        inputs.append(tensor(match.bias, 0.0, "bias"))
    else:
        attrs["axis"] = match.axis
        if match.bias is not None:
            inputs.append(tensor(match.bias, 0.0, "bias"))
    add_node(index, match.op, inputs, [target], attrs, prefix=name, home=index.home(last))
