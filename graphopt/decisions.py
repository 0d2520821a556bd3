"""Remembers measured latencies on disk, so that a decision once made on this machine is made again.

Time is noisy: a candidate at 1.00x would be taken in one run and refused in the next, and the same command would
write different files. Each comparison is therefore measured once for each pair of models, shape of input, number of
threads, CPU and version of ONNX Runtime, and then recalled. Delete the file (see ``graphopt.cache``) to measure anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.cache import Store
from graphopt.targets import cpu_description


@dataclass(frozen=True)
class Measured:
    """One comparison of two models.

    Attributes:
        baseline_ms: median of one call of the model compared against.
        optimized_ms: median of one call of the candidate.
        speedup: how many times as fast the candidate is.
        low, high: 95 % confidence interval of ``speedup``.
    """

    baseline_ms: float
    optimized_ms: float
    speedup: float
    low: float
    high: float


def comparison_key(**parts: object) -> str:
    """Return the key of a comparison: a hash of everything that its outcome depends on beside the machine."""
    text = json.dumps({name: str(value) for name, value in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Decisions:
    """The latencies remembered for this machine; trouble with the file is told in ``warning``, never raised."""

    def __init__(self) -> None:
        import onnxruntime

        self._store = Store("latency", f"{cpu_description()} onnxruntime {onnxruntime.__version__}")

    @property
    def warning(self) -> str:
        """What went wrong with the file; empty when nothing did."""
        return self._store.warning

    def recall(self, key: str) -> Measured | None:
        """Return what was measured under ``key``, or None."""
        entry = self._store.get(key)
        return Measured(**entry) if _is_whole(entry) else None

    def remember(self, key: str, measured: Measured) -> None:
        """Keep a measurement, on disk at once: a run may be interrupted."""
        self._store.put(key, asdict(measured))
        self._store.save()


def _is_whole(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == Measured.__dataclass_fields__.keys()
        and all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in entry.values())
    )
