"""How a runtime wants int8 written: what the pass and its session ask for, whoever executes the result.

========== =================================================================================================
Flowing    Q/DQ around every operator that has an integer form, so that integers flow (ONNX Runtime's CPU)
Explicit   Q/DQ on the inputs of layers only, what follows a layer being fused into it (TensorRT since 8.0)
Implicit   a float graph, and scales in a file beside it (TensorRT before 8.0, deep learning accelerators)
========== =================================================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import onnx

from graphopt.calibration.observers import OBSERVERS, Range
from graphopt.calibration.statistics import TensorStatistics
from graphopt.errors import UnsupportedModelError
from graphopt.graph import infer_types
from graphopt.model import upgrade_opset
from graphopt.passes.quantize_int8 import explicit, hard_swish, implicit, placement
from graphopt.passes.quantize_int8.fused import MARK, left_in_float
from graphopt.passes.quantize_int8.numbers import Parameters, activation_parameters
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.prepare import merge_biases, split_transposes, sums_as_additions
from graphopt.passes.quantize_int8.sensitivity import NoiseGroup, noise_groups
from graphopt.passes.quantize_int8.symmetric import symmetric_parameters, symmetric_range
from graphopt.passes.quantize_int8.units import Units, find_units
from graphopt.passes.quantize_int8.write import write
from graphopt.passes.quantize_int8.write_explicit import write_explicit
from graphopt.targets.schema import Hardware, Int8Rules

# QuantizeLinear and DequantizeLinear have an axis, and so per-channel scales, from opset 13 (ONNX operator changelog).
PER_CHANNEL_OPSET = 13


@dataclass(frozen=True)
class Delivery:
    """What leaves the pass; see ``Candidate``."""

    model: onnx.ModelProto
    files: Mapping[str, bytes] = field(default_factory=dict)
    simulation: onnx.ModelProto | None = None


class Scheme(Protocol):
    """One way of writing int8.

    Attributes:
        rules: what the target's runtime wants.
        chooses: whether the runtime itself runs a layer in float where that is faster.
        corrects_biases: whether biases may be changed to make up for rounded weights.
    """

    rules: Int8Rules
    chooses: bool
    corrects_biases: bool

    def prepared(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
        """Return the model at an opset with scales by channel, ready to quantize, and what was done to its opset."""

    def units(self, model: onnx.ModelProto, dtypes: Mapping[str, int]) -> Units:
        """Cut a prepared model into units."""

    def refused(self, units: Units) -> dict[int, str]:
        """Return the layers that the rules leave in float, and why."""

    def blinded(self, units: Units, unseen: Collection[str]) -> Units:
        """Return the units where calibration could not observe the tensors ``unseen``."""

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

    def place(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> Placement:
        """Give every quantized tensor its scale and zero point."""

    def clashes(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> dict[int, float]:
        """Return the units in which ranges of very different size meet, with the share of levels left."""

    def noise_groups(self, units: Units) -> list[NoiseGroup]:
        """Return the sources of noise."""

    def write(self, model: onnx.ModelProto, units: Units, placed: Placement) -> onnx.ModelProto:
        """Write the model with Q/DQ: what answers as the target does."""

    def delivered(
        self, original: onnx.ModelProto, written: onnx.ModelProto, units: Units, placed: Placement
    ) -> Delivery:
        """Return what is handed out for the model that was ``written``."""

    def left_in_float(self, model: onnx.ModelProto, units: Units, placed: Placement, threads: int) -> Mapping[int, str]:
        """Return the units that the runtime would run in float all the same, where it can be asked."""


class Flowing:
    """Integers flow from operator to operator; placement, kernels and form are those of ONNX Runtime's CPU provider."""

    chooses = False
    corrects_biases = True

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

    def blinded(self, units: Units, unseen: Collection[str]) -> Units:
        """Return the units as they are: assignments leave out what touches such tensors."""
        return units

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

    def place(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> Placement:
        """Give every quantized tensor its scale and zero point."""
        return placement.place(units, int8, ranges, self.rules)

    def clashes(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> dict[int, float]:
        """Return the Concats in which ranges of very different size meet, with the share of levels left."""
        return placement.shared_ranges(units, int8, ranges)[1]

    def noise_groups(self, units: Units) -> list[NoiseGroup]:
        """Return the sources of noise."""
        return noise_groups(units)

    def write(self, model: onnx.ModelProto, units: Units, placed: Placement) -> onnx.ModelProto:
        """Write the model with Q/DQ."""
        return write(model, units, placed, self.rules)

    def delivered(
        self, original: onnx.ModelProto, written: onnx.ModelProto, units: Units, placed: Placement
    ) -> Delivery:
        """Return the model with Q/DQ itself."""
        return Delivery(written)

    def left_in_float(self, model: onnx.ModelProto, units: Units, placed: Placement, threads: int) -> Mapping[int, str]:
        """Return what ONNX Runtime, asked for its optimized graph, leaves in float."""
        marked = write(model, units, placed, self.rules, mark=MARK)
        return left_in_float(marked, units, placed.int8, threads)


class Explicit:
    """Q/DQ on what layers read, and on the skip of residual additions."""

    chooses = False
    corrects_biases = True

    def __init__(self, rules: Int8Rules) -> None:
        self.rules = rules

    def prepared(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
        """Raise the opset; the graph stays as earlier passes wrote it for the target's parser."""
        return _upgraded_to(PER_CHANNEL_OPSET, model)

    def units(self, model: onnx.ModelProto, dtypes: Mapping[str, int]) -> Units:
        """Cut a prepared model into units."""
        return explicit.explicit_units(model, dtypes, self.rules)

    def blinded(self, units: Units, unseen: Collection[str]) -> Units:
        """Return the units as they are: assignments leave out what touches such tensors."""
        return units

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

    def place(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> Placement:
        """Give every quantized tensor its scale."""
        return explicit.place(units, int8, ranges, self.rules)

    def clashes(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> dict[int, float]:
        """Return the units that would read a tensor in a scale far too wide for it, with the share of levels left."""
        return explicit.clashes(units, int8, ranges, self.rules)

    def noise_groups(self, units: Units) -> list[NoiseGroup]:
        """Return the sources of noise."""
        return explicit.noise_groups(units)

    def write(self, model: onnx.ModelProto, units: Units, placed: Placement) -> onnx.ModelProto:
        """Write the model with Q/DQ."""
        return write_explicit(model, units, placed, self.rules, explicit.edges(units, placed.int8))

    def delivered(
        self, original: onnx.ModelProto, written: onnx.ModelProto, units: Units, placed: Placement
    ) -> Delivery:
        """Return the model with Q/DQ itself."""
        return Delivery(written)

    def left_in_float(self, model: onnx.ModelProto, units: Units, placed: Placement, threads: int) -> Mapping[int, str]:
        """Return nothing: the runtime is not at hand, and takes precisions as the graph declares them."""
        return {}


class Implicit:
    """A float graph and a file of scales; ``write`` makes the twin that answers as the target will."""

    chooses = True
    corrects_biases = False

    def __init__(self, rules: Int8Rules, hardware: Hardware) -> None:
        self.rules = rules
        self._hardware = hardware
        self._answers = bool(hardware.accelerator)

    def prepared(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
        """Raise the opset for the twin; the model that is handed out stays as it is."""
        return _upgraded_to(PER_CHANNEL_OPSET, model)[0], None

    def units(self, model: onnx.ModelProto, dtypes: Mapping[str, int]) -> Units:
        """Cut a prepared model into units."""
        return implicit.implicit_units(model, dtypes, self.rules)

    def refused(self, units: Units) -> dict[int, str]:
        """Refuse nothing: the runtime itself runs in float what it has no int8 kernel for."""
        return {}

    def blinded(self, units: Units, unseen: Collection[str]) -> Units:
        """Return the units in which those that touch tensors ``unseen`` are in float."""
        return implicit.blinded(units, unseen)

    def settled(self, units: Units, int8: Iterable[int]) -> frozenset[int]:
        """Return an assignment without the layers that read what has no scale."""
        return implicit.without_scale(units, int8)[1]

    def deciding(self, units: Units, indexes: Iterable[int]) -> frozenset[int]:
        """Each layer has a precision of its own."""
        return frozenset(indexes)

    def tensors(self, units: Units, int8: Iterable[int]) -> list[str]:
        """Return the tensors that are rounded, in graph order."""
        return list(self._edges(units, int8))

    def range(self, observer: str, seen: TensorStatistics, units: Units, name: str) -> Range:
        """Return the symmetric range that an observer gives tensor ``name``."""
        return symmetric_range(observer, seen)

    def parameters(self, observed: Range) -> Parameters:
        """Return the scale of a tensor alone."""
        return symmetric_parameters(observed)

    def place(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> Placement:
        """Give every rounded tensor its scale."""
        return implicit.place(units, int8, ranges, self.rules, self._hardware)

    def clashes(self, units: Units, int8: frozenset[int], ranges: Mapping[str, Range]) -> dict[int, float]:
        """Return the layers whose answers must take a scale far too wide for them, with the share of levels left."""
        return implicit.clashes(units, int8, ranges, self.rules, self._hardware)

    def noise_groups(self, units: Units) -> list[NoiseGroup]:
        """Return the sources of noise."""
        return implicit.noise_groups(units)

    def write(self, model: onnx.ModelProto, units: Units, placed: Placement) -> onnx.ModelProto:
        """Write the twin."""
        readers = self._edges(units, placed.int8)
        return write_explicit(model, units, placed, self.rules, readers, answers=self._answers)

    def delivered(
        self, original: onnx.ModelProto, written: onnx.ModelProto, units: Units, placed: Placement
    ) -> Delivery:
        """Return the float model, the calibration cache beside it, and the twin."""
        graph = original.graph
        names = {value.name for value in graph.input} | {name for node in graph.node for name in node.output}
        cache = implicit.calibration_cache(units, placed, names, self._hardware)
        return Delivery(original, {implicit.ENDING: cache}, written)

    def left_in_float(self, model: onnx.ModelProto, units: Units, placed: Placement, threads: int) -> Mapping[int, str]:
        """Return nothing: the runtime is not at hand."""
        return {}

    def _edges(self, units: Units, int8: Iterable[int]) -> Mapping[str, tuple[int, ...]]:
        return implicit.edges(units, int8, answers=self._answers)


def scheme_for(hardware: Hardware, rules: Int8Rules) -> Scheme:
    """Return how int8 is written for a target."""
    if rules.implicit:
        return Implicit(rules, hardware)
    if rules.quantize_outputs:
        return Flowing(rules)
    return Explicit(rules)


def _upgraded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    if hard_swish.is_written_out(model):
        try:
            model, upgraded = _upgraded_to(hard_swish.OPSET, model)
            return hard_swish.merge(model), upgraded
        except UnsupportedModelError:
            pass  # it may still reach the opset that everything else needs
    return _upgraded_to(PER_CHANNEL_OPSET, model)


def _upgraded_to(opset: int, model: onnx.ModelProto) -> tuple[onnx.ModelProto, str | None]:
    model, upgraded = upgrade_opset(model, opset)
    return sums_as_additions(model), upgraded
