"""The report as plain text: the table that a person reads in a terminal."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from graphopt.report.figures import (
    broken_rules,
    busy_rows,
    comparison,
    headline,
    idle_stages,
    left_alone,
    to_deploy,
)
from graphopt.report.schema import Report

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 110

# Only a rule below the header, in signs that every terminal and log file can show.
RULE_BELOW_HEADER = "    \n    \n -- \n    \n    \n    \n    \n    \n"


def as_text(report: Report, width: int = WIDTH) -> str:
    """Render the report as plain text, without colours, at most ``width`` columns wide."""
    from rich.console import Console

    buffer = StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(headline(report), markup=False)
    console.print()
    console.print(_table(["", "before", "after", "change"], [list(vars(row).values()) for row in comparison(report)]))
    console.print()
    console.print(_table(["pass", "outcome", "changes", ""], [list(row) for row in busy_rows(report)]))
    idle = idle_stages(report)
    if idle and len(idle) < len(report.stages):
        console.print()
        console.print(f"nothing to do: {', '.join(idle)}", markup=False)
    for group in left_alone(report):
        console.print()
        console.print(f"{group.stage} left alone:", markup=False)
        for where, reason in group.places:
            console.print(f"  {where}: {reason}", markup=False)
        if group.more:
            console.print(f"  and {group.more:,} more (all of them are in the JSON report)", markup=False)
    shown, more = broken_rules(report)
    if shown:
        console.print()
        console.print("rules of the target:", markup=False)
        for line in shown:
            console.print(f"  {line}", markup=False)
        if more:
            console.print(f"  and {more:,} more (all of them are in the JSON report)", markup=False)
    if report.deployment:
        console.print()
        for line in to_deploy(report.deployment):
            console.print(line, markup=False, soft_wrap=True)
    if report.warnings:
        console.print()
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _table(header: list[str], rows: list[list[str]]) -> Table:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=Box(RULE_BELOW_HEADER, ascii=True), pad_edge=False, show_edge=False)
    for position, title in enumerate(header):
        last = position == len(header) - 1
        table.add_column(Text(title), no_wrap=not last, overflow="fold", justify="left" if last else "default")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
