"""What a target demands of a model, as named rules: each with a check, an explanation and a source (docs/rules.md)."""

from __future__ import annotations

from graphopt.rules.rule import Finding, Rule

__all__ = ["Finding", "Rule"]
