"""Fits constants of the latency model to measured latencies: robust least squares of the log with weak priors.

Levenberg-Marquardt (Marquardt, SIAM J. Appl. Math. 11(2), 1963) on the logarithms of the constants. Residuals are
weighted as Student's t distribution asks (iteratively), so that a single odd measurement does not bend all constants.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.latency.constants import Constants
from graphopt.latency.estimate import stacked
from graphopt.latency.kernels import Kernel
from graphopt.latency.roofline import kernel_time
from graphopt.latency.work import KernelWork
from graphopt.targets.schema import Hardware

Array = npt.NDArray[np.float64]

NOISE = 0.10  # standard deviation of the log of a latency that the constants' priors are weighed against
FREEDOM = 2.5  # in units of NOISE: residuals beyond count less and less
_STEP = 1e-3
_SCALED = ("macs", "outputs", "activation_bytes")


@dataclass(frozen=True)
class Parameter:
    """What a fit may change.

    Attributes:
        name: for reports.
        members: constants that it multiplies, all by the same factor.
        sigma: standard deviation of the log of that factor before anything is measured.
        device_sigma: how far devices may differ in it; 0: not at all.
    """

    name: str
    members: tuple[str, ...]
    sigma: float
    device_sigma: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A measured latency.

    Attributes:
        kernels: what the runtime launches.
        batch: samples that the kernels' work is to be multiplied by; 1 where it is for the whole batch already.
        ms: milliseconds for the whole batch.
        weight: how much it counts.
    """

    kernels: Sequence[Kernel]
    batch: int
    ms: float
    weight: float = 1.0


class Measured:
    """Measured latencies of one device and runtime, arranged for fast prediction."""

    def __init__(self, hardware: Hardware, samples: Sequence[Sample]) -> None:
        self.hardware = hardware
        self.log_ms: Array = np.log([sample.ms for sample in samples])
        self.weights: Array = np.array([sample.weight for sample in samples])
        works: dict[tuple[str, str], list[KernelWork]] = defaultdict(list)
        owners: dict[tuple[str, str], list[int]] = defaultdict(list)
        batches: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            for kernel in sample.kernels:
                for work in kernel.works:
                    key = (work.kind, work.precision)
                    works[key].append(work)
                    owners[key].append(index)
                    batches[key].append(sample.batch)
        self._stacks = [
            (_for_batches(stacked(works[key]), np.array(batches[key])), np.array(owners[key])) for key in sorted(works)
        ]

    def predict(self, fitted: Constants) -> Array:
        """Logarithm of the predicted milliseconds of each sample."""
        count = len(self.log_ms)
        device, processor = np.zeros(count), np.zeros(count)
        for work, owner in self._stacks:
            time = kernel_time(work, self.hardware, fitted)
            device += np.bincount(owner, np.broadcast_to(time.us, owner.shape), count)
            processor += np.bincount(owner, np.broadcast_to(time.launch_us, owner.shape), count)
        p = fitted["overlap"]
        return np.asarray(np.log(device**p + processor**p) / p - np.log(1e3))


def _for_batches(work: KernelWork, batches: npt.NDArray[np.int64]) -> KernelWork:
    grown: dict[str, Any] = {name: getattr(work, name) * batches for name in _SCALED}
    return replace(work, **grown)


@dataclass(frozen=True)
class Fit:
    """Fitted constants.

    Attributes:
        shared: what holds for a device that was not measured.
        devices: for each of the measured ones.
    """

    shared: Constants
    devices: tuple[Constants, ...]


def fit(
    measured: Sequence[Measured],
    bases: Sequence[Constants],
    parameters: Sequence[Parameter],
    *,
    keep: Sequence[npt.NDArray[np.bool_]] | None = None,
    iterations: int = 15,
) -> Fit:
    """Fit constants to latencies.

    Args:
        measured: one for each device.
        bases: for each device the constants to start from, which are the most likely ones before anything is measured.
        parameters: what may change.
        keep: for each device which samples count; all by default.
        iterations: at most.
    """
    problem = _Problem(measured, bases, parameters, keep)
    found = problem.solve(iterations)
    shared = problem.moved(bases[0], found[: len(parameters)])
    return Fit(shared, tuple(problem.constants_of(found, i) for i in range(len(measured))))


