"""What a node computes, as a key: equal keys compute equal values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.values import StoredValues

# Results differ from run to run, or from node to node.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# Two operands in either order give the same bits.
_COMMUTATIVE = frozenset(
    {"Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor"}
)
# Longer constants are equal if they are one; eliminate_dead makes equal ones one.
_SHORT = 64


def may_repeat(node: gs.Node) -> bool:
    """Whether running the node again gives the same: a standard operator, not random, without subgraphs."""
    if node.domain or node.op in _RANDOM or not node.inputs:
        return False
    if node.op == "Dropout" and len(node.inputs) > 2:
        return False
    return not node.attrs or not any(isinstance(value, gs.Graph) for value in node.attrs.values())


def expression_key(node: gs.Node, alias: Mapping[int, int], constants: dict[int, Hashable]) -> Hashable:
    """The key of a node for which ``may_repeat`` holds.

    Args:
        node: the node; its tensors must stay alive as long as the key is used.
        alias: ``id`` of a tensor -> that of an equal one.
        constants: what was found of short constants, by ``id``; filled here.
    """
    reads: list[Any] = [_operand(tensor, alias, constants) for tensor in node.inputs]
    while reads and reads[-1] is None:
        reads.pop()
    if len(reads) == 2 and node.op in _COMMUTATIVE:
        reads.sort(key=hash)
    attrs = tuple(sorted((name, _value(value)) for name, value in node.attrs.items())) if node.attrs else ()
    asked = 1 if len(node.outputs) == 1 else tuple(not tensor.is_empty() for tensor in node.outputs)
    return node.op, tuple(reads), attrs, asked


def _operand(tensor: gs.Tensor, alias: Mapping[int, int], constants: dict[int, Hashable]) -> Hashable:
    if not tensor.name:
        return None
    own = id(tensor)
    if isinstance(tensor, gs.Constant):
        if own not in constants:
            constants[own] = _short_values(tensor) or own
        return constants[own]
    return alias.get(own, own)


def _short_values(tensor: gs.Constant) -> Hashable:
    held = tensor._values
    if not isinstance(held, (StoredValues, np.ndarray)) or held.nbytes > _SHORT or held.dtype == object:
        return None
    if not isinstance(held, StoredValues):
        return held.dtype, held.shape, held.tobytes()
    if held.tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return held.dtype, held.shape, held.tensor.raw_data or held.load().tobytes()


def _value(value: Any) -> str:
    """An attribute's value in words that only an equal one has."""
    if isinstance(value, gs.Constant):
        return f"tensor {_short_values(value) or id(value)!r}"
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {value.tobytes()!r}"
    if isinstance(value, onnx.AttributeProto):
        return f"proto {value.SerializeToString(deterministic=True)!r}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(each) for each in value)}]"
    return repr(value)
