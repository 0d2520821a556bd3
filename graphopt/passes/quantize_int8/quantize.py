"""The pass: from a float model to candidates in int8, the fastest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import onnx

from graphopt.calibration.observers import OBSERVERS
from graphopt.errors import UsageError
from graphopt.model.walk import bodies, label
from graphopt.passes.base import Candidate, Context, Declined, PassReport, Skip
from graphopt.passes.quality import decibel
from graphopt.passes.quantize_int8.macs import macs
from graphopt.passes.quantize_int8.schemes import PER_CHANNEL_OPSET, scheme_for
from graphopt.passes.quantize_int8.session import Quantization, Recipe
from graphopt.passes.quantize_int8.units import FLOAT_DOMAINS, Role, Units
from graphopt.targets.schema import Hardware, Int8Rules

# Samples for the choices between settings, and for the noise of single units.
CHOICE_SAMPLES = 32
AUTO_OBSERVERS = ("minmax", "percentile", "mse")
# A choice must win by this much to be taken, in dB: less is chance.
CLEAR_GAIN = 0.05
MOST_CANDIDATES = 8
# All that can run in int8 is timed, too, where it is predicted to take at most so much longer than the best, and taken
# where it is clearly faster.
NEARLY_AS_FAST = 1.15
CLEARLY_FASTER = 1.02
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# The price of noise rises by this factor until everything is in float: 40 steps span 2^20.
PRICE_STEP = 2.0**0.5
PRICES = 60


# Units in int8, settings, the model, and why other units are in float.
_First: TypeAlias = tuple[frozenset[int], Recipe, onnx.ModelProto, dict[int, str]]


@dataclass(frozen=True)
class QuantizeInt8:
    """Static int8 quantization with calibration.

    Attributes:
        observer: how activation ranges are chosen: ``auto`` (the best on samples not used for calibration) or one of
            ``entropy``, ``minmax``, ``moving_average``, ``mse``, ``percentile``.
        samples: the most calibration samples to use.
        placement: ``measured`` puts a unit in int8 where kernel times say that it pays; ``all`` puts every unit in int8
            that ONNX Runtime can run so.
        bias_correction: ``auto`` (kept where it helps on samples not used for calibration), ``on`` or ``off``.
        weight_bits: 8 or 7; 0 takes what the target needs.
        exclude: names of nodes, separated by spaces, that stay in float.
    """

    name: ClassVar[str] = "quantize_int8"
    summary: ClassVar[str] = "static int8 quantization where the kernels reward it, in Q/DQ form"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    quantizes: ClassVar[bool] = True

    observer: str = "auto"
    samples: int = 256
    placement: str = "measured"
    bias_correction: str = "auto"
    weight_bits: int = 0
    exclude: str = ""

    def __post_init__(self) -> None:
        _one_of("observer", self.observer, ("auto", *OBSERVERS))
        _one_of("placement", self.placement, ("measured", "all"))
        _one_of("bias_correction", self.bias_correction, ("auto", "on", "off"))
        if self.weight_bits not in (0, 7, 8):
            raise UsageError(f"quantize_int8.weight_bits is {self.weight_bits}; it must be 7, 8, or 0 for the target's")
        if self.samples < 1:
            raise UsageError(f"quantize_int8.samples is {self.samples}; at least one sample is needed")

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield models in int8, the fastest first, each later one with more units left in float.

        Raises:
            Declined: nothing can or should run in int8 here; says why.
            DataError: calibration data is missing, empty or makes the model compute NaN.
            UsageError: an excluded node does not exist.
        """
        scheme = scheme_for(context.hardware, self._rules(context.hardware))
        original = model
        model, upgraded = scheme.prepared(model)
        work = Quantization(model, scheme, context, self.samples)
        excluded = _excluded(work.units, self.exclude)
        if not any(unit.role is Role.HEAVY for unit in work.units.all):
            raise Declined("no convolution or matrix product can run in int8", _report(work, frozenset(), {}))
        work.measure_kernels()
        refused = scheme.refused(work.units)
        refused |= dict.fromkeys(excluded, "excluded by the option quantize_int8.exclude")
        chosen, recipe, quantized, refused = self._fastest(work, refused)
        details: dict[str, Any] = {"opset": upgraded} if upgraded else {}
        yield _candidate(work, original, quantized, chosen, recipe, refused, details)
        yield from self._gentler(work, original, chosen, recipe, refused, details)

    def _rules(self, hardware: Hardware) -> Int8Rules:
        rules = hardware.int8
        if rules is None:
            raise Declined(hardware.int8_refusal or f"the target {hardware.name} has no int8")
        if not rules.implicit and hardware.opset[1] < PER_CHANNEL_OPSET:
            raise Declined(
                f"the target {hardware.name} reads operator sets up to {hardware.opset[1]}; "
                f"scales by channel begin with {PER_CHANNEL_OPSET}"
            )
        return replace(rules, weight_bits=self.weight_bits) if self.weight_bits else rules

    def _fastest(self, work: Quantization, refused: dict[int, str]) -> _First:
        """Settle what runs in int8: what the kernels' times say, or all that can where the clock says so.

        Kernels are timed one by one. What they do not tell is that ONNX Runtime transposes around every residual Add
        of which one operand comes from a float layer, in a chain of blocks one after the other.
        """
        speedup = work.context.goals.speedup
        everything_at_once = self.placement == "all" or work.scheme.chooses
        if everything_at_once or speedup is None:
            return self._first(work, refused, everything=everything_at_once)
        first = self._first(work, refused, everything=False)
        everything = work.able(refused)
        longer = work.predicted_microseconds(everything) / max(work.predicted_microseconds(first[0]), 1e-9)
        if first[0] == everything or longer > NEARLY_AS_FAST:
            return first
        other = self._first(work, refused, everything=True)
        return other if other[0] != first[0] and speedup(other[2]) > CLEARLY_FASTER * speedup(first[2]) else first

    def _first(self, work: Quantization, refused: dict[int, str], *, everything: bool) -> _First:
        """Settle the fastest assignment that ONNX Runtime really runs in int8, and the settings that suit it."""
        refused = dict(refused)
        while True:
            chosen = work.able(refused) if everything else work.fastest(refused)
            if not any(work.units.all[index].role is Role.HEAVY for index in chosen):
                reason = "no convolution or matrix product is left that can and should run in int8"
                if _heavy(work, work.able(refused)) or not _heavy(work, frozenset(refused)):
                    reason = work.prices.no_gain
                raise Declined(reason, _report(work, frozenset(), refused))
            work.calibrate(chosen)
            seen = work.observable(chosen)
            if seen != chosen:
                refused |= {index: work.why_not_observable(index) for index in sorted(chosen - seen)}
                continue
            clashes = work.clashes(chosen)
            if clashes:
                refused |= {
                    index: "ranges of very different size meet in it: in one scale its narrowest input would keep "
                    f"{100 * share:.1f} % of the levels"
                    for index, share in clashes.items()
                }
                continue
            recipe = self._choose(work, chosen)
            quantized = work.build(chosen, recipe)
            unfused = work.left_in_float(chosen, recipe)
            if not unfused:
                return chosen, recipe, quantized, refused
            refused |= {
                index: f"ONNX Runtime does not fuse it: it runs as {operator or 'part of another operator'} in float"
                for index, operator in unfused.items()
            }

    def _choose(self, work: Quantization, chosen: frozenset[int]) -> Recipe:
        """Choose observer and bias correction by the noise in the outputs."""
        observers = AUTO_OBSERVERS if self.observer == "auto" else (self.observer,)
        correction = self.bias_correction if work.scheme.corrects_biases else "off"
        recipes = [Recipe(observer, correction == "on") for observer in observers]
        if len(recipes) == 1 and correction != "auto":
            return recipes[0]
        noises = [work.noise(work.build(chosen, recipe), CHOICE_SAMPLES) for recipe in recipes]
        best = min(range(len(recipes)), key=lambda index: (noises[index], index))
        recipe = recipes[best]
        if correction == "auto":
            corrected = replace(recipe, correct_bias=True)
            gain = decibel(work.noise(work.build(chosen, corrected), CHOICE_SAMPLES)) - decibel(noises[best])
            if gain > CLEAR_GAIN:
                return corrected
        return recipe

    def _gentler(
        self,
        work: Quantization,
        original: onnx.ModelProto,
        chosen: frozenset[int],
        recipe: Recipe,
        refused: dict[int, str],
        details: dict[str, Any],
    ) -> Iterator[Candidate]:
        observers = AUTO_OBSERVERS if self.observer == "auto" else (self.observer,)
        sensitivity, refined = work.sensitivity(recipe, chosen, observers)
        if refined.exceptions:
            better = work.build(chosen, refined)
            if work.noise(better, CHOICE_SAMPLES) < work.noise(work.build(chosen, recipe), CHOICE_SAMPLES):
                yield _candidate(work, original, better, chosen, refined, refused, details)
            else:
                refined = recipe
        in_float = work.predicted_microseconds(frozenset())
        fixed = refused.keys() | (work.able() - chosen)
        loudest = sensitivity.predicted(chosen)
        allowed = loudest / 2
        price = in_float / max(loudest, 1e-12) / 1024
        yielded = 1
        seen = {_heavy(work, chosen)}
        for _ in range(PRICES):
            if yielded >= MOST_CANDIDATES:
                return
            gentler = work.fastest(fixed, sensitivity, price)
            price *= PRICE_STEP
            if not any(work.units.all[index].role is Role.HEAVY for index in gentler):
                return
            noise = sensitivity.predicted(gentler)
            if noise > allowed or _heavy(work, gentler) in seen:
                continue
            seen.add(_heavy(work, gentler))
            allowed = noise / 2
            yielded += 1
            reasons = refused | {
                index: f"left in float for accuracy: alone in int8 it gives "
                f"{decibel(sensitivity.predicted([index])):.1f} dB SQNR"
                for index in sorted(chosen - gentler)
                if work.units.all[index].role is Role.HEAVY
            }
            work.calibrate(gentler)
            yield _candidate(work, original, work.build(gentler, refined), gentler, refined, reasons, details)


