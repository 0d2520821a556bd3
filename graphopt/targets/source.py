"""One TOML file of a profile: read strictly, with file, line and key in every complaint."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from graphopt.errors import UsageError
from graphopt.targets.form import PROFILE, problems
from graphopt.targets.lines import line_of

Table: TypeAlias = dict[str, Any]


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
        """Return the line that sets the key, else that of the table it would stand in; None where neither is here."""
        return next((line for end in range(len(keys), 0, -1) if (line := line_of(self.text, keys[:end]))), None)

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
