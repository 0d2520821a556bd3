"""How to separate a model's convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from graphopt.passes.separable.factors import Form

LayoutOption: TypeAlias = Literal["auto", "sum", "concat", "multiplier"]


@dataclass(frozen=True)
class Settings:
    """See ``SeparateConvolutions``."""

    rank: int
    forms: tuple[Form, ...]
    layout: LayoutOption
    samples: int
    exclude: frozenset[str]
