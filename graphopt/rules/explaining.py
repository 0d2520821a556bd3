"""Rules told to people: one at length, all in a table.

``python -m graphopt.rules.explaining docs/rules.md`` writes the generated part of that page anew.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from graphopt.rules.rule import Rule
from graphopt.rules.tables import GROUPS

BEGIN, END = "<!-- rules: begin -->", "<!-- rules: end -->"


def explain(rule: Rule, width: int = 100) -> str:
    """Return what a rule is about, why, what to do and what it rests on, in lines of at most ``width`` characters."""
    parts = [f"{rule.code} {rule.name} ({rule.level}): {rule.summary}", "", *textwrap.wrap(rule.explanation, width)]
    if rule.fix:
        parts += ["", *textwrap.wrap(f"Mended by: {', '.join(rule.fix)}", width)]
    return "\n".join([*parts, "", *textwrap.wrap(f"Source: {rule.source}", width)])


def tables() -> str:
    """Return all rules in Markdown: for each group a table and then each rule at length."""
    lines: list[str] = []
    for group, rules in GROUPS.items():
        lines += [f"## `{group}`", "", "| code | rule | level | what it holds | mended by |", "|---|---|---|---|---|"]
        lines += [
            f"| [{rule.code}](#{rule.code.lower()}) | `{rule.name}` | {rule.level} | {_cell(rule.summary)} | {', "
            f"'.join(f'`{name}`' for name in rule.fix)} |"
            for rule in rules.values()
        ]
        lines.append("")
        for rule in rules.values():
            lines += [f"### {rule.code}", "", f"`{rule.name}`: {rule.summary}. {rule.explanation}", ""]
            lines += [f"Source: {rule.source}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def renewed(page: str) -> str:
    """Return a page with the part between its marks written anew; as it is where there are no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{tables()}{end}{after}" if begin and end else page


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: Sequence[str]) -> None:
    """Renew the pages named."""
    for name in arguments:
        path = Path(name)
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
