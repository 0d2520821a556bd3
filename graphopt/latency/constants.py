"""The constants of the latency model: names, meanings and the sets of ``constants.toml``.

A constant is a number with a dotted name; a set names only those in which it differs from ``DATASHEET``, where nothing
is slower than the peaks of the data sheet. Where several were fitted together ``docs/latency.md`` says how.
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

# Name -> (value of the data sheet, meaning).
MEANINGS: Mapping[str, tuple[float, str]] = MappingProxyType({
    "compute.winograd": (1.0, "share of peak of 3x3 convolutions of stride 1 in float32; above 1 by Winograd's trick"),
    "compute.dense_kxk": (1.0, "share of peak of other dense convolutions with a window"),
    "compute.pointwise": (1.0, "share of peak of 1x1 convolutions and large matrix products"),
    "compute.grouped": (1.0, "share of peak of grouped convolutions whose groups are wide"),
    "compute.depthwise": (1.0, "share of the float32 peak of depthwise convolutions with a large window"),
    "compute.fully_connected": (1.0, "share of peak of matrix products of few rows"),
    "memory.product": (1.0, "share of bandwidth of convolutions and matrix products"),
    "memory.fully_connected": (1.0, "share of bandwidth of matrix products of few rows"),
    "memory.few_rows": (1.0, "the same of 2 rows whose sums are very long, as the first of VGG's"),
    "memory.elementwise": (1.0, "share of bandwidth of elementwise operators and biases"),
    "memory.normalization": (1.0, "share of bandwidth of normalizations and reductions"),
    "memory.movement": (1.0, "share of bandwidth of Concat, Transpose, Pad and the like"),
    "memory.broadcast": (1.0, "share of bandwidth of elementwise operators that stretch an operand"),
    "memory.pooling": (1.0, "share of bandwidth of pooling"),
    "memory.plane_pooling": (1.0, "share of bandwidth of pooling over whole planes"),
    "cache.pooling": (1e3, "elements that pooling windows read, of 4 bytes, over the bandwidth of memory"),
    "small.product": (0.0, "outputs a multiprocessor at which a convolution takes 2.5 times the time of its work"),
    "small.depthwise": (0.0, "the same for depthwise convolutions"),
    "small.group": (0.0, "channels a group at which a grouped convolution reaches half its share"),
    "small.window": (0.0, "window at which a depthwise convolution reaches half its share"),
    "matrix.float16": (1.0, "share of peak on tensor cores in a float type, over the same kernel's on other units"),
    "matrix.int8": (1.0, "the same in int8"),
    "kernel.us": (0.0, "microseconds that any kernel takes on the device besides its work"),
    "launch.product_us": (0.0, "processor microseconds to launch a product; 0: the device's launch_us"),
    "launch.normalization": (1.0, "processor time to launch a normalization, over that of a product"),
    "launch.other": (1.0, "processor time to launch any other kernel, over that of a product"),
    "launch.bias": (1.0, "processor time to launch a convolution's bias, over that of a product"),
    "launch.view": (0.0, "processor time of an operator that only renames data, over that of a product"),
    "launch.group": (0.0, "processor time for each group of a grouped convolution, over that of a product"),
    "overlap": (8.0, "p of (device^p + processor^p)^(1/p), the time of a net: large where launches run ahead"),
    "uncertainty": (0.0, "standard deviation of the log of measured over estimated; 0: as the runtime is known"),
})  # fmt: skip

DATASHEET: Constants = MappingProxyType({name: value for name, (value, _) in MEANINGS.items()})
DATASHEET_SET = "datasheet"


@cache
def _sets() -> Mapping[str, Mapping[str, float]]:
    text = resources.files("graphopt.latency").joinpath("constants.toml").read_text(encoding="utf-8")
    read = {name: dict(_flat(table)) for name, table in tomllib.loads(text).items()}
    return {**read, DATASHEET_SET: {}}


def _flat(table: Mapping[str, object], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            pairs.append((f"{prefix}{key}", float(value)))
    return pairs


def constants(name: str, overrides: Constants | None = None) -> Constants:
    """The set of that name, completed by the data sheet's values; ``overrides`` replace single constants.

    Raises:
        UsageError: there is no such set, or an override names no constant or is no positive number.
    """
    if name not in _sets():
        raise UsageError(f"there is no set of latency constants named '{name}'; there are {', '.join(sorted(_sets()))}")
    for key, value in (overrides or {}).items():
        if key not in DATASHEET:
            raise UsageError(f"there is no latency constant named '{key}'; there are {', '.join(DATASHEET)}")
        if not 0 <= value < float("inf") or (value == 0 and DATASHEET[key] > 0):
            raise UsageError(f"the latency constant '{key}' must be a positive number, not {value}")
    return {**DATASHEET, **_sets()[name], **(overrides or {})}
