"""Fit factors to data in closed form: alternating least squares on second moments.

With one factor given the other is a linear least squares problem; a few turns are enough, and no turn needs the data
(alternating least squares for low-rank layers: Zhang et al. 2016, arXiv 1505.06798).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt.passes.separable import solvers
from graphopt.passes.separable.decompose import decompose
from graphopt.passes.separable.factors import Array, Factors, Form, Geometry
from graphopt.passes.separable.solvers import Quadratic
from graphopt.recovery.restrictions import Normal

HalfStep = Callable[[Quadratic, Array, Array], Array]
# For each form: what finds the first factor for the second, and the second for the first.
HALF_STEPS: dict[Form, tuple[HalfStep, HalfStep]] = {
    "depthwise_first": (solvers.best_depthwise_before, solvers.best_pointwise_behind),
    "pointwise_first": (solvers.best_pointwise_before, solvers.best_depthwise_behind),
    "spatial": (solvers.best_rows, solvers.best_columns),
}
# A turn that lowers the error by a smaller share than this is the last.
LEAST_GAIN = 0.01


def fit(start: Factors, fitting: Normal, *, ridge: float, sweeps: int) -> Factors:
    """Return factors of the same form and rank that come closer to the target.

    Minimises the mean squared error plus ``ridge`` times the mean power of an input times the squared distance to the
    layer's present weights (to zero where they are not known). The result is never worse than the start.

    Args:
        start: where to start from.
        fitting: moments of the layer.
        ridge: relative to the mean square of a centred input.
        sweeps: turns of both factors; the second one is fitted once more at the end of each.
    """
    if sweeps < 1:
        return start
    sizes = start.geometry
    first, second = start.first.astype(np.float64), start.second.astype(np.float64)
    best_first, best_second = HALF_STEPS[start.form]
    for group in range(sizes.groups):
        gram, cross = pulled(fitting, ridge, group)
        problem = Quadratic.of(gram, cross, sizes.taps, sizes.channels)
        one, two = balanced(start.form, first[group], second[group])
        two = best_second(problem, one, two)
        for _ in range(sweeps):
            one, two = balanced(start.form, one, two)
            one = best_first(problem, one, two)
            one, two = balanced(start.form, one, two)
            two = best_second(problem, one, two)
        first[group], second[group] = balanced(start.form, one, two)
    found = Factors(start.form, sizes, _float32(first), _float32(second))
    return found if np.isfinite(found.first).all() and np.isfinite(found.second).all() else start


def pulled(normal: Normal, ridge: float, group: int) -> tuple[Array, Array]:
    """The moments of one group with the ridge added: Gram matrix and cross moments."""
    gram, cross = normal.gram[group].copy(), normal.cross[group]
    load = ridge * float(np.trace(gram)) / len(gram)
    gram[np.diag_indices(len(gram))] += load
    return gram, cross if normal.weights is None else cross + load * normal.weights[group]


def balanced(form: Form, first: Array, second: Array) -> tuple[Array, Array]:
    """Give both factors of each term the same norm; what is zero in one becomes zero in both."""
    shared = {"depthwise_first": "channel", "pointwise_first": "filter", "spatial": "none"}[form]
    one = first.transpose(0, 2, 1) if shared == "filter" else first
    if shared == "none":
        own, other = np.linalg.norm(one, axis=(1, 2)), np.linalg.norm(second, axis=(1, 2))
    else:
        own, other = np.linalg.norm(one, axis=2), np.linalg.norm(second, axis=2)
    alive = (own > 0) & (other > 0)
    scale = np.where(alive, np.sqrt(other / np.where(alive, own, 1.0)), 0.0)
    back = np.where(alive, 1.0 / np.where(alive, scale, 1.0), 0.0)
    if shared == "none":
        return first * scale[:, None, None], second * back[:, None, None]
    return first * (scale[:, None, :] if shared == "filter" else scale[:, :, None]), second * back[:, :, None]


@dataclass(frozen=True)
class LowRank:
    """Weights of one form and rank: what a layer is restricted to while a net is recovered.

    Attributes:
        geometry: sizes of the layer.
        form: which factors.
        rank: number of terms.
        sweeps: most turns of the alternating fit; it ends where turns are hardly worth while any more.
        ridges: ridges to choose from on the positions held out, relative to the mean square of a centred input; tried
            from the largest on, each from what the one before found.
    """

    geometry: Geometry
    form: Form
    rank: int
    sweeps: int = 12
    ridges: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)

    def fit(self, fitting: Normal, held_out: Normal) -> Factors:
        """Return the factors that come closest to the target; fitted on all positions in the end.

        Raises:
            ValueError: the rank is none that the form can have, or the moments are not finite.
        """
        ridges = sorted(self.ridges, reverse=True)
        best = self._start(fitting, held_out, ridges[0])
        error, chosen = held_out.error(best.matrix()), None
        found = best
        for ridge in ridges:
            found = fit(found, fitting, ridge=ridge, sweeps=1)
            now = held_out.error(found.matrix())
            if now >= error:
                break
            best, error, chosen = found, now, ridge
        if chosen is None:
            return best
        for _ in range(self.sweeps - len(ridges)):
            found = fit(best, fitting, ridge=chosen, sweeps=1)
            now = held_out.error(found.matrix())
            if now >= error:
                break
            best, gain, error = found, 1 - now / error, now
            if gain < LEAST_GAIN:
                break
        return fit(best, fitting.joined(held_out), ridge=chosen, sweeps=1)

    def _start(self, fitting: Normal, held_out: Normal, ridge: float) -> Factors:
        wanted = fitting.weights
        if wanted is None:
            wanted = unrestricted(fitting, ridge)
        starts = [decompose(wanted, self.geometry, self.form, self.rank, gram) for gram in (None, fitting.gram)]
        return min(starts, key=lambda each: held_out.error(each.matrix()))


def unrestricted(normal: Normal, ridge: float) -> Array:
    """The weights that would be best if they were free, [groups, unknowns, filters of a group], float64."""
    found = np.empty(normal.cross.shape)
    for group in range(len(found)):
        gram, cross = pulled(normal, ridge, group)
        live = np.trace(gram) > 0
        found[group] = np.linalg.solve(gram if live else np.eye(len(gram)), cross)
    return found


def _float32(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)
