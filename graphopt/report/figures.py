"""The report's content as rows of text, shared by every form in which a person reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graphopt.report.schema import NOTHING_TO_DO, AccuracyFacts, Deployment, LatencyFacts, ModelFacts, Report, Stage

# Places left alone that are shown for one pass; the JSON report has all of them.
SHOWN_PER_PASS = 5

OUTCOMES = {"applied": "applied", "backed_off": "backed off", "rolled_back": "rolled back", "skipped": "skipped"}


@dataclass(frozen=True)
class Row:
    """One line of the before/after table."""

    what: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class LeftAlone:
    """Places that one pass left alone: those shown, and how many more there are."""

    stage: str
    places: tuple[tuple[str, str], ...]
    more: int


def headline(report: Report) -> str:
    """Return the outcome in one sentence."""
    name = Path(report.input.path).name if report.input.path else "the model"
    if report.result == "rejected":
        return f"{name} for {report.target}: rejected, no candidate held the gates"
    if report.output is None:
        return f"{name} for {report.target}: planned, nothing was run"
    parts = []
    if report.latency:
        speed = f"{report.latency.speedup:.2f}x as fast"
        parts.append(speed if report.latency.source == "measured" else f"{speed} (estimated)")
    if report.input.bytes and report.output.bytes:
        parts.append(f"{report.input.bytes / report.output.bytes:.2f}x smaller")
    if report.accuracy:
        parts.append(f"{report.accuracy.metric} {_signed(-report.accuracy.drop, report.accuracy.metric)}")
    return f"{name} for {report.target}: {', '.join(parts) if parts else 'done'}"


def comparison(report: Report) -> list[Row]:
    """Return the before/after table."""
    rows: list[Row] = []
    if report.accuracy:
        rows += _accuracy_rows(report.accuracy)
    if report.latency:
        rows.append(_latency_row(report.latency))
    after = report.output
    rows.append(_row("size", report.input, after, "bytes", readable_bytes))
    rows.append(_row("MACs", report.input, after, "macs", readable_count))
    rows.append(_row("parameters", report.input, after, "parameters", readable_count))
    rows.append(_row("operators", report.input, after, "nodes", readable_count))
    return rows


def stage_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return (pass, outcome, changes, what happened) for each stage."""
    return [(stage.name, OUTCOMES[stage.status], str(stage.changes or ""), _remark(stage)) for stage in report.stages]


def idle_stages(report: Report) -> list[str]:
    """Return the names of the passes that found nothing to do, which only fill a table."""
    return [stage.name for stage in report.stages if stage.reason == NOTHING_TO_DO]


def busy_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return the rows of all other stages; all of them where none did anything."""
    rows = stage_rows(report)
    busy = [row for row, stage in zip(rows, report.stages, strict=True) if stage.reason != NOTHING_TO_DO]
    return busy or rows


def environment_rows(report: Report) -> list[tuple[str, object]]:
    """Return (what, value) of what is known of the surroundings."""
    return [(key, value) for key, value in report.environment.items() if value is not None]


def left_alone(report: Report) -> list[LeftAlone]:
    """Return what each pass left alone and why, capped at ``SHOWN_PER_PASS`` places a pass."""
    found = []
    for stage in report.stages:
        skipped = stage.details.get("skipped", ())
        if skipped:
            places = tuple((str(skip["where"]), str(skip["reason"])) for skip in skipped[:SHOWN_PER_PASS])
            found.append(LeftAlone(stage.name, places, max(0, len(skipped) - SHOWN_PER_PASS)))
    return found


def broken_rules(report: Report) -> tuple[list[str], int]:
    """Return a line for each of the gravest places that break rules of the target, and how many more there are."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = sorted(report.findings, key=lambda each: order.get(each.level, 3))
    lines = [f"{each.level} {each.code}{f' {each.where}' if each.where else ''}: {each.message}" for each in found]
    return lines[:SHOWN_PER_PASS], max(0, len(lines) - SHOWN_PER_PASS)


