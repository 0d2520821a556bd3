"""All rules, and the groups that profiles name them by."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.rules.channels import CHANNELS
from graphopt.rules.cpu import CPU_INT8
from graphopt.rules.cpu_types import CPU_TYPES
from graphopt.rules.dla import DLA
from graphopt.rules.explicit import EXPLICIT
from graphopt.rules.fusion import FUSION
from graphopt.rules.operators import OPERATORS
from graphopt.rules.placement import PLACEMENT
from graphopt.rules.precision import PRECISION
from graphopt.rules.restrictions import RESTRICTIONS
from graphopt.rules.rule import Rule
from graphopt.rules.shapes import SHAPES


def _group(*tables: Mapping[str, Rule]) -> Mapping[str, Rule]:
    """Join tables in the order of codes."""
    rules = [rule for table in tables for rule in table.values()]
    return {rule.name: rule for rule in sorted(rules, key=lambda rule: rule.code)}


# Group -> its rules by name. A profile names groups, so that a new rule of a group holds for it at once.
GROUPS: Mapping[str, Mapping[str, Rule]] = {
    "operators": _group(OPERATORS, RESTRICTIONS),
    "shapes": SHAPES,
    "explicit_int8": _group(EXPLICIT, PLACEMENT, FUSION),
    "precision": PRECISION,
    "cpu_int8": _group(CPU_INT8, CPU_TYPES),
    "channels": CHANNELS,
    "dla": DLA,
}

RULES: Mapping[str, Rule] = {name: rule for group in GROUPS.values() for name, rule in group.items()}
