"""Constants that are only moved or viewed: numpy does that as well as a runtime, and without a session.

Exporters store weights the other way round than operators want them, and give axes and sizes as scalars to make lists
of: most of what is constant in a graph is a Transpose or an Unsqueeze. The bytes are the same whoever moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, values_of

Array: TypeAlias = np.ndarray[Any, Any]


def moved(node: gs.Node, known: Mapping[int, Array], opset: int) -> Array | None:
    """What a node makes of a constant; None where it does more than to move it, or is not plainly right.

    Args:
        node: reads constants only.
        known: values of tensors that are computed, by ``id``.
        opset: of the default domain.
    """
    rule = _RULES.get(node.op)
    if rule is None or not is_op(node, node.op) or len(node.outputs) != 1 or not node.inputs:
        return None
    source = _value(node.inputs[0], known)
    # Runtimes hand out strings in another form than models hold them.
    if source is None or source.dtype == object:
        return None
    try:
        return rule(node, source, known, opset)
    except (ValueError, TypeError, IndexError):
        return None  # The runtime says what is wrong.


def _value(tensor: gs.Tensor, known: Mapping[int, Array]) -> Array | None:
    return values_of(tensor) if type(tensor) is gs.Constant else known.get(id(tensor))


def _setting(
    node: gs.Node, name: str, since: int, known: Mapping[int, Array], opset: int
) -> tuple[bool, Sequence[int] | None]:
    """Whether it can be told, and then what an attribute says before opset ``since`` and the second input from there.

    None where it is left out.
    """
    if opset < since:
        return True, node.attrs.get(name)
    if len(node.inputs) < 2 or node.inputs[1].is_empty():
        return True, None
    values = _value(node.inputs[1], known)
    if values is None or values.dtype != np.int64 or values.ndim > 1:
        return False, None
    return True, [int(value) for value in values.flat]


def _transpose(node: gs.Node, source: Array, known: Mapping[int, Array], opset: int) -> Array:
    order = node.attrs.get("perm")
    if order is not None and sorted(order) != list(range(source.ndim)):
        raise ValueError("no permutation")
    return source.transpose(order).copy(order="C")


def _unsqueeze(node: gs.Node, source: Array, known: Mapping[int, Array], opset: int) -> Array | None:
    told, axes = _setting(node, "axes", 13, known, opset)
    return np.expand_dims(source, tuple(axes)) if told and axes else None


def _squeeze(node: gs.Node, source: Array, known: Mapping[int, Array], opset: int) -> Array | None:
    told, axes = _setting(node, "axes", 13, known, opset)
    return np.squeeze(source, tuple(axes)) if told and axes else None


def _reshape(node: gs.Node, source: Array, known: Mapping[int, Array], opset: int) -> Array | None:
    told, target = _setting(node, "shape", 5, known, opset)
    # What 0 and -1 mean, and together with each other and an empty tensor, is left to the runtime.
    if not told or target is None or not source.size or any(size < -1 or size == 0 for size in target):
        return None
    return source.reshape(tuple(target))


_RULES: Mapping[str, Callable[[gs.Node, Array, Mapping[int, Array], int], Array | None]] = {
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
