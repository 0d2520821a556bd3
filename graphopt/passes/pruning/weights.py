"""Constants that layers compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphopt.graph.cost.kinds import attribute

Floats: TypeAlias = npt.NDArray[Any]


class Weights:
    """Constants of a model by name: initializers, Constant nodes, and what a few operators make of them.

    Exporters hand MatMul a transposed weight, quantized models a dequantized one.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._made: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self._stored.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
            elif node.op_type in _MAKERS and all(not name or self._known(name) for name in node.input):
                self._made[node.output[0]] = node

    def _known(self, name: str) -> bool:
        return name in self._stored or name in self._made

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a constant; None where the name is none."""
        if name in self._stored:
            return tuple(self._stored[name].dims)
        return tuple(self[name].shape) if name in self._made else None

    def __getitem__(self, name: str) -> Floats:
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        # Chains of makers are short, but their length is the model's choice.
        chain = [self._made[name]]
        while chain[-1].input[0] in self._made:
            chain.append(self._made[chain[-1].input[0]])
        values = self[chain[-1].input[0]]
        for node in reversed(chain):
            others = [self[each] if each else None for each in node.input[1:]]
            values = _MAKERS[node.op_type](node, values, others)
        return values


Others: TypeAlias = Sequence[Floats | None]


def _transpose(node: onnx.NodeProto, values: Floats, others: Others) -> Floats:
    order = integers(node, "perm", range(values.ndim)[::-1])
    return values.transpose(order)


def _same(node: onnx.NodeProto, values: Floats, others: Others) -> Floats:
    return values


def _cast(node: onnx.NodeProto, values: Floats, others: Others) -> Floats:
    return values.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to", onnx.TensorProto.FLOAT)))


def _dequantize(node: onnx.NodeProto, values: Floats, others: Others) -> Floats:
    scale, zero = others[0], others[1] if len(others) > 1 else None
    assert scale is not None
    axis = attribute(node, "axis", 1) % max(values.ndim, 1)
    shape = [1] * values.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    if scale.ndim > 1 or (scale.size > 1 and scale.size != values.shape[axis]):
        times = values.shape[axis] // scale.shape[axis]
        scale, zero = np.repeat(scale, times, axis), None if zero is None else np.repeat(zero, times, axis)
        shape = list(values.shape)
    wide = values.astype(np.float32) - (0 if zero is None else zero.astype(np.float32).reshape(shape))
    return np.asarray(wide * scale.astype(np.float32).reshape(shape))


_MAKERS: Mapping[str, Callable[[onnx.NodeProto, Floats, Others], Floats]] = {
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "Identity": _same,
    "Transpose": _transpose,
}


def integers(node: onnx.NodeProto, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute of integers."""
    found = next((each.ints for each in node.attribute if each.name == name), None)
    return tuple(found) if found else tuple(default)
