"""What a target demands of a model, as named rules: each with a check, an explanation and a source (docs/rules.md)."""

from __future__ import annotations

from graphopt.rules.engine import check_model, find, select
from graphopt.rules.explaining import explain
from graphopt.rules.rule import ERROR, LEVELS, NOTE, WARNING, Finding, Place, Rule
from graphopt.rules.tables import GROUPS, RULES
from graphopt.rules.view import View

__all__ = [
    "ERROR",
    "GROUPS",
    "LEVELS",
    "NOTE",
    "RULES",
    "WARNING",
    "Finding",
    "Place",
    "Rule",
    "View",
    "check_model",
    "explain",
    "find",
    "select",
]
