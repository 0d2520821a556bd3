"""The constants of the latency model: names, meanings and the fitted sets of ``constants.toml``.

A constant is a positive number with a dotted name. ``compute.KIND`` is the share of the device's peak that kernels of
that kind reach when they are large (above 1 where an algorithm saves multiplications: Winograd's for 3x3),
``memory.KIND`` the share of its bandwidth. A name that a set lacks takes the value of ``DATASHEET``: the peaks of the
data sheet, which nothing exceeds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TypeAlias

from graphopt.errors import UsageError

Constants: TypeAlias = Mapping[str, float]

DATASHEET: Constants = MappingProxyType({
    "compute.dense_3x3": 1.0,
    "compute.dense_kxk": 1.0,
    "compute.pointwise": 1.0,
    "compute.grouped": 1.0,
    "compute.depthwise": 1.0,
    "compute.fully_connected": 1.0,
    "memory.product": 1.0,
    "memory.weights": 1.0,
    "memory.elementwise": 1.0,
    "memory.normalization": 1.0,
    "memory.broadcast": 1.0,
    "memory.pooling": 1.0,
    "memory.movement": 1.0,
    "small.outputs": 0.0,
})  # fmt: skip

DATASHEET_SET = "datasheet"


@cache
def _sets() -> Mapping[str, Constants]:
    text = resources.files("graphopt.latency").joinpath("constants.toml").read_text(encoding="utf-8")
    return {
        name: {str(k): float(v) for k, v in table["constants"].items()} for name, table in tomllib.loads(text).items()
    }


def constants(name: str, overrides: Constants | None = None) -> Constants:
    """The set of that name, completed by the data sheet's; ``overrides`` replace single constants.

    Raises:
        UsageError: there is no such set, or an override names no constant.
    """
    known = _sets() if name != DATASHEET_SET else {DATASHEET_SET: DATASHEET}
    if name not in known:
        raise UsageError(f"there is no set of latency constants named '{name}'; there are {', '.join(sorted(_sets()))}")
    return {**DATASHEET, **known[name], **(overrides or {})}
