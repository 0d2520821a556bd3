"""One quantization of one model: what is measured once and shared by all candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphopt.calibration.collect import Statistics, collect
from graphopt.calibration.collect import shapes as observed_shapes
from graphopt.calibration.observers import Range
from graphopt.errors import DataError
from graphopt.graph import infer_types
from graphopt.passes.base import Context
from graphopt.passes.quality import Probe, make_probe, noise
from graphopt.passes.quantize_int8.bias import corrected_biases
from graphopt.passes.quantize_int8.cut import cheapest, microseconds
from graphopt.passes.quantize_int8.kernels import UnitTime, machine
from graphopt.passes.quantize_int8.numbers import QuantizedWeight, smallest_weight_scale
from graphopt.passes.quantize_int8.placement import Placement
from graphopt.passes.quantize_int8.prices import Measured, Predicted, Prices
from graphopt.passes.quantize_int8.schemes import Scheme
from graphopt.passes.quantize_int8.sensitivity import (
    NoiseGroup,
    Sensitivity,
    measure,
    with_quantized_tensor,
    with_weights,
)
from graphopt.passes.quantize_int8.units import Role, Units
from graphopt.passes.quantize_int8.weights import quantized_weight, unit_bias

# What measuring all sensitivities may take by the measured kernel times. Times on a device say nothing of what a run
# takes here: then so many multiply-adds are taken for a microsecond of one core.
SENSITIVITY_MICROSECONDS = 20e6
MACS_PER_MICROSECOND = 2e4
# How many tensors get a second look.
REFINED_TENSORS = 16

Feed = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Recipe:
    """How tensors get their integers: what is tried out and chosen by its effect on the outputs.

    Attributes:
        observer: name of the observer that sets activation ranges.
        correct_bias: whether biases make up for the mean shift of rounded weights.
        exceptions: tensors whose range another observer sets.
    """

    observer: str
    correct_bias: bool = False
    exceptions: Mapping[str, str] = field(default_factory=dict)


class Quantization:
    """A float model, its units, and everything measured about them. All methods leave the model as it is."""

    def __init__(self, model: onnx.ModelProto, scheme: Scheme, context: Context, samples: int) -> None:
        """Take ``model`` in, as ``scheme`` has prepared it.

        Raises:
            DataError: there is no calibration data.
        """
        if context.calibration is None:
            raise DataError("quantize_int8 needs calibration data; give --data or --calibration-data")
        types = infer_types(model)
        self.model = model
        self.scheme = scheme
        self.rules = scheme.rules
        self.context = context
        self.samples = samples
        self.units: Units = scheme.units(
            model, {name: found.dtype for name, found in types.items() if found.dtype is not None}
        )
        first = next(iter(context.calibration), None)
        if first is None:
            raise DataError("calibration data holds no sample; give at least one")
        floats = _float_tensors(self.units)
        self.shapes = observed_shapes(model, floats, first, context.threads) if floats else {}
        self.statistics = Statistics({}, 0)
        self._prices: Prices | None = None
        self._probe: Probe | None = None
        self._weights: dict[int, QuantizedWeight] = {}
        self._ranges: dict[tuple[str, str], Range] = {}

    @property
    def prices(self) -> Prices:
        """What units and conversions cost."""
        assert self._prices is not None, "measure_kernels comes first"
        return self._prices

    @property
    def times(self) -> Mapping[int, UnitTime]:
        """Times of units by index, once they are known."""
        return self._prices.units if self._prices is not None else {}

    def measure_kernels(self) -> None:
        """Find out what every unit takes in both precisions; times known from earlier runs are not measured again."""
        hardware = self.context.hardware
        if hardware.device is not None:
            self._prices = Predicted(self.units, self.shapes, hardware)
            return
        report = self.context.progress
        self._prices = Measured(
            self.model,
            self.units,
            self.shapes,
            self.rules,
            machine(),
            self.context.threads,
            lambda done, total: report("quantize_int8: measuring kernels", done, total),
        )

    def able(self, forced_float: Iterable[int] = ()) -> frozenset[int]:
        """Return the units that the target can run in int8."""
        known = {index for index, time in self.times.items() if time.int8 is not None}
        able = {index for index in known if self.units.all[index].role is not Role.FLOAT}
        return self.scheme.settled(self.units, able.difference(forced_float))

    def fastest(
        self, forced_float: Iterable[int] = (), sensitivity: Sensitivity | None = None, price: float = 0.0
    ) -> frozenset[int]:
        """Return the units that run in int8 in the fastest assignment, with a ``price`` on noise if given."""
        prices = self.prices
        chosen = cheapest(
            self.units, prices.units, prices.boundary, frozenset(forced_float), sensitivity, price, prices.pairs
        )
        return self.scheme.settled(self.units, chosen)

    def predicted_microseconds(self, int8: frozenset[int]) -> float:
        """Return the time of all int8-capable units and conversions under an assignment."""
        prices = self.prices
        return microseconds(self.units, prices.units, prices.boundary, prices.pairs, int8)

    def calibrate(self, int8: Iterable[int]) -> None:
        """Observe every tensor that the assignment ``int8`` quantizes."""
        assert self.context.calibration is not None
        wanted = self.scheme.tensors(self.units, int8)
        known = self.statistics.tensors.keys() | self.statistics.infinite.keys()
        missing = [name for name in wanted if name not in known]
        if not missing:
            return
        report = self.context.progress
        found = collect(
            self.model,
            missing,
            islice(iter(self.context.calibration), self.samples),
            threads=self.context.threads,
            progress=lambda done: report("quantize_int8: calibration", done, self.samples),
        )
        self.units = self.scheme.blinded(self.units, [name for name in missing if name not in found.tensors])
        self.statistics = Statistics(
            {**self.statistics.tensors, **found.tensors}, found.samples, {**self.statistics.infinite, **found.infinite}
        )

    def observable(self, int8: Iterable[int]) -> frozenset[int]:
        """Drop units that read or make a tensor which calibration could not observe (not float, say)."""
        chosen = frozenset(index for index in int8 if self.units.all[index].role is not Role.FLOAT)
        seen = self.statistics.tensors
        while True:
            tensors = self.scheme.tensors(self.units, chosen)
            blind = {name for name in tensors if name not in seen}
            if not blind:
                return chosen
            touching = [
                index for index in chosen if blind & {*self.units.all[index].inputs, *self.units.all[index].outputs}
            ]
            chosen = self.scheme.settled(self.units, chosen - self.scheme.deciding(self.units, touching))

    def clashes(self, int8: frozenset[int]) -> dict[int, float]:
        """Return the units in which ranges of very different size would meet, with the share of levels left."""
        names = self.scheme.tensors(self.units, int8)
        observed = {name: self._range("percentile", name) for name in names}
        return self.scheme.clashes(self.units, int8, observed)

    def why_not_observable(self, index: int) -> str:
        """Say why calibration could not observe what a unit reads and makes."""
        unit = self.units.all[index]
        for name in (*unit.inputs, *unit.outputs):
            if name in self.statistics.infinite:
                return f"tensor '{name}' is NaN or infinite on calibration sample {self.statistics.infinite[name]}"
        return "its tensors are not float32 at run time, or it depends on a layer of which that is so"

    def placement(self, int8: frozenset[int], recipe: Recipe) -> Placement:
        """Return scales, weights and biases of the model in which ``int8`` units run in int8."""
        ranges = self.ranges(recipe, self.scheme.tensors(self.units, int8))
        placed = self.scheme.place(self.units, int8, ranges)
        placed = replace(placed, weights=self._rounded_weights(placed))
        if recipe.correct_bias:
            placed = replace(placed, bias=corrected_biases(self.units, placed, self.statistics.tensors, self.rules))
        return placed

    def build(self, int8: frozenset[int], recipe: Recipe) -> onnx.ModelProto:
        """Write the model in which ``int8`` units run in int8."""
        return self.scheme.write(self.model, self.units, self.placement(int8, recipe))

    def left_in_float(self, int8: frozenset[int], recipe: Recipe) -> Mapping[int, str]:
        """Return the units of ``int8`` that the runtime would run in float all the same."""
        placed = self.placement(int8, recipe)
        return self.scheme.left_in_float(self.model, self.units, placed, self.context.threads)

    def _rounded_weights(self, placement: Placement) -> dict[int, QuantizedWeight]:
        """Return the integers of all weights of an assignment, those rounded before as they are.

        They depend on the input's scale only where the bias would overflow: such a unit is left to be rounded with it.
        """
        rounded = {}
        for index in sorted(placement.int8):
            unit = self.units.all[index]
            if unit.role is not Role.HEAVY or unit.node.input[1] not in self.units.constants:
                continue
            weight = self._rounded(index)
            scale = placement.parameters[unit.inputs[0]].scale
            floor = smallest_weight_scale(unit_bias(unit, self.units), scale) if self.rules.quantize_bias else 0.0
            if np.all(weight.scale >= floor):
                rounded[index] = weight
        return rounded

    def _rounded(self, index: int) -> QuantizedWeight:
        if index not in self._weights:
            self._weights[index] = quantized_weight(
                self.units.all[index], self.units, self.rules, np.float32(1.0), None
            )
        return self._weights[index]

    def ranges(self, recipe: Recipe, names: Sequence[str]) -> dict[str, Range]:
        """Return the range that ``recipe`` gives each tensor."""
        return {name: self._range(recipe.exceptions.get(name, recipe.observer), name) for name in names}

    def sensitivity(self, recipe: Recipe, int8: frozenset[int], observers: Sequence[str]) -> tuple[Sensitivity, Recipe]:
        """Measure what each tensor and each weight costs, and refine the ranges of the tensors that cost the most.

        Args:
            recipe: the settings to start from.
            int8: the assignment whose tensors and weights are measured; gentler ones are taken from it.
            observers: observers to try on the tensors that cost the most.

        Returns:
            the sensitivity under the refined settings, and these.
        """
        seen = self.statistics.tensors
        groups = [
            NoiseGroup(group.tensors, group.touched_by & int8)
            for group in self.scheme.noise_groups(self.units)
            if group.touched_by & int8 and all(name in seen for name in group.tensors[:1])
        ]
        weights = {
            index: partial(self._with_rounded_weights, index)
            for index in sorted(int8)
            if self.units.all[index].role is Role.HEAVY and self.units.all[index].node.input[1] in self.units.constants
        }
        samples = self._affordable_samples(len(groups) + len(weights))
        report = self.context.progress
        found = measure(
            groups,
            weights,
            lambda name: self._with_quantized(name, recipe.observer),
            lambda model: self.noise(model, samples),
            lambda done, total: report("quantize_int8: sensitivity", done, total),
        )
        exceptions: dict[str, str] = {}
        refined = list(found.groups)
        costliest = sorted(range(len(refined)), key=lambda number: (-refined[number][1], number))[:REFINED_TENSORS]
        for done, number in enumerate(costliest):
            group, least = refined[number]
            for observer in observers:
                if observer == recipe.observer:
                    continue
                noise_now = self.noise(self._with_quantized(group.tensors[0], observer), samples)
                if noise_now < least:
                    least = noise_now
                    exceptions |= dict.fromkeys(group.tensors, observer)
            refined[number] = (group, least)
            report("quantize_int8: refining ranges", done + 1, len(costliest))
        return Sensitivity(tuple(refined), found.weights), replace(recipe, exceptions=exceptions)

    def _affordable_samples(self, runs: int) -> int:
        """Return samples for each of ``runs`` measurements: as many as fit the budget."""
        macs = self.context.goals.original_macs
        here = self.context.hardware.device is None
        once = self.predicted_microseconds(frozenset()) if here or not macs else macs / MACS_PER_MICROSECOND
        once = max(once, 1.0)
        return int(np.clip(SENSITIVITY_MICROSECONDS / (runs * once), 2, 16)) if runs else 2

    def _with_quantized(self, name: str, observer: str) -> onnx.ModelProto:
        return with_quantized_tensor(self.model, name, self.scheme.parameters(self._range(observer, name)))

    def _with_rounded_weights(self, index: int) -> onnx.ModelProto:
        unit = self.units.all[index]
        return with_weights(self.model, unit.node.input[1], self._rounded(index).real)

    def _range(self, observer: str, name: str) -> Range:
        key = (observer, name)
        if key not in self._ranges:
            self._ranges[key] = self.scheme.range(observer, self.statistics.tensors[name], self.units, name)
        return self._ranges[key]

    def probe(self, samples: int) -> Probe:
        """Return samples for choices, with the float model's answers (selection data; else calibration data)."""
        if self._probe is None or len(self._probe.feeds) < samples:
            source = self.context.selection if self.context.selection is not None else self.context.calibration
            assert source is not None
            self._probe = make_probe(self.model, source, samples, self.context.threads)
        return Probe(self._probe.feeds[:samples], self._probe.reference[:samples])

    def noise(self, model: onnx.ModelProto, samples: int) -> float:
        """Return the noise-to-signal power ratio of ``model`` on samples not used for calibration."""
        return noise(model, self.probe(samples), self.context.threads)


def _float_tensors(units: Units) -> list[str]:
    names: dict[str, None] = {}
    for unit in units.all:
        if unit.role is not Role.FLOAT:
            for name in (*unit.inputs, *unit.outputs):
                names[name] = None
    return list(names)
