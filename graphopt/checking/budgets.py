"""Budgets: bytes, parameters, multiply-adds and estimated latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from graphopt.checking.catalog import BUDGET_UNKNOWN, MAX_BYTES, MAX_LATENCY, MAX_MACS, MAX_PARAMETERS
from graphopt.checking.settings import Settings
from graphopt.errors import ModelError, UsageError
from graphopt.graph.cost import ModelCost, Scope, count, scopes
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
        over = _over(model.size, settings.max_bytes)
        findings.append(MAX_BYTES.finding("", f"{model.size:,} bytes, {over} {settings.max_bytes:,}"))
    counts = settings.max_parameters is not None or settings.max_macs is not None
    if not counts and settings.max_latency_ms is None:
        return Figures(model.size), findings
    try:
        graphs = scopes(model.proto, settings.input_shapes, settings.batch or 1)
    except (ModelError, UsageError) as error:
        return Figures(model.size), [*findings, BUDGET_UNKNOWN.finding("", f"cannot be counted: {error}")]
    counted = count(graphs, [value.name for value in model.proto.graph.output]) if counts else None
    if counted is not None:
        findings += _counts(counted, settings)
    latency = None
    if settings.max_latency_ms is not None:
        try:
            latency = _latency(model.proto, graphs, settings, target)
        except (ModelError, UsageError) as error:
            findings.append(BUDGET_UNKNOWN.finding("", f"latency cannot be estimated: {error}"))
        else:
            findings += _time(latency, settings.max_latency_ms)
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
        times = found / most
        return f"{f'{times:,.0f}' if times >= 100 else f'{times:.3g}'} times the budget of"
    share = f"{found / most - 1:.0%}" if most else ""
    return f"{'just' if share == '0%' else share} over the budget of".lstrip()


def _time(found: Estimate, most: float) -> Iterator[Finding]:
    if found.ms > most:
        low, high = found.interval
        yield MAX_LATENCY.finding(
            "",
            f"estimated {found.ms:.3g} ms ({low:.3g} to {high:.3g}) for batch {found.batch} with {found.runtime}, "
            f"{_over(found.ms, most)} {most:g} ms",
        )


def _samples(model: onnx.ModelProto, main: Scope, asked: int) -> int:
    """The first axis of the inputs, as counted; what was asked for where they have none or differ."""
    stored = {tensor.name for tensor in model.graph.initializer}
    fed = [info.name for info in model.graph.input if info.name not in stored]
    sizes = {shape[0] for name in fed if (shape := main.shapes.get(name))}
    return next(iter(sizes)) or asked if len(sizes) == 1 else asked


def _latency(model: onnx.ModelProto, graphs: Sequence[Scope], settings: Settings, target: Target | None) -> Estimate:
    if target is None:
        raise UsageError("max-latency-ms needs a target")
    return estimate(
        model,
        target.hardware,
        runtime=settings.runtime,
        batch=_samples(model, graphs[0], settings.batch or 1),
        shapes=settings.input_shapes or None,
        graphs=graphs,
    )
