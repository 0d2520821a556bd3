"""How a runtime that chooses types by itself is told of nodes: ``trtexec --layerPrecisions=NODE:fp32``.

A node without a name of its own gets that of its first output: what the runtime would call it otherwise is its own
affair. Characters that part one entry of the list from the next are left out of names that are made here; names that
were there stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from graphopt.model.fresh import fresh
from graphopt.model.walk import bodies
from graphopt.passes.float16.sites import Site
from graphopt.targets.schema import Hardware

# trtexec takes precisions of single layers from here on (TensorRT OSS Release Changelog, 8.4.1 GA: 'Added
# --layerPrecisions and --layerOutputTypes flags'); before, it ends at an option that it does not know.
_PRECISION_OF_LAYERS = (8, 4)
_PARTS_ENTRIES = re.compile(r"[,:*?\s]")


def with_names(model: onnx.ModelProto, sites: Sequence[Site]) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with a name for each of the nodes ``sites``, and the names in order; the model is not edited."""
    nameless = {site.name for site in sites if not site.node.name}
    if not nameless:
        return model, [site.name for site in sites]
    named = onnx.ModelProto()
    named.CopyFrom(model)
    nodes = [node for body in bodies(named) for node in body.proto.node]
    taken = {node.name for node in nodes}
    made: dict[str, str] = {}
    for node in nodes:
        first = next((name for name in node.output if name), "")
        if node.name or first not in nameless:
            continue
        node.name = made[first] = fresh(taken, _PARTS_ENTRIES.sub("_", first))
    return named, [site.name if site.node.name else made[site.name] for site in sites]


def precision_of_layers(hardware: Hardware) -> bool:
    """Whether the runtime can be told which nodes to leave in float32."""
    return hardware.runtime != "tensorrt" or hardware.version >= _PRECISION_OF_LAYERS


def untold(sites: Sequence[Site], reasons: Mapping[int, str], hardware: Hardware) -> str:
    """Why a runtime cannot be kept from what float16 spoils, the nodes ``sites``; empty where it can."""
    if not sites or precision_of_layers(hardware):
        return ""
    what = "1 node" if len(sites) == 1 else f"{len(sites)} nodes"
    return (
        f"{what} must stay in float32 ({sites[0].name}: {reasons[sites[0].number]}), and trtexec of TensorRT "
        f"{hardware.runtime_version} cannot be told of single layers: build the engine through the API "
        "(ILayer::setPrecision) to have float16 elsewhere"
    )
