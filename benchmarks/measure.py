"""Latency, signal-to-noise ratio and the share of work in int8, measured the same way for every tool.

Latency is CPU time of the calling thread (`time.thread_time`), one thread, batch 1, all of ONNX Runtime's
optimizations on; models take turns, so that whatever disturbs the machine disturbs all of them.
"""

import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[np.generic]
Feed = Mapping[str, Array]


def session(model: Path, optimized: Path | None = None) -> Any:
    """An inference session on one thread; writes ONNX Runtime's optimized graph where asked."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def feeds(columns: Mapping[str, Array]) -> Iterator[Feed]:
    """Feeds of one sample; `labels` left out."""
    names = [name for name in columns if name != "labels"]
    for index in range(len(columns[names[0]])):
        yield {name: columns[name][index : index + 1] for name in names}


def outputs(model: Path, columns: Mapping[str, Array]) -> Iterator[list[Array]]:
    """Outputs for each sample in turn, batch 1 as in the latency runs."""
    runner = session(model)
    for feed in feeds(columns):
        yield runner.run(None, feed)


@dataclass
class Noise:
    """Running SQNR in dB: 10 log10 (sum reference^2 / sum (reference - candidate)^2) over all samples and outputs."""

    signal: float = 0.0
    error: float = 0.0

    def add(self, reference: list[Array], candidate: list[Array]) -> None:
        """Account for one sample."""
        for known, found in zip(reference, candidate, strict=True):
            known64 = known.astype(np.float64)
            self.signal += float(np.square(known64).sum())
            self.error += float(np.square(known64 - found.astype(np.float64)).sum())

    @property
    def decibels(self) -> float:
        """Infinite when nothing differs."""
        return float(10 * np.log10(self.signal / self.error)) if self.error else float("inf")


@dataclass(frozen=True)
class Ratio:
    """Latency of one model beside the baseline: `speedup` > 1 is faster, with a 95 % bootstrap interval."""

    milliseconds: float
    speedup: float
    low: float
    high: float


def _turn(runner: Any, feed: Feed, calls: int) -> float:
    """Milliseconds a call: one call to warm the caches up, then the mean of `calls`."""
    runner.run(None, feed)
    started = time.thread_time()
    for _ in range(calls):
        runner.run(None, feed)
    return 1000 * (time.thread_time() - started) / calls


def interleaved(
    models: Mapping[str, Path], feed: Feed, baseline: str, seconds: float = 60, rounds: tuple[int, int] = (15, 100)
) -> dict[str, Ratio]:
    """Latency of every model against `baseline`, in turns within one process.

    A turn lasts about 10 ms or one call, whichever is longer; there are as many rounds as fit in `seconds`, within
    the bounds of `rounds`. The interval of the ratio of medians comes from resampling rounds.
    """
    runners = {name: session(path) for name, path in models.items()}
    first = {name: _turn(runner, feed, 1) for name, runner in runners.items()}
    calls = {name: max(1, round(10 / spent)) for name, spent in first.items()}
    each_round = sum(first[name] * (calls[name] + 1) for name in runners) / 1000
    count = int(np.clip(seconds / each_round, *rounds))
    order = list(runners)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for index in range(count):
        for name in order if index % 2 else reversed(order):
            times[name].append(_turn(runners[name], feed, calls[name]))
    return {name: _ratio(np.array(times[baseline]), np.array(times[name])) for name in order}


def _ratio(baseline: npt.NDArray[np.float64], candidate: npt.NDArray[np.float64]) -> Ratio:
    picks = np.random.default_rng(0).integers(0, len(baseline), (2000, len(baseline)))
    draws = np.median(baseline[picks], axis=1) / np.median(candidate[picks], axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    middle = float(np.median(candidate))
    return Ratio(middle, float(np.median(baseline)) / middle, float(low), float(high))


def cpu_flags() -> set[str]:
    """Instruction-set flags of this CPU as Linux names them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def has_vnni() -> bool:
    """Whether u8 x s8 products accumulate without saturating 16-bit sums."""
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni"})


def machine() -> dict[str, str]:
    """CPU and versions, for the results file; nothing that names the host."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"})
    described = {"cpu": model or platform.processor(), "flags": " ".join(flags), "python": platform.python_version()}
    for package in ("onnxruntime", "onnx", "numpy", "graphopt"):
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            continue
    return described
