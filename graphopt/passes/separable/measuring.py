"""What each layer may become, with its time and multiply-adds: forms and ranks that are faster, or a rank asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.graph.cost import cost
from graphopt.passes.separable.factors import Form, Geometry
from graphopt.passes.separable.piece import Piece, alone, separated_alone
from graphopt.passes.separable.places import Place
from graphopt.passes.separable.settings import LayoutOption
from graphopt.passes.separable.times import FormTimes
from graphopt.passes.separable.write import Layout, can_write

# Numbers of terms that are tried of the other forms: beyond four, one more hardly matters, but looking at it costs.
TERMS = (1, 2, 3, 4, 6, 9, 13)
# Ranks of the spatial form that are tried, as shares of the narrower side's channels.
SPATIAL_SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
# An option must save at least this share of the model's time: less is not worth looking into.
LEAST_SAVING = 0.002
# With a rank asked for, forms that cost this much more than the cheapest do not compete (a stride applied too late).
MOST_MACS = 1.1


@dataclass(frozen=True)
class Timed:
    """A form and rank of a layer, with what it costs.

    Attributes:
        form: how it is separated.
        rank: number of terms.
        layout: how the terms are written.
        time: microseconds.
        macs: multiply-adds.
    """

    form: Form
    rank: int
    layout: Layout
    time: float
    macs: int


def macs_of(piece: Piece) -> int:
    """Multiply-adds of a piece as it is."""
    return cost(alone(piece)).known_macs


def faster(
    place: Place, times: FormTimes, forms: Sequence[Form], layout: LayoutOption, multiple: int, least: float
) -> list[Timed]:
    """The forms and ranks in which a layer is faster than it is, by more than ``least`` microseconds.

    Args:
        place: the layer.
        times: measures them.
        forms: forms to try.
        layout: layout to write them in, or "auto".
        multiple: channels between the two convolutions of the spatial form are multiples of this.
        least: microseconds that an option must save.
    """
    whole, whole_macs = times.whole(place.piece), macs_of(place.piece)
    found: list[Timed] = []
    for form in forms:
        for rank in _ranks(place.geometry, form, multiple):
            each = timed(place, times, form, rank, layout)
            if each is None or each.macs >= whole_macs or each.time > whole:
                break
            if each.time <= whole - least:
                found.append(each)
    return found


def at_rank(place: Place, times: FormTimes, forms: Sequence[Form], layout: LayoutOption, rank: int) -> list[Timed]:
    """The forms at a rank asked for, as far as they can be written, but for those that cost more than others.

    Whether they are faster is not asked: times are 0. Nothing is measured unless the layout is to be found out.
    """
    found = []
    for form in forms:
        terms = min(rank, place.geometry.full_rank(form))
        chosen = layout
        if chosen == "auto":
            # Of one term all layouts are the same.
            best = times.fastest(place.piece, place.geometry, form, terms) if terms > 1 else (0.0, "sum")
            chosen = "sum" if best is None else best[1]
        if not can_write(place.piece.node, form, chosen):
            found.append(_counted(place, form, terms, chosen, 0.0))
    cheapest = min((each.macs for each in found), default=0)
    return [each for each in found if each.macs <= MOST_MACS * cheapest]


def timed(place: Place, times: FormTimes, form: Form, rank: int, layout: LayoutOption) -> Timed | None:
    """Measure a layer in a form; None where it cannot be written so."""
    if layout == "auto" or form == "spatial":
        best = times.fastest(place.piece, place.geometry, form, rank)
        return None if best is None else _counted(place, form, rank, best[1], best[0])
    time = times.separated(place.piece, place.geometry, form, rank, layout)
    return _counted(place, form, rank, layout, time) if np.isfinite(time) else None


def _counted(place: Place, form: Form, rank: int, layout: Layout, time: float) -> Timed:
    model = separated_alone(place.piece, place.geometry, form, rank, layout)
    return Timed(form, rank, layout, time, cost(model).known_macs)


def _ranks(geometry: Geometry, form: Form, multiple: int) -> Iterator[int]:
    if form != "spatial":
        yield from (rank for rank in TERMS if rank < geometry.full_rank(form))
        return
    narrow = min(geometry.channels, geometry.filters)
    step = max(multiple // geometry.groups, 1)
    ranks = {max(round(narrow * share / step), 1) * step for share in SPATIAL_SHARES}
    yield from sorted(rank for rank in ranks if rank < geometry.full_rank(form))
