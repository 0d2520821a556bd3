"""How a runtime wants int8 written: what the pass and its session ask for, whoever executes the result.

========== =================================================================================================
Flowing    Q/DQ around every operator that has an integer form, so that integers flow (ONNX Runtime's CPU)
Explicit   Q/DQ on the inputs of layers only, what follows a layer being fused into it (TensorRT since 8.0)
Implicit   a float graph, and scales in a file beside it (TensorRT before 8.0, deep learning accelerators)
========== =================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import onnx

from graphopt.calibration.observers import OBSERVERS, Range
from graphopt.calibration.statistics import TensorStatistics
from graphopt.errors import UnsupportedModelError
from graphopt.graph import infer_types
from graphopt.model import upgrade_opset
from graphopt.passes.quantize_int8 import explicit, hard_swish, placement
from graphopt.passes.quantize_int8.fused import MARK, left_in_float
from graphopt.passes.quantize_int8.numbers import Parameters, activation_parameters
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.prepare import merge_biases, split_transposes
from graphopt.passes.quantize_int8.sensitivity import NoiseGroup, noise_groups
from graphopt.passes.quantize_int8.symmetric import symmetric_parameters, symmetric_range
from graphopt.passes.quantize_int8.units import Units, find_units
from graphopt.passes.quantize_int8.write import write
from graphopt.passes.quantize_int8.write_explicit import write_explicit
from graphopt.targets.schema import Hardware, Int8Rules

# QuantizeLinear and DequantizeLinear have an axis, and so per-channel scales, from opset 13 (ONNX operator changelog).
PER_CHANNEL_OPSET = 13


class Scheme(Protocol):
    """One way of writing int8.

    Attributes:
        rules: what the target's runtime wants.
    """

    rules: Int8Rules

    def prepared(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
        """Return the model at an opset with scales by channel, ready to quantize, and what was done to its opset."""

    def units(self, model: onnx.ModelProto, dtypes: Mapping[str, int]) -> Units:
        """Cut a prepared model into units."""

    def refused(self, units: Units) -> dict[int, str]:
        """Return the layers that the rules leave in float, and why."""

    def settled(self, units: Units, int8: Iterable[int]) -> frozenset[int]:
        """Return an assignment with what follows from it."""

    def deciding(self, units: Units, indexes: Iterable[int]) -> frozenset[int]:
        """Return the units on whose precision that of ``indexes`` depends."""

    def tensors(self, units: Units, int8: Iterable[int]) -> list[str]:
        """Return the tensors that are quantized, in graph order."""

    def range(self, observer: str, seen: TensorStatistics, units: Units, name: str) -> Range:
        """Return the range that an observer gives tensor ``name``."""

    def parameters(self, observed: Range) -> Parameters:
        """Return scale and zero point of a tensor alone."""

    def place(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range], **given: Any) -> Placement:
        """Give every quantized tensor its scale and zero point."""

    def clashes(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> dict[int, float]:
        """Return the units in which ranges of very different size meet, with the share of levels left."""

    def noise_groups(self, units: Units) -> list[NoiseGroup]:
        """Return the sources of noise."""

    def write(self, model: onnx.ModelProto, units: Units, placed: Placement) -> onnx.ModelProto:
        """Write the model with Q/DQ."""

    def left_in_float(self, model: onnx.ModelProto, units: Units, placed: Placement, threads: int) -> Mapping[int, str]:
        """Return the units that the runtime would run in float all the same, where it can be asked."""


class Flowing:
    """Integers flow from operator to operator; placement, kernels and form are those of ONNX Runtime's CPU provider."""

    def __init__(self, rules: Int8Rules) -> None:
        self.rules = rules

    def prepared(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
        """Raise the opset, make HardSwish one operator, and give products their biases."""
        model, upgraded = _upgraded(model)
        if any(node.op_type == "MatMul" for node in model.graph.node):
            types = infer_types(model)
            model = merge_biases(model, {name: found.shape for name, found in types.items() if found.shape is not None})
        return split_transposes(model), upgraded

    def units(self, model: onnx.ModelProto, dtypes: Mapping[str, int]) -> Units:
        """Cut a prepared model into units."""
        return find_units(model, dtypes)

    def refused(self, units: Units) -> dict[int, str]:
        """Refuse nothing: the kernels' times decide."""
        return {}

    def settled(self, units: Units, int8: Iterable[int]) -> frozenset[int]:
        """Nothing follows."""
        return frozenset(int8)

    def deciding(self, units: Units, indexes: Iterable[int]) -> frozenset[int]:
        """Each unit has a precision of its own."""
        return frozenset(indexes)

    def tensors(self, units: Units, int8: Iterable[int]) -> list[str]:
        """Return the tensors that are quantized, in graph order."""
        return placement.quantized_tensors(units, int8)

    def range(self, observer: str, seen: TensorStatistics, units: Units, name: str) -> Range:
        """Return the range that an observer gives tensor ``name``."""
        if hard_swish.reads_alone(units, name):
            seen = hard_swish.without_tail(seen)
        return OBSERVERS[observer](seen)

    def parameters(self, observed: Range) -> Parameters:
        """Return scale and zero point of a tensor alone."""
        return activation_parameters(observed, self.rules.activation_dtype)

    def place(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range], **given: Any) -> Placement:
        """Give every quantized tensor its scale and zero point."""
        return placement.place(units, int8, ranges, self.rules, **given)

    def clashes(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> dict[int, float]:
        """Return the Concats in which ranges of very different size meet, with the share of levels left."""
        return placement.shared_ranges(units, int8, ranges)[1]

    def noise_groups(self, units: Units) -> list[NoiseGroup]:
        """Return the sources of noise."""
        return noise_groups(units)

    def write(self, model: onnx.ModelProto, units: Units, placed: Placement) -> onnx.ModelProto:
        """Write the model with Q/DQ."""
        return write(model, units, placed, self.rules)

    def left_in_float(self, model: onnx.ModelProto, units: Units, placed: Placement, threads: int) -> Mapping[int, str]:
        """Return what ONNX Runtime, asked for its optimized graph, leaves in float."""
        marked = write(model, units, placed, self.rules, mark=MARK)
        return left_in_float(marked, units, placed.int8, threads)


class Explicit:
    """Q/DQ on what layers read, and on the skip of residual additions."""

    def __init__(self, rules: Int8Rules) -> None:
        self.rules = rules

    def prepared(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
        """Raise the opset; the graph stays as earlier passes wrote it for the target's parser."""
        return upgrade_opset(model, PER_CHANNEL_OPSET)

    def units(self, model: onnx.ModelProto, dtypes: Mapping[str, int]) -> Units:
        """Cut a prepared model into units."""
        return explicit.explicit_units(model, dtypes, self.rules)

    def refused(self, units: Units) -> dict[int, str]:
        """Return the layers that the rules leave in float, and why."""
        return explicit.refused(units, self.rules)

    def settled(self, units: Units, int8: Iterable[int]) -> frozenset[int]:
        """Return an assignment with the additions that run inside its convolutions."""
        return explicit.settled(units, int8)

    def deciding(self, units: Units, indexes: Iterable[int]) -> frozenset[int]:
        """Return ``indexes``, residual additions replaced by the convolutions that they run in."""
        return explicit.deciding(units, indexes)

    def tensors(self, units: Units, int8: Iterable[int]) -> list[str]:
        """Return the tensors that are quantized, in graph order."""
        return list(explicit.edges(units, int8))

    def range(self, observer: str, seen: TensorStatistics, units: Units, name: str) -> Range:
        """Return the symmetric range that an observer gives tensor ``name``."""
        return symmetric_range(observer, seen)

    def parameters(self, observed: Range) -> Parameters:
        """Return the scale of a tensor alone."""
        return symmetric_parameters(observed)

    def place(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range], **given: Any) -> Placement:
        """Give every quantized tensor its scale."""
        return explicit.place(units, int8, ranges, self.rules, **given)

    def clashes(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> dict[int, float]:
        """Return the units that would read a tensor in a scale far too wide for it, with the share of levels left."""
        return explicit.clashes(units, int8, ranges, self.rules)

    def noise_groups(self, units: Units) -> list[NoiseGroup]:
        """Return the sources of noise."""
        return explicit.noise_groups(units)

    def write(self, model: onnx.ModelProto, units: Units, placed: Placement) -> onnx.ModelProto:
        """Write the model with Q/DQ."""
        return write_explicit(model, units, placed, self.rules, explicit.edges(units, placed.int8))

    def left_in_float(self, model: onnx.ModelProto, units: Units, placed: Placement, threads: int) -> Mapping[int, str]:
        """Return nothing: the runtime is not at hand, and takes precisions as the graph declares them."""
        return {}


def scheme_for(hardware: Hardware, rules: Int8Rules) -> Scheme:
    """Return how int8 is written for a target."""
    if rules.quantize_outputs:
        return Flowing(rules)
    return Explicit(rules)


def _upgraded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    if hard_swish.is_written_out(model):
        try:
            model, upgraded = upgrade_opset(model, hard_swish.OPSET)
            return hard_swish.merge(model), upgraded
        except UnsupportedModelError:
            pass  # it may still reach the opset that everything else needs
    return upgrade_opset(model, PER_CHANNEL_OPSET)
