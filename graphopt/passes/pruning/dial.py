"""Pruning by the price of noise, for planners that weigh it against other passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx

from graphopt.passes.base import Candidate, Kept, Origin
from graphopt.passes.pruning.work import Pruned, Pruning


@dataclass(frozen=True)
class PruneDial:
    """A model measured once for pruning.

    Attributes:
        work: the measurements.
        candidate: makes a candidate of what was cut.
    """

    work: Pruning
    candidate: Callable[[Pruning, Pruned], Candidate]

    def at(self, price: float, model: onnx.ModelProto, kept: Kept, *, recover: bool) -> Candidate | None:
        """Return the model cut as far as it pays; None where nothing does. See ``passes.base.Dial``.

        A model that another pass has changed is measured anew, and recovered towards the one that was opened.
        """
        if model is not self.work.model:
            context = replace(self.work.context, origin=Origin(self.work.origin.model, kept))
            return self._found(Pruning(model, self.work.settings, context), price, recover, last=True)
        return self._found(self.work, price, recover, last=False)

    def close(self) -> None:
        """Give memory and files back."""
        self.work.close()

    def _found(self, work: Pruning, price: float, recover: bool, last: bool) -> Candidate | None:
        try:
            found = work.at_price(price) if recover else work.cut_at_price(price)
            return self.candidate(work, found) if found.widths else None
        finally:
            if last:
                work.close()
