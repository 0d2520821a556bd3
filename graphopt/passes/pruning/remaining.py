"""What remains of tensors after cuts: tensor -> axis -> indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from graphopt.channels import Dependencies
from graphopt.channels.groups import Indices

Kept: TypeAlias = Mapping[str, Mapping[int, Indices]]


def composed(before: Kept, after: Kept) -> dict[str, dict[int, Indices]]:
    """What remains of the first model's tensors after two cuts, ``after`` counting in what ``before`` left."""
    result = {name: dict(axes) for name, axes in before.items()}
    for name, axes in after.items():
        mine = result.setdefault(name, {})
        for axis, indices in axes.items():
            mine[axis] = mine[axis][indices] if axis in mine else indices
    return result


def widths(dependencies: Dependencies, kept: Kept) -> dict[str, tuple[int, int]]:
    """Channels before and after of each group that lost any, by a name for each."""
    found = {}
    for group in dependencies:
        place = group.tensors[0] if group.tensors else None
        if place is None or place.axis not in kept.get(place.tensor, {}):
            continue
        remaining = np.isin(place.indices[:, 0], kept[place.tensor][place.axis])
        if not remaining.all():
            name = f"{group.name} ({group.number})" if group.name in found else group.name
            found[name] = (group.size, int(remaining.sum()))
    return found
