"""``graphopt passes`` and ``graphopt targets``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.options import common_options, json_option
from graphopt.cli.terminal import Terminal

if TYPE_CHECKING:
    from graphopt.targets import Target


# Characters of a value that stand in one line.
_WIDTH = 90


@click.command(short_help="List the passes.")
@json_option
@common_options
@click.pass_obj
def passes(terminal: Terminal, /, *, as_json: bool) -> None:
    """List the passes with one line each.

    \b
    Example:
      graphopt passes
    """  # noqa: D301
    from graphopt.options import describe_options
    from graphopt.passes import PASSES
    from graphopt.report.schema import plain

    found = [
        {
            "name": name,
            "exact": kind.exact,
            "summary": kind.summary,
            "options": {
                key: {"type": words, "default": plain(default)}
                for key, (words, default) in describe_options(kind).items()
            },
        }
        for name, kind in sorted(PASSES.items())
    ]
    if as_json:
        terminal.result(json.dumps(found, indent=2))
        return
    rows = [(str(one["name"]), "exact" if one["exact"] else "approximate", str(one["summary"])) for one in found]
    terminal.result(_columns(rows))


@click.command(short_help="List the targets, or show one whole.")
@click.argument("name", required=False)
@json_option
@common_options
@click.pass_obj
def targets(terminal: Terminal, /, *, name: str | None, as_json: bool) -> None:
    """List the targets with one line each, or show the profile of target NAME (or FILE.toml) whole.

    NAME@RELEASE, NAME@MODE or both separated by a comma choose a release of the device's software and a power mode
    among those that NAME lists.

    \b
    Example:
      graphopt targets jetson-agx-orin@5.1,30W
    """  # noqa: D301
    from graphopt.report.schema import plain
    from graphopt.targets import load_target, target_summaries

    if name is not None:
        profile = load_target(name)
        terminal.result(json.dumps(plain(profile), indent=2) if as_json else _profile(profile))
        return
    found = target_summaries()
    if as_json:
        terminal.result(json.dumps([{"name": one, "summary": summary} for one, summary in found.items()], indent=2))
        return
    terminal.result(_columns(list(found.items())))


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _profile(profile: Target) -> str:
    """The profile whole, a line for each fact; long lists go on in lines of their own."""
    from graphopt.report.schema import plain

    rows: list[tuple[str, ...]] = []
    pending: list[tuple[str, Any]] = [("", plain(profile))]
    while pending:
        name, value = pending.pop()
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(item.pop("name")): item for item in value}
        if isinstance(value, dict):
            inner = [(f"{name}.{key}" if name else key, item) for key, item in value.items()]
            pending.extend(reversed(inner))
        else:
            shown = _shown(value)
            rows.extend((name if line is shown[0] else "", line) for line in shown)
    return _columns(rows)


def _shown(value: Any) -> list[str]:
    """The lines of a value."""
    if value is None or value in ([], ""):
        return ["none"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, float):
        return [f"{value:.4g}"]
    text = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return textwrap.wrap(text, _WIDTH)
