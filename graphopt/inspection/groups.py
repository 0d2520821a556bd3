"""The groups of channels of a model as a person and as a program reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.channels import Dependencies, Group

# Rows that a person reads; JSON has all.
MOST_FIXED = 20


def groups_as_json(dependencies: Dependencies) -> dict[str, Any]:
    """Return all groups, what is fixed and what must stay balanced as plain JSON values."""
    return {
        "share": {name: round(share, 6) for name, share in dependencies.share.items()},
        "groups": [_group(group) for group in dependencies.groups],
        "balances": [
            {
                "node": balance.node,
                "side": balance.side,
                "blocks": [{str(number): counts.tolist() for number, counts in block.items()} for block in
                           balance.blocks],
            }
            for balance in dependencies.balances
        ],
        "fixed": [
            {
                "node": fixed.node,
                "parameter": fixed.parameter,
                "axis": fixed.axis,
                "channels": len(fixed.indices),
                "reason": fixed.reason,
            }
            for fixed in dependencies.fixed
        ],
    }  # fmt: skip


def _group(group: Group) -> dict[str, Any]:
    return {
        "number": group.number,
        "name": group.name,
        "channels": group.size,
        "keep": group.keep,
        "parameters_per_channel": group.parameters,
        "writers": list(group.writers),
        "readers": list(group.readers),
        "members": [
            {
                "node": member.node,
                "operator": member.operator,
                "input": member.input,
                "parameter": member.parameter,
                "axis": member.axis,
                "role": member.role,
                "indices": member.indices.tolist(),
            }
            for member in group.members
        ],
        "tensors": [
            {"tensor": found.tensor, "axis": found.axis, "indices": found.indices.tolist()} for found in group.tensors
        ],
    }


def group_rows(dependencies: Dependencies) -> list[tuple[str, ...]]:
    """One row a group: the layers that write it, channels, parameters a channel, and the layers that read it."""
    balanced = {number for one in dependencies.balances for block in one.blocks for number in block}
    return [
        (
            group.name,
            str(group.size),
            f"{group.parameters:,}",
            _layers(group.readers),
            "in equal parts" if group.number in balanced else "",
        )
        for group in dependencies.groups
    ]


def fixed_rows(dependencies: Dependencies) -> list[tuple[str, ...]]:
    """One row for each layer with channels that cannot be cut, and why."""
    rows: list[tuple[str, ...]] = [(fixed.node, str(len(fixed.indices)), fixed.reason) for fixed in dependencies.fixed]
    more = len(rows) - MOST_FIXED
    return rows[:MOST_FIXED] + ([(f"{more} more", "", "--json lists them")] if more > 0 else [])


def _layers(names: Sequence[str]) -> str:
    if len(names) <= 2:
        return ", ".join(names) or "-"
    return f"{names[0]} and {len(names) - 1} more"
