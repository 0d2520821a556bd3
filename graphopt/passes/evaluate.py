"""Computing parts of a graph that depend on nothing but its constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt import runtime
from graphopt.errors import GraphoptError
from graphopt.graph import export_part


def evaluate(
    nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor], graph: gs.Graph
) -> tuple[dict[int, np.ndarray[Any, Any]], dict[int, str]]:
    """Run ``nodes`` with ONNX Runtime's own kernels, all graph optimizations off.

    One session computes everything; only where that fails does each node get its own, and in that case what ONNX
    Runtime cannot do is left out together with all that depends on it.

    Args:
        nodes: sorted; every input is a constant or the output of an earlier one.
        wanted: the tensors to return.
        graph: the graph they come from, for operator set versions.

    Returns:
        ``id`` of a tensor -> its values, for those that are numeric tensors; ``id`` of a node -> why it failed.
    """
    if not nodes:
        return {}, {}
    try:
        return _run(nodes, wanted, graph, {}), {}
    except GraphoptError:
        return _one_by_one(nodes, wanted, graph)


def _one_by_one(
    nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor], graph: gs.Graph
) -> tuple[dict[int, np.ndarray[Any, Any]], dict[int, str]]:
    asked = {id(tensor) for tensor in wanted}
    values: dict[int, np.ndarray[Any, Any]] = {}
    failed: dict[int, str] = {}
    for node in nodes:
        open_inputs = [t for t in node.inputs if not t.is_empty() and not isinstance(t, gs.Constant)]
        if any(id(tensor) not in values for tensor in open_inputs):
            continue
        outputs = [tensor for tensor in node.outputs if not tensor.is_empty()]
        try:
            values.update(_run([node], outputs, graph, {t.name: values[id(t)] for t in open_inputs}))
        except GraphoptError as error:
            failed[id(node)] = str(error)
    return {key: array for key, array in values.items() if key in asked}, failed


def _run(
    nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor], graph: gs.Graph, given: Mapping[str, np.ndarray[Any, Any]]
) -> dict[int, np.ndarray[Any, Any]]:
    model = export_part(nodes, wanted, graph)
    for name, array in given.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    opened = runtime.session(model, optimize=False)
    results = runtime.run(opened, {}, [tensor.name for tensor in wanted])
    return {id(tensor): results[tensor.name] for tensor in wanted if isinstance(results[tensor.name], np.ndarray)}
