"""The report as Markdown, for a pull request or a wiki page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphopt.report.figures import (
    broken_rules,
    busy_rows,
    comparison,
    environment_rows,
    headline,
    idle_stages,
    left_alone,
    to_deploy,
)
from graphopt.report.schema import Report


def as_markdown(report: Report) -> str:
    """Render the report as Markdown (GitHub's tables)."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# {_safe(headline(report))}"
    yield ""
    yield from _table(["", "before", "after", "change"], [list(vars(row).values()) for row in comparison(report)])
    yield ""
    yield "## Passes"
    yield ""
    yield from _table(["pass", "outcome", "changes", "remark"], busy_rows(report))
    idle = idle_stages(report)
    if idle and len(idle) < len(report.stages):
        yield ""
        yield f"Nothing to do: {_safe(', '.join(idle))}."
    for group in left_alone(report):
        yield ""
        yield f"Left alone by {_safe(group.stage)}:"
        yield ""
        for where, reason in group.places:
            yield f"- {_safe(where)}: {_safe(reason)}"
        if group.more:
            yield f"- and {group.more:,} more (all of them are in the JSON report)"
    shown, more = broken_rules(report)
    if shown:
        yield ""
        yield "## Rules of the target"
        yield ""
        for line in shown:
            yield f"- {_safe(line)}"
        if more:
            yield f"- and {more:,} more (all of them are in the JSON report)"
    if report.deployment:
        yield ""
        yield "## Deployment"
        yield ""
        for line in to_deploy(report.deployment):
            yield f"- {_safe(line)}"
    if report.warnings:
        yield ""
        yield "## Warnings"
        yield ""
        for warning in report.warnings:
            yield f"- {_safe(warning)}"
    yield ""
    environment = ", ".join(f"{key} {value}" for key, value in environment_rows(report))
    yield f"graphopt {_safe(report.graphopt_version)}; {_safe(environment)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(_safe(cell) for cell in row)} |"


def _safe(text: str) -> str:
    """Keep names from a model from being read as Markdown or HTML."""
    for sign in "\\`*_|[]#":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
