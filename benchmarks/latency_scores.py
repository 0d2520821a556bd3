"""How good predictions of latency are, in the figures that the literature quotes."""

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from benchmarks.latency_data import Point

TELLING = 0.05  # two nets of a family whose times differ by less are not said to have an order


@dataclass(frozen=True)
class Scores:
    """Of the nets on one device at one batch size.

    `ratio` is the largest of predicted/measured and its inverse, `worst` the net that it belongs to; `ordered` of
    `pairs` are the pairs of one family whose order is right; `ratio_median` and `ratio_p90` tell by how much the ratios
    of their times are off.
    """

    spearman: float
    kendall: float
    mape: float
    median: float
    ratio: float
    worst: str
    ordered: int
    pairs: int
    ratio_median: float
    ratio_p90: float

    def as_dict(self) -> dict[str, Any]:
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


def scores(points: list[Point], predicted_log_ms: np.ndarray) -> Scores:
    measured = np.log([point.ms for point in points])
    off = predicted_log_ms - measured
    relative = np.abs(np.exp(off) - 1)
    worst = int(np.argmax(np.abs(off)))
    pairs = ordered = agree = 0
    ratios = []
    for i, j in combinations(range(len(points)), 2):
        right = (measured[i] - measured[j]) * (predicted_log_ms[i] - predicted_log_ms[j])
        agree += int(np.sign(right))
        if points[i].family == points[j].family and abs(measured[i] - measured[j]) >= np.log1p(TELLING):
            pairs += 1
            ordered += int(right > 0)
            ratios.append(abs(off[i] - off[j]))
    count = len(points)
    return Scores(
        spearman=float(np.corrcoef(_ranks(measured), _ranks(predicted_log_ms))[0, 1]),
        kendall=2 * agree / (count * (count - 1)),
        mape=float(relative.mean()),
        median=float(np.median(relative)),
        ratio=float(np.exp(np.abs(off).max())),
        worst=points[worst].net,
        ordered=ordered,
        pairs=pairs,
        ratio_median=float(np.expm1(np.median(ratios))) if ratios else 0.0,
        ratio_p90=float(np.expm1(np.quantile(ratios, 0.9))) if ratios else 0.0,
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)
