"""The estimate of a model's time on a device, kernel by kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from graphopt.targets.schema import Hardware


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
        batch: size of dynamic first axes.
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
) -> Estimate:
    """Predict how long ``model`` takes on ``hardware``; weights may be absent.

    Args:
        model: float32, float16 or Q/DQ model.
        hardware: facts about the target; needs a ``device``.
        runtime: name of one of ``hardware.runtimes``; by default the first.
        batch: size of dynamic first axes.
        shapes: shapes of inputs by name.

    Raises:
        UsageError: the target has no device figures or no such runtime; shapes contradict the model.
        ModelError: a size is unknown, so that the time would be a guess.
    """
    raise NotImplementedError
