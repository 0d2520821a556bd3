"""The files that make up a profile: its own and those that it inherits from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError
from graphopt.targets.source import Source, Table, read_source


def split_selectors(text: str) -> tuple[str, tuple[str, ...]]:
    """Split ``NAME@SELECTOR,SELECTOR`` or ``FILE.toml@SELECTOR``; a path may hold an ``@`` of its own."""
    if text.endswith(".toml"):
        return text, ()
    name, mark, given = text.rpartition(".toml@" if ".toml@" in text else "@")
    if not mark:
        return text, ()
    selectors = tuple(one.strip() for one in given.split(","))
    if not all(selectors):
        raise UsageError(f"target '{text}': after '@' stand releases and power modes, separated by commas")
    return name + mark.removesuffix("@"), selectors


@dataclass(frozen=True)
class Layer:
    """A file among those that make up a profile.

    Attributes:
        source: the file.
        selected: releases and power modes that it asks of those that it inherits from (``inherits = "name@5.1"``).
    """

    source: Source
    selected: tuple[str, ...]


def layers(path: Path, parents: Callable[[str], Path]) -> tuple[Layer, ...]:
    """Return the files that make up a profile: what is inherited first, the profile's own last.

    Args:
        path: the profile.
        parents: gives the file of a named profile.

    Raises:
        UsageError: a file cannot be read or is wrong, a name is unknown, or profiles inherit from each other in a ring.
    """
    found: dict[Path, Layer] = {}
    _add(path, parents, found, ())
    return tuple(found.values())


def _add(path: Path, parents: Callable[[str], Path], found: dict[Path, Layer], above: tuple[Path, ...]) -> None:
    place = path.resolve()
    if place in found:
        return
    source = read_source(path)
    selected: list[str] = []
    given = source.table.get("inherits", [])
    for parent in [given] if isinstance(given, str) else given:
        try:
            name, selectors = split_selectors(parent)
            file = path.parent / name if name.endswith(".toml") else parents(name)
        except UsageError as error:
            raise source.error(("inherits",), f"cannot be followed: {error}") from error
        ring = (*above, place)
        if file.resolve() in ring:
            names = [one.name for one in (*ring[ring.index(file.resolve()) :], file)]
            raise source.error(("inherits",), f"goes round in a ring: {' -> '.join(names)}")
        if not file.is_file():
            raise source.error(("inherits",), f"cannot be followed: there is no file {file}")
        selected.extend(selectors)
        _add(file, parents, found, (*above, place))
    found[place] = Layer(source, tuple(selected))


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> Table:
    """Lay ``change`` over ``base``, tables key by key."""
    result = dict(base)
    for key, value in change.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return result
