"""Cancel transposes: move them through the operators between them until they meet, or stand at the borders.

``Transpose -> Relu -> Transpose`` back becomes ``Relu``. A model converted from TensorFlow, with a Transpose before and
after each convolution and everything else in NHWC, keeps those at its inputs and outputs and before operators that
depend on the order (Reshape, Flatten).

1. A tensor and its transposed forms are one value (``layout.values``); chains of Transposes become one.
2. Operators that can work on permuted axes follow a change of order, with their attributes, small parameters and
   constant operands (``layout.rules``): elementwise with broadcasting, Concat, Split, Slice, Pad, reductions, Softmax,
   ArgMax, Gather, Squeeze, Unsqueeze, Resize, Tile, Expand, normalizations, Q/DQ, batched MatMul, Gemm.
3. Which of them should is one decision for the whole graph: a minimum cut (``layout.cut``) between nodes that keep
   their order and nodes that take the other one, priced by the bytes that the Transposes left over move. A change is
   made only if the price falls and the number of Transposes does not rise, so nothing goes to and fro.
4. A Transpose that only moves axes of size 1 becomes a Reshape, which copies nothing.

Left alone: operators without a rule, unknown ranks, computed axes and pads, large constants with other readers. Graph
inputs and outputs keep their order; so do values that subgraphs read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, types_of, walk
from graphopt.passes.base import Context, PassReport
from graphopt.passes.layout.candidates import propose
from graphopt.passes.layout.cut import choose
from graphopt.passes.layout.moves import Knowledge
from graphopt.passes.layout.permutations import Perm
from graphopt.passes.layout.rewire import rewire
from graphopt.passes.layout.tidy import compose_chains, reshape_instead
from graphopt.passes.layout.values import Value, Values

# Below, broadcasting is spelled out in attributes.
_OLDEST = 7


@dataclass(frozen=True)
class CancelTransposes:
    """Cancel transposes and move them to the borders of the graph."""

    name: ClassVar[str] = "cancel_transposes"
    summary: ClassVar[str] = "cancel transposes and move them to the borders of the graph"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        with_any = [each for each in walk(graph) if any(node.op == "Transpose" for node in each.nodes)]
        if not with_any or graph.opset < _OLDEST:
            return PassReport(changes=0)
        index = Index(graph)
        counts = {"composed": 0, "cancelled": 0, "moved_nodes": 0, "reshapes": 0}
        for each in with_any:
            counts["composed"] += compose_chains(_values(index, each))
            index.finish()
            _settle(index, each, counts)
        counts["reshapes"] = reshape_instead(index, _knowledge(index))
        index.finish()
        return PassReport(counts["composed"] + counts["moved_nodes"] + counts["reshapes"], details=counts)


def _settle(index: Index, graph: gs.Graph, counts: dict[str, int]) -> None:
    """Decide and carry out until nothing is left to gain in either direction."""
    values = _values(index, graph)
    upwards, idle = False, 0
    while idle < 2:
        candidates = propose(values, [(value, _wanted(value, upwards)) for value in values.transposed()])
        chosen = choose(values, candidates)
        if chosen.moves:
            counts["moved_nodes"] += len(chosen.moves)
            counts["cancelled"] += rewire(values, chosen)
            index.finish()
            values = _values(index, graph)
            idle = 0
        else:
            idle, upwards = idle + 1, not upwards


def _wanted(value: Value, upwards: bool) -> Perm:
    """The order that a value could have everywhere: the one it is written in, or the first that it is brought to."""
    return value.forms[0].label if upwards else value.plain


def _values(index: Index, graph: gs.Graph) -> Values:
    return Values(index, graph, _knowledge(index))


def _knowledge(index: Index) -> Knowledge:
    return Knowledge(index.graph.opset, types_of(index.graph, distinct=True))
