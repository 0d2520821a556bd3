"""Pruning that is told again and again what noise is worth, alone or on top of what another pass did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx

from graphopt.passes.base import Candidate, Kept, Origin
from graphopt.passes.pruning.remaining import composed
from graphopt.passes.pruning.result import Pruned
from graphopt.passes.pruning.work import Pruning


class PruneDial:
    """See ``graphopt.passes.base.Dial``."""

    def __init__(self, work: Pruning, candidate: Callable[[Pruning, Pruned], Candidate]) -> None:
        """Make a dial.

        Args:
            work: the pruning of the model that the dial is opened on.
            candidate: makes a candidate of what was cut.
        """
        self._work = work
        self._candidate = candidate

    def at(self, price: float, model: onnx.ModelProto, kept: Kept, *, recover: bool) -> Candidate | None:
        """Cut as far as it pays at a price; None where nothing does.

        A model that another pass changed is measured anew: other layers, other channels to be had.
        """
        if model is self._work.model:
            return self._made(self._work, price, kept, recover)
        known = self._work.origin
        context = replace(self._work.context, origin=Origin(known.model, composed(known.kept, kept)))
        work = Pruning(model, self._work.settings, context)
        try:
            # Prices are in shares of the time of the model that the dial was opened on.
            return self._made(work, price * self._work.time / work.time, kept, recover)
        finally:
            work.close()

    def close(self) -> None:
        """Give memory and files back."""
        self._work.close()

    def _made(self, work: Pruning, price: float, kept: Kept, recover: bool) -> Candidate | None:
        if not work.step_at(price).kept:
            return None
        found = work.at_price(price, recover=recover)
        return replace(self._candidate(work, found), kept=composed(kept, found.kept))
