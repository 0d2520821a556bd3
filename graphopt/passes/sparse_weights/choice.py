"""Which elements of weights are kept, by magnitude.

Han et al. 2015 (arXiv 1506.02626) prune what is smaller than a threshold. One threshold for all layers favours layers
with large weights, and scales are arbitrary once normalisation is folded into them; one share for all layers is hardest
on layers that need all they have. LAMP (Lee et al. 2021, arXiv 2010.15611) lies between: the score of an element is its
square, as a share of the sum of squares of all elements of its layer that are at least as large.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]


def kept_above(weights: Iterable[Array], threshold: float) -> list[Mask]:
    """Keep elements of at least ``threshold`` in magnitude; zeros never count as kept."""
    return [(np.abs(weight) >= threshold) & (weight != 0) for weight in weights]


def kept_by_share(weights: Sequence[Array], share: float, scope: str) -> list[Mask]:
    """Keep all but the share of elements with the smallest scores.

    Args:
        weights: any shapes, finite.
        share: of the elements that go, 0..1; rounded down to whole elements.
        scope: ``layer``: the share of each weight; ``global``: one threshold on magnitude for all; ``lamp``: one
            threshold on LAMP scores for all.

    Returns:
        True where kept. Of equal scores the first elements go, so that never more go than asked.
    """
    if scope == "layer":
        return [mask for weight in weights for mask in _smallest_out([np.abs(weight)], share)]
    return _smallest_out([_lamp(weight) if scope == "lamp" else np.abs(weight) for weight in weights], share)


def _smallest_out(scores: Sequence[Array], share: float) -> list[Mask]:
    flat = np.concatenate([np.zeros(0), *(score.ravel() for score in scores)])
    count = int(share * flat.size)
    kept = np.ones(flat.size, dtype=bool)
    if count:
        limit = np.partition(flat, count - 1)[count - 1]
        kept[flat < limit] = False
        ties = np.flatnonzero(flat == limit)
        kept[ties[: count - int((~kept).sum())]] = False
    ends = np.cumsum([score.size for score in scores])[:-1]
    return [part.reshape(score.shape) for part, score in zip(np.split(kept, ends), scores, strict=True)]


def _lamp(weight: Array) -> Array:
    squares = np.square(weight.ravel().astype(np.float64))
    order = np.argsort(squares, kind="stable")
    at_least_as_large = np.cumsum(squares[order][::-1])[::-1]
    scores = np.zeros_like(squares)
    np.divide(squares[order], at_least_as_large, out=squares, where=at_least_as_large > 0)
    scores[order] = np.where(at_least_as_large > 0, squares, 0)
    return scores.reshape(weight.shape)
