"""What giving up channels of a group is predicted to cost, as a function of how many remain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A group cut to the bone does more harm than its predicted noise says, for what is lost there is lost to all refits
# behind: plans spend noise raised to this power. Drops at 35 % of the multiply-adds, Fashion-MNIST, 4,000 test images
# (so to about 0.3 points), powers 1 and 1.5: mobilenetv3 1.75 and 1.40 (price "macs"), 1.72 and 1.52 ("both"); resnet20
# 1.53 and 1.05 ("macs"), 1.25 and 1.55 ("both"). A power of 2 was no better.
CONVEXITY = 1.5
# The noise of one group that counts for as much as it is; less counts for less, more for more. With this the harm of a
# plan is about the noise measured at the outputs after the refit: five nets, 25 to 85 % of the multiply-adds, noise
# 0.001 to 0.06, within a factor of 2.2 either way but for the smallest (the plain sum: 1.3 to 2.4 times too large).
UNIT = 0.01


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

    def harm(self, kept: int) -> float:
        """What the noise with ``kept`` channels counts for in a plan, in units of noise."""
        noise = self.at(kept)
        return float(noise * (noise / UNIT) ** (CONVEXITY - 1))

    def scores(self) -> npt.NDArray[np.float64]:
        """A score for each channel, [size]: the noise when it goes; channels never given up come last."""
        scores = np.full(self.size, np.nextafter(self.noise[-1] * 2, np.inf))
        scores[self.order] = self.noise[1:]
        return scores
