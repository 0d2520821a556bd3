"""The latency of an inspected model and of its layers, measured on this machine.

ONNX Runtime times the kernels of the graph that it made of the model. Those that keep a node's name, or take that of
the tensor that they write, are joined with the layers; what it added (layout changes) belongs to none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx

from graphopt.errors import UsageError
from graphopt.graph.cost import ModelCost, Scope
from graphopt.inspection.latency import Latency, LayerTime
from graphopt.runtime import KernelTime, input_specs
from graphopt.targets import Hardware, cpu_description

if TYPE_CHECKING:
    from graphopt.data import Feed

SECONDS = 3.0
# Most nodes between what a fused kernel writes and the node that it is named for: normalization, activation, addition.
_FUSED = 6


def measured(
    model: onnx.ModelProto,
    main: Scope,
    cost: ModelCost,
    target: str,
    hardware: Hardware,
    *,
    batch: int,
    threads: int = 1,
) -> Latency:
    """Time ``model`` and its kernels on random input of the sizes that ``main`` holds.

    Raises:
        UsageError: the target is not this machine; a size is unknown, or the model cannot take it.
    """
    from graphopt.runtime import profile
    from graphopt.validation import bench

    if hardware.device is not None:
        raise UsageError(f"target {target!r} is not this machine: measure on the device with graphopt bench")
    feed = _random_feed(model, main)
    timing = bench(model, feed, threads=threads, providers=hardware.providers, seconds=SECONDS)
    times = profile(model, feed, threads=threads, providers=hardware.providers)
    return Latency(
        target=target,
        runtime=hardware.runtime,
        batch=batch,
        source="measured",
        basis=f"measured here ({cpu_description()}), {threads} thread{'s' if threads > 1 else ''}, {timing.clock} time",
        ms=timing.median_ms,
        interval=(timing.p10_ms, timing.p90_ms),
        layers=_by_layer(times, main, cost),
    )


def _random_feed(model: onnx.ModelProto, main: Scope) -> Feed:
    from graphopt.data import random_feeds

    specs = input_specs(model)
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        shape = main.shapes.get(spec.name)
        if shape is None or None in shape:
            continue
        asked = tuple(size for size in shape if size is not None)
        for own, size in zip(spec.shape or asked, asked, strict=True):
            if isinstance(own, int) and own != size:
                raise UsageError(f"the batch of input {spec.name!r} is fixed at {own}: one of {size} cannot be run")
        shapes[spec.name] = asked
    return next(iter(random_feeds(specs, shapes))).inputs


def _by_layer(times: Sequence[KernelTime], main: Scope, cost: ModelCost) -> tuple[LayerTime | None, ...]:
    """Milliseconds of each layer; None for those that no kernel is known to belong to."""
    places = {layer.name: index for index, layer in reversed(tuple(enumerate(cost.layers)))}
    found: dict[int, float] = {}
    written = {_written(kernel) for kernel in times}
    for kernel in times:
        index = _place(kernel, main, places, written)
        if index is not None:
            found[index] = found.get(index, 0.0) + kernel.microseconds / 1000
    return tuple(LayerTime(found[index]) if index in found else None for index in range(len(cost.layers)))


def _written(kernel: KernelTime) -> str:
    """The node or tensor that a kernel is named after."""
    return kernel.node.removesuffix("_nchwc")


def _place(kernel: KernelTime, main: Scope, places: Mapping[str, int], written: Collection[str]) -> int | None:
    """The layer that a kernel is named after, or the one of its operator behind what it writes."""
    name, operator = _written(kernel), kernel.operator.removeprefix("Fused")
    if name in places and (name not in main.producers or main.producers[name].op_type == operator):
        return places[name]
    for _ in range(_FUSED):
        node = main.producers.get(name)
        if node is None or not node.input:
            return None
        if node.op_type == operator:
            return places.get(node.name or node.output[0])
        # A fused addition may have the convolution on either side; the other side is a kernel of its own.
        name = next((one for one in node.input if one in main.producers and one not in written), "")
    return None
