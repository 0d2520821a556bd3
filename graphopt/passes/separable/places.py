"""The convolutions of a model that can be separated, and what each of them stands among."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import onnx

from graphopt.passes.base import Skip
from graphopt.passes.separable.decompose import geometry_of
from graphopt.passes.separable.factors import Geometry
from graphopt.passes.separable.piece import Piece
from graphopt.recovery.layers import Layer, find_layers
from graphopt.recovery.net import Net

_STANDARD = ("", "ai.onnx")
_ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Place:
    """A convolution that can be separated.

    Attributes:
        layer: it, as recovery sees it.
        node: its name for reports.
        geometry: sizes of its weights.
        piece: it with what the runtime merges into it.
    """

    layer: Layer
    node: str
    geometry: Geometry
    piece: Piece

    @property
    def name(self) -> str:
        """The tensor that it writes."""
        return self.layer.name


def find_places(
    net: Net, shapes: Mapping[str, tuple[int, ...]], exclude: Collection[str] = ()
) -> tuple[tuple[Place, ...], tuple[Skip, ...]]:
    """Find the convolutions of a net that can be separated.

    Args:
        net: the net.
        shapes: shapes of tensors for one sample.
        exclude: names of nodes that stay as they are.

    Returns:
        the places, and of each other convolution with a kernel why it stays.
    """
    layers, refused = find_layers(net)
    by_step = {layer.step: layer for layer in layers}
    places: list[Place] = []
    skips: list[Skip] = []
    for step, (node,) in enumerate(net.steps):
        if node.domain not in _STANDARD or node.op_type not in ("Conv", "ConvTranspose"):
            continue
        name = node.name or node.output[0]
        weight = net.constants.get(node.input[1]) if len(node.input) > 1 else None
        geometry = geometry_of(node, None if weight is None else weight.dims)
        if isinstance(geometry, str):
            skips.append(Skip(name, geometry))
        elif name in exclude:
            skips.append(Skip(name, "excluded by the option separate_convolutions.exclude"))
        elif step not in by_step:
            skips.append(Skip(name, refused.get(node.output[0], "its weights are not constant")))
        elif weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            skips.append(Skip(name, "its weights are not float32"))
        elif node.input[0] not in shapes:
            skips.append(Skip(name, "the sizes of its input are not known"))
        else:
            piece = _piece(net, node, tuple(weight.dims), shapes)
            places.append(Place(by_step[step], name, geometry, piece))
    return tuple(places), tuple(skips)


def narrowed(places: Iterable[Place], net: Net) -> dict[str, Place]:
    """The same places in a net with fewer channels, by name; without those that cannot be separated there."""
    layers = {layer.name: layer for layer in find_layers(net)[0]}
    found: dict[str, Place] = {}
    for place in places:
        layer = layers.get(place.name)
        if layer is None or layer.kind not in ("convolution", "transposed"):
            continue
        (node,) = net.steps[layer.step]
        weight = tuple(net.constants[node.input[1]].dims)
        geometry = geometry_of(node, weight)
        if not isinstance(geometry, str):
            size = (place.piece.input[0], geometry.groups * geometry.channels, *place.piece.input[2:])
            piece = replace(place.piece, node=node, weight=weight, bias=_has_bias(node), input=size)
            found[place.name] = Place(layer, place.node, geometry, piece)
    return found


def _piece(net: Net, node: onnx.NodeProto, weight: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> Piece:
    behind = _only_reader(net, node.output[0])
    residual = (
        behind is not None
        and behind.op_type == "Add"
        and not any(name in net.constants for name in behind.input)
        and behind.input[0] != behind.input[1]
    )
    if residual and behind is not None:
        behind = _only_reader(net, behind.output[0])
    activation = behind is not None and behind.op_type in _ACTIVATIONS
    return Piece(node, weight, _has_bias(node), shapes[node.input[0]], residual, activation)


def _has_bias(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _only_reader(net: Net, name: str) -> onnx.NodeProto | None:
    readers = net.readers.get(name, ())
    if len(readers) != 1 or name in net.outputs or len(net.steps[readers[0]]) != 1:
        return None
    (node,) = net.steps[readers[0]]
    return node if node.domain in _STANDARD else None
