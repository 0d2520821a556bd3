"""Substitution that is told again and again what noise is worth, alone or on top of what another pass did."""

from __future__ import annotations

import onnx

from graphopt.passes.base import Candidate, Kept
from graphopt.passes.separable.telling import candidate_of
from graphopt.passes.separable.work import Separation


class SeparationDial:
    """See ``graphopt.passes.base.Dial``."""

    def __init__(self, work: Separation) -> None:
        self._work = work
        self._done: dict[tuple[tuple[str, str, int], ...], Candidate] = {}

    def at(self, price: float, model: onnx.ModelProto, kept: Kept, *, recover: bool) -> Candidate | None:
        """Separate what pays at a price; None where nothing does."""
        plan = self._work.plan_for(price, model)
        if not plan.chosen:
            return None
        if model is not self._work.model or not recover:
            return candidate_of(self._work, self._work.separate(plan, model, kept, recover=recover), kept)
        key = tuple((name, option.form, option.rank) for name, option in plan.chosen.items())
        if key not in self._done:
            self._done[key] = candidate_of(self._work, self._work.separate(plan), kept)
        return self._done[key]

    def close(self) -> None:
        """Give memory and files back."""
        self._work.close()