def _candidate(
    work: Quantization,
    original: onnx.ModelProto,
    quantized: onnx.ModelProto,
    chosen: frozenset[int],
    recipe: Recipe,
    refused: dict[int, str],
    details: dict[str, Any],
) -> Candidate:
    report = _report(work, chosen, refused)
    heavy = [unit for unit in work.units.all if unit.role is Role.HEAVY]
    in_int8 = sum(unit.index in chosen for unit in heavy)
    figures = {
        **report.details,
        **details,
        "observer": recipe.observer,
        "refined_ranges": len(recipe.exceptions),
        "bias_correction": recipe.correct_bias,
        "sqnr_db": round(decibel(work.noise(quantized, CHOICE_SAMPLES)), 2),
    }
    label = f"{in_int8} of {len(heavy)} convolutions and matrix products in int8"
    if recipe.exceptions:
        label += " with refined ranges"
    delivery = work.scheme.delivered(original, quantized, work.units, work.placement(chosen, recipe))
    return Candidate(
        delivery.model,
        replace(report, details=figures),
        label,
        files=delivery.files,
        simulation=delivery.simulation,
    )


def _report(work: Quantization, chosen: frozenset[int], refused: dict[int, str]) -> PassReport:
    """Say what runs in int8, and of each convolution and matrix product that does not, why."""
    skipped = []
    for unit in work.units.all:
        if unit.index in chosen:
            continue
        time = work.times.get(unit.index)
        if unit.role is Role.HEAVY or unit.index in refused:
            if unit.index in refused:
                reason = refused[unit.index]
            elif time is None:
                reason = "it was not measured"
            elif time.int8 is None:
                reason = work.prices.impossible
            elif time.int8 >= time.float32:
                reason = f"{work.prices.slower}: {_us(time.int8)} against {_us(time.float32)} µs"
            else:
                saved = _us(time.float32 - time.int8)
                reason = f"int8 would save {saved} µs, less than the conversions around it cost"
            skipped.append(Skip(unit.name, reason))
        elif unit.reason and unit.node.op_type in LAYERS:
            skipped.append(Skip(unit.name, unit.reason))
    skipped += _inside_bodies(work.model)
    heavy = [unit.index for unit in work.units.all if unit.role is Role.HEAVY]
    total = macs(work.units, work.shapes, heavy)
    counts = Counter(work.units.all[index].node.op_type for index in sorted(chosen))
    details = {
        "int8_units": dict(sorted(counts.items())),
        "macs_in_int8": round(macs(work.units, work.shapes, chosen) / total, 4) if total else 0.0,
        "calibration_samples": work.statistics.samples,
    }
    return PassReport(len(chosen), tuple(skipped), details)


def _us(microseconds: float) -> str:
    """Tell microseconds in as many digits as mean anything."""
    return f"{microseconds:.0f}" if microseconds >= 1 else f"{microseconds:.1g}"


def _inside_bodies(model: onnx.ModelProto) -> list[Skip]:
    """Name the layers in subgraphs and functions, which are left as they are."""
    return [
        Skip(label(node), f"it is inside {body.where}; what is inside is left as it is")
        for body in bodies(model)
        if body.proto is not model.graph
        for node in body.proto.node
        if node.op_type in LAYERS and node.domain in FLOAT_DOMAINS
    ]


def _heavy(work: Quantization, chosen: frozenset[int]) -> frozenset[int]:
    return frozenset(index for index in chosen if work.units.all[index].role is Role.HEAVY)


def _excluded(units: Units, names: str) -> frozenset[int]:
    wanted = names.split()
    known = {unit.name: unit.index for unit in units.all}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UsageError(f"quantize_int8.exclude names no node of the model: {', '.join(unknown)}")
    return frozenset(known[name] for name in wanted)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"quantize_int8.{option} is '{value}'; it must be one of {', '.join(allowed)}")


__all__ = ["Int8Rules", "QuantizeInt8"]
