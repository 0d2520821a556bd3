"""A rule and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from graphopt.targets.schema import Hardware


@dataclass(frozen=True)
class Finding:
    """One place where a model breaks a rule.

    Attributes:
        code: stable code of the rule, e.g. ``GO301``.
        rule: its name, e.g. ``int8_symmetric``.
        where: node or tensor, empty for the whole model.
        message: what is wrong there and what to do, for the person who reads it.
        level: ``error`` (the target refuses it or answers wrong) or ``warning`` (it costs time or space).
    """

    code: str
    rule: str
    where: str
    message: str
    level: str = "error"


Check: TypeAlias = Callable[[onnx.ModelProto, Hardware], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """A constraint.

    Attributes:
        code: stable code, e.g. ``GO301``.
        name: as profiles and configuration name it.
        summary: one line.
        explanation: why, and what to do.
        source: document, section or issue that it rests on.
        check: yields the places that break it; must not run the model.
        fix: names of the passes that mend it, empty where none does.
    """

    code: str
    name: str
    summary: str
    explanation: str
    source: str
    check: Check
    fix: tuple[str, ...] = ()
