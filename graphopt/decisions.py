"""Remembers measured latencies on disk, so that a decision once made on this machine is made again.

Time is noisy: a candidate at 1.00x would be taken in one run and refused in the next, and the same command would
write different files. Each comparison is therefore measured once for each pair of models, CPU, number of threads and
version of ONNX Runtime, and then recalled. The file is ``latency.json`` in ``$GRAPHOPT_CACHE_DIR``, by default
``~/.cache/graphopt``; delete it to measure anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "graphopt.latency/1"

# The oldest entries go beyond this many; one is about 250 bytes.
MOST_ENTRIES = 4096


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


def cache_path() -> Path:
    """Return the file of remembered measurements."""
    folder = os.environ.get("GRAPHOPT_CACHE_DIR")
    return (Path(folder) if folder else Path.home() / ".cache" / "graphopt") / "latency.json"


def comparison_key(**parts: object) -> str:
    """Return the key of a comparison: a hash of everything that its outcome depends on."""
    text = json.dumps({name: str(value) for name, value in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Decisions:
    """The remembered measurements of one run; trouble with the file is told in ``warnings``, never raised."""

    path: Path = field(default_factory=cache_path)
    warnings: list[str] = field(default_factory=list)

    def recall(self, key: str) -> Measured | None:
        """Return what was measured under ``key``, or None."""
        entry = self._read().get(key)
        return Measured(**entry) if entry else None

    def remember(self, key: str, measured: Measured) -> None:
        """Keep a measurement, whole or not at all; another process may do the same at this moment."""
        entries = self._read()
        entries[key] = asdict(measured)
        kept = dict(list(entries.items())[-MOST_ENTRIES:])
        temporary = ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self.path.parent, prefix=".latency-", suffix=".part", delete=False
            ) as file:
                temporary = file.name
                json.dump({"format": FORMAT, "entries": kept}, file)
            os.replace(temporary, self.path)
        except OSError as error:
            self._warn(
                f"{self.path}: latencies cannot be remembered ({error.strerror}); a second run may decide otherwise"
            )
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self._warn(f"{self.path}: remembered latencies cannot be read ({error}) and are measured anew")
            return {}
        entries = content.get("entries") if isinstance(content, dict) else None
        if not isinstance(entries, dict) or content.get("format") != FORMAT:
            self._warn(f"{self.path}: not a file of remembered latencies; they are measured anew")
            return {}
        return {key: entry for key, entry in entries.items() if _is_whole(entry)}

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def _is_whole(entry: Any) -> bool:
    names = Measured.__dataclass_fields__.keys()
    return (
        isinstance(entry, dict)
        and entry.keys() == names
        and all(isinstance(value, int | float) and math.isfinite(value) and value > 0 for value in entry.values())
    )
