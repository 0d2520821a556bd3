"""Signal to quantization noise ratio of outputs, summed up sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np

# Where outputs are equal to the last bit the ratio is infinite, which JSON cannot hold.
LARGEST_DB = 300.0


@dataclass
class Sqnr:
    """10 log10(sum of reference² / sum of (reference - output)²) over all float outputs of all samples, in dB.

    Attributes:
        signal, noise: the two sums so far.
        values: how many values went into them.
        broken: name of an output with NaN or infinity where the reference has none; None while there is none.
    """

    signal: float = 0.0
    noise: float = 0.0
    values: int = 0
    broken: str | None = None

    def add(self, outputs: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Take in the outputs of one sample; where the reference itself is not finite nothing is compared.

        Integer, boolean and text outputs do not count.
        """
        for name, expected in reference.items():
            if expected.dtype.kind != "f":
                continue
            found = np.asarray(outputs[name])
            if found.shape != expected.shape:
                self.broken = self.broken or f"{name} (shape {list(found.shape)} instead of {list(expected.shape)})"
                continue
            first, second = expected.astype(np.float64), found.astype(np.float64)
            known = np.isfinite(first)
            if not known.all():
                first, second = first[known], second[known]
            if not np.isfinite(second).all():
                self.broken = self.broken or f"{name} (NaN or infinite values)"
                continue
            error = first - second
            # Not np.vdot: BLAS would use all cores, and wait for them 20 ms where the machine is busy.
            self.signal += float(np.square(first).sum())
            self.noise += float(np.square(error).sum())
            self.values += first.size

    @property
    def db(self) -> float | None:
        """The ratio in dB, within ±300 (equal outputs: 300); None where there is nothing to compare."""
        if not self.values or self.broken:
            return None
        if self.noise == 0:
            return LARGEST_DB
        if self.signal == 0:
            return -LARGEST_DB
        return max(-LARGEST_DB, min(LARGEST_DB, 10 * log10(self.signal / self.noise)))
