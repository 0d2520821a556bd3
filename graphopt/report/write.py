"""Writes a report to a file: JSON, HTML or Markdown, by the file's suffix."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from graphopt.errors import OutputError, UsageError
from graphopt.report.html import as_html
from graphopt.report.markdown import as_markdown
from graphopt.report.schema import Report

WRITERS: Mapping[str, Callable[[Report], str]] = {
    ".json": lambda report: report.to_json() + "\n",
    ".html": as_html,
    ".htm": as_html,
    ".md": as_markdown,
}


def check_report_path(path: str | os.PathLike[str]) -> None:
    """Refuse a path that ``write_report`` could not write, before the work is done.

    Raises:
        UsageError: the suffix names no form of report.
        OutputError: the folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() not in WRITERS:
        raise UsageError(f"{target}: a report ends in .html, .json or .md")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the folder {target.parent} does not exist")


def write_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write ``report`` in the form that the suffix of ``path`` names, whole or not at all.

    Raises:
        UsageError: the suffix is none of .html, .json, .md.
        OutputError: the file cannot be written.
    """
    check_report_path(path)
    target = Path(path)
    text = WRITERS[target.suffix.lower()](report)
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", suffix=".part", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is private to its owner; a report has the rights that any new file would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"{target}: the report cannot be written: {error.strerror or error}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return target
