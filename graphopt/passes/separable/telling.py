"""What to report of separated convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.passes.base import Candidate, Kept, PassReport, Skip
from graphopt.passes.pruning.work import fit_summary
from graphopt.passes.separable.work import Separated, Separation

# Reasons listed of layers that stay.
MOST_REASONS = 50


def candidate_of(work: Separation, found: Separated, kept: Kept | None = None) -> Candidate:
    """The candidate that a separated model is; ``kept`` where another pass cut channels of the model first."""
    layers = len(found.plan.chosen)
    label = f"{layers} convolution{'' if layers == 1 else 's'} separated"
    remaining = work.origin.kept if kept is None else kept
    return Candidate(found.model, report_of(work, found), label, kept=remaining)


def report_of(work: Separation, found: Separated | None) -> PassReport:
    """What became of each convolution with a kernel; ``found`` is None where nothing was done."""
    skipped = list(work.skipped)
    if found is None and not work.places:
        return PassReport(0, _shortened(skipped))
    skipped += work.measured.skipped
    if found is None:
        return PassReport(0, _shortened(skipped))
    nodes = {place.name: place.node for place in work.places}
    skipped += found.failed
    gone = {skip.where for skip in skipped}
    skipped += [
        Skip(nodes[choice.layer], "no form saves enough for the accuracy that it costs")
        for choice in work.measured.choices
        if choice.layer not in found.plan.chosen and nodes[choice.layer] not in gone
    ]
    details: dict[str, Any] = {
        "layers": {
            nodes[name]: {
                "form": option.form,
                "rank": option.rank,
                "layout": option.layout,
                "loss": float(f"{option.loss:.3g}"),
            }
            for name, option in found.plan.chosen.items()
        },
        "predicted_speedup": round(1 / found.plan.time, 3) if not work.settings.rank else None,
        "refit": fit_summary(found.fits),
    }
    if found.macs is not None:
        details["macs_share"] = round(found.macs / work.macs, 4)
    return PassReport(len(found.plan.chosen), _shortened(skipped), details)


def _shortened(skipped: Sequence[Skip]) -> tuple[Skip, ...]:
    if len(skipped) <= MOST_REASONS:
        return tuple(skipped)
    more = len(skipped) - MOST_REASONS
    return (*skipped[:MOST_REASONS], Skip(f"{more} more layers", "see graphopt inspect"))
