"""Constants that a model writes as one number and a shape: ConstantOfShape of a constant shape.

They are read as arrays that repeat one element in memory (all strides 0), so that a net of 500 MB costs nothing, and
stay what they are when all of their elements are scaled alike.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_constant, is_op, values_of

Values: TypeAlias = np.ndarray[Any, Any]
# Vectors of this many elements are computed with as if they were stored.
_VECTOR = 1 << 20


def generator_of(tensor: gs.Tensor) -> gs.Node | None:
    """The ConstantOfShape of a constant shape that writes the tensor; None for any other."""
    if len(tensor.inputs) != 1:
        return None
    node: gs.Node = tensor.inputs[0]
    return node if is_op(node, "ConstantOfShape") and len(node.inputs) == 1 and is_constant(node.inputs[0]) else None


def is_fixed(tensor: gs.Tensor) -> bool:
    """Whether the value is fixed by the model, stored or generated."""
    return type(tensor) is gs.Constant or is_constant(tensor) or generator_of(tensor) is not None


def fixed_values(tensor: gs.Tensor) -> Values | None:
    """The values of a stored constant or a generated vector; None where they are not fixed, or would fill memory."""
    values = values_of(tensor)
    if values is None and tensor.inputs:
        values = uniform_of(tensor)
        if values is not None and values.size > _VECTOR:
            return None
    return values


def uniform_of(tensor: gs.Tensor) -> Values | None:
    """The values of a generated constant, repeated in memory; None where it is not one."""
    node = generator_of(tensor)
    shape = None if node is None else values_of(node.inputs[0])
    if node is None or shape is None or shape.ndim != 1 or shape.dtype != np.int64 or (shape < 0).any():
        return None
    given = node.attrs.get("value")
    number = np.zeros(1, np.float32) if given is None else values_of(given) if isinstance(given, gs.Constant) else None
    if number is None or number.size != 1 or math.prod(shape.tolist()) >= 1 << 40:
        return None
    return np.broadcast_to(number.reshape(()), shape.tolist())


def is_uniform(values: Values) -> bool:
    """Whether an array repeats one element in memory."""
    return values.size > 1 and not any(values.strides)


def repeated(values: Values, number: Any) -> Values:
    """An array of the shape and dtype of ``values`` that repeats one element in memory."""
    return np.broadcast_to(np.asarray(number).astype(values.dtype), values.shape)


def one_number(values: Values) -> Any:
    """The element that all are equal to; None where they differ."""
    first = values.flat[0]
    return first if values.size == 1 or not any(values.strides) or bool((values == first).all()) else None
