"""The latency of an inspected model, and of its layers: estimated for a device, or measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from graphopt.errors import ModelError, UsageError
from graphopt.graph.cost import ModelCost, Scope
from graphopt.latency import Estimate, estimate
from graphopt.targets import Hardware


@dataclass(frozen=True)
class LayerTime:
    """The time of one node.

    Attributes:
        ms: milliseconds for the whole batch, the launch left out; 0 where the node takes none of its own.
        bound: ``compute``, ``memory`` or ``launch``; None where it takes no time of its own, or nobody knows.
        precision: data type that it is computed in; empty where that is not known.
        inside: the node in whose kernel it runs; empty where it has a kernel of its own or none at all.
    """

    ms: float = 0.0
    bound: str | None = None
    precision: str = ""
    inside: str = ""


@dataclass(frozen=True)
class Latency:
    """The time of a model.

    Attributes:
        target, runtime: whose.
        batch: samples that ``ms`` is for.
        source: ``estimated`` or ``measured``.
        basis: where it comes from, in a few words.
        ms: milliseconds for the whole batch.
        interval: of an estimate the 90 % interval, of a measurement the 10th and 90th percentile.
        layers: one for each layer of ``ModelCost.layers``; None where the layer's time is not known.
    """

    target: str
    runtime: str
    batch: int
    source: str
    basis: str
    ms: float
    interval: tuple[float, float]
    layers: tuple[LayerTime | None, ...]


def check_runtime(target: str, hardware: Hardware, runtime: str | None) -> None:
    """Raise UsageError where the target has no such runtime, naming those that it has."""
    names = tuple(model.name for model in hardware.runtimes) or (hardware.runtime,)
    if runtime is not None and runtime not in names:
        raise UsageError(f"target {target!r} has no runtime {runtime!r}; it has {', '.join(names)}")


def estimated(
    model: onnx.ModelProto,
    graphs: Sequence[Scope],
    cost: ModelCost,
    target: str,
    hardware: Hardware,
    *,
    runtime: str | None = None,
    batch: int = 1,
) -> tuple[Latency | None, Estimate | None, str]:
    """The estimated latency on a target that has a device, kernel by kernel too, or why there is none.

    ``graphs`` are the model's with their shapes, ``cost`` what was counted on them, ``batch`` the samples that they
    are for.

    An unknown size or a data type that the device does not compute in leaves everything else about the model known: so
    it is told as a warning and not raised.
    """
    if hardware.device is None:
        return None, None, ""
    try:
        found = estimate(model, hardware, runtime=runtime, batch=batch, graphs=graphs)
    except (ModelError, UsageError) as error:
        return None, None, f"no latency is estimated: {error}"
    latency = Latency(
        target=target,
        runtime=found.runtime,
        batch=found.batch,
        source="estimated",
        basis=found.source,
        ms=found.ms,
        interval=found.interval,
        layers=_layer_times(found, cost),
    )
    return latency, found, ""


def _layer_times(found: Estimate, cost: ModelCost) -> tuple[LayerTime, ...]:
    """Join kernels with layers by name; where several nodes have one name, in order."""
    own: dict[str, list[LayerTime]] = {}
    inside: dict[str, str] = {}
    for kernel in found.kernels:
        own.setdefault(kernel.name, []).append(LayerTime(kernel.us / 1000, kernel.bound, kernel.precision))
        inside.update((node, kernel.name) for node in kernel.nodes if node != kernel.name)
    waiting = {name: iter(times) for name, times in own.items()}
    result = []
    for layer in cost.layers:
        time = next(waiting.get(layer.name, iter(())), None)
        result.append(time or LayerTime(inside=inside.get(layer.name, "")))
    return tuple(result)
