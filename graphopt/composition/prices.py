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
    """

    mixes: tuple[Mixed, ...]
    price: float


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
    return Tried(tuple(sorted(holding, key=lambda each: each.price)), high)
