"""What each convolution would cost as pairs of a depthwise and a pointwise one, from the structure alone.

A k x k convolution is a sum of at most k^2 such pairs (Guo et al. 2018, arXiv 1808.05517); MobileNet's block (arXiv
1704.04861) is one of them. What the accuracy says, and the clock, ``separate_convolutions`` finds out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import onnx

from graphopt.graph.cost import ModelCost, Scope
from graphopt.graph.cost.kinds import attribute
from graphopt.graph.cost.parameters import FLOATING, source
from graphopt.graph.cost.shapes import STANDARD_DOMAINS

Order: TypeAlias = Literal["depthwise_first", "pointwise_first"]

# Ranks that a person is shown.
RANKS = (1, 2)


@dataclass(frozen=True)
class Separated:
    """A layer as ``rank`` pairs: multiply-adds for the whole batch (None where sizes are unknown) and weights."""

    rank: int
    form: Order
    macs: int | None
    parameters: int


@dataclass(frozen=True)
class SeparableLayer:
    """A convolution that could be written as depthwise and pointwise ones.

    Attributes:
        name: the node's name, or that of its output.
        operator: Conv or ConvTranspose.
        kernel: sizes of the kernel.
        groups: number of groups.
        channels, filters: input and output channels, of all groups together.
        macs: multiply-adds now; None where sizes are unknown.
        parameters: weights now, bias left out.
        reads_input: whether it reads an input of the model: few channels there, so published nets keep it whole.
        ranks: what it would cost at ``RANKS``, as far as it has so many.
        saves_up_to: the highest rank at which it has fewer multiply-adds than now; 0 if it never has.
    """

    name: str
    operator: str
    kernel: tuple[int, ...]
    groups: int
    channels: int
    filters: int
    macs: int | None
    parameters: int
    reads_input: bool
    ranks: tuple[Separated, ...]
    saves_up_to: int


@dataclass(frozen=True)
class SeparatedModel:
    """The whole model with ``layers`` of its convolutions as ``rank`` pairs, the others as they are."""

    rank: int
    layers: int
    macs: int | None
    parameters: int


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a convolution's weights: channels and filters of a group."""

    groups: int
    channels: int
    filters: int
    kernel: tuple[int, ...]

    @property
    def taps(self) -> int:
        return prod(self.kernel)


def separable_layers(main: Scope, inputs: Collection[str]) -> tuple[SeparableLayer, ...]:
    """The convolutions of the main graph that could be separated, in order.

    Args:
        main: the main graph with its shapes.
        inputs: names of the model's inputs.
    """
    return tuple(found for node in main.nodes if (found := _layer(node, main, inputs)) is not None)


def separated_models(
    layers: Sequence[SeparableLayer], cost: ModelCost, ranks: Sequence[int] = RANKS
) -> tuple[SeparatedModel, ...]:
    """The whole model at each rank: every layer separated that then has fewer multiply-adds and reads no input."""
    found = []
    for rank in ranks:
        pairs = [(layer, at) for layer in layers for at in layer.ranks if at.rank == rank and not layer.reads_input]
        pairs = [(layer, at) for layer, at in pairs if rank <= layer.saves_up_to]
        macs: int | None = cost.macs
        for layer, at in pairs:
            macs = None if macs is None or at.macs is None or layer.macs is None else macs + at.macs - layer.macs
        parameters = cost.parameters + sum(at.parameters - layer.parameters for layer, at in pairs)
        if pairs:
            found.append(SeparatedModel(rank, len(pairs), macs, parameters))
    return tuple(found)


def separable_as_json(layers: Sequence[SeparableLayer]) -> list[dict[str, Any]]:
    """All layers as plain JSON values."""
    return [
        {
            "name": layer.name,
            "operator": layer.operator,
            "kernel": list(layer.kernel),
            "groups": layer.groups,
            "channels": layer.channels,
            "filters": layer.filters,
            "macs": layer.macs,
            "parameters": layer.parameters,
            "reads_input": layer.reads_input,
            "saves_up_to_rank": layer.saves_up_to,
            "ranks": [
                {"rank": at.rank, "form": at.form, "macs": at.macs, "parameters": at.parameters} for at in layer.ranks
            ],
        }
        for layer in layers
    ]


