"""Carrying every node of a graph over to another operator set version: all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, constant, is_op, set_input, set_output, trim_inputs, types_of, walk
from graphopt.passes.base import Skip
from graphopt.passes.opset_steps import Input, State

# Constants made, by dtype, shape and bytes: equal ones are one.
_Made: TypeAlias = dict[tuple[str, tuple[int, ...], bytes], gs.Constant]
Plan: TypeAlias = Sequence[tuple[gs.Node, State]]
# Domains of operators that runtimes bring along, so that no function of a model stands there.
_BUILT_IN = frozenset({"ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.preview.training"})


def plan(graph: gs.Graph, carry: Callable[[State], State | str], what: str) -> tuple[Plan, list[Skip]]:
    """What nodes become, and those that cannot be carried over, with the reason.

    Args:
        graph: the outermost graph.
        carry: gives the new state of a node, the very state where it stays, or the reason why there is none.
        what: words for the reason, e.g. ``raised to opset 20``.
    """
    types = types_of(graph, distinct=True)
    planned: list[tuple[gs.Node, State]] = []
    refused: list[Skip] = []
    for home in walk(graph):
        given_out = {id(tensor) for tensor in home.outputs}
        for node in home.nodes:
            if not is_op(node, node.op):
                if node.domain not in _BUILT_IN:
                    reason = f"{node.op} of domain {node.domain} may be a function with an operator set of its own"
                    refused.append(Skip(_where(node), reason))
                continue
            inputs: tuple[Input, ...] = tuple(None if tensor.is_empty() else tensor for tensor in node.inputs)
            outputs = tuple(not tensor.is_empty() for tensor in node.outputs)
            reads = tuple(bool(tensor.outputs) or id(tensor) in given_out for tensor in node.outputs)
            names = tuple(tensor.name for tensor in node.outputs)
            start = State(node.op, node.attrs, inputs, outputs, reads, types, names)
            state = carry(start)
            if isinstance(state, str):
                refused.append(Skip(_where(node), f"cannot be {what}: {state}"))
            elif state is not start:
                planned.append((node, state))
    return planned, refused


def carry_out(graph: gs.Graph, planned: Plan, wanted: int) -> int:
    """Give nodes their new states and the graph its new version; returns how many nodes changed."""
    index = Index(graph)
    made: _Made = {}
    changed = sum(_rewrite(index, node, state, made) for node, state in planned)
    for home in index.graphs:
        home.opset = wanted
        for entry in home.import_domains or []:
            if entry.domain == "":
                entry.version = wanted
    index.finish()
    return changed


def _where(node: gs.Node) -> str:
    return str(node.name or next((tensor.name for tensor in node.outputs if not tensor.is_empty()), node.op))


def _rewrite(index: Index, node: gs.Node, state: State, made: _Made) -> int:
    """Give a node its new state; 1 if that differs from what it has."""
    for slot in range(len(state.outputs), len(node.outputs)):
        set_output(index, node, slot, gs.Variable.empty())
    if state.op == node.op and state.attrs == node.attrs and _same(node, state.inputs):
        return 0
    node.op = state.op
    node.attrs = dict(state.attrs)
    name = _where(node)
    trim_inputs(index, node, len(state.inputs))
    for slot, given in enumerate(state.inputs):
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
