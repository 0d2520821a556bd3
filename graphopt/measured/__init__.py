"""Latencies measured on a device: the table that ``bench --csv`` fills, and a profile refitted to it."""

from __future__ import annotations

from graphopt.measured.doubts import Prediction
from graphopt.measured.refitting import (
    Measured,
    Refit,
    as_toml,
    choose_runtime,
    find_models,
    refit_target,
    with_constants,
)
from graphopt.measured.table import COLUMNS, Measurement, append, read_measurements

__all__ = [
    "COLUMNS",
    "Measured",
    "Measurement",
    "Prediction",
    "Refit",
    "append",
    "as_toml",
    "choose_runtime",
    "find_models",
    "read_measurements",
    "refit_target",
    "with_constants",
]
