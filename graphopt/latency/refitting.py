"""Adapts the constants of a profile to a few latencies that were measured on the device itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from graphopt.errors import DataError
from graphopt.latency.constants import DATASHEET, Constants, constants
from graphopt.latency.fitting import Measured, Parameter, Sample, fit, spread_of
from graphopt.latency.kernels import kernels
from graphopt.latency.roofline import device_of, runtime_of
from graphopt.targets.schema import Hardware

_COMPUTE = tuple(name for name in DATASHEET if name.startswith("compute."))
_MEMORY = tuple(name for name in DATASHEET if name.startswith(("memory.", "cache.")))

# What a few nets can tell: how far the whole device is from what was assumed, and the kinds of work that runtimes
# differ in most. Everything keeps to its old value where no net says otherwise.
REFIT = (
    Parameter("compute", _COMPUTE, 0.5),
    Parameter("memory", _MEMORY, 0.4),
    Parameter("launch", ("launch.product_us",), 0.7),
    Parameter("kernel", ("kernel.us",), 0.5),
    Parameter("small", ("small.product", "small.depthwise"), 0.5),
    Parameter("winograd", ("compute.winograd",), 0.3),
    Parameter("grouped", ("compute.grouped",), 0.3),
    Parameter("depthwise", ("compute.depthwise",), 0.4),
    Parameter("group", ("launch.group",), 0.3),
    Parameter("fully connected", ("memory.fully_connected", "memory.few_rows"), 0.3),
)

_FLOOR = 0.10  # repeated measurements of one net differ by a few percent; an estimate is never surer than this
_UNTRIED = 0.25  # where too few nets were measured to try the constants on one that was left out
_ENOUGH = 4


@dataclass(frozen=True)
class Refit:
    """Constants adapted to measurements.

    Attributes:
        constants: what a profile states as ``latency`` of the runtime: those that changed, and ``uncertainty``.
        before: root mean square of log(measured / estimated) with the old constants.
        after: the same with the new ones, on the same measurements.
        left_out: the same for each model by constants that it had no part in; None for fewer than four models.
    """

    constants: Constants
    before: float
    after: float
    left_out: float | None

    def toml(self, runtime: str) -> str:
        """The section of a profile that holds the constants."""
        lines = [f"[hardware.runtimes.{runtime}.latency]"]
        lines += [f'"{name}" = {value!r}' for name, value in self.constants.items()]
        return "\n".join(lines) + "\n"


def refit(
    measured: Sequence[tuple[onnx.ModelProto, int, float]],
    hardware: Hardware,
    runtime: str | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Refit:
    """Adapt the constants of a target's runtime to latencies that were measured on the device.

    Args:
        measured: model, batch and milliseconds for the whole batch. One net for each kind of operator tells most; the
            same model at several batch sizes helps, too.
        hardware: facts about the target; needs a ``device``.
        runtime: name of one of ``hardware.runtimes``; by default the first.
        shapes: shapes of inputs by name.

    Raises:
        DataError: there are no measurements, or a latency is no positive number.
        UsageError: the target has no device figures or no such runtime.
        ModelError: a model has unknown sizes.
    """
    chosen = runtime_of(hardware, runtime)
    if not measured:
        raise DataError("no measured latency to fit constants to")
    wrong = next((ms for _, _, ms in measured if not 0 < ms < float("inf")), None)
    if wrong is not None:
        raise DataError(f"a latency of {wrong} ms cannot be: give milliseconds for the whole batch")
    base = dict(constants(chosen.constants, chosen.latency))
    base["launch.product_us"] = base["launch.product_us"] or device_of(hardware).launch_us
    samples = [
        Sample(kernels(model, fused=chosen.fused, precision=chosen.precision, batch=batch, shapes=shapes), 1, ms)
        for model, batch, ms in measured
    ]
    own = Measured(hardware, samples)
    found = fit([own], [base], REFIT).devices[0]
    left_out = _left_out(hardware, samples, [id(model) for model, _, _ in measured], base)
    after = spread_of(own, found)
    uncertainty = max(_FLOOR, _UNTRIED if left_out is None else left_out)
    changed = {name: value for name, value in found.items() if value != constants(chosen.constants)[name]}
    rounded = {name: float(f"{value:.4g}") for name, value in {**changed, "uncertainty": uncertainty}.items()}
    return Refit(rounded, spread_of(own, base), after, left_out)


def _left_out(hardware: Hardware, samples: Sequence[Sample], models: Sequence[int], base: Constants) -> float | None:
    """Root mean square of the log error for each model by constants that were fitted to the others."""
    every = list(dict.fromkeys(models))
    if len(every) < _ENOUGH:
        return None
    squares = []
    for one in every:
        rest = Measured(hardware, [sample for sample, model in zip(samples, models, strict=True) if model != one])
        held = Measured(hardware, [sample for sample, model in zip(samples, models, strict=True) if model == one])
        found = fit([rest], [base], REFIT).devices[0]
        squares += [spread_of(held, found) ** 2] * len(held.log_ms)
    return float((sum(squares) / len(squares)) ** 0.5)
