"""Latency, where it goes, what would change it, and broken rules, as a person reads them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graphopt.inspection.choices import FORMS, LayerChoices, totals
from graphopt.inspection.latency import Latency
from graphopt.inspection.tables import table_of
from graphopt.report.figures import readable_count
from graphopt.rules import Finding

if TYPE_CHECKING:
    from rich.table import Table

    from graphopt.inspection import Inspection

MOST_FINDINGS = 30
WIDTH = 110
_INDENT = " " * 14
_TITLES = {"half_channels": "half channels", "rank_1": "separable: 1", "rank_2": "2 pairs", "int8": "int8"}


def latency_lines(latency: Latency) -> Iterator[str]:
    """The latency of the whole model and what it rests on."""
    low, high = (milliseconds(end) for end in latency.interval)
    interval = f"p10 {low}, p90 {high}" if latency.source == "measured" else f"90 % interval {low} to {high}"
    yield (
        f"  latency     {latency.source} {milliseconds(latency.ms)} ms ({interval}) on {latency.target},"
        f" {latency.runtime}, batch {latency.batch}"
    )
    yield from textwrap.wrap(latency.basis, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def latency_tables(inspection: Inspection, top: int) -> Iterator[Table]:
    """The layers that take most time, and those where a change would save most."""
    if inspection.latency is None or top == 0:
        return
    source = inspection.latency.source
    timed = [
        (layer, time)
        for layer, time in zip(inspection.cost.layers, inspection.times, strict=True)
        if time is not None and time.ms > 0
    ]
    total = sum(time.ms for _, time in timed) or 1.0
    shown = sorted(timed, key=lambda pair: -pair[1].ms)[:top]
    rows = [
        (
            layer.name,
            layer.operator,
            layer.kind,
            time.precision,
            milliseconds(time.ms),
            f"{100 * time.ms / total:.1f} %",
            time.bound or "",
            readable_count(layer.macs) if layer.macs else "-",
        )
        for layer, time in shown
    ]
    header = [f"most time ({len(shown)} of {len(timed)} kernels)", "operator", "kind", "in", f"{source} ms", "share"]
    yield table_of([*header, "bound", "MACs"], rows, texts=(3, 6))
    if inspection.choices:
        yield _choices(inspection.choices, top)


def _choices(choices: Sequence[LayerChoices], top: int) -> Table:
    forms = [form for form in FORMS if any(getattr(choice, form) is not None for choice in choices)]
    shown = sorted(choices, key=lambda choice: -_most_saved(choice))[:top]
    shown = [choice for choice in shown if _most_saved(choice) > 0]
    rows = [
        (choice.name, milliseconds(choice.ms), *(_price(getattr(choice, form), choice.ms) for form in forms))
        for choice in shown
    ]
    together = dict(totals(choices))
    now = sum(choice.ms for choice in choices)
    rows.append((f"all {len(choices)}, each where it pays", milliseconds(now),
                 *(_price(together[form], now) for form in forms)))  # fmt: skip
    return table_of([f"where it would pay ({len(shown)})", "estimated ms", *(_TITLES[form] for form in forms)], rows)


def _most_saved(choice: LayerChoices) -> float:
    return max((choice.ms - price for form in FORMS if (price := getattr(choice, form)) is not None), default=0.0)


def _price(price: float | None, now: float) -> str:
    if price is None:
        return "-"
    return f"{milliseconds(price)} ({now / price:.1f}x)" if price > 0 else milliseconds(price)


def milliseconds(ms: float) -> str:
    """Write milliseconds with three significant digits, microseconds at the finest."""
    if ms >= 100:
        return f"{ms:,.0f}"
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 1 else f"{ms:.3f}"


def findings_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """One line for each broken rule, as ``graphopt check`` writes them."""
    yield f"findings ({len(findings)})"
    for finding in findings[:MOST_FINDINGS]:
        where = f"{finding.where}: " if finding.where else ""
        yield f"{finding.code} {finding.level}: {where}{finding.message}"
    if len(findings) > MOST_FINDINGS:
        yield f"and {len(findings) - MOST_FINDINGS} more; --json lists them"
