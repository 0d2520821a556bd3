"""What speaks against measurements: predictions beside them, contradictions, times in another unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

# Repeated measurements of one net differ by less, and so do refitted estimates from what they were fitted to.
_REPEATED = 1.5
_FITTED = 2.0
# No target's estimate is that far off (docs/latency.md); seconds or microseconds in the place of milliseconds are.
_ANOTHER_UNIT = 100.0


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of one measurement: measured, and predicted in three ways.

    Attributes:
        net: name of the model.
        batch: samples.
        measured: what the device took.
        before: predicted with the target's constants.
        after: predicted with the refitted ones.
        left_out: predicted with constants fitted without this net; None where too few nets are left.
    """

    net: str
    batch: int
    measured: float
    before: float
    after: float
    left_out: float | None


def wrong_unit(measured: Sequence[float], estimated: Sequence[float]) -> str:
    """Why the measured times cannot be milliseconds of a call; empty where they can."""
    times = median(one / other for one, other in zip(measured, estimated, strict=True) if other > 0)
    if 1 / _ANOTHER_UNIT < times < _ANOTHER_UNIT:
        return ""
    written = f"{times:,.0f}" if times > 1 else f"{times:.2g}"
    return (
        f"the measured times are {written} times those estimated for this target (median): 'median_ms' must be in "
        "milliseconds of one call, for the whole batch"
    )


def doubts(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """Warnings of rows that contradict each other, and of rows that no constants of the model come near."""
    found = []
    by_case = sorted(predictions, key=lambda one: (one.net, one.batch))
    for (net, batch), rows in groupby(by_case, key=lambda one: (one.net, one.batch)):
        times = sorted(one.measured for one in rows)
        if times[-1] > _REPEATED * times[0]:
            least, most = times[0], times[-1]
            found.append(f"{net} at batch {batch} was measured as {least:.3g} and as {most:.3g} ms; keep the right one")
    far = [one for one in predictions if not 1 / _FITTED <= one.after / one.measured <= _FITTED]
    if far:
        worst = max(far, key=lambda one: max(one.after / one.measured, one.measured / one.after))
        found.append(
            f"{len(far)} of {len(predictions)} measurements are more than {_FITTED:g} times off after refitting, "
            f"{worst.net} at batch {worst.batch} most ({worst.measured:.3g} ms measured, {worst.after:.3g} estimated): "
            "are they milliseconds of one call for the whole batch, of this target and runtime?"
        )
    return tuple(found)
