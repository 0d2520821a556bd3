"""Raise the version of the default operator set, where asked to.

``--option raise_opset.to=20`` lets the passes after it use operators that came later: HardSwish (14),
LayerNormalization (17), Mish (18), Gelu (20), RMSNormalization (23). Every node is carried over version by version: an
attribute that became an input becomes a constant, a default that changed is spelled out, an operator that was renamed
gets its new name. ``opset_steps`` has the list; for what is not on it, the schemas must prove that nothing changed.

All or nothing: where one node cannot be carried over exactly, the operator set stays as it is, and the report names
the node and why. Never lowered, never above what the target takes. Nodes of other domains may be functions of the
model, whose bodies have operator sets of their own: they wait until ``inline`` has taken them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, constant, is_op, set_input, set_output, types_of, walk
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.opset_steps import Input, State, carry

_OLDEST = 7
# Constants made, by dtype, shape and bytes: equal ones are one.
Made: TypeAlias = dict[tuple[str, tuple[int, ...], bytes], gs.Constant]
# Domains of operators that runtimes bring along, so that no function of a model stands there.
_BUILT_IN = frozenset({"ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.preview.training"})


@dataclass(frozen=True)
class RaiseOpset:
    """Raise the version of the default operator set.

    Attributes:
        to: the version wanted; 0 leaves it as it is.
    """

    name: ClassVar[str] = "raise_opset"
    summary: ClassVar[str] = "raise the operator set version, where asked to"
    exact: ClassVar[bool] = True

    to: int = 0

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        highest = context.hardware.opset[1]
        wanted = min(self.to, highest)
        skipped = [Skip(f"opset {self.to}", f"the target takes {highest} at most")] if self.to > highest else []
        if wanted <= graph.opset:
            return PassReport(0, tuple(skipped))
        if graph.opset < _OLDEST:
            skipped.append(Skip(f"opset {graph.opset}", f"operators before opset {_OLDEST} are not converted"))
            return PassReport(0, tuple(skipped))
        found = _plan(graph, wanted)
        if isinstance(found, Skip):
            return PassReport(0, (*skipped, found))
        before = graph.opset
        index = Index(graph)
        made: Made = {}
        changed = sum(_rewrite(index, node, state, made) for node, state in found)
        for home in index.graphs:
            home.opset = wanted
            for entry in home.import_domains or []:
                if entry.domain == "":
                    entry.version = wanted
        index.finish()
        details = {"opset": f"raised from {before} to {wanted}", "converted_nodes": changed}
        return PassReport(1 + changed, tuple(skipped), details)


def _plan(graph: gs.Graph, wanted: int) -> list[tuple[gs.Node, State]] | Skip:
    """What every node becomes; or the first that cannot be carried over, and why."""
    types = types_of(graph, distinct=True)
    planned: list[tuple[gs.Node, State]] = []
    for home in walk(graph):
        given_out = {id(tensor) for tensor in home.outputs}
        for node in home.nodes:
            if not is_op(node, node.op):
                if node.domain not in _BUILT_IN:
                    reason = f"{node.op} of domain {node.domain} may be a function with an operator set of its own"
                    return Skip(_where(node), reason)
                continue
            inputs: tuple[Input, ...] = tuple(None if tensor.is_empty() else tensor for tensor in node.inputs)
            outputs = tuple(not tensor.is_empty() for tensor in node.outputs)
            reads = tuple(bool(tensor.outputs) or id(tensor) in given_out for tensor in node.outputs)
            start = State(node.op, node.attrs, inputs, outputs, reads, types)
            state = carry(start, graph.opset, wanted)
            if isinstance(state, str):
                return Skip(_where(node), f"cannot be raised to opset {wanted}: {state}")
            if state is not start:
                planned.append((node, state))
    return planned


def _where(node: gs.Node) -> str:
    return str(node.name or next((tensor.name for tensor in node.outputs if not tensor.is_empty()), node.op))


def _rewrite(index: Index, node: gs.Node, state: State, made: Made) -> int:
    """Give a node its new state; 1 if that differs from what it has."""
    for slot in range(len(state.outputs), len(node.outputs)):
        set_output(index, node, slot, gs.Variable.empty())
    if state.op == node.op and state.attrs == node.attrs and _same(node, state.inputs):
        return 0
    node.op = state.op
    node.attrs = dict(state.attrs)
    name = _where(node)
    surplus = [None] * (len(node.inputs) - len(state.inputs))
    for slot, given in enumerate((*state.inputs, *surplus)):
        if slot < len(node.inputs) and node.inputs[slot] is given:
            continue
        tensor: Any = given
        if given is None:
            tensor = gs.Variable.empty()
        elif isinstance(given, np.ndarray):
            key = (given.dtype.str, given.shape, given.tobytes())
            if key not in made:
                made[key] = constant(index, f"{name}_input_{slot}", given)
            tensor = made[key]
        if slot >= len(node.inputs) or not (tensor.is_empty() and node.inputs[slot].is_empty()):
            set_input(index, node, slot, tensor)
    return 1


def _same(node: gs.Node, inputs: Sequence[Input]) -> bool:
    if len(inputs) != len(node.inputs):
        return False
    return all(
        (given is None and tensor.is_empty()) or given is tensor
        for given, tensor in zip(inputs, node.inputs, strict=True)
    )
