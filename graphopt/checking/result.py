"""What a check found: as objects, as lines and as JSON."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from graphopt._version import __version__
from graphopt.checking.budgets import Figures
from graphopt.checking.settings import LEVELS
from graphopt.report.schema import plain
from graphopt.rules import Finding

SCHEMA = "graphopt.check/1"


@dataclass(frozen=True)
class CheckedFile:
    """What was found in one file.

    Attributes:
        path: as it was given.
        target: name of the target whose rules it was held to; None where none was named.
        findings: in the order of their codes, those that are ignored left out.
        ignored: how many were left out.
        figures: what was counted; None where the file could not be opened.
        sha256: of the file and its external data; None where it could not be opened.
        out_of_reach: whether the system did not let the file be read at all.
    """

    path: str
    target: str | None
    findings: tuple[Finding, ...]
    ignored: int = 0
    figures: Figures | None = None
    sha256: str | None = None
    out_of_reach: bool = False

    def lines(self, *, notes: bool = False) -> list[str]:
        """One line a finding: ``path: CODE where: message``."""
        return [
            f"{self.path}: {found.code} {f'{found.where}: ' if found.where else ''}{' '.join(found.message.split())}"
            for found in self.findings
            if notes or found.level in LEVELS
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        figures = self.figures
        latency = figures.latency if figures else None
        return {
            "path": self.path,
            "target": self.target,
            "sha256": self.sha256,
            "bytes": figures.size if figures else None,
            "parameters": figures.parameters if figures else None,
            "macs": figures.macs if figures else None,
            "latency": None
            if latency is None
            else {
                "source": "estimated",
                "ms": latency.ms,
                "interval": list(latency.interval),
                "runtime": latency.runtime,
                "batch": latency.batch,
            },
            "findings": [plain(found) for found in self.findings],
            "ignored": self.ignored,
        }


@dataclass(frozen=True)
class CheckResult:
    """What a check found. ``str(result)`` is what a person reads.

    Attributes:
        files: one for each file, in the order given.
        fail_on: the least grave level that fails the check.
        config: the configuration file, None where there was none.
    """

    files: tuple[CheckedFile, ...]
    fail_on: str = "error"
    config: str | None = None

    @property
    def ok(self) -> bool:
        """Whether no finding is as grave as ``fail_on``."""
        grave = LEVELS[: LEVELS.index(self.fail_on) + 1]
        return not any(found.level in grave for file in self.files for found in file.findings)

    @property
    def exit_code(self) -> int:
        """0 where the check holds, 3 where a file could not be read at all, else 1."""
        if any(file.out_of_reach and file.findings for file in self.files):
            return 3
        return 0 if self.ok else 1

    @property
    def counts(self) -> dict[str, int]:
        """Findings by level."""
        found = Counter(found.level for file in self.files for found in file.findings)
        return {level: found[level] for level in (*LEVELS, "note")}

    def __str__(self) -> str:
        return os.linesep.join(line for file in self.files for line in file.lines())

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values, schema ``graphopt.check/1``."""
        return {
            "schema": SCHEMA,
            "graphopt_version": __version__,
            "result": "ok" if self.exit_code == 0 else "failed",
            "fail_on": self.fail_on,
            "config": self.config,
            "counts": {"files": len(self.files), **self.counts},
            "files": [file.to_dict() for file in self.files],
        }
