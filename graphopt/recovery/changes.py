"""Which tensors of a changed net are what they are in the original, by structure alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from graphopt.recovery.columns import Places
from graphopt.recovery.layers import Layer, read_weights
from graphopt.recovery.net import Net, reads


def unchanged(original: Net, changed: Net, kept: Mapping[str, Mapping[int, Places]]) -> frozenset[str]:
    """Names of tensors that both nets compute alike: by the same nodes, from the same inputs and equal constants."""
    same = set(original.inputs) & set(changed.inputs)
    for step in changed.steps:
        for node in step:
            alike = [name for name in node.output if name and name not in kept and name not in changed.constants]
            if alike and _alike(original, changed, node, same):
                same.update(alike)
    return frozenset(same)


def _alike(original: Net, changed: Net, node: onnx.NodeProto, same: set[str]) -> bool:
    producer = original.producer.get(next(name for name in node.output if name))
    if producer is None:
        return False
    other = original.steps[producer][0]
    if (node.op_type, node.domain, list(node.output)) != (other.op_type, other.domain, list(other.output)):
        return False
    if _attributes(node) != _attributes(other) or len(node.input) != len(other.input):
        return False
    if any(name not in same and name not in changed.constants for name in reads((node,))):
        return False
    inner = set(reads((node,))) - set(node.input)
    pairs = [*zip(node.input, other.input, strict=True), *((name, name) for name in inner)]
    return all(_equal(original, changed, one, two) for one, two in pairs)


def _attributes(node: onnx.NodeProto) -> dict[str, bytes]:
    return {each.name: each.SerializeToString(deterministic=True) for each in node.attribute}


def _equal(original: Net, changed: Net, name: str, other: str) -> bool:
    """Whether an input of a node is the same tensor; constants may have got other names."""
    if (name in changed.constants) != (other in original.constants):
        return False
    if name not in changed.constants:
        return name == other
    one, two = changed.constants[name], original.constants[other]
    if one is two:
        return True
    return (one.data_type, one.dims) == (two.data_type, two.dims) and np.array_equal(
        changed.values(name), original.values(other)
    )


def same_filters(original: Net, changed: Net, old: Layer, new: Layer, remaining: Places | None) -> bool:
    """Whether a layer has the original's filters, those of them that remain."""
    if (old.kind, old.unknowns) != (new.kind, new.unknowns):
        return False
    before, after = read_weights(original, old), read_weights(changed, new)
    matrix = before.matrix.transpose(0, 2, 1).reshape(old.outputs, -1)
    bias = before.bias
    if remaining is not None:
        matrix, bias = matrix[remaining], bias[remaining]
    now = after.matrix.transpose(0, 2, 1).reshape(new.outputs, -1)
    return np.array_equal(matrix, now) and np.array_equal(bias, after.bias)