def to_deploy(deployment: Deployment) -> list[str]:
    """Return what to do with the result, a line each."""
    lines = []
    if deployment.files:
        lines.append(f"belongs to it, beside it: {', '.join(deployment.files)}")
    if deployment.command:
        lines.append(f"on the target: {deployment.command}")
    return lines


def readable_bytes(count: float) -> str:
    """Write a number of bytes for a person, e.g. ``4.51 MB`` (decimal units)."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def readable_count(count: float) -> str:
    """Write a count for a person, e.g. ``80.1 M``."""
    for unit in ("", " k", " M"):
        if count < 1000 or (unit == "" and count < 10_000):
            return f"{count:,.0f}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f} G"


def _accuracy_rows(facts: AccuracyFacts) -> Iterator[Row]:
    low, high = facts.ci95
    metric = facts.metric
    verdict = "" if facts.passed else ": NOT HELD"
    change = f"{_signed(-facts.drop, metric)} (may fall {_amount(facts.max_drop, metric)}{verdict})"
    yield Row(f"accuracy ({metric})", _level(facts.baseline, metric), _level(facts.optimized, metric), change)
    interval = f"drop within [{_amount(low, metric)}, {_amount(high, metric)}], 95 % confidence"
    yield Row("", "", "", f"{interval}, {facts.samples:,} samples")
    if facts.sqnr_db is not None:
        yield Row("signal to noise", "", f"{facts.sqnr_db:.1f} dB", "of the outputs, against the original's")


def _latency_row(facts: LatencyFacts) -> Row:
    low, high = facts.ci95
    how = f"{facts.source}, {facts.threads} thread{'s' if facts.threads != 1 else ''}, {facts.provider}"
    verdict = "" if facts.passed else f"; needs {facts.min_speedup:.2f}x: NOT HELD"
    # Only a model that was not compared with itself has an interval without width.
    ratio = "unchanged" if low == high == 1 else f"{facts.speedup:.2f}x as fast [{low:.2f}, {high:.2f}]"
    change = f"{ratio} ({how}{verdict})"
    return Row("latency", f"{facts.baseline_ms:.3f} ms", f"{facts.optimized_ms:.3f} ms", change)


def _row(what: str, before: ModelFacts, after: ModelFacts | None, field: str, write: object) -> Row:
    assert callable(write)
    old = getattr(before, field)
    new = getattr(after, field) if after else None
    shown = [write(value) if value is not None else "unknown" for value in (old, new)]
    if after is None:
        return Row(what, shown[0], "", "")
    if old is None or new is None:
        return Row(what, shown[0], shown[1], "")
    if old == new:
        return Row(what, shown[0], shown[1], "unchanged")
    change = f"{new / old - 1:+.1%}".replace("%", " %") if old else ""
    return Row(what, shown[0], shown[1], change)


def _remark(stage: Stage) -> str:
    figures = []
    if stage.metric is not None:
        figures.append(f"metric {stage.metric:.4f} on selection samples")
    if stage.latency_ms is not None:
        figures.append(f"{stage.latency_ms:.3f} ms")
    if stage.seconds >= 0.1:
        figures.append(f"took {stage.seconds:.1f} s")
    remark = ", ".join(figures)
    return f"{stage.reason} ({remark})" if stage.reason and remark else stage.reason or remark


# Shares are shown in per cent and points; other metrics (a custom one, say) in their own scale.
SHARES = frozenset({"top1", "top5", "agreement"})


def _level(value: float, metric: str) -> str:
    return f"{100 * value:.2f} %" if metric in SHARES else f"{value:.5f}"


def _amount(value: float, metric: str) -> str:
    return f"{100 * value:.2f}" if metric in SHARES else f"{value:.5f}"


def _signed(value: float, metric: str) -> str:
    if metric in SHARES:
        return f"{100 * value + 0.0:+.2f} points"
    return f"{value + 0.0:+.5f}"