def _layer(node: onnx.NodeProto, scope: Scope, inputs: Collection[str]) -> SeparableLayer | None:
    sizes = _sizes(node, scope)
    if sizes is None:
        return None
    transposed = node.op_type == "ConvTranspose"
    read = _positions(scope, node.input[0], sizes.groups * sizes.channels)
    written = _positions(scope, node.output[0], sizes.groups * sizes.filters)
    whole = sizes.groups * sizes.channels * sizes.filters * sizes.taps
    passes = read if transposed else written
    macs = None if passes is None else passes * whole

    def at(form: Order, rank: int) -> Separated:
        return _separated(sizes, form, rank, read, written, transposed)

    first: Order = "depthwise_first"
    form: Order = min((first, "pointwise_first"), key=lambda form: _work(at(form, 1)))
    most = min(sizes.taps, sizes.filters if form == "depthwise_first" else sizes.channels)  # exact from there on
    now = whole if macs is None else macs
    ranks = tuple(at(form, rank) for rank in RANKS if rank <= most)
    saves = max((rank for rank in range(1, most + 1) if _work(at(form, rank)) < now), default=0)
    return SeparableLayer(
        name=node.name or node.output[0],
        operator=node.op_type,
        kernel=sizes.kernel,
        groups=sizes.groups,
        channels=sizes.groups * sizes.channels,
        filters=sizes.groups * sizes.filters,
        macs=macs,
        parameters=whole,
        reads_input=node.input[0] in inputs,
        ranks=ranks,
        saves_up_to=saves,
    )


def _separated(
    sizes: _Sizes, form: Order, rank: int, read: int | None, written: int | None, transposed: bool
) -> Separated:
    """The cost of pairs in one order: the depthwise one has the strides, the pointwise one stands where it stands."""
    pointwise = sizes.groups * rank * sizes.channels * sizes.filters
    side = sizes.channels if form == "depthwise_first" else sizes.filters
    depthwise = sizes.groups * rank * side * sizes.taps
    pointwise_at = written if form == "depthwise_first" else read
    depthwise_at = read if transposed else written
    macs = None
    if pointwise_at is not None and depthwise_at is not None:
        macs = pointwise * pointwise_at + depthwise * depthwise_at
    return Separated(rank, form, macs, pointwise + depthwise)


def _work(found: Separated) -> int:
    """Multiply-adds, or weights where sizes are unknown."""
    return found.parameters if found.macs is None else found.macs


def _sizes(node: onnx.NodeProto, scope: Scope) -> _Sizes | None:
    """The sizes of a convolution with a kernel and stored floating weights, not depthwise already; else None."""
    if node.domain not in STANDARD_DOMAINS or node.op_type not in ("Conv", "ConvTranspose") or len(node.input) < 2:
        return None
    stored, known = source(node.input[1], scope), scope.shapes.get(node.input[1])
    if stored is None or stored.dequantized or known is None or None in known:
        return None
    shape = tuple(size for size in known if size is not None)
    groups = attribute(node, "group", 1)
    if scope.dtypes.get(node.input[1]) not in FLOATING or len(shape) < 3 or 0 in shape or groups < 1:
        return None
    if node.op_type == "Conv":
        sizes = _Sizes(groups, shape[1], shape[0] // groups, shape[2:])
    else:
        sizes = _Sizes(groups, shape[0] // groups, shape[1], shape[2:])
    separated_already = sizes.taps == 1 or (groups > 1 and sizes.channels == 1)
    return None if separated_already or shape[0] % groups else sizes


def _positions(scope: Scope, name: str, channels: int) -> int | None:
    """Elements of a tensor for each of its channels: batch and spatial sizes."""
    shape = scope.shapes.get(name)
    if shape is None or None in shape:
        return None
    return prod(size for size in shape if size is not None) // channels
