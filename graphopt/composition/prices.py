"""Which price uses up the accuracy asked for: bisection on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from graphopt.composition.mixtures import Mixed

# Shares of the model's time that one unit of noise may cost. At the upper end a thousandth of the time pays for an
# SQNR of 80 dB; at the lower end all of the time is worth less than outputs of pure noise.
LOWEST, HIGHEST = 0.3, 1e5
# Around a price known to suit a mixture of passes: what another one is tried at.
NEIGHBOURHOOD = 8.0


@dataclass(frozen=True)
class Tried:
    """What a search found.

    Attributes:
        mixes: every model tried that changes anything and holds, the boldest first.
        price: the lowest price that holds.
        failed: models tried that do not hold, the boldest first.
    """

    mixes: tuple[Mixed, ...]
    price: float
    failed: tuple[Mixed, ...] = ()

    def beyond(self, allowed: float) -> Mixed | None:
        """The boldest of the models that do not hold whose metric yet falls by no more than ``allowed``."""
        return next((each for each in self.failed if each.drop is not None and each.drop <= allowed), None)


def search_price(
    mix: Callable[[float], Mixed],
    drop: Callable[[Mixed], float],
    allowed: float,
    trials: int,
    around: float | None = None,
) -> Tried:
    """Find the lowest price at which the metric falls by no more than is allowed.

    Args:
        mix: makes the model for a price.
        drop: by how much its metric falls.
        allowed: most that it may fall.
        trials: models to try.
        around: a price that is likely near; None: nothing is known.
    """
    low, high = (LOWEST, HIGHEST) if around is None else (around / NEIGHBOURHOOD, around * NEIGHBOURHOOD)
    holding: list[Mixed] = []
    failed: list[Mixed] = []
    for _ in range(trials):
        price = (low * high) ** 0.5
        made = mix(price)
        if made.parts:
            made = replace(made, drop=drop(made))
        if made.drop is None or made.drop <= allowed:
            high = price
            if made.parts:
                holding.append(made)
        else:
            low = price
            failed.append(made)
    by_price = [tuple(sorted(each, key=lambda made: made.price)) for each in (holding, failed)]
    return Tried(by_price[0], high, by_price[1])