class _Problem:
    """Residuals of a fit: log latencies first, priors after them."""

    def __init__(
        self,
        measured: Sequence[Measured],
        bases: Sequence[Constants],
        parameters: Sequence[Parameter],
        keep: Sequence[npt.NDArray[np.bool_]] | None,
    ) -> None:
        self.measured, self.bases, self.parameters = measured, bases, parameters
        self.several = len(measured) > 1
        sigmas = [parameter.sigma for parameter in parameters]
        own = [max(parameter.device_sigma, 1e-6) for parameter in parameters]
        self.sigmas: Array = np.array(sigmas + own * len(measured) if self.several else sigmas)
        self.target: Array = np.concatenate([each.log_ms for each in measured])
        kept = [np.ones(len(each.log_ms), dtype=bool) for each in measured] if keep is None else keep
        weights = [each.weights * mask for each, mask in zip(measured, kept, strict=True)]
        self.weights: Array = np.sqrt(np.concatenate(weights)) / NOISE

    def moved(self, base: Constants, factors: Array) -> Constants:
        """``base`` with each parameter's members multiplied by its factor, given as a logarithm."""
        result = dict(base)
        for parameter, factor in zip(self.parameters, np.exp(factors).tolist(), strict=True):
            for name in parameter.members:
                result[name] *= factor
        return result

    def constants_of(self, point: Array, device: int) -> Constants:
        """The constants of one device."""
        count = len(self.parameters)
        own = point[count * (device + 1) : count * (device + 2)] if self.several else 0.0
        return self.moved(self.bases[device], point[:count] + own)

    def predict(self, point: Array) -> Array:
        parts = [each.predict(self.constants_of(point, i)) for i, each in enumerate(self.measured)]
        return np.concatenate(parts)

    def jacobian(self, point: Array, here: Array) -> Array:
        """Derivatives of the predictions; a device's own factors act on it as the shared ones do."""
        count = len(self.parameters)
        result = np.zeros((len(here), len(point)))
        starts = np.cumsum([0] + [len(each.log_ms) for each in self.measured])
        for k in range(count):
            moved = point.copy()
            moved[k] += _STEP
            slope = (self.predict(moved) - here) / _STEP
            result[:, k] = slope
            if self.several:
                for i in range(len(self.measured)):
                    rows = slice(starts[i], starts[i + 1])
                    result[rows, count * (i + 1) + k] = slope[rows]
        return result

    def solve(self, iterations: int) -> Array:
        point = np.zeros(len(self.sigmas))
        damping = 1e-2
        here = self.predict(point)
        for _ in range(iterations):
            off = (here - self.target) / NOISE
            weights = self.weights / np.sqrt(1 + (off / FREEDOM) ** 2)
            slopes = np.vstack([self.jacobian(point, here) * weights[:, None], np.diag(1 / self.sigmas)])
            loss = self._loss(point, here, weights)
            gradient = slopes.T @ np.concatenate([weights * (here - self.target), point / self.sigmas])
            curvature = slopes.T @ slopes
            gained = 0.0
            for _attempt in range(6):
                step = -np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
                candidate = point + np.clip(step, -1, 1)
                there = self.predict(candidate)
                gained = loss - self._loss(candidate, there, weights)
                if gained > 0:
                    point, here, damping = candidate, there, max(damping / 5, 1e-6)
                    break
                damping *= 5
            if gained < 1e-4 * loss:
                break
        return point

    def _loss(self, point: Array, predicted: Array, weights: Array) -> float:
        data = weights * (predicted - self.target)
        prior = point / self.sigmas
        return float(data @ data + prior @ prior)


def spread_of(measured: Measured, fitted: Constants) -> float:
    """Root mean square of log(measured / predicted)."""
    return float(np.sqrt(np.mean((measured.predict(fitted) - measured.log_ms) ** 2)))
