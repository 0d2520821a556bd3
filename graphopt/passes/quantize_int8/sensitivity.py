"""Which units cost the accuracy: the noise that each one alone puts into the outputs, and whom to leave in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx

from graphopt.passes.quantize_int8.kernels import UnitTime
from graphopt.passes.quantize_int8.quality import Probe, noise
from graphopt.passes.quantize_int8.units import Role, Units


def unit_noise(
    units: Units,
    int8: Iterable[int],
    build: Callable[[frozenset[int]], onnx.ModelProto],
    probe: Probe,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, float]:
    """Return, for every unit of ``int8``, the output noise when it alone runs in int8.

    Data movement adds no noise of its own. Noise of independent sources adds up (it is uncorrelated to first order),
    so these figures predict the noise of any subset.
    """
    asked = [index for index in sorted(int8) if units.all[index].role is not Role.MOVEMENT]
    found = {}
    for done, index in enumerate(asked):
        found[index] = noise(build(frozenset([index])), probe, threads)
        progress(done + 1, len(asked))
    return found


def to_float(noises: Mapping[int, float], times: Mapping[int, UnitTime], share: float) -> frozenset[int]:
    """Choose units to leave in float so that at most ``share`` of the summed noise remains.

    The largest noise for each microsecond lost goes first (the greedy answer to the knapsack; it errs by one unit).
    """
    remaining = sum(noises.values())
    allowed = remaining * share

    def worth(index: int) -> float:
        time = times[index]
        saved = time.float32 - time.int8 if time.int8 is not None else 0.0
        return noises[index] / max(saved, 1.0)

    chosen = []
    for index in sorted(noises, key=lambda index: (-worth(index), index)):
        if remaining <= allowed:
            break
        chosen.append(index)
        remaining -= noises[index]
    return frozenset(chosen)
