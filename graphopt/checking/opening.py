"""Open a file for checking, and say by which code it cannot be."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from graphopt.checking.catalog import (
    INVALID,
    LFS_POINTER,
    MISSING_DATA,
    NOT_CANONICAL,
    OLD_OPSET,
    UNREADABLE,
    UNSAFE,
    UNSUPPORTED,
    FileRule,
)
from graphopt.checking.types import contradiction
from graphopt.errors import (
    InvalidModelError,
    LfsPointerError,
    ModelError,
    UnsafeModelError,
    UnsupportedModelError,
)
from graphopt.model import LoadedModel, ModelSource, read
from graphopt.model.structure import GUARANTEED_OPSET
from graphopt.rules import Finding

_RULE_OF: tuple[tuple[type[ModelError], FileRule], ...] = (
    (LfsPointerError, LFS_POINTER),
    (UnsafeModelError, UNSAFE),
    (UnsupportedModelError, UNSUPPORTED),
    (InvalidModelError, INVALID),
    (ModelError, UNREADABLE),
)


@dataclass(frozen=True)
class Opened:
    """A file that was opened, or why it was not.

    Attributes:
        model: None where there is nothing to check further.
        findings: what is wrong with the file.
        out_of_reach: whether the system did not let it be read at all.
    """

    model: LoadedModel | None
    findings: tuple[Finding, ...]
    out_of_reach: bool = False


def open_model(source: ModelSource) -> Opened:
    """Read the structure of a model and judge the file; large external weights are vetted, not read."""
    if isinstance(source, str | os.PathLike) and (problem := _out_of_reach(Path(source))):
        return Opened(None, (UNREADABLE.finding("", problem),), out_of_reach=True)
    try:
        model = read(source, weights=False)
    except ModelError as error:
        return Opened(None, (refusal(error),))
    findings = [NOT_CANONICAL.finding("", text) for text in model.mended]
    if model.absent:
        names = ", ".join(repr(name) for name in model.absent)
        findings.append(MISSING_DATA.finding("", f"{names} is not beside the model"))
    opset = next((entry.version for entry in model.proto.opset_import if entry.domain == ""), GUARANTEED_OPSET)
    if opset < GUARANTEED_OPSET:
        findings.append(OLD_OPSET.finding("", f"opset {opset}; raise_opset raises it"))
    if not model.absent and (wrong := contradiction(model.proto)):
        findings.append(INVALID.finding("", wrong))
    return Opened(model, tuple(findings))


def refusal(error: ModelError) -> Finding:
    """The finding for what ``read`` raised; the name that it begins with is left to the line's path."""
    rule = next(rule for kind, rule in _RULE_OF if isinstance(error, kind))
    text = str(error.__cause__) if isinstance(error.__cause__, ModelError) else str(error)
    return rule.finding("", " ".join(text.split()))


def _out_of_reach(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder"
        if not stat.S_ISREG(mode):
            return "it is not a regular file"
        with path.open("rb"):
            return ""
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
