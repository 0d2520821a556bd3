"""Time models against each other in ONNX Runtime, interleaved in one process.

Every round times each model once, in random order: what disturbs the machine for a while disturbs all of them. Before
a timing the model runs once untimed, since the other model has emptied the caches; calls shorter than the clock's
grain are repeated within a timing. The ratio is that of the medians, with a 95 % interval from resampling rounds
(percentile bootstrap, Efron 1979); rounds are added until it is narrow or the time is used up.

On one thread and the CPU provider ONNX Runtime computes in the calling thread, so its CPU time is taken, which other
processes do not lengthen; otherwise the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from graphopt import runtime
from graphopt.data.sample import Array, Feed
from graphopt.validation.model import Model, Runner

CPU = "CPUExecutionProvider"
LEAST_ROUNDS, MOST_ROUNDS = 7, 2000
LEAST_TIMING_NS = 2_000_000  # one timing covers at least this much, so that the clock's own cost vanishes
LONGEST_WARMED_NS = 50_000_000  # from here on, refilling the caches is lost in the call itself
RESAMPLES = 1000


@dataclass(frozen=True)
class Timing:
    """Time of one call of one model, in milliseconds.

    Attributes:
        median_ms, p10_ms, p90_ms: over the timings.
        timings: number of timings.
        calls: calls within each timing.
        clock: ``cpu`` (CPU time of the calling thread) or ``wall``.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    timings: int
    calls: int
    clock: str


@dataclass(frozen=True)
class Rounds:
    """Raw timings of several models.

    Attributes:
        nanoseconds: model name -> time of one call in each round, float64 [rounds].
        calls: model name -> calls within each timing.
        clock: ``cpu`` or ``wall``.
        seed: of the resampling.
    """

    nanoseconds: Mapping[str, Array]
    calls: Mapping[str, int]
    clock: str
    seed: int

    def timing(self, name: str) -> Timing:
        """Return the figures of one model."""
        times = self.nanoseconds[name] / 1e6
        p10, median, p90 = (float(value) for value in np.percentile(times, (10, 50, 90)))
        return Timing(median, p10, p90, len(times), self.calls[name], self.clock)

    def speedup(self, baseline: str, optimized: str) -> tuple[float, float, float]:
        """Return the ratio of medians baseline / optimized and its 95 % interval."""
        return ratio_interval(self.nanoseconds[baseline], self.nanoseconds[optimized], self.seed)


@dataclass(frozen=True)
class Latency:
    """Speed of a candidate against the original: the object ``latency`` of the report.

    Attributes:
        source: ``measured``.
        provider: the first execution provider.
        threads: intra-op threads.
        baseline_ms, optimized_ms: medians of one call.
        speedup: ratio of the medians.
        ci95: its 95 % confidence interval.
        min_speedup: what is asked.
        passed: False only when the whole interval lies below ``min_speedup``.
        baseline, optimized: the figures in full.
    """

    source: str
    provider: str
    threads: int
    baseline_ms: float
    optimized_ms: float
    speedup: float
    ci95: tuple[float, float]
    min_speedup: float
    passed: bool
    baseline: Timing
    optimized: Timing

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the contract, with p10 and p90 of both models beside them; JSON-ready."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("baseline", "optimized")
        }
        spread = {
            f"{name}_{share}_ms": getattr(getattr(self, name), f"{share}_ms")
            for name in ("baseline", "optimized")
            for share in ("p10", "p90")
        }
        return {**values, "ci95": list(self.ci95), **spread, "clock": self.baseline.clock}


def measure(
    baseline: Model,
    optimized: Model,
    feed: Feed,
    *,
    min_speedup: float = 1.0,
    threads: int = 1,
    providers: Sequence[str] = (CPU,),
    seconds: float = 5.0,
    precision: float = 0.01,
    seed: int = 0,
) -> Latency:
    """Time two models against each other.

    Args:
        baseline: the original.
        optimized: the candidate.
        feed: one feed of the original.
        min_speedup: the ratio asked for.
        threads: intra-op threads.
        providers: execution providers.
        seconds: most wall time for the rounds; at least seven rounds are made.
        precision: half the width of the ratio's interval, relative, at which no more rounds are made.
        seed: order of the models and resampling.

    Raises:
        UnsupportedModelError: a model cannot be loaded or run.
        UsageError: a provider is not available.
    """
    models = {"baseline": baseline, "optimized": optimized}
    rounds = measure_rounds(
        models, feed, threads=threads, providers=providers, seconds=seconds, precision=precision, seed=seed
    )
    speedup, low, high = rounds.speedup("baseline", "optimized")
    first, second = rounds.timing("baseline"), rounds.timing("optimized")
    return Latency(
        source="measured",
        provider=providers[0],
        threads=threads,
        baseline_ms=first.median_ms,
        optimized_ms=second.median_ms,
        speedup=speedup,
        ci95=(low, high),
        min_speedup=min_speedup,
        passed=high >= min_speedup,
        baseline=first,
        optimized=second,
    )


