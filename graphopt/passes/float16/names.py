"""Names by which a runtime that chooses types by itself is told of nodes (``trtexec --layerPrecisions=NODE:fp32``).

A node without a name of its own gets that of its first output: what the runtime would call it otherwise is its own
affair. Characters that part one entry of the list from the next are left out of names that are made here; names that
were there stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx

from graphopt.model.walk import bodies
from graphopt.passes.float16.sites import Site

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
        plain = _PARTS_ENTRIES.sub("_", first)
        name, number = plain, 2
        while name in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name)
        node.name = made[first] = name
    return named, [site.name if site.node.name else made[site.name] for site in sites]
