"""The one form of table that an inspection is printed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[int] = ()) -> Table:
    """A table of figures to the right; the first column, operators, kinds and the columns ``texts`` are text."""
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    from graphopt.report.text import RULE_BELOW_HEADER

    table = Table(box=Box(RULE_BELOW_HEADER, ascii=True), pad_edge=False, show_edge=False)
    for position, title in enumerate(header):
        is_text = position == 0 or title in ("operator", "kind") or position in texts
        table.add_column(Text(title), justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
