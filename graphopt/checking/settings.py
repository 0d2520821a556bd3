"""What a file is checked against."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from graphopt.checking.catalog import selected
from graphopt.checking.patterns import matches

LEVELS = ("error", "warning")
"""What a check can be told to fail on, the graver first."""


@dataclass(frozen=True)
class Settings:
    """What one file is checked against; None and empty: nothing is said.

    Attributes:
        target: name or profile of the target whose rules hold.
        runtime: which of its runtimes the latency is estimated for.
        batch: size of dynamic first axes, for multiply-adds and latency.
        input_shapes: shapes of dynamic inputs by name.
        max_bytes: most bytes of the model and its external data.
        max_parameters: most parameters.
        max_macs: most multiply-adds of one run.
        max_latency_ms: most milliseconds of one run by the latency model.
        ignore: codes, beginnings of codes and names of rules that are not reported.
    """

    target: str | None = None
    runtime: str | None = None
    batch: int | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_bytes: int | None = None
    max_parameters: int | None = None
    max_macs: int | None = None
    max_latency_ms: float | None = None
    ignore: tuple[str, ...] = ()

    def under(self, other: Settings) -> Settings:
        """These settings where ``other`` says nothing; shapes and ignored codes of both."""
        said = {
            each.name: value
            for each in fields(other)
            if each.name not in ("input_shapes", "ignore") and (value := getattr(other, each.name)) is not None
        }
        both = {**self.input_shapes, **other.input_shapes}
        return replace(self, **said, input_shapes=both, ignore=(*self.ignore, *other.ignore))

    def ignored(self) -> frozenset[str]:
        """The codes that are not reported."""
        return frozenset().union(*(selected(selector) for selector in self.ignore))


@dataclass(frozen=True)
class Config:
    """What a configuration file says.

    Attributes:
        path: the file; None where there is none.
        settings: for all files.
        by_path: pattern -> settings for the files that fit it, in the order of the file; the last that fits wins.
        exclude: patterns of files that are not checked.
        fail_on: ``error`` or ``warning``: the least grave level that fails a check.
    """

    path: Path | None = None
    settings: Settings = Settings()
    by_path: tuple[tuple[str, Settings], ...] = ()
    exclude: tuple[str, ...] = ()
    fail_on: str = "error"

    def relative(self, path: Path) -> str:
        """The path as patterns see it: from the configuration's folder."""
        folder = (self.path.parent if self.path else Path()).resolve()
        # Links are not followed: a pattern is about where a file stands, not about what it leads to.
        return Path(os.path.relpath(os.path.abspath(path), folder)).as_posix()

    def excludes(self, path: Path) -> bool:
        """Whether a file is left out."""
        relative = self.relative(path)
        return any(matches(pattern, relative) for pattern in self.exclude)

    def settings_for(self, path: Path | None) -> Settings:
        """What holds for a file; None: for a model that is in none."""
        found = self.settings
        if path is not None and self.by_path:
            relative = self.relative(path)
            for pattern, settings in self.by_path:
                if matches(pattern, relative):
                    found = found.under(settings)
        return found
