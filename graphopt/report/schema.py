"""The JSON report ``graphopt.report/1`` as values: every class mirrors one object of it, field for field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeAlias

SCHEMA = "graphopt.report/1"

# The reason of an exact stage that changed nothing.
NOTHING_TO_DO = "nothing to do"

Status: TypeAlias = Literal["applied", "backed_off", "rolled_back", "skipped"]
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class ModelFacts:
    """One model in figures.

    Attributes:
        path: where the file is; None for a model that was given, or still is, in memory.
        sha256: of the model file, hexadecimal.
        bytes: of the file, external data included.
        nodes: operators in the graph.
        parameters: weights and biases, counted once each.
        macs: multiply-accumulate operations for one sample; None where the shapes are not known.
        opset: version of the default operator set.
    """

    path: str | None
    sha256: str
    bytes: int
    nodes: int
    parameters: int
    macs: int | None
    opset: int


@dataclass(frozen=True)
class Stage:
    """One pass of a run: what became of it, why, and the model's figures after it.

    Attributes:
        name: the pass.
        status: ``applied``; ``backed_off`` (a gentler candidate than the first); ``rolled_back``; ``skipped``.
        reason: why not, or not fully; in words with the figures; empty when applied without remark.
        changes: edits that the pass made and the model kept.
        seconds: wall time.
        nodes, parameters, macs: of the model after the stage.
        metric: of the model on the selection samples; None where it was not measured.
        latency_ms: median of one call; None where it was not measured.
        details: further figures of the pass, and ``skipped``: [{"where", "reason"}].
    """

    name: str
    status: Status
    reason: str = ""
    changes: int = 0
    seconds: float = 0.0
    nodes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    metric: float | None = None
    latency_ms: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AccuracyFacts:
    """Accuracy of the result against the original's on the evaluation samples; ``drop`` is absolute."""

    metric: str
    baseline: float
    optimized: float
    drop: float
    max_drop: float
    samples: int
    sqnr_db: float | None
    ci95: Interval
    passed: bool


@dataclass(frozen=True)
class LatencyFacts:
    """Time of one call against the original's; ``ci95`` is the interval of ``speedup``."""

    source: Literal["measured", "estimated"]
    provider: str
    threads: int
    baseline_ms: float
    optimized_ms: float
    speedup: float
    ci95: Interval
    min_speedup: float
    passed: bool


@dataclass(frozen=True)
class RuleFinding:
    """A place where the result breaks a rule of the target (docs/rules.md), or something to know of it there.

    Attributes:
        code: of the rule, e.g. ``GO301``.
        where: node or tensor; empty for the whole model.
        message: what is wrong and what to do.
        level: ``error``, ``warning`` or ``note``.
    """

    code: str
    where: str
    message: str
    level: str


@dataclass(frozen=True)
class Deployment:
    """How the result is put to use on the target.

    Attributes:
        command: what builds an engine of it; None where the runtime reads ONNX itself.
        files: what must lie beside the model, by name.
    """

    command: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What ``optimize`` did and what came of it. ``str(report)`` is the table a person reads.

    Attributes:
        graphopt_version: of the program that made it.
        environment: versions, CPU, providers.
        result: ``ok`` when every gate held, else ``rejected``.
        target: name of the target.
        input: the original.
        output: the result; None when it was rejected and not kept, or only planned.
        stages: one for each pass of the recipe, in order.
        accuracy: None where no evaluation data was given.
        latency: None where nothing was measured.
        warnings: what the user should know, one sentence each.
        findings: where the result breaks rules of the target.
        deployment: how to put it to use; None where nothing is to be said.
    """

    graphopt_version: str
    environment: Mapping[str, Any]
    result: Literal["ok", "rejected"]
    target: str
    input: ModelFacts
    output: ModelFacts | None
    stages: tuple[Stage, ...] = ()
    accuracy: AccuracyFacts | None = None
    latency: LatencyFacts | None = None
    warnings: tuple[str, ...] = ()
    findings: tuple[RuleFinding, ...] = ()
    deployment: Deployment | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values; NaN and infinities become null."""
        return {"schema": SCHEMA, **plain(self)}

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    def __str__(self) -> str:
        from graphopt.report.text import as_text

        return as_text(self)


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold: NumPy scalars and arrays, tuples, sets, paths and data classes included."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, without importing NumPy
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | str | float) else str(value)
