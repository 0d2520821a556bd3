"""Reads the configuration of ``check``, strictly: what means nothing is an error with file, line and key.

``graphopt.toml``, or the table ``[tool.graphopt]`` of ``pyproject.toml``, looked for from the working directory up. The
keys stand in a table ``check``, or directly beside it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from graphopt.checking.catalog import selected
from graphopt.checking.patterns import matches
from graphopt.checking.settings import LEVELS, Config, Settings
from graphopt.errors import UsageError
from graphopt.targets.form import Each, Form, problems
from graphopt.targets.lines import line_of

Table: TypeAlias = dict[str, Any]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def find_config(folder: Path) -> Path | None:
    """The configuration that holds in ``folder``: the first one found from there upwards, None where there is none.

    In one folder ``graphopt.toml`` goes before ``pyproject.toml``, which counts only where it has ``[tool.graphopt]``.
    """
    start = folder.resolve()
    for place in (start, *start.parents):
        if (own := place / "graphopt.toml").is_file():
            return own
        project = place / "pyproject.toml"
        if project.is_file() and "graphopt" in _table(project, _read(project).get("tool"), ("tool",)):
            return project
    return None


def read_config(path: Path) -> Config:
    """Read a configuration.

    Raises:
        UsageError: the file cannot be read, or holds a key or value that means nothing; names file, line and key.
    """
    whole = _read(path)
    base = ("tool", "graphopt") if path.name == "pyproject.toml" else ()
    table = whole
    for depth, name in enumerate(base, 1):
        table = _table(path, table.get(name), base[:depth])
    nested = _table(path, table.get("check"), (*base, "check"))
    for keys, problem in problems({**table, "check": nested}, {"check": _CHECK, **_CHECK}):
        raise _error(path, (*base, *keys), problem)
    for key in nested.keys() & table.keys():
        raise _error(path, (*base, key), f"is given twice, here and in '{'.'.join((*base, 'check'))}'")
    for where, patterns in (((*base,), table.get("paths", {})), ((*base, "check"), nested.get("paths", {}))):
        for pattern in patterns:
            if wrong := _pattern(pattern):
                raise _error(path, (*where, "paths", pattern), wrong)
    said = {**{key: value for key, value in table.items() if key != "check"}, **nested}
    return Config(
        path=path,
        settings=_settings(path, said),
        by_path=tuple((pattern, _settings(path, inner)) for pattern, inner in said.get("paths", {}).items()),
        exclude=tuple(said.get("exclude", ())),
        fail_on=said.get("fail-on", "error"),
    )


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: the configuration cannot be read: {error.strerror}") from error


def _table(path: Path, value: object, keys: tuple[str, ...]) -> Table:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _error(path, keys, "must be a table")
    return value


def _error(path: Path, keys: tuple[str, ...], problem: str) -> UsageError:
    line = line_of(path.read_text(encoding="utf-8"), keys)
    dotted = ".".join(key if re.fullmatch(r"[\w\-]+", key) else f'"{key}"' for key in keys)
    return UsageError(f"{path}{f', line {line}' if line else ''}: '{dotted}' {problem}")


def _settings(path: Path, table: Table) -> Settings:
    target = table.get("target")
    if target is not None and target.split("@")[0].endswith(".toml"):
        target = str(path.parent / target)
    return Settings(
        target=target,
        runtime=table.get("runtime"),
        batch=table.get("batch"),
        input_shapes={name: tuple(shape) for name, shape in table.get("input-shapes", {}).items()},
        max_bytes=_quantity(table.get("max-bytes"), _BYTE_UNITS),
        max_parameters=_quantity(table.get("max-parameters"), _UNITS),
        max_macs=_quantity(table.get("max-macs"), _UNITS),
        max_latency_ms=table.get("max-latency-ms"),
        ignore=tuple(table.get("ignore", ())),
    )


def _quantity(value: int | str | None, units: dict[str, int]) -> int | None:
    """A whole number, as such or as a text with a unit; None where it is neither."""
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value.strip())
    return round(float(match[1]) * units[match[2].lower()]) if match and match[2].lower() in units else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _budget(units: dict[str, int], example: str) -> Callable[[object], str | None]:
    def check(value: object) -> str | None:
        right = _is_count(value) or (isinstance(value, str) and _quantity(value, units) is not None)
        return None if right else f"must be a whole number, or a text such as {example}"

    return check


def _milliseconds(value: object) -> str | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return None if right else "must be a number of milliseconds above 0"


def _text(value: object) -> str | None:
    return None if isinstance(value, str) and value else "must be a text"


def _size(value: object) -> str | None:
    return None if _is_count(value) and value != 0 else "must be a whole number above 0"


def _shape(value: object) -> str | None:
    right = isinstance(value, list) and all(_size(size) is None for size in value)
    return None if right else "must be a list of sizes such as [1, 3, 224, 224]"


def _codes(value: object) -> str | None:
    if not isinstance(value, list) or not all(isinstance(code, str) for code in value):
        return "must be a list of codes such as ['GO113']"
    wrong = next((code for code in value if not selected(code)), None)
    return None if wrong is None else f"names {wrong!r}, but no rule has this code or name ('graphopt check --rules')"


def _patterns(value: object) -> str | None:
    if not isinstance(value, list) or not all(isinstance(pattern, str) and pattern for pattern in value):
        return "must be a list of patterns such as ['tests/**']"
    return next((wrong for pattern in value if (wrong := _pattern(pattern))), None)


def _pattern(pattern: str) -> str | None:
    try:
        matches(pattern, "")
    except re.error:
        return f"holds {pattern!r}, which is no pattern"
    return None


def _level(value: object) -> str | None:
    return None if value in LEVELS else f"must be {' or '.join(repr(level) for level in LEVELS)}"


_FILE: dict[str, Any] = {
    "target": _text,
    "runtime": _text,
    "batch": _size,
    "input-shapes": Each(_shape),
    "max-bytes": _budget(_BYTE_UNITS, "'10MB' or '10MiB'"),
    "max-parameters": _budget(_UNITS, "'5M'"),
    "max-macs": _budget(_UNITS, "'600M'"),
    "max-latency-ms": _milliseconds,
    "ignore": _codes,
}
_CHECK: Form = {**_FILE, "paths": Each(_FILE), "exclude": _patterns, "fail-on": _level}
