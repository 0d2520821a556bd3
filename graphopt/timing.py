"""How long one call of a model takes in ONNX Runtime, and which of its kernels takes how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt._version import __version__
from graphopt.data import Feed, open_data, random_feeds
from graphopt.model import ModelSource, read
from graphopt.report.schema import plain
from graphopt.runtime import KernelTime, TensorSpec, input_specs, profile
from graphopt.validation import Timing, bench

SCHEMA = "graphopt.bench/1"
SHOWN_KERNELS = 20


@dataclass(frozen=True)
class Bench:
    """What ``bench`` measured. ``str(found)`` is what a person reads.

    Attributes:
        path: of the model; None for one that was given in memory.
        sha256: of the model file.
        provider: the first execution provider.
        threads: intra-op threads.
        inputs: input name -> shape that was fed.
        timing: time of one call.
        kernels: time of each kernel of ONNX Runtime's optimized graph, in order; empty unless asked for.
        warnings: what the reader should know, one sentence each.
    """

    path: str | None
    sha256: str
    provider: str
    threads: int
    inputs: Mapping[str, tuple[int, ...]]
    timing: Timing
    kernels: tuple[KernelTime, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain JSON values, schema ``graphopt.bench/1``; times in milliseconds."""
        layers = [
            {"name": kernel.node, "operator": kernel.operator, "ms": kernel.microseconds / 1000}
            for kernel in self.kernels
        ]
        return {
            "schema": SCHEMA,
            "graphopt_version": __version__,
            "model": {"path": self.path, "sha256": self.sha256},
            "provider": self.provider,
            "threads": self.threads,
            "inputs": plain(self.inputs),
            **plain(self.timing),
            "layers": layers,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def bench_model(
    model: ModelSource,
    *,
    data: Any = None,
    preprocess: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int = 1,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    seconds: float = 5.0,
    seed: int = 0,
    kernels: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Bench:
    """Time one model.

    Args:
        model: path, bytes or ``onnx.ModelProto``.
        data: the first sample of it is fed; None feeds random numbers.
        preprocess: how images become inputs.
        input_shapes: shapes of dynamic inputs by name.
        batch: size of first axes that are dynamic and not in ``input_shapes``; for random input.
        providers: ONNX Runtime execution providers.
        threads: intra-op threads.
        seconds: most time to measure for.
        seed: of random input.
        kernels: whether to time each kernel as well.
        progress: called with (what, done, total).

    Raises:
        ModelError, DataError: the model or the data cannot be read.
        UsageError: a dynamic input has no shape; a provider is not available.
    """
    loaded = read(model)
    specs = input_specs(loaded.proto)
    shapes = {**_batched(specs, batch), **(input_shapes or {})}
    if data is None:
        source = random_feeds(specs, shapes, seed=seed)
    else:
        source = open_data(data, specs, preprocess=preprocess, shapes=input_shapes)
    feed: Feed = next(iter(source)).inputs
    progress("timing", 0, 0)
    timing = bench(loaded.proto, feed, threads=threads, providers=providers, seconds=seconds, seed=seed)
    times: tuple[KernelTime, ...] = ()
    if kernels:
        progress("timing kernels", 0, 0)
        times = profile(loaded.proto, feed, threads=threads, providers=providers)
    return Bench(
        path=str(loaded.path) if loaded.path else None,
        sha256=loaded.sha256,
        provider=providers[0],
        threads=threads,
        inputs={name: tuple(array.shape) for name, array in feed.items()},
        timing=timing,
        kernels=times,
        warnings=loaded.warnings,
    )


def _batched(specs: Sequence[TensorSpec], batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs of which only the first axis is open."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        if spec.shape and not isinstance(spec.shape[0], int):
            rest = tuple(size for size in spec.shape[1:] if isinstance(size, int))
            if len(rest) == len(spec.shape) - 1:
                shapes[spec.name] = (batch, *rest)
    return shapes


def _lines(found: Bench) -> list[str]:
    timing = found.timing
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in found.inputs.items()) or "no inputs"
    lines = [
        f"median {timing.median_ms:.3f} ms   p10 {timing.p10_ms:.3f}   p90 {timing.p90_ms:.3f}",
        f"{found.provider}, {found.threads} thread{'s' if found.threads > 1 else ''}, {timing.clock} time, "
        f"{timing.timings} timings of {timing.calls} calls; {shapes}",
    ]
    if found.kernels:
        total = sum(kernel.microseconds for kernel in found.kernels)
        shown = sorted(found.kernels, key=lambda kernel: -kernel.microseconds)[:SHOWN_KERNELS]
        width = max(len(kernel.operator) for kernel in shown)
        lines += ["", f"slowest {len(shown)} of {len(found.kernels)} kernels (profiled, so slower than above)"]
        lines += [
            f"{kernel.microseconds / 1000:9.3f} ms {100 * kernel.microseconds / total:5.1f} %  "
            f"{kernel.operator:<{width}}  {kernel.node}"
            for kernel in shown
        ]
    return lines + [f"warning: {warning}" for warning in found.warnings]
