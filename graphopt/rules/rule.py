"""A rule and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from graphopt.rules.view import View
from graphopt.targets.schema import Hardware

ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One place where a model breaks a rule.

    Attributes:
        code: stable code of the rule, e.g. ``GO301``.
        rule: its name, e.g. ``zero_point_not_zero``.
        where: node or tensor, empty for the whole model.
        message: what is wrong there and what to do, for the person who reads it.
        level: ``error`` (the target refuses it or answers wrong), ``warning`` (it costs time or space) or ``note``
            (nothing is wrong: what has to be given when the model is deployed).
    """

    code: str
    rule: str
    where: str
    message: str
    level: str = ERROR


@dataclass(frozen=True)
class Place:
    """What a check found: a node or tensor (empty: the whole model), and what is wrong there and what to do."""

    where: str
    message: str


Check: TypeAlias = Callable[[View, Hardware], Iterable[Place]]


@dataclass(frozen=True)
class Rule:
    """A constraint.

    Attributes:
        code: stable code, e.g. ``GO301``.
        name: as profiles and configuration name it.
        summary: one line.
        explanation: why, and what to do.
        source: document, section or issue that it rests on.
        check: yields the places that break it, in graph order; never runs the model, never changes it.
        fix: names of the passes that mend it, empty where none does.
        level: ``error``, ``warning`` or ``note``, as in ``Finding``.
    """

    code: str
    name: str
    summary: str
    explanation: str
    source: str
    check: Check
    fix: tuple[str, ...] = ()
    level: str = ERROR
