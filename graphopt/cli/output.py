"""Where the results go: refused before the work where they could not be written, and written all or none."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.errors import OutputError, UsageError

if TYPE_CHECKING:
    from graphopt.report.schema import Report


def default_output(model: Path, target: str) -> Path:
    """``MODEL.TARGET.onnx`` beside the input."""
    return model.with_name(f"{model.stem if model.suffix == '.onnx' else model.name}.{target}.onnx")


def check_outputs(inputs: Sequence[Path], output: Path | None, reports: Sequence[Path]) -> None:
    """Refuse paths that could not be written when the work is done.

    Raises:
        UsageError: an output is an input, under whatever name, or two outputs are one file.
        OutputError: a folder does not exist or cannot be written, or a path is a folder.
    """
    outputs = [*([output] if output else []), *reports]
    for index, path in enumerate(outputs):
        for given in inputs:
            if _same(path, given):
                raise UsageError(f"{path} is the input {given}, which is never overwritten; choose another file")
        if any(_same(path, other) for other in outputs[:index]):
            raise UsageError(f"{path} is named for two outputs")
        _check_writable(path)


def write_all(save: Callable[[], Report], planned: Report, reports: Sequence[Path]) -> Report:
    """Write the model and the ``reports``, all of it or nothing, and return the final report, which ``save`` returns.

    The reports are first written beside their places from ``planned``, so that a full disk shows before the model is
    put in place.

    Raises:
        OutputError: something cannot be written; then nothing is.
    """
    from graphopt.report import write_report

    drafts = [path.with_name(f".{path.stem[:150]}.{secrets.token_hex(6)}{path.suffix}") for path in reports]
    try:
        for draft in drafts:
            write_report(planned, draft)
        final = save()
        if final != planned:
            for draft in drafts:
                write_report(final, draft)
        for draft, path in zip(drafts, reports, strict=True):
            os.replace(draft, path)
        return final
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist: then only the names can be the same
        return os.path.realpath(one) == os.path.realpath(other)


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
