"""Which weights of a graph can be pruned, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.errors import UsageError
from graphopt.graph import consumers, is_op, values_of, walk
from graphopt.passes.base import Skip

# Operator -> inputs that are multiplied with, where they are constant. Biases and initial states are no weights.
WEIGHT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "GRU": (1, 2),
    "Gemm": (0, 1),
    "LSTM": (1, 2),
    "MatMul": (0, 1),
    "RNN": (1, 2),
}
_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True)
class Weight:
    """A constant that layers multiply with.

    Attributes:
        layer: name of the first layer that reads it, with the operator.
        tensor: the constant, as it is stored.
        values: its values, not to be edited.
    """

    layer: str
    tensor: gs.Tensor
    values: npt.NDArray[np.floating]


@dataclass(frozen=True)
class Found:
    """The weights of a graph in its order, and the layers left alone."""

    weights: tuple[Weight, ...]
    skipped: tuple[Skip, ...]


def find_weights(graph: gs.Graph, *, keep_first: bool, keep_last: bool, exclude: Iterable[str] = ()) -> Found:
    """Find what can be pruned, in subgraphs too.

    Args:
        graph: an opened graph.
        keep_first: leave layers alone that no other layer stands before.
        keep_last: leave layers alone that no other layer stands behind.
        exclude: names of nodes to leave alone.

    Raises:
        UsageError: an excluded name is no layer of the graph.
    """
    layers = [node for each in walk(graph) for node in each.nodes if _slots(node)]
    unknown = set(exclude) - {node.name for node in layers}
    if unknown:
        raise UsageError(f"prune_weights.exclude names no layer of the model: {', '.join(sorted(unknown))}")
    reasons = {id(node): "excluded by the option prune_weights.exclude" for node in layers if node.name in exclude}
    if keep_first:
        reasons = dict.fromkeys(_without_a_layer_before(graph), "it is a first layer") | reasons
    if keep_last:
        reasons = dict.fromkeys(_without_a_layer_behind(graph), "it is a last layer") | reasons
    outputs = {id(tensor) for each in walk(graph) for tensor in each.outputs}
    weights: dict[int, Weight | None] = {}
    skipped = []
    for node in layers:
        for slot in _slots(node):
            tensor = _stored(node.inputs[slot])
            if id(tensor) in weights:
                continue
            reason, values = next((reasons[id(one)] for one in _layers_of(tensor) if id(one) in reasons), None), None
            if id(tensor) in outputs:
                reason = "its weights are an output of the model"
            if reason is None:
                reason, values = _why_not(tensor)
            if reason is not None:
                skipped.append(Skip(_label(node), reason))
            weights[id(tensor)] = None if values is None else Weight(_label(node), tensor, values)
    return Found(tuple(weight for weight in weights.values() if weight is not None), tuple(skipped))


def _why_not(tensor: gs.Tensor) -> tuple[str | None, npt.NDArray[np.floating] | None]:
    values = values_of(tensor)
    if values is None:
        return "the values of its weights were not loaded, or are stored as a sparse tensor", None
    if values.dtype.type not in _FLOATS:
        return f"its weights are {values.dtype}, not float", None
    if not values.size:
        return "its weights have no elements", None
    if not np.isfinite(values).all():
        return "its weights hold NaN or infinity", None
    for reader in _readers(tensor):
        if not any(_stored(reader.inputs[slot]) is tensor for slot in _slots(reader)):
            return f"its weights are read by {_label(reader)} too", None
    return None, values


def _slots(node: gs.Node) -> list[int]:
    """The inputs of a layer that are constant and multiplied with; none for other nodes."""
    if not is_op(node, *WEIGHT_INPUTS):
        return []
    slots = [slot for slot in WEIGHT_INPUTS[node.op] if slot < len(node.inputs)]
    return [slot for slot in slots if _is_stored(_stored(node.inputs[slot]))]


def _stored(tensor: gs.Tensor) -> gs.Tensor:
    """Where a tensor comes from that nodes only hand on: exporters write equal weights once, with Identity nodes."""
    while len(tensor.inputs) == 1 and is_op(tensor.inputs[0], "Identity"):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _is_stored(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) or (len(tensor.inputs) == 1 and is_op(tensor.inputs[0], "Constant"))


def _readers(tensor: gs.Tensor) -> list[gs.Node]:
    """Who reads a constant, directly or through Identity."""
    found, pending = [], consumers(tensor)
    while pending:
        node = pending.pop()
        if is_op(node, "Identity"):
            pending.extend(consumers(node.outputs[0]))
        else:
            found.append(node)
    return found


def _layers_of(tensor: gs.Tensor) -> list[gs.Node]:
    return [node for node in _readers(tensor) if _slots(node)]


def _without_a_layer_before(graph: gs.Graph) -> list[int]:
    """``id`` of the layers of the outermost graph to which no path leads from another layer."""
    return _foremost((node, node.inputs, node.outputs) for node in graph.nodes)


def _without_a_layer_behind(graph: gs.Graph) -> list[int]:
    """``id`` of the layers of the outermost graph from which no path leads to another layer."""
    return _foremost((node, node.outputs, node.inputs) for node in reversed(graph.nodes))


def _foremost(walk: Iterable[tuple[gs.Node, Sequence[gs.Tensor], Sequence[gs.Tensor]]]) -> list[int]:
    """``id`` of the layers that a walk reaches past no other: each node with the tensors it comes from and goes to."""
    past: set[int] = set()
    found = []
    for node, sources, results in walk:
        is_past = any(id(tensor) in past for tensor in sources)
        is_layer = bool(_slots(node))
        if is_layer and not is_past:
            found.append(id(node))
        if is_layer or is_past:
            past.update(id(tensor) for tensor in results)
    return found


def _label(node: gs.Node) -> str:
    name = node.name or next((tensor.name for tensor in node.outputs if tensor.name), "")
    return f"{name!r} ({node.op})"
