"""The line of a TOML file that sets a key, for messages: ``tomllib`` does not tell."""

from __future__ import annotations

import tomllib
from typing import Any


def line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line, from 1, that first says something about the key; None where the text does not hold it.

    The shortest beginning of the file that is TOML and holds the key ends with the statement that sets it.
    """
    lines = text.splitlines()
    low, high = 0, len(lines)  # The first `low` lines do not hold the key, the first `high` do.
    if not _holds(_parsed(lines, high), keys):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        # In the midst of a value of several lines: go on to its end.
        end = next(count for count in range(middle, high + 1) if count == high or _parsed(lines, count) is not None)
        if end == high:
            start = next(count for count in range(middle, low - 1, -1) if _parsed(lines, count) is not None)
            if start == low:
                break
            end = start
        low, high = (low, end) if _holds(_parsed(lines, end), keys) else (end, high)
    return low + 1 + next((skip for skip, line in enumerate(lines[low:high]) if _says_something(line)), 0)


def _parsed(lines: list[str], count: int) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines[:count]))
    except tomllib.TOMLDecodeError:
        return None


def _holds(table: dict[str, Any] | None, keys: tuple[str, ...]) -> bool:
    found: Any = table
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return found is not None


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")
