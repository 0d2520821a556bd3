"""What speaks against float16 at a node: values that it cannot hold, cannot tell apart, or cannot add up.

float16 holds magnitudes from 2^-24 to 65504, with 11 bits from 2^-14 on and fewer below (IEEE 754-2008, binary16). So a
tensor stays float32 where it comes near 65504, or where rounding it to float16 adds more noise than a share of its
power: that happens to tensors most of whose power lies below 2^-14. Divisors are not to become subnormal at all. A
constant of a single value (an epsilon, a factor) must keep 8 bits; bounds of a Clip may saturate.

Sums: a running sum in float16 stands still once it is 2048 times its terms. Whether a runtime adds in float32 is its
own affair (TensorRT does not say), so nodes that add more terms than that stay float32; products of matrices are
excepted, whose hardware adds in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.calibration.collect import Statistics
from graphopt.calibration.statistics import TensorStatistics
from graphopt.graph import TensorType, is_constant, values_of
from graphopt.passes.float16.sites import Site, constants_of

LARGEST = 65504.0
_SMALLEST_NORMAL = 2.0**-14
_SUBNORMAL_STEP = 2.0**-24
# Noise-to-signal power that rounding may add to one tensor: 50 dB. Values in the normal range add 2^-24, 72 dB.
MAX_NOISE = 1e-5
# Relative error that a constant of one value may get.
_SCALAR_ERROR = 2.0**-8
# Steps of int8 between 0 and the largest value.
_LEVELS = 127
# Sums of equal terms stand still at this number of them.
MAX_TERMS = 2048
QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
_BOUNDS: Mapping[str, frozenset[int]] = {"Clip": frozenset({1, 2}), "Max": frozenset({0, 1}), "Min": frozenset({0, 1})}
_DIVISORS: Mapping[str, int] = {"Div": 1, "Log": 0, "Reciprocal": 0}
_MEANS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
_SQUARES = frozenset({"GlobalLpPool", "InstanceNormalization", "LpNormalization", "LpPool",
                      "MeanVarianceNormalization", "ReduceL2"})  # fmt: skip
_WINDOWS = frozenset({"AveragePool", "LpPool"})
_OVER_ALL = frozenset({"GlobalAveragePool", "GlobalLpPool", "InstanceNormalization"})
_ALONG_AXIS = frozenset({"LogSoftmax", "LpNormalization", "Softmax"})


def constant_reason(site: Site) -> str:
    """Why a constant that the node reads cannot be float16; empty where all can."""
    for slot, tensor in constants_of(site):
        values = values_of(tensor)
        assert values is not None
        if site.node.op in QUANTIZERS and slot == 1:
            if reason := _why_not_scales(values, tensor.name):
                return reason
            continue
        bound = slot in _BOUNDS.get(site.node.op, frozenset())
        reason = _why_not_half(values, tensor.name, saturates=bound)
        if reason:
            return reason
    return ""


def to_half(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Values in float16; finite ones beyond its range become its largest."""
    limited = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
    return np.asarray(limited.astype(np.float16))


