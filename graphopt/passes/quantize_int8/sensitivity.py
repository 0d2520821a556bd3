"""Which tensors and weights cost the accuracy: the noise that each one's quantization alone puts into the outputs.

Noise of independent sources adds up to first order (it is uncorrelated), so these figures predict the noise of any
assignment: the sum over the tensors that it quantizes and the weights that it rounds. That makes accuracy a price in
the minimum cut (cut.py), and the choice of layers to leave in float exact under this model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphopt.passes.quantize_int8.numbers import Parameters
from graphopt.passes.quantize_int8.units import Role, Units


@dataclass(frozen=True)
class NoiseGroup:
    """Tensors that share one quantization through data movement, and so put their noise in once.

    Attributes:
        tensors: their names; the first is where the values are made.
        touched_by: units other than data movement which, in int8, have the group quantized.
    """

    tensors: tuple[str, ...]
    touched_by: frozenset[int]


@dataclass(frozen=True)
class Sensitivity:
    """Output noise-to-signal power of each source of noise alone.

    Attributes:
        groups: noise of each group of tensors.
        weights: noise of the rounded weights of each heavy unit.
    """

    groups: tuple[tuple[NoiseGroup, float], ...]
    weights: Mapping[int, float]

    def predicted(self, int8: Iterable[int]) -> float:
        """Return the noise that an assignment of units to int8 is expected to put into the outputs."""
        chosen = frozenset(int8)
        tensors = sum(noise for group, noise in self.groups if group.touched_by & chosen)
        return tensors + sum(noise for index, noise in self.weights.items() if index in chosen)

    def of_unit(self, units: Units, index: int) -> float:
        """Return the noise of a unit run alone in int8: its tensors and its weights."""
        return self.predicted([index])


def noise_groups(units: Units) -> list[NoiseGroup]:
    """Return the groups of all tensors that units with an int8 form read or make."""
    root: dict[str, str] = {}
    touched: dict[str, set[int]] = {}
    members: dict[str, list[str]] = {}
    for unit in units.all:
        if unit.role is Role.FLOAT:
            continue
        for name in (*unit.inputs, *unit.outputs):
            if name not in root:
                producer = units.producer.get(name)
                movement = producer is not None and units.all[producer].role is Role.MOVEMENT
                source = units.all[producer].inputs[0] if movement and producer is not None else name
                root[name] = root.get(source, source)
                root.setdefault(source, source)
                members.setdefault(root[name], []).append(name)
        if unit.role is not Role.MOVEMENT:
            for name in _quantized_by(units, unit.index):
                touched.setdefault(root[name], set()).add(unit.index)
    return [NoiseGroup(tuple(members[name]), frozenset(touched[name])) for name in members if name in touched]


def _quantized_by(units: Units, index: int) -> Iterable[str]:
    unit = units.all[index]
    yield from unit.inputs
    if unit.node.op_type not in ("Gemm", "MatMul"):
        yield from unit.outputs


def with_quantized_tensor(model: onnx.ModelProto, name: str, parameters: Parameters) -> onnx.ModelProto:
    """Return a copy of a float ``model`` in which only tensor ``name`` goes through Q/DQ."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = list(result.graph.node)
    prefix = "graphopt_probe_"
    constants = [prefix + "scale", prefix + "zero_point"]
    result.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(parameters.scale, np.float32), constants[0]),
            numpy_helper.from_array(parameters.zero_point_array, constants[1]),
        ]
    )
    inserted = [
        onnx.helper.make_node("QuantizeLinear", [name, *constants], [prefix + "q"]),
        onnx.helper.make_node("DequantizeLinear", [prefix + "q", *constants], [prefix + "dq"]),
    ]
    made = False
    order: list[onnx.NodeProto] = []
    if not any(name in node.output for node in nodes):
        order, made = list(inserted), True
    for node in nodes:
        if made:
            for position, read in enumerate(node.input):
                if read == name:
                    node.input[position] = prefix + "dq"
        order.append(node)
        if not made and name in node.output:
            order.extend(inserted)
            made = True
    del result.graph.node[:]
    result.graph.node.extend(order)
    return result


def with_weights(model: onnx.ModelProto, name: str, values: npt.NDArray[Any]) -> onnx.ModelProto:
    """Return a copy of ``model`` in which initializer ``name`` holds ``values``."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    return result


def measure(
    groups: Iterable[NoiseGroup],
    weights: Mapping[int, Callable[[], onnx.ModelProto]],
    quantized: Callable[[str], onnx.ModelProto],
    noise: Callable[[onnx.ModelProto], float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Measure every source of noise alone.

    Args:
        groups: groups of tensors; each is measured at its first tensor.
        weights: unit index -> makes the model in which only its weights are rounded.
        quantized: makes the model in which only the named tensor is quantized.
        noise: noise-to-signal power of a model's outputs.
        progress: called with (done, total).
    """
    listed = list(groups)
    total = len(listed) + len(weights)
    measured: list[tuple[NoiseGroup, float]] = []
    for group in listed:
        measured.append((group, noise(quantized(group.tensors[0]))))
        progress(len(measured), total)
    rounded: dict[int, float] = {}
    for index, make in weights.items():
        rounded[index] = noise(make())
        progress(len(measured) + len(rounded), total)
    return Sensitivity(tuple(measured), rounded)
