"""What a model costs: parameters, multiply-adds and memory, for the whole and for each node.

Works from the structure alone; weights may be absent. See ``parameters`` for what counts as a parameter, ``macs`` for
what counts as a multiply-add and ``kinds`` for the kinds of work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import onnx

from graphopt.graph.cost.kinds import CONVOLUTIONS, MATRIX_PRODUCTS, RECURRENT, kind, weight_name
from graphopt.graph.cost.macs import UnknownSizeError, macs
from graphopt.graph.cost.parameters import parameters_of, source
from graphopt.graph.cost.shapes import Scope, Shape, scopes

_PER_BYTE = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}


@dataclass(frozen=True)
class LayerCost:
    """The cost of one node.

    Attributes:
        name: the node's name, or that of its first output where it has none.
        operator: the ONNX operator.
        kind: the kind of work, see ``kinds.kind``.
        macs: multiply-adds; None where a size is unknown.
        parameters: elements of the parameter tensors that belong to the node.
        weights: those of them that inputs are multiplied with in convolutions, matrix products and recurrences: biases
            and normalization left out, as the tables of the literature do (MobileNet, arXiv 1704.04861, table 2).
        weight_bytes: bytes of the constants that it reads.
        activation_bytes: bytes of the computed tensors that it reads and writes; None where a size is unknown.
        unknown: why a figure is None, else empty.
    """

    name: str
    operator: str
    kind: str
    macs: int | None
    parameters: int
    weights: int
    weight_bytes: int
    activation_bytes: int | None
    unknown: str = ""

    @property
    def bytes(self) -> int | None:
        """Bytes read and written in one run; None where a size is unknown."""
        return None if self.activation_bytes is None else self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class KindCost:
    """The cost of all nodes of one kind; shares are None where the total is unknown or 0.

    ``macs_share`` and ``weights_share`` are the columns of table 2 of the MobileNet paper (arXiv 1704.04861).
    """

    kind: str
    nodes: int
    macs: int | None
    macs_share: float | None
    parameters: int
    parameters_share: float | None
    weights: int
    weights_share: float | None


@dataclass(frozen=True)
class ModelCost:
    """The cost of a model for one size of input.

    Attributes:
        nodes: all nodes, those in bodies of If, Loop and Scan included, once each.
        parameters: elements of all parameter tensors, shared ones once.
        macs: multiply-adds of one run; None where a layer's are unknown (``known_macs`` has the rest).
        weight_bytes: bytes of all constants that nodes read, shared ones once.
        peak_activation_bytes: the most that computed tensors occupy at a time when nodes run in their order and every
            tensor is freed after its last use; None where a size is unknown.
        layers: one for each node, in order.
    """

    nodes: int
    parameters: int
    macs: int | None
    weight_bytes: int
    peak_activation_bytes: int | None
    layers: tuple[LayerCost, ...]

    @property
    def known_macs(self) -> int:
        """Multiply-adds of the layers whose sizes are known."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def unknown(self) -> tuple[str, ...]:
        """One sentence for each layer whose multiply-adds are unknown."""
        return tuple(f"{layer.name}: {layer.unknown}" for layer in self.layers if layer.macs is None)

    def by_kind(self) -> tuple[KindCost, ...]:
        """The shares of each kind of work, the one with most multiply-adds first."""
        groups: dict[str, list[LayerCost]] = {}
        all_weights = sum(layer.weights for layer in self.layers)
        for layer in self.layers:
            groups.setdefault(layer.kind, []).append(layer)
        result = []
        for name, layers in groups.items():
            counted = [layer.macs for layer in layers]
            total = None if None in counted else sum(count or 0 for count in counted)
            parameters = sum(layer.parameters for layer in layers)
            macs_share = total / self.macs if total is not None and self.macs else None
            parameters_share = parameters / self.parameters if self.parameters else None
            weights = sum(layer.weights for layer in layers)
            weights_share = weights / all_weights if all_weights else None
            result.append(
                KindCost(name, len(layers), total, macs_share, parameters, parameters_share, weights, weights_share)
            )
        return tuple(sorted(result, key=lambda k: (-(k.macs or 0), -k.parameters, -k.nodes, k.kind)))


def cost(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None, batch: int = 1) -> ModelCost:
    """Count parameters, multiply-adds and memory of ``model``; the values of weights are not looked at.

    ``shapes`` fixes inputs by name; the first axis of the others, where dynamic, becomes ``batch``. Multiply-adds are
    for the whole batch. Raises ``UsageError`` for shapes that contradict the model, ``ModelError`` where the graph is
    not sound enough to infer shapes.
    """
    return count(scopes(model, shapes, batch), [value.name for value in model.graph.output])


def count(graphs: Sequence[Scope], outputs: Collection[str]) -> ModelCost:
    """The cost of a model whose shapes are known already: what ``scopes`` returned, and what the model outputs."""
    layers: list[LayerCost] = []
    counted: set[tuple[int, str]] = set()
    weights: dict[tuple[int, str], int] = {}
    peak: int | None = None
    for scope in graphs:
        for node in scope.nodes:
            layers.append(_layer(node, scope, counted, weights))
        if not scope.inner:
            peak = _peak_bytes(scope, set(outputs))
    totals = [layer.macs for layer in layers]
    return ModelCost(
        nodes=len(layers),
        parameters=sum(layer.parameters for layer in layers),
        macs=None if None in totals else sum(total or 0 for total in totals),
        weight_bytes=sum(weights.values()),
        peak_activation_bytes=peak,
        layers=tuple(layers),
    )


