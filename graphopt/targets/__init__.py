"""Targets: devices, the facts about them, and the order of passes that serves each.

A profile is a TOML file in ``profiles``; ours and a user's have the same form (docs/targets.md). Those in
``profiles/bases`` are no targets: they state once what several have in common.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from graphopt.errors import UsageError
from graphopt.targets.detect import cpu_description, usable_cores
from graphopt.targets.inheritance import split_selectors
from graphopt.targets.profile import read_profile
from graphopt.targets.schema import Device, Hardware, Int8Rules, PowerMode, RuntimeModel, Target
from graphopt.targets.source import read_source

# The targets by name, families first; each has a file of its name in ``profiles``.
TARGETS: tuple[str, ...] = (
    "cpu",
    "cpu-avx2",
    "cpu-avx512",
    "cpu-vnni",
    "cpu-arm64",
    "gpu",
    "gpu-cuda",
    "titan-xp",
    "t4",
    "a10",
    "l4",
    "rtx4090",
    "a100",
    "h100",
    "jetson",
    "jetson-nano",
    "jetson-tx1",
    "jetson-tx2",
    "jetson-xavier-nx",
    "jetson-xavier-nx-dla",
    "jetson-agx-xavier",
    "jetson-agx-xavier-dla",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-orin-nx-dla",
    "jetson-agx-orin",
    "jetson-agx-orin-dla",
    "jetson-thor",
)

_PROFILES = Path(__file__).parent / "profiles"


def profile_path(name: str) -> Path:
    """Return the TOML file of the target ``name``.

    Raises:
        UsageError: there is no target of this name.
    """
    if name in TARGETS:
        return _PROFILES / f"{name}.toml"
    close = [one for one in TARGETS if name and one.startswith(name)] or difflib.get_close_matches(name, TARGETS, n=3)
    hint = f" Did you mean {' or '.join(close[:4])}?" if close else ""
    raise UsageError(f"unknown target '{name}'.{hint} Available: {', '.join(TARGETS)}; or give a profile as FILE.toml.")


def load_target(name: str | os.PathLike[str] | Target) -> Target:
    """Return the target called ``name``, or read it from a TOML file.

    Args:
        name: a name of ``TARGETS`` or a path that ends in ``.toml``, each with ``@`` and a release, a power mode or
            both (``jetson-agx-orin@5.1,30W``) where another than the profile's is wanted; or a target, which is
            returned as it is.

    Raises:
        UsageError: unknown name, release or power mode; unreadable or wrong profile.
    """
    if isinstance(name, Target):
        return name
    text, selectors = split_selectors(os.fspath(name))
    path = Path(text) if text.endswith(".toml") else profile_path(text)
    return read_profile(path, _named, selectors)


def target_summaries() -> dict[str, str]:
    """Return one line for each target; reads no more than it must."""
    return {name: str(read_source(_PROFILES / f"{name}.toml").table["summary"]) for name in TARGETS}


def _named(name: str) -> Path:
    """The file of what a profile inherits from: a target or a base."""
    base = _PROFILES / "bases" / f"{name}.toml"
    return base if base.name in os.listdir(base.parent) else profile_path(name)


__all__ = [
    "TARGETS",
    "Device",
    "Hardware",
    "Int8Rules",
    "PowerMode",
    "RuntimeModel",
    "Target",
    "cpu_description",
    "load_target",
    "profile_path",
    "target_summaries",
    "usable_cores",
]
