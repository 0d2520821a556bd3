"""How far an approximate model's outputs are from the original's, on a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphopt import runtime

Feed = Mapping[str, npt.NDArray[Any]]

# Reference outputs are kept in memory; samples stop counting when they would take more than this.
REFERENCE_BYTES = 64 << 20


@dataclass(frozen=True)
class Probe:
    """A few samples and what the float model answers to them.

    Attributes:
        feeds: the samples.
        reference: the float model's outputs, one mapping a sample.
    """

    feeds: tuple[Feed, ...]
    reference: tuple[Mapping[str, npt.NDArray[Any]], ...]


def make_probe(model: onnx.ModelProto, feeds: Iterable[Feed], samples: int, threads: int) -> Probe:
    """Run up to ``samples`` samples through the float model."""
    opened = runtime.session(model, threads=threads)
    names = [spec.name for spec in runtime.output_specs(model) if np.issubdtype(spec.dtype, np.floating)]
    kept: list[Feed] = []
    reference: list[Mapping[str, npt.NDArray[Any]]] = []
    size = 0
    for feed in feeds:
        outputs = runtime.run(opened, feed, names or None)
        size += sum(value.nbytes for value in (*outputs.values(), *feed.values()))
        kept.append(feed)
        reference.append(outputs)
        if len(kept) >= samples or size > REFERENCE_BYTES:
            break
    return Probe(tuple(kept), tuple(reference))


def noise(model: onnx.ModelProto, probe: Probe, threads: int) -> float:
    """Return noise power over signal power of the outputs, the mean over outputs; infinite where not finite.

    -10 log10 of it is the SQNR in dB.
    """
    opened = runtime.session(model, threads=threads)
    signal: dict[str, float] = {}
    error: dict[str, float] = {}
    for feed, reference in zip(probe.feeds, probe.reference, strict=True):
        outputs = runtime.run(opened, feed, list(reference))
        for name, expected in reference.items():
            got = outputs[name]
            if got.shape != expected.shape:
                return float("inf")
            wanted = expected.astype(np.float64)
            signal[name] = signal.get(name, 0.0) + float(np.square(wanted).sum())
            error[name] = error.get(name, 0.0) + float(np.square(got.astype(np.float64) - wanted).sum())
    ratios = [error[name] / signal[name] if signal[name] else float(error[name] > 0) for name in signal]
    mean = float(np.mean(ratios)) if ratios else 0.0
    return mean if np.isfinite(mean) else float("inf")


def decibel(ratio: float) -> float:
    """Return the SQNR in dB of a noise-to-signal power ratio, at most 200 (equal to the last bit)."""
    return float(-10.0 * np.log10(max(ratio, 1e-20)))


def interpolated(names: Sequence[str], measured: Mapping[str, float]) -> dict[str, float]:
    """Sensitivities of all layers: those between two measured ones get values between, on a logarithmic scale."""
    known = [at for at, name in enumerate(names) if name in measured]
    if not known:
        return dict.fromkeys(names, 1.0)
    logs = [np.log(max(measured[names[at]], 1e-12)) for at in known]
    return {name: float(np.exp(np.interp(at, known, logs))) for at, name in enumerate(names)}
