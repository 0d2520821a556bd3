"""Reads a target profile from TOML, strictly: a key that means nothing is an error, never ignored.

The form is that of ``cpu.toml`` in this folder. A profile may begin with ``inherits = "cpu"``; it then needs to state
only what differs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError
from graphopt.targets.detect import this_cpu
from graphopt.targets.schema import Hardware, Int8Rules, Target

Table = dict[str, Any]

TOP = ("name", "summary", "inherits", "recipe", "hardware")
HARDWARE = ("runtime", "providers", "opset", "precisions", "channel_multiple", "int8")
INT8 = ("activation_dtype", "weight_bits", "per_channel", "quantize_bias")


class _Profile:
    """One TOML file while it is read: checks types and names file, line and key in every complaint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8")
            self.table: Table = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path}: not valid TOML: {error}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not a text file in UTF-8") from error
        except OSError as error:
            raise UsageError(f"{path}: the target profile cannot be read: {error.strerror}") from error
        self.check(self.table, TOP, "")
        self.check(self.section("hardware"), HARDWARE, "hardware")
        self.check(self.section("hardware", "int8"), INT8, "hardware.int8")

    def section(self, *names: str) -> Table:
        """Return a nested table, empty where it is absent."""
        table: Any = self.table
        for depth, name in enumerate(names):
            table = table.get(name, {})
            if not isinstance(table, dict):
                raise self.error(".".join(names[: depth + 1]), "must be a table")
        return table  # type: ignore[no-any-return]

    def check(self, table: Table, known: tuple[str, ...], where: str) -> None:
        """Refuse a key that is not in ``known``."""
        for key in table:
            if key not in known:
                dotted = f"{where}.{key}" if where else key
                raise self.error(dotted, f"is not known; known here: {', '.join(known)}")

    def line(self, dotted: str) -> int | None:
        """Return the line that sets ``dotted``, or None where it is written in an inline form."""
        table, wanted = "", dotted
        for number, text in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[\s*([\w.\- \"']+?)\s*\]", text):
                table = re.sub(r"[\s\"']", "", header[1])
                if table == wanted:
                    return number
            elif pair := re.match(r"\s*([\w.\-\"' ]+?)\s*=", text):
                key = re.sub(r"[\s\"']", "", pair[1])
                if (f"{table}.{key}" if table else key) == wanted:
                    return number
        return None

    def error(self, dotted: str, problem: str) -> UsageError:
        """Return the error to raise for one key."""
        line = self.line(dotted)
        return UsageError(f"{self.path}{f', line {line}' if line else ''}: '{dotted}' {problem}")


def read_profile(path: Path, parents: Callable[[str], Path]) -> Target:
    """Read one profile.

    Args:
        path: the TOML file.
        parents: gives the file of a target by its name, for ``inherits``.

    Raises:
        UsageError: the file cannot be read, a key is unknown, missing or of the wrong type.
    """
    profile = _Profile(path)
    values: Table = profile.table
    if "inherits" in values:
        parent = values["inherits"]
        if not isinstance(parent, str):
            raise profile.error("inherits", "must be the name of a target")
        values = _merged(_Profile(parents(parent)).table, values)
        values.setdefault("name", path.stem)
    return _target(profile, values)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> Table:
    """Lay ``change`` over ``base``, tables key by key."""
    merged = dict(base)
    for key, value in change.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _target(profile: _Profile, values: Table) -> Target:
    hardware = values.get("hardware", {})

    def text(table: Table, key: str, dotted: str) -> str:
        if not isinstance(table.get(key), str) or not table[key]:
            raise profile.error(dotted, "must be given, as a text" if key not in table else "must be a text")
        return str(table[key])

    def texts(table: Table, key: str, dotted: str) -> tuple[str, ...]:
        value = table.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise profile.error(dotted, "must be given, as a list of texts")
        return tuple(value)

    opset = hardware.get("opset")
    if not isinstance(opset, list) or len(opset) != 2 or not all(_whole(version) for version in opset):
        raise profile.error("hardware.opset", "must be [lowest, highest]")
    multiples = hardware.get("channel_multiple", {})
    if not isinstance(multiples, dict) or not all(_whole(value) for value in multiples.values()):
        raise profile.error("hardware.channel_multiple", "must be a table of whole numbers")
    name = text(values, "name", "name")
    return Target(
        name=name,
        summary=text(values, "summary", "summary"),
        recipe=texts(values, "recipe", "recipe"),
        hardware=Hardware(
            name=name,
            runtime=text(hardware, "runtime", "hardware.runtime"),
            providers=texts(hardware, "providers", "hardware.providers"),
            opset=(opset[0], opset[1]),
            precisions=texts(hardware, "precisions", "hardware.precisions"),
            channel_multiple=dict(multiples),
            int8=_int8(profile, hardware["int8"]) if "int8" in hardware else None,
        ),
    )


def _int8(profile: _Profile, table: Table) -> Int8Rules:
    activations = table.get("activation_dtype", "uint8")
    if activations not in ("uint8", "int8"):
        raise profile.error("hardware.int8.activation_dtype", "must be 'uint8' or 'int8'")
    bits = table.get("weight_bits", "auto")
    if bits not in (7, 8, "auto"):
        raise profile.error("hardware.int8.weight_bits", "must be 7, 8 or 'auto' (this machine's CPU decides)")
    for key in ("per_channel", "quantize_bias"):
        if not isinstance(table.get(key, True), bool):
            raise profile.error(f"hardware.int8.{key}", "must be true or false")
    return Int8Rules(
        activation_dtype=activations,
        weight_bits=this_cpu().weight_bits if bits == "auto" else bits,
        per_channel=table.get("per_channel", True),
        quantize_bias=table.get("quantize_bias", True),
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