def half_scales(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Scales of Q and DQ in float16; those that it cannot tell to 8 bits become its smallest normal number.

    Smaller steps than that hold less than their integers say, and a scale of 0 is none.
    """
    narrow = to_half(values)
    error = np.abs(narrow.astype(np.float64) - values)
    return np.where(error > _SCALAR_ERROR * np.abs(values), to_half(np.maximum(values, _SMALLEST_NORMAL)), narrow)


def _why_not_scales(values: npt.NDArray[Any], name: str) -> str:
    """Why scales cannot be float16: raised to what it holds, they would add more noise than int8 has anyway."""
    if float(values.max(initial=0.0)) > LARGEST:
        return f"its scale '{name}' reaches {float(values.max()):.3g}, and float16 holds {LARGEST:.0f}"
    exact, wide = values.astype(np.float64).reshape(-1), half_scales(values).astype(np.float64).reshape(-1)
    raised = wide > exact * (1 + _SCALAR_ERROR)
    # A value below half a step becomes 0: its error is itself.
    added = np.minimum(wide**2 / 12, (_LEVELS * exact) ** 2)[raised].sum()
    if added > (exact**2 / 12).sum():
        return f"its scale '{name}' is too small for float16 ({float(exact.min()):.3g})"
    return ""


def _why_not_half(values: npt.NDArray[Any], name: str, *, saturates: bool) -> str:
    finite = np.abs(values[np.isfinite(values)].astype(np.float64)).reshape(-1)
    if not finite.size:
        return ""
    largest = float(finite.max())
    if largest > LARGEST and not saturates:
        return f"its constant '{name}' reaches {largest:.3g}, and float16 holds {LARGEST:.0f}"
    error = np.abs(finite - np.minimum(finite, LARGEST).astype(np.float16).astype(np.float64))
    if values.size == 1:
        if largest <= LARGEST and error[0] > _SCALAR_ERROR * finite[0]:
            given = values.reshape(-1)[0]
            return f"its constant {float(given):.3g} becomes {float(np.float16(given)):.3g}"
        return ""
    power = float(np.square(finite).sum())
    if not saturates and power and float(np.square(error).sum()) > MAX_NOISE * power:
        return f"its constant '{name}' is too small for float16 (at most {largest:.3g})"
    return ""


class Ranges:
    """What calibration says of a model's tensors.

    Args:
        statistics: of the tensors, by name.
        types: inferred types by tensor name.
        headroom: how many times as large values may get as they were.
    """

    def __init__(self, statistics: Statistics, types: Mapping[str, TensorType], headroom: float) -> None:
        self._statistics = statistics
        self._types = types
        self._headroom = headroom
        self._verdicts: dict[str, str] = {}

    def reason(self, site: Site) -> str:
        """Why the values that a node reads or writes speak against float16; empty where they do not."""
        for tensor in _floats(site):
            reason = self._tensor(tensor.name)
            if reason:
                return reason
        return self._divisor(site) or self._sum(site)

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The shape of a tensor: as it was in calibration, else as inferred, with 1 for what is open."""
        seen = self._statistics.tensors.get(tensor.name)
        if seen is not None:
            return seen.shape
        found = self._types.get(tensor.name)
        if found is None or found.shape is None:
            return None
        return tuple(size if isinstance(size, int) else 1 for size in found.shape)

    def _tensor(self, name: str) -> str:
        if name not in self._verdicts:
            self._verdicts[name] = self._judge(name)
        return self._verdicts[name]

    def _judge(self, name: str) -> str:
        if name in self._statistics.infinite:
            return f"tensor '{name}' is NaN or infinite on calibration sample {self._statistics.infinite[name]}"
        seen = self._statistics.tensors.get(name)
        if seen is None or not seen.histogram.count:
            return ""
        largest = _largest(seen)
        if largest * self._headroom > LARGEST:
            return f"tensor '{name}' reaches {largest:.3g}, and float16 holds {LARGEST:.0f}"
        if largest and rounding_noise(seen) > MAX_NOISE:
            return f"tensor '{name}' is too small for float16 (at most {largest:.3g})"
        return ""

    def _divisor(self, site: Site) -> str:
        slot = _DIVISORS.get(site.node.op)
        if slot is None or slot not in site.reads:
            return ""
        tensor = site.node.inputs[slot]
        seen = self._statistics.tensors.get(tensor.name)
        if seen is None:
            return ""
        values, _ = seen.histogram.distribution()
        magnitudes = np.abs(values[values != 0.0])
        if magnitudes.size and magnitudes.min() < _SMALLEST_NORMAL:
            what = "logarithm is taken" if site.node.op == "Log" else "inverse is taken"
            return f"tensor '{tensor.name}', whose {what}, falls to {float(magnitudes.min()):.3g}"
        return ""

    def _sum(self, site: Site) -> str:
        terms = self._terms(site)
        if terms > MAX_TERMS:
            return f"it adds up {terms} values, and float16 {MAX_TERMS} at most"
        made = self._statistics.tensors.get(site.node.outputs[0].name)
        read = self._statistics.tensors.get(site.node.inputs[0].name) if site.node.inputs else None
        if site.node.op in _MEANS and made is not None and _largest(made) * terms * self._headroom > LARGEST:
            return f"the sum behind its mean reaches {_largest(made) * terms:.3g}, and float16 holds {LARGEST:.0f}"
        if site.node.op in _SQUARES and read is not None and _largest(read) ** 2 * self._headroom > LARGEST:
            return f"its squares reach {_largest(read) ** 2:.3g}, and float16 holds {LARGEST:.0f}"
        return ""

    def _terms(self, site: Site) -> int:
        """How many values the node adds up for one of its results; 0 where it adds up none, or products."""
        node = site.node
        adds = node.op.startswith("Reduce") and node.op not in {"ReduceMax", "ReduceMin"}
        if not (adds or node.op in _WINDOWS | _OVER_ALL | _ALONG_AXIS | {"MeanVarianceNormalization"}):
            return 0
        if node.op in _WINDOWS:
            return math.prod(int(size) for size in node.attrs.get("kernel_shape", []))
        shape = self.shape(node.inputs[0])
        if shape is None:
            return 0
        if node.op in _OVER_ALL:
            return math.prod(shape[2:])
        if node.op in _ALONG_AXIS:
            axis = int(node.attrs.get("axis", -1))
            return shape[axis] if -len(shape) <= axis < len(shape) else 0
        axes = _axes(node, len(shape))
        return math.prod(shape[axis] for axis in axes if axis < len(shape))


def rounding_noise(seen: TensorStatistics) -> float:
    """Noise-to-signal power that rounding a tensor to float16 adds: steps of 2^-10 of the octave, at least 2^-24."""
    values, counts = seen.histogram.distribution()
    magnitudes = np.abs(values)
    power = float((counts * magnitudes**2).sum())
    if power == 0.0:
        return 0.0
    octaves = np.floor(np.log2(np.maximum(magnitudes, _SMALLEST_NORMAL)))
    steps = np.where(magnitudes > 0, np.maximum(2.0 ** (octaves - 10), _SUBNORMAL_STEP), 0.0)
    # A value below half a step becomes zero: its error is itself, which is less than the noise of a uniform one.
    errors = np.minimum(steps**2 / 12, magnitudes**2)
    return float((counts * errors).sum()) / power


def _largest(seen: TensorStatistics) -> float:
    return max(abs(seen.histogram.minimum), abs(seen.histogram.maximum)) if seen.histogram.count else 0.0


def _floats(site: Site) -> Iterable[gs.Tensor]:
    yield from (site.node.inputs[slot] for slot in site.reads if not is_constant(site.node.inputs[slot]))
    yield from (site.node.outputs[slot] for slot in site.writes)


def _axes(node: gs.Node, rank: int) -> list[int]:
    given: Any = node.attrs.get("axes")
    if given is None and len(node.inputs) > 1 and not node.inputs[1].is_empty():
        values = values_of(node.inputs[1])
        given = None if values is None else values.reshape(-1).tolist()
    if node.op == "MeanVarianceNormalization" and given is None:
        given = [0, 2, 3]
    if not given:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return [int(axis) % rank for axis in given] if rank else []
