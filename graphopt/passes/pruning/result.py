"""What a pruning gives, and what recovery did in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphopt.passes.pruning.remaining import Kept
from graphopt.recovery import Refitted


@dataclass(frozen=True)
class Pruned:
    """A model with channels cut out.

    Attributes:
        model: the model, recovered where asked for.
        macs: its multiply-adds.
        widths: channels of each group that lost any: name -> (before, after).
        kept: which indices of the tensors of the model that was cut remain.
        predicted_speedup: by the plan; None where there was none.
        fits: what recovery did.
    """

    model: onnx.ModelProto
    macs: int
    widths: Mapping[str, tuple[int, int]]
    kept: Kept
    predicted_speedup: float | None
    fits: Refitted | None = None


def fit_summary(fits: Refitted | None) -> dict[str, Any]:
    """What recovery did, for reports: layers refitted, and mean noise of their outputs before and after, in dB."""
    if fits is None:
        return {}
    done = [fit for fit in fits.fits if not fit.reason and fit.before and fit.after]
    if not done:
        return {"layers": 0}

    def mean_db(values: Sequence[float]) -> float:
        return round(float(-10 * np.log10(np.mean(values))), 2)

    return {
        "layers": len(done),
        "sqnr_db_before": mean_db([fit.before or 0.0 for fit in done]),
        "sqnr_db_after": mean_db([fit.after or 0.0 for fit in done]),
    }
