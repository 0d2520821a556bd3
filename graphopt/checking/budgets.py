"""Budgets: bytes, parameters, multiply-adds and estimated latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from graphopt.checking.catalog import BUDGET_UNKNOWN, MAX_BYTES, MAX_LATENCY, MAX_MACS, MAX_PARAMETERS
from graphopt.checking.settings import Settings
from graphopt.errors import ModelError, UsageError
from graphopt.graph.cost import ModelCost, cost
from graphopt.latency import Estimate, estimate
from graphopt.model import LoadedModel
from graphopt.rules import Finding
from graphopt.targets import Target


@dataclass(frozen=True)
class Figures:
    """What was counted; None: not asked for, or not known.

    Attributes:
        size: bytes of the file and its external data.
        parameters: parameters.
        macs: multiply-adds of one run.
        latency: the estimate of one run.
    """

    size: int
    parameters: int | None = None
    macs: int | None = None
    latency: Estimate | None = None


def judge(model: LoadedModel, settings: Settings, target: Target | None) -> tuple[Figures, list[Finding]]:
    """Count what there is a budget for, and only that, and hold it against the budget."""
    findings: list[Finding] = []
    if settings.max_bytes is not None and model.size > settings.max_bytes:
        findings.append(
            MAX_BYTES.finding(
                "", f"{model.size:,} bytes, {_over(model.size, settings.max_bytes)} {settings.max_bytes:,}"
            )
        )
    counted = None
    if settings.max_parameters is not None or settings.max_macs is not None:
        try:
            counted = cost(model.proto, settings.input_shapes, settings.batch or 1)
        except (ModelError, UsageError) as error:
            findings.append(BUDGET_UNKNOWN.finding("", f"cannot be counted: {error}"))
    if counted is not None:
        findings += _counts(counted, settings)
    latency = None
    if settings.max_latency_ms is not None:
        try:
            latency = _latency(model.proto, settings, target)
        except (ModelError, UsageError) as error:
            findings.append(BUDGET_UNKNOWN.finding("", f"latency cannot be estimated: {error}"))
    if latency is not None and settings.max_latency_ms is not None and latency.ms > settings.max_latency_ms:
        low, high = latency.interval
        findings.append(
            MAX_LATENCY.finding(
                "",
                f"estimated {latency.ms:.3g} ms ({low:.3g} to {high:.3g}) for batch {latency.batch} with "
                f"{latency.runtime}, {_over(latency.ms, settings.max_latency_ms)} {settings.max_latency_ms:g} ms",
            )
        )
    parameters, macs = (counted.parameters, counted.macs) if counted is not None else (None, None)
    return Figures(model.size, parameters, macs, latency), findings


def _counts(counted: ModelCost, settings: Settings) -> Iterator[Finding]:
    most = settings.max_parameters
    if most is not None and counted.parameters > most:
        yield MAX_PARAMETERS.finding(
            "", f"{counted.parameters:,} parameters, {_over(counted.parameters, most)} {most:,}"
        )
    most = settings.max_macs
    if most is None:
        return
    if counted.macs is None:
        unknown = counted.unknown
        more = f", and {len(unknown) - 1} more layers" if len(unknown) > 1 else ""
        yield BUDGET_UNKNOWN.finding("", f"multiply-adds are not known: {unknown[0]}{more}; give input-shapes")
    elif counted.macs > most:
        yield MAX_MACS.finding("", f"{counted.macs:,} multiply-adds, {_over(counted.macs, most)} {most:,}")


def _over(found: float, most: float) -> str:
    if most and found >= 2 * most:
        return f"{found / most:.3g} times the budget of"
    share = f"{found / most - 1:.0%}" if most else ""
    return f"{'just' if share == '0%' else share} over the budget of".lstrip()


def _latency(model: onnx.ModelProto, settings: Settings, target: Target | None) -> Estimate:
    if target is None:
        raise UsageError("max-latency-ms needs a target")
    return estimate(
        model,
        target.hardware,
        runtime=settings.runtime,
        batch=settings.batch or 1,
        shapes=settings.input_shapes or None,
    )
