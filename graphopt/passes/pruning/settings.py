"""How to prune, every choice made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from graphopt.passes.pruning.importance import Criterion
from graphopt.passes.pruning.plan import Price, Scope

Recovery: TypeAlias = Literal["refit", "data_free", "none"]


@dataclass(frozen=True)
class Settings:
    """How to prune; see ``PruneFilters``."""

    criterion: Criterion
    recovery: Recovery
    scope: Scope
    price: Price
    samples: int
    steps: int
    multiple: int
    exclude: frozenset[str]
