"""Targets: devices, the facts about them, and the order of passes that serves each.

A profile is a TOML file; ours and a user's have the same form (docs/targets.md).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from graphopt.errors import UsageError
from graphopt.targets.detect import cpu_description, usable_cores
from graphopt.targets.profile import read_profile
from graphopt.targets.schema import Hardware, Int8Rules, Target

# Name -> profile beside this file.
TARGETS: Mapping[str, str] = {"cpu": "cpu.toml"}

# Known by name, not yet built.
PLANNED = (
    "gpu",
    "gpu-tensorrt",
    "jetson",
    "jetson-agx-orin",
    "jetson-agx-xavier",
    "jetson-nano",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-thor",
    "jetson-tx1",
    "jetson-tx2",
    "jetson-xavier-nx",
    "titan-xp",
)


def profile_path(name: str) -> Path:
    """Return the TOML file of the target ``name``.

    Raises:
        UsageError: there is no target of this name, or not yet.
    """
    available = f"Available now: {', '.join(sorted(TARGETS))}; or give a profile as FILE.toml."
    if name in TARGETS:
        return Path(__file__).parent / TARGETS[name]
    if name in PLANNED or name.startswith(("gpu-", "jetson-")):
        raise UsageError(f"target '{name}' is not available yet. {available}")
    raise UsageError(f"unknown target '{name}'. {available}")


def load_target(name: str | os.PathLike[str] | Target) -> Target:
    """Return the target called ``name``, or read it from a TOML file.

    Args:
        name: a name of ``TARGETS``, a path that ends in ``.toml``, or a target, which is returned as it is.

    Raises:
        UsageError: unknown or not yet available name; unreadable or wrong profile.
    """
    if isinstance(name, Target):
        return name
    text = os.fspath(name)
    path = Path(text) if text.endswith(".toml") else profile_path(text)
    return read_profile(path, parents=profile_path)


__all__ = [
    "PLANNED",
    "TARGETS",
    "Hardware",
    "Int8Rules",
    "Target",
    "cpu_description",
    "load_target",
    "profile_path",
    "usable_cores",
]
