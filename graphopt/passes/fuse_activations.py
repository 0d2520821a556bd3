"""Write activations as the single operators they spell out.

| written | becomes | opset |
|---|---|---|
| ``x * clip(x + 3, 0, 6) / 6`` in any order and association | HardSwish | 14 |
| the same below opset 14, or with other constants | HardSigmoid, Mul | 7 |
| ``clip(x + 3, 0, 6) / 6`` | HardSigmoid | 7 |
| ``x / 2 * (1 + erf(x / sqrt 2))``, and by tanh | Gelu | 20 |
| ``x * tanh(softplus(x))`` | Mish | 18 |
| ``1 / (1 + exp(-x))`` | Sigmoid | 7 |
| ``exp(x - max) / sum`` | Softmax | 13, or 7 along the last axis |
| runs of Relu, Clip, Min, Max by constants | one Relu or Clip | 8 |
| PRelu with one slope for all, LeakyRelu with 0 | LeakyRelu, Relu | 7 |

Microseconds in ONNX Runtime 1.31 (CPU, one thread, optimized), before and after: HardSwish alone 118, 72 and
between convolutions 512, 385 (it runs inside them); Gelu 64, 65; by tanh 117, 44; Mish 2340, 2379 (expanded to
what it was); Sigmoid 65, 39; Softmax 80, 37; Max and Min 47, 20.

Swish (opset 24) is the exception: ONNX Runtime 1.31 has no kernel for it and expands it into Cast, Mul, Sigmoid, Mul,
125 against the 69 that ``x * sigmoid(x)`` takes. So ``x * sigmoid(x)`` stays and a Swish becomes that; with
``swish`` set it is the other way round.

Left alone: values in between that anything else reads or that are outputs, constants that are computed or are equal
only roughly (1e-6 in float32), dtypes that ONNX Runtime has no kernel for, constants with more axes than ``x`` has.
Operators that the target does not take are not made; ``write_out`` makes the opposite of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, is_op, variable, walk
from graphopt.passes.accepted import highest_opset, unwanted
from graphopt.passes.base import Context, PassReport
from graphopt.passes.patterns import clamps, gates, softmax
from graphopt.passes.patterns.forms import Limits
from graphopt.passes.patterns.scalar_terms import Terms

_OLDEST = 7


@dataclass(frozen=True)
class FuseActivations:
    """Write activations as the single operators they spell out.

    Attributes:
        swish: write ``x * sigmoid(x)`` as Swish where the operator set has it (24), for runtimes with a kernel for it.
    """

    name: ClassVar[str] = "fuse_activations"
    summary: ClassVar[str] = "write activations as the single operators they spell out"
    exact: ClassVar[bool] = True

    swish: bool = False

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        counts: Counter[str] = Counter()
        hardware = context.hardware
        while graph.opset >= _OLDEST:
            found = _round(graph, Limits(highest_opset(graph.opset, hardware), self.swish, unwanted(hardware)))
            if not found:
                break
            counts += found
        return PassReport(sum(counts.values()), details=dict(sorted(counts.items())))


def _round(graph: gs.Graph, limits: Limits) -> Counter[str]:
    """Rewrite what can be seen now; return how many edits of each kind."""
    cutting: list[gs.Node] = []
    cores: list[gs.Node] = []
    ends: list[gs.Node] = []
    swishes: list[gs.Node] = []
    for home in walk(graph):
        for node in home.nodes:
            if node.op in clamps.CLAMPS:
                cutting.append(node)
            if node.op in gates.CORES:
                if gates.worth_a_look(node):
                    cores.append(node)
            elif node.op == "Div":
                if softmax.worth_a_look(node):
                    ends.append(node)
            elif node.op == "Swish" and not limits.swish:
                swishes.append(node)
    if not any(clamps.worth_a_look(node) for node in cutting):
        cutting = []
    if not (cores or ends or swishes or cutting):
        return Counter()
    index, terms = Index(graph), Terms(graph)
    # A Clip made of Min and Max is the core of an activation in the next round.
    counts = clamps.merge_clamps(index, terms, cutting)
    still = [node for node in cores if not index.is_dropped(node)]
    counts += gates.write_gates(index, gates.find_gates(index, terms, still, limits))
    counts["softmax"] += softmax.fuse_softmax(index, terms, ends)
    counts["swish_expanded"] += _expand(index, terms, swishes)
    index.finish()
    return +counts


def _expand(index: Index, terms: Terms, nodes: list[gs.Node]) -> int:
    """Write Swish as Sigmoid and Mul, where that is two nodes that ONNX Runtime fuses."""
    dead = [
        node
        for node in nodes
        if is_op(node, "Swish")
        and node.attrs.get("alpha", 1.0) == 1.0
        and terms.dtype(node.inputs[0]) == onnx.TensorProto.FLOAT
    ]
    for node in dead:
        (source,), (target,), home = node.inputs, node.outputs, index.home(node)
        name = node.name or target.name
        gate = variable(index, f"{name}_sigmoid")
        add_node(index, "Sigmoid", [source], [gate], prefix=f"{name}_sigmoid", home=home)
        add_node(index, "Mul", [source, gate], [target], prefix=f"{name}_mul", home=home)
    index.drop(dead)
    return len(dead)
