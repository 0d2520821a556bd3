"""The estimate of a model's time on a device, kernel by kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from math import exp
from typing import Any

import numpy as np
import onnx

from graphopt.graph.cost import Scope
from graphopt.latency.constants import Constants, constants
from graphopt.latency.kernels import Kernel, kernels
from graphopt.latency.roofline import KernelTime, kernel_time, runtime_of
from graphopt.latency.uncertainty import source_of, spread
from graphopt.latency.work import KernelWork
from graphopt.targets.schema import Hardware

_NORMAL_90 = 1.645  # standard deviations on either side that hold 90 % of a normal distribution


@dataclass(frozen=True)
class KernelEstimate:
    """The predicted time of one kernel.

    Attributes:
        name: the node that gives the kernel its name (as in ``graph.cost.LayerCost.name``).
        nodes: all nodes that run inside it.
        kind: kind of work, as ``graph.cost.kinds``.
        precision: data type that it computes in.
        us: microseconds for the whole batch, the launch left out.
        bound: ``compute``, ``memory`` or ``launch``: what its time is bound by.
        macs: multiply-adds.
        bytes: bytes read and written.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    precision: str
    us: float
    bound: str
    macs: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """The predicted time of a model.

    Attributes:
        ms: milliseconds for the whole batch.
        interval: 90 % interval of ``ms``.
        runtime: which runtime of the target.
        batch: size of dynamic first axes; of a model whose batch is fixed, the samples asked for.
        source: where the constants come from, in a few words for the reader.
        kernels: in order.
    """

    ms: float
    interval: tuple[float, float]
    runtime: str
    batch: int
    source: str
    kernels: tuple[KernelEstimate, ...]


def estimate(
    model: onnx.ModelProto,
    hardware: Hardware,
    *,
    runtime: str | None = None,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    graphs: Sequence[Scope] | None = None,
    float32: Set[str] | None = frozenset(),
) -> Estimate:
    """Predict how long ``model`` takes on ``hardware``; weights may be absent.

    Args:
        model: float32, float16 or Q/DQ model.
        hardware: facts about the target; needs a ``device``.
        runtime: name of one of ``hardware.runtimes``; by default the first.
        batch: size of dynamic first axes.
        shapes: shapes of inputs by name.
        graphs: what ``graph.cost.scopes`` returned for the same model and sizes, where the caller has it already.
        float32: names of nodes that the runtime is told to leave in float32, where it chooses types by itself; None:
            all of them.

    Raises:
        UsageError: the target has no device figures or no such runtime, or computes in no type of the model's; shapes
            contradict the model.
        ModelError: a size is unknown, so that the time would be a guess.
    """
    chosen = runtime_of(hardware, runtime)
    fitted = constants(chosen.constants, chosen.latency)
    if "float32" not in hardware.precisions:
        float32 = frozenset()
    found = kernels(
        model,
        fused=chosen.fused,
        precision=chosen.precision if float32 is not None else "float32",
        batch=batch,
        shapes=shapes,
        graphs=graphs,
        float32=float32 or frozenset(),
    )
    timed = [_timed(kernel, times) for kernel, times in zip(found, _times(found, hardware, fitted), strict=True)]
    launches = sum(launch for _, launch in timed)
    ms = together(sum(kernel.us for kernel, _ in timed), launches, fitted["overlap"]) / 1e3
    width = exp(_NORMAL_90 * spread(hardware, chosen, fitted, {kernel.precision for kernel, _ in timed}))
    return Estimate(
        ms=ms,
        interval=(ms / width, ms * width),
        runtime=chosen.name,
        batch=batch,
        source=source_of(hardware, chosen),
        kernels=tuple(kernel for kernel, _ in timed),
    )


def together(device_us: float, processor_us: float, overlap: float) -> float:
    """Time of a net whose launches run ahead of the device: about the longer of the two."""
    longer = max(device_us, processor_us)
    if longer == 0:
        return 0.0
    return float(longer * ((device_us / longer) ** overlap + (processor_us / longer) ** overlap) ** (1 / overlap))


def stacked(works: Sequence[KernelWork]) -> KernelWork:
    """Works of one kind and precision as one that holds arrays."""
    columns = [field.name for field in fields(KernelWork) if field.name not in ("kind", "precision")]
    arrays: dict[str, Any] = {
        name: np.array([getattr(work, name) for work in works], dtype=np.float64) for name in columns
    }
    return replace(works[0], **arrays)


def _times(found: Sequence[Kernel], hardware: Hardware, fitted: Constants) -> list[list[tuple[float, ...]]]:
    """For each kernel and each of its works: us, compute, memory and launch. All of one kind are priced at once."""
    places: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for i, kernel in enumerate(found):
        for j, work in enumerate(kernel.works):
            places[work.kind, work.precision].append((i, j))
    result: list[list[tuple[float, ...]]] = [[()] * len(kernel.works) for kernel in found]
    for where in places.values():
        time: KernelTime = kernel_time(stacked([found[i].works[j] for i, j in where]), hardware, fitted)
        columns = (time.us.tolist(), time.compute_us.tolist(), time.memory_us.tolist(), time.launch_us.tolist())
        for (i, j), row in zip(where, zip(*columns, strict=True), strict=True):
            result[i][j] = row
    return result


def _timed(kernel: Kernel, rows: Sequence[tuple[float, ...]]) -> tuple[KernelEstimate, float]:
    """The estimate of a kernel, and microseconds of processor time to launch it."""
    us, compute, memory, launch = (float(sum(column)) for column in zip(*rows, strict=True))
    head = kernel.works[0]
    bound = "launch" if us <= launch else "compute" if compute > memory else "memory"
    one = KernelEstimate(
        name=kernel.name,
        nodes=kernel.nodes,
        kind=head.kind,
        precision=head.precision,
        us=us,
        bound=bound,
        macs=round(float(sum(work.macs for work in kernel.works))),
        bytes=round(float(sum(work.activation_bytes + work.weight_bytes for work in kernel.works))),
    )
    return one, launch
