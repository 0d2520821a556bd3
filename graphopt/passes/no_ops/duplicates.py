"""Find constants of equal dtype, shape and bytes, without reading more of them than it takes to tell them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.values import StoredValues
from graphopt.passes.no_ops.knowledge import ambiguous_names

_PROBE = 64


def find_duplicates(graphs: Sequence[gs.Graph]) -> list[tuple[gs.Constant, gs.Constant]]:
    """Pairs of a constant and the earlier one that its readers may read instead.

    Only a constant that the outermost graph reads is offered instead: every subgraph sees it.

    Args:
        graphs: the outermost graph and all its subgraphs.
    """
    everywhere: dict[int, gs.Constant] = {}
    outside: frozenset[int] = frozenset()
    for graph in graphs:
        found = {
            id(tensor): tensor for node in graph.nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)
        }
        outside = frozenset(found) if graph is graphs[0] else outside
        everywhere.update(found)
    if len(everywhere) < 2:
        return []
    for graph in graphs:
        for tensor in graph.outputs:
            everywhere.pop(id(tensor), None)
    by_form: dict[Any, list[gs.Constant]] = {}
    for tensor in everywhere.values():
        held = tensor._values
        if isinstance(held, (StoredValues, np.ndarray)) and tensor._export_dtype is None:
            by_form.setdefault((held.dtype, held.shape), []).append(tensor)
    pairs: list[tuple[gs.Constant, gs.Constant]] = []
    ambiguous = ambiguous_names(graphs)
    for alike in by_form.values():
        for group in _equal(alike):
            first = next((tensor for tensor in group if id(tensor) in outside and tensor.name not in ambiguous), None)
            if first is not None:
                pairs += [(tensor, first) for tensor in group if tensor is not first]
    return pairs


def _equal(alike: Sequence[gs.Constant]) -> list[list[gs.Constant]]:
    """Groups of at least two constants of equal bytes."""
    if len(alike) < 2:
        return []
    by_probe: dict[bytes, list[gs.Constant]] = {}
    for tensor in alike:
        raw = _bytes_of(tensor)
        if raw is not None:
            middle = len(raw) // 2
            probe = raw if len(raw) <= 3 * _PROBE else raw[:_PROBE] + raw[middle : middle + _PROBE] + raw[-_PROBE:]
            by_probe.setdefault(probe, []).append(tensor)
    groups: list[list[gs.Constant]] = []
    for probe, likely in by_probe.items():
        if len(likely) < 2:
            continue
        if len(probe) < 3 * _PROBE:
            groups.append(likely)
            continue
        by_digest: dict[bytes, list[gs.Constant]] = {}
        for tensor in likely:
            by_digest.setdefault(hashlib.sha256(_bytes_of(tensor) or b"").digest(), []).append(tensor)
        groups += [equal for equal in by_digest.values() if len(equal) > 1]
    return groups


def _bytes_of(tensor: gs.Constant) -> bytes | None:
    """The values as bytes; None for strings and for data in a file that was not loaded."""
    held = tensor._values
    if not isinstance(held, StoredValues):
        return None if held.dtype == object else bytes(held.tobytes())
    stored = held.tensor
    if stored.data_location == onnx.TensorProto.EXTERNAL or held.dtype == object:
        return None
    # Unpacking a stored tensor costs many times what a look at its bytes does.
    return stored.raw_data or bytes(held.load().tobytes())