class Costs:
    """Costs of models for one size of input, each counted once.

    Attributes:
        shapes: fixed shapes of dynamic inputs.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        self.shapes = shapes
        # The model is kept with its cost, so that its id stays its own.
        self._counted: dict[int, tuple[onnx.ModelProto, ModelCost]] = {}

    def of(self, model: onnx.ModelProto) -> ModelCost:
        """The cost of a model, which must not be edited afterwards."""
        found = self._counted.get(id(model))
        if found is None:
            found = self._counted[id(model)] = (model, cost(model, shapes=self.shapes))
        return found[1]


def _layer(
    node: onnx.NodeProto, scope: Scope, counted: set[tuple[int, str]], weights: dict[tuple[int, str], int]
) -> LayerCost:
    """The cost of ``node``; adds to ``counted`` its parameters and to ``weights`` the bytes of its constants."""
    parameters = weights_in_layer = 0
    multiplied = _multiplied(node, scope)
    for name, elements in parameters_of(node, scope).items():
        key = (_home(scope, name), name)
        if key not in counted:
            parameters += elements
            weights_in_layer += elements if name in multiplied else 0
        counted.add(key)
    stored = {name: _bytes(scope, name) or 0 for name in node.input if name in scope.constants}
    weights.update({(_home(scope, name), name): size for name, size in stored.items()})
    moved = [_bytes(scope, name) for name in _computed(node, scope)]
    unknown, count = "", None
    try:
        count = macs(node, scope)
    except UnknownSizeError as error:
        unknown = str(error)
    return LayerCost(
        name=node.name or next(iter(node.output), node.op_type),
        operator=node.op_type,
        kind=kind(node, scope, _constant_weight(node, scope)),
        macs=count,
        parameters=parameters,
        weights=weights_in_layer,
        weight_bytes=sum(stored.values()),
        activation_bytes=None if None in moved else sum(size or 0 for size in moved),
        unknown=unknown,
    )


def _constant_weight(node: onnx.NodeProto, scope: Scope) -> str | None:
    """The stored tensor that a matrix product multiplies with, on whichever side it stands."""
    names = [weight_name(node), node.input[0] if node.input else ""]
    found = next((s for name in names if name and (s := source(name, scope)) is not None), None)
    return found.name if found else None


def _multiplied(node: onnx.NodeProto, scope: Scope) -> set[str]:
    """The stored tensors that a convolution, matrix product or recurrence multiplies its inputs with."""
    if node.op_type in RECURRENT:
        return {found.name for name in node.input[1:3] if name and (found := source(name, scope)) is not None}
    if node.op_type in CONVOLUTIONS | MATRIX_PRODUCTS | {"ConvTranspose", "Einsum"}:
        weight = _constant_weight(node, scope)
        return {weight} if weight is not None else set()
    return set()


def _home(scope: Scope, name: str) -> int:
    """Tells apart constants of one name in two bodies: the scope that holds it."""
    maps = getattr(scope.constants, "maps", [scope.constants])
    return next((id(inner) for inner in maps if name in inner), 0)


def _computed(node: onnx.NodeProto, scope: Scope) -> list[str]:
    return [name for name in dict.fromkeys((*node.input, *node.output)) if name and name not in scope.constants]


@cache
def _storage(dtype: int) -> tuple[int, int]:
    """How many elements of a data type share one unit of storage, and its bytes."""
    per_byte = _PER_BYTE.get(onnx.TensorProto.DataType.Name(dtype))
    return (per_byte, 1) if per_byte else (1, onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)


def _bytes(scope: Scope, name: str) -> int | None:
    shape, dtype = scope.shapes.get(name), scope.dtypes.get(name)
    if shape is None or None in shape or not dtype or dtype == onnx.TensorProto.STRING:
        return None
    elements = prod(size for size in shape if size is not None)
    per_byte, itemsize = _storage(dtype)
    return -(-elements // per_byte) * itemsize


def _peak_bytes(scope: Scope, outputs: set[str]) -> int | None:
    last_use = {name: index for index, node in enumerate(scope.nodes) for name in _computed(node, scope)}
    sizes = {name: _bytes(scope, name) for name in last_use}
    if None in sizes.values():
        return None
    freed: dict[int, list[str]] = {}
    for name, index in last_use.items():
        freed.setdefault(len(scope.nodes) if name in outputs else index, []).append(name)
    live: set[str] = set()
    now = peak = 0
    for index, node in enumerate(scope.nodes):
        for name in _computed(node, scope):
            if name not in live:
                live.add(name)
                now += sizes[name] or 0
        peak = max(peak, now)
        for name in freed.get(index, ()):
            now -= sizes[name] or 0
    return peak


__all__ = [
    "CONVOLUTIONS",
    "MATRIX_PRODUCTS",
    "RECURRENT",
    "Costs",
    "KindCost",
    "LayerCost",
    "ModelCost",
    "Scope",
    "Shape",
    "cost",
    "count",
    "scopes",
]
