"""One TOML file of a profile: read strictly, with file, line and key in every complaint."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from graphopt.errors import UsageError
from graphopt.targets.form import PROFILE, problems

Table: TypeAlias = dict[str, Any]

_KEY = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([\w\-]+))\s*(\.|$)")


@dataclass(frozen=True)
class Source:
    """A profile's own statements, without those that it inherits.

    Attributes:
        path: the file.
        text: what stands in it.
        table: the same, parsed; of the right form.
    """

    path: Path
    text: str
    table: Table

    def line(self, keys: tuple[str, ...]) -> int | None:
        """Return the line that sets the key, or None where it is written in an inline form."""
        table: tuple[str, ...] = ()
        for number, text in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[+([^\[\]]+)\]", text):
                table = _keys(header[1])
                if table == keys:
                    return number
            elif (pair := re.match(r"([^=#]+)=", text)) and (*table, *_keys(pair[1])) == keys:
                return number
        return None

    def error(self, keys: tuple[str, ...], problem: str) -> UsageError:
        """Return the error to raise for one key."""
        line = self.line(keys)
        return UsageError(f"{self.path}{f', line {line}' if line else ''}: '{'.'.join(keys)}' {problem}")


def read_source(path: Path) -> Source:
    """Read one file.

    Raises:
        UsageError: it cannot be read, a key is unknown, or a value is not of the right type.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not valid TOML: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: the target profile cannot be read: {error.strerror}") from error
    source = Source(path, text, table)
    for keys, problem in problems(table, PROFILE):
        raise source.error(keys, problem)
    return source


def _keys(dotted: str) -> tuple[str, ...]:
    """Split a dotted TOML key; quoted parts may hold dots."""
    found = []
    position = 0
    text = dotted.rstrip()
    while position < len(text) and (match := _KEY.match(text, position)):
        found.append(next(part for part in match.groups()[:3] if part is not None))
        position = match.end()
    return tuple(found)
