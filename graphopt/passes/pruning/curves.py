"""What giving up channels of a group is predicted to cost, as a function of how many remain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Curve:
    """The order in which a group gives up its channels, and the predicted noise after each.

    Attributes:
        group: number of the group.
        size: how many channels it has.
        order: channels, the first given up first.
        noise: [len(order) + 1], predicted noise-to-signal power at the model's outputs; starts at 0, never falls.
        source: where the noise comes from, for reports.
    """

    group: int
    size: int
    order: npt.NDArray[np.int64]
    noise: npt.NDArray[np.float64]
    source: str = ""

    def at(self, kept: int) -> float:
        """Predicted noise with ``kept`` channels; infinite where fewer remain than were ever considered."""
        removed = self.size - kept
        return float(self.noise[removed]) if removed < len(self.noise) else float("inf")

    def scores(self) -> npt.NDArray[np.float64]:
        """A score for each channel, [size]: the noise when it goes; channels never given up come last."""
        scores = np.full(self.size, np.nextafter(self.noise[-1] * 2, np.inf))
        scores[self.order] = self.noise[1:]
        return scores
