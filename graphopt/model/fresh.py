"""Names that nothing has yet."""

from __future__ import annotations


def fresh(taken: set[str], prefix: str, first: int = 2) -> str:
    """Return ``prefix``, with a number from ``first`` on where it is taken, and take it."""
    name, number = prefix, first
    while name in taken:
        name, number = f"{prefix}_{number}", number + 1
    taken.add(name)
    return name
