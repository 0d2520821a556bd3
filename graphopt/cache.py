"""Measurements kept on disk, so that the same machine takes the same decisions again.

One JSON file for each CPU model and ONNX Runtime version in ``$GRAPHOPT_CACHE_DIR`` (default ``~/.cache/graphopt``).
A file that cannot be read or written is a warning, never an error: measurements are then taken anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any


def folder() -> Path:
    """Return the folder of the cache; it need not exist."""
    chosen = os.environ.get("GRAPHOPT_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphopt"


class Store:
    """Named JSON values of one kind of measurement on one machine.

    Args:
        kind: what is measured, e.g. ``kernels``.
        machine: what the measurements hold for: CPU model, runtime version and the like.
    """

    def __init__(self, kind: str, machine: str) -> None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{kind}-{machine}").strip("-").lower()
        self.path = folder() / f"{name}.json"
        self.warning = ""
        self._values = self._read()
        self._changed = False

    def get(self, key: str) -> Any:
        """Return the value kept under ``key``, or None."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value; it reaches the disk with :meth:`save`."""
        self._values[key] = value
        self._changed = True

    def save(self) -> None:
        """Write what changed, atomically; values that another process saved meanwhile are kept."""
        if not self._changed:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            merged = {**self._read(), **self._values}
            descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".cache-")
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(merged, file, sort_keys=True)
                Path(temporary).replace(self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as error:
            self.warning = f"measurements could not be kept in {self.path}: {error.strerror}"
        self._changed = False

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.warning = f"measurements in {self.path} could not be read and are taken anew: {error}"
            return {}
        return values if isinstance(values, dict) else {}