def bench(
    model: Model,
    feed: Feed,
    *,
    threads: int = 1,
    providers: Sequence[str] = (CPU,),
    seconds: float = 3.0,
    seed: int = 0,
) -> Timing:
    """Time one model; arguments and errors as :func:`measure`."""
    rounds = measure_rounds({"model": model}, feed, threads=threads, providers=providers, seconds=seconds, seed=seed)
    return rounds.timing("model")


def measure_rounds(
    models: Mapping[str, Model],
    feed: Feed,
    *,
    threads: int = 1,
    providers: Sequence[str] = (CPU,),
    seconds: float = 5.0,
    precision: float = 0.01,
    seed: int = 0,
) -> Rounds:
    """Time several models, the first being what the others are compared with.

    Args:
        models: name -> model.
        feed: one feed of the first model.
        threads: intra-op threads.
        providers: execution providers.
        seconds: most wall time for the rounds; at least seven rounds are made.
        seed: order of the models and resampling.
        precision: half the width of the ratios' intervals, relative, at which no more rounds are made.
    """
    clock, now = _clock(threads, providers)
    calls: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        runner = Runner(model, name, threads, providers)
        adapted = runner.feed(feed)
        runtime.run(runner.session, adapted)  # this first run turns a failure into a message
        calls[name] = partial(runner.session.run, None, adapted)
    repeats = {name: _repeats(call, now) for name, call in calls.items()}
    generator = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, deadline, check = list(calls), time.perf_counter() + seconds, 20
    for done in range(1, MOST_ROUNDS + 1):
        for position in generator.permutation(len(names)):
            name = names[position]
            times[name].append(_time(calls[name], repeats[name], now))
        if done >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        if done == check:
            check += check // 2
            if _precise(times, precision, seed):
                break
    return Rounds({name: np.asarray(values) for name, values in times.items()}, repeats, clock, seed)


def ratio_interval(first: Array, second: Array, seed: int) -> tuple[float, float, float]:
    """Return median(first) / median(second) and its 95 % interval, rounds resampled in pairs."""
    ratio = float(np.median(first) / np.median(second))
    count = len(first)
    picks = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    ratios = np.median(first[picks], axis=1) / np.median(second[picks], axis=1)
    low, high = (float(value) for value in np.percentile(ratios, (2.5, 97.5)))
    return ratio, low, high


def _clock(threads: int, providers: Sequence[str]) -> tuple[str, Callable[[], int]]:
    # Some systems count a thread's CPU time in steps of 15 ms: of no use here.
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    if threads == 1 and tuple(providers) == (CPU,) and fine:
        return "cpu", time.thread_time_ns
    return "wall", time.perf_counter_ns


def _repeats(call: Callable[[], Any], now: Callable[[], int]) -> int:
    """Return how many calls one timing needs; the runs made for it are the warm-up."""
    count = 1
    for _ in range(3):
        call()
    while True:
        spent = _time(call, count, now) * count
        if spent >= LEAST_TIMING_NS or count >= 1 << 16:
            return count
        count = max(count + 1, min(2 * count, int(1.1 * count * LEAST_TIMING_NS / max(spent, 1)) + 1))


def _time(call: Callable[[], Any], count: int, now: Callable[[], int]) -> float:
    """Return the nanoseconds of one call, mean over ``count`` calls."""
    started = now()
    call()
    spent = now() - started
    if count == 1 and spent > LONGEST_WARMED_NS:
        return float(spent)
    started = now()
    for _ in range(count):
        call()
    return (now() - started) / count


def _precise(times: Mapping[str, Sequence[float]], precision: float, seed: int) -> bool:
    arrays = [np.asarray(values) for values in times.values()]
    pairs = [(arrays[0], other) for other in arrays[1:]] or [(arrays[0], np.ones_like(arrays[0]))]
    intervals = [ratio_interval(first, second, seed) for first, second in pairs]
    return all((high - low) / 2 < precision * ratio for ratio, low, high in intervals)
