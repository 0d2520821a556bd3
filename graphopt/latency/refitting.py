"""Adapts the constants of a profile to a few latencies that were measured on the device itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot

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

# Measured (benchmarks/results/latency.md): the error for other nets after five were measured.
_OTHER_NETS = 0.13
_FEW_OTHER_NETS = 0.25  # judged: where fewer nets than operator kinds were measured
_ENOUGH = 4


def refit(
    measured: Sequence[tuple[onnx.ModelProto, int, float]],
    hardware: Hardware,
    runtime: str | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Constants:
    """Adapt the constants of a target's runtime to latencies that were measured on the device.

    Args:
        measured: model, batch and milliseconds for the whole batch. One net for each kind of operator tells most; the
            same model at several batch sizes helps, too.
        hardware: facts about the target; needs a ``device``.
        runtime: name of one of ``hardware.runtimes``; by default the first.
        shapes: shapes of inputs by name.

    Returns:
        What a profile states as ``latency`` of the runtime: the constants that changed, and ``uncertainty``.

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
    old = constants(chosen.constants, {**chosen.latency, "uncertainty": 0.0})
    base = {**old, "launch.product_us": old["launch.product_us"] or device_of(hardware).launch_us}
    samples = [
        Sample(kernels(model, fused=chosen.fused, precision=chosen.precision, batch=batch, shapes=shapes), 1, ms)
        for model, batch, ms in measured
    ]
    own = Measured(hardware, samples)
    found = fit([own], [base], REFIT).devices[0]
    nets = len({id(model) for model, _, _ in measured})
    others = _OTHER_NETS if nets >= _ENOUGH else _FEW_OTHER_NETS
    of_set = constants(chosen.constants)
    changed = {name: value for name, value in found.items() if value != of_set[name]}
    return {
        **{name: float(f"{value:.4g}") for name, value in changed.items()},
        "uncertainty": round(hypot(others, spread_of(own, found)), 3),
    }
