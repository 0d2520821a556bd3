"""Rules told to people: one at length, all in a table."""

from __future__ import annotations

import textwrap

from graphopt.rules.rule import Rule
from graphopt.rules.tables import GROUPS

BEGIN, END = "<!-- rules: begin -->", "<!-- rules: end -->"


def explain(rule: Rule, width: int = 100) -> str:
    """Return what a rule is about, why, what to do and what it rests on, in lines of at most ``width`` characters."""
    wrap = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False).wrap
    parts = [f"{rule.code} {rule.name} ({rule.level}): {rule.summary}", "", *wrap(rule.explanation)]
    if rule.fix:
        parts += ["", *wrap(f"Mended by: {', '.join(rule.fix)}")]
    return "\n".join([*parts, "", *wrap(f"Source: {rule.source}")])


def tables() -> str:
    """Return all rules in Markdown: for each group a table and then each rule at length."""
    lines: list[str] = []
    for group, rules in GROUPS.items():
        lines += [f"## `{group}`", "", "| code | rule | level | what it holds | mended by |", "|---|---|---|---|---|"]
        lines += [_row(rule) for rule in rules.values()]
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


def _row(rule: Rule) -> str:
    passes = ", ".join(f"`{name}`" for name in rule.fix)
    return f"| [{rule.code}](#{rule.code.lower()}) | `{rule.name}` | {rule.level} | {rule.summary} | {passes} |"
