"""All rules, and the groups that profiles name them by."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.rules.channels import CHANNELS
from graphopt.rules.cpu import CPU_INT8
from graphopt.rules.dla import DLA
from graphopt.rules.explicit import EXPLICIT
from graphopt.rules.operators import OPERATORS
from graphopt.rules.placement import PLACEMENT
from graphopt.rules.precision import PRECISION
from graphopt.rules.rule import Rule
from graphopt.rules.shapes import SHAPES

# Group -> its rules by name. A profile names groups, so that a new rule of a group holds for it at once.
GROUPS: Mapping[str, Mapping[str, Rule]] = {
    "operators": OPERATORS,
    "shapes": SHAPES,
    "explicit_int8": {**EXPLICIT, **PLACEMENT},
    "precision": PRECISION,
    "cpu_int8": CPU_INT8,
    "channels": CHANNELS,
    "dla": DLA,
}

RULES: Mapping[str, Rule] = {name: rule for group in GROUPS.values() for name, rule in group.items()}
