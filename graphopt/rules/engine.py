"""Runs rules over a model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import onnx

from graphopt.errors import UsageError
from graphopt.rules.rule import Finding, Rule
from graphopt.rules.tables import GROUPS, RULES
from graphopt.rules.view import View
from graphopt.targets.schema import Hardware


def check_model(model: onnx.ModelProto | View, hardware: Hardware, rules: Iterable[str] | None = None) -> list[Finding]:
    """Return the places where ``model`` breaks the rules of a target.

    Nothing is run, and the model stays as it is. Weights may be absent: what needs their values is left unchecked. A
    model that is broken otherwise gets the findings that can be told; that it is broken is the checker's to say.

    Args:
        model: with or without external data loaded; or a view of it that is there already.
        hardware: facts about the target.
        rules: names of rules, of groups of rules, or codes; by default those that the target names.

    Returns:
        findings, in the order of the rules and then of the graph: the same for the same model.

    Raises:
        UsageError: a rule of this name does not exist.
    """
    try:
        chosen = select(hardware.rules if rules is None else rules)
    except UsageError as error:
        raise error if rules is not None else UsageError(f"target '{hardware.name}', 'rules': {error}") from error
    view = model if isinstance(model, View) else View(model)
    return [
        Finding(rule.code, rule.name, place.where, place.message, rule.level)
        for rule in chosen
        for place in rule.check(view, hardware)
    ]


def select(names: Iterable[str]) -> tuple[Rule, ...]:
    """Return the rules of these names, each once, in the order of their codes.

    Args:
        names: names of rules (``opset``), of groups (``operators``) or codes (``GO201``).

    Raises:
        UsageError: there is neither a rule nor a group of this name; lists what comes close.
    """
    wanted: set[str] = set()
    for name in names:
        if name in GROUPS:
            wanted.update(GROUPS[name])
        elif (rule := find(name)) is not None:
            wanted.add(rule.name)
        else:
            close = difflib.get_close_matches(name, [*RULES, *GROUPS], n=3)
            hint = f"did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
            raise UsageError(f"unknown rule {name!r}; {hint or 'groups of rules: ' + ', '.join(GROUPS)}")
    return tuple(rule for rule in RULES.values() if rule.name in wanted)


def find(name: str, rules: Mapping[str, Rule] = RULES) -> Rule | None:
    """Return the rule of a name or code, None where there is none."""
    if name in rules:
        return rules[name]
    return next((rule for rule in rules.values() if rule.code == name), None)
