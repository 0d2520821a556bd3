"""Reads a target profile: TOML files laid over each other, a release and a power mode chosen.

The form is that of the files in ``profiles``; ``docs/targets.md`` explains it. What a later file states wins over what
it inherits. A release (JetPack, or a version of TensorRT) holds statements about the hardware that are laid over those
of the file that they stand in; what a version of the runtime implies (``versions``) lies beneath everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError
from graphopt.targets.detect import this_cpu
from graphopt.targets.inheritance import Layer, layers, merged
from graphopt.targets.schema import Device, Hardware, Int8Rules, PowerMode, RuntimeModel, Target
from graphopt.targets.source import Source, Table

# Keys that are laid over each other with care for releases and versions, or hold for their own file alone.
_LAID = ("name", "inherits", "hardware", "versions", "releases")


def read_profile(path: Path, parents: Callable[[str], Path], selectors: Sequence[str] = ()) -> Target:
    """Read one profile.

    Args:
        path: the TOML file.
        parents: gives the file of a profile by its name, for ``inherits``.
        selectors: names of a release and of a power mode, in any order; by default those that the profile names.

    Raises:
        UsageError: a file cannot be read, a key is unknown, missing or of the wrong type, profiles inherit in a ring,
            or a selector is unknown.
    """
    found = layers(path, parents)
    own = found[-1].source
    top: Table = {}
    for layer in found:
        top = merged(top, {key: value for key, value in layer.source.table.items() if key not in _LAID})
    releases = _releases(found, top, own)
    asked = _asked(found, selectors)
    release = _release(asked, releases, own)
    hardware = _hardware(found, release, own)
    mode = _power_mode(asked, releases, hardware, own)
    name = "@".join([own.table.get("name", path.stem), *([",".join(selectors)] if selectors else [])])
    recipe = tuple(_needed(own, top, ("recipe",)))
    for key in top.get("options", {}):
        if key not in recipe:
            raise own.error(("options", key), "is for a pass that the recipe has not")
    return Target(
        name=name,
        summary=_needed(own, top, ("summary",)),
        recipe=recipe,
        hardware=_build(own, hardware, name, release, mode),
        options={f"{of}.{key}": value for of, table in top.get("options", {}).items() for key, value in table.items()},
        releases={key: _note(table) for key, table in releases.items()},
    )


def _releases(found: Sequence[Layer], top: Table, own: Source) -> dict[str, Table]:
    """The releases that the profile offers, in its order."""
    known: Table = {}
    for layer in found:
        known = merged(known, layer.source.table.get("releases", {}))
    offered = top.get("offered_releases", list(known))
    for one in offered:
        if one not in known:
            raise own.error(("offered_releases",), f"names the release '{one}'; known here: {', '.join(known)}")
    return {one: known[one] for one in offered}


@dataclass(frozen=True)
class _Asked:
    """A release or power mode that somebody asks for: the command line, ``inherits``, or a key of a profile."""

    name: str
    key: str
    source: Source


def _asked(found: Sequence[Layer], selectors: Sequence[str]) -> list[_Asked]:
    """Everything asked for; what comes later wins."""
    asked: list[_Asked] = []
    for layer in found:
        asked.extend(_Asked(one, "inherits", layer.source) for one in layer.selected)
        table = layer.source.table
        asked.extend(_Asked(table[key], key, layer.source) for key in ("release", "power_mode") if key in table)
    return [*asked, *(_Asked(one, "", found[-1].source) for one in selectors)]


def _aliases(releases: Mapping[str, Table]) -> dict[str, str]:
    return {alias: name for name, table in releases.items() for alias in (name, *table.get("also", ()))}


def _release(asked: Sequence[_Asked], releases: Mapping[str, Table], own: Source) -> str:
    """The release that is asked for last; empty where there is none."""
    aliases = _aliases(releases)
    chosen = [one for one in asked if one.name in aliases and one.key != "power_mode"]
    _one_only(chosen, own, "releases")
    for one in [one for one in asked if one.key == "release"][-1:]:
        if one.name not in aliases:
            raise one.source.error(("release",), f"is '{one.name}'; known here: {', '.join(aliases) or 'none'}")
    return aliases[chosen[-1].name] if chosen else ""


def _power_mode(asked: Sequence[_Asked], releases: Mapping[str, Table], hardware: Table, own: Source) -> str:
    """The power mode that is asked for last; empty where there is none."""
    modes = hardware.get("device", {}).get("power_modes", {})
    aliases = _aliases(releases)
    chosen = [one for one in asked if one.key != "release" and (one.name not in aliases or one.key == "power_mode")]
    _one_only(chosen, own, "power modes")
    overruled = [one for one in chosen if one.key == "power_mode"][:-1]
    for one in chosen:
        if one in overruled:
            continue
        if one.name not in modes:
            there = f"Releases: {', '.join(aliases) or 'none'}. Power modes: {', '.join(modes) or 'none'}."
            if one.key:
                raise one.source.error((one.key,), f"names '{one.name}', which is not there. {there}")
            raise UsageError(f"target '{own.path.stem}' has no release and no power mode '{one.name}'. {there}")
    return chosen[-1].name if chosen else ""


def _one_only(chosen: Sequence[_Asked], own: Source, kind: str) -> None:
    typed = [one.name for one in chosen if not one.key]
    if len(typed) > 1:
        raise UsageError(f"target '{own.path.stem}': {' and '.join(typed)} are both {kind}; name one")


def _hardware(found: Sequence[Layer], release: str, own: Source) -> Table:
    """Everything stated about the hardware, the release's facts laid over those of the file that they stand in."""
    stated: Table = {}
    versions: Table = {}
    for layer in found:
        table = layer.source.table
        chosen = table.get("releases", {}).get(release, {})
        stated = merged(stated, table.get("hardware", {}))
        stated = merged(stated, {key: value for key, value in chosen.items() if key not in {"note", "also"}})
        versions = merged(versions, table.get("versions", {}))
    implied = _implied(versions.get(stated.get("runtime", ""), {}), stated.get("runtime_version", ""), own)
    lacking = {key: sorted({*stated.get(key, ()), *implied[key]}) for key in _ADDED if key in implied}
    return merged(merged(implied, stated), lacking)


# What a version lacks is added to what every version lacks.
_ADDED = ("refused_operators", "written_out")


def _implied(versions: Mapping[str, Table], wanted: str, own: Source) -> Table:
    """What the runtime's version implies: the newest of ``versions`` that is not above it."""
    fitting = [one for one in versions if _number(one) <= _number(wanted)]
    if versions and wanted and not fitting:
        oldest = min(versions, key=_number)
        raise own.error(("hardware", "runtime_version"), f"is {wanted}; the oldest that is known is {oldest}")
    return versions[max(fitting, key=_number)] if wanted and fitting else {}


def _number(version: str) -> tuple[int, ...]:
    """Turn ``8.5.2`` into (8, 5, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _needed(own: Source, table: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return a value that must be stated."""
    if keys[-1] not in table:
        raise own.error(keys, "must be given")
    return table[keys[-1]]


def _note(release: Table) -> str:
    also = f" (also {', '.join(release['also'])})" if release.get("also") else ""
    return f"{release.get('note', '')}{also}".strip()


def _build(own: Source, table: Table, name: str, release: str, power_mode: str) -> Hardware:
    given: Table = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    for key in ("runtime", "providers", "opset", "precisions"):
        _needed(own, table, ("hardware", key))
    low, high = given["opset"]
    if not low <= (written := given.get("write_opset") or low) <= high:
        raise own.error(("hardware", "write_opset"), f"is {written}, outside the opset {low} to {high}")
    refusal = given.get("int8_refusal", "")
    given["int8"] = _int8(given["int8"]) if "int8" in given and not refusal else None
    given["device"] = _device(own, given["device"], power_mode) if "device" in given else None
    given["runtimes"] = _runtimes(
        own, given.get("runtimes", {}), given.pop("latency", {}), given.pop("default_runtime", "")
    )
    return Hardware(**{**given, "name": name, "release": release})


def _int8(table: Table) -> Int8Rules:
    bits = table.get("weight_bits", "auto")
    stated: Table = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Int8Rules(**{**stated, "weight_bits": this_cpu().weight_bits if bits == "auto" else bits})


def _device(own: Source, table: Table, power_mode: str) -> Device:
    for item in fields(Device):
        if item.name not in {"power_modes", "power_mode", "unverified"}:
            _needed(own, table, ("hardware", "device", item.name))
    modes = {
        key: PowerMode(
            _needed(own, mode, ("hardware", "device", "power_modes", key, "clock")), mode.get("bandwidth", 1)
        )
        for key, mode in table.get("power_modes", {}).items()
    }
    doubtful = tuple(table.get("unverified", ()))
    for one in doubtful:
        figure, _, inner = one.partition(".")
        if figure not in table or (inner and (not isinstance(table[figure], dict) or inner not in table[figure])):
            raise own.error(("hardware", "device", "unverified"), f"names '{one}', which is not among the figures")
    device = Device(**{**table, "power_modes": modes, "unverified": doubtful})
    if not power_mode:
        return device
    chosen = modes[power_mode]
    return replace(
        device,
        peak_tops={precision: peak * chosen.clock for precision, peak in device.peak_tops.items()},
        bandwidth_gb_s=device.bandwidth_gb_s * chosen.bandwidth,
        power_mode=power_mode,
    )


def _runtimes(own: Source, table: Table, latency: Table, default: str) -> tuple[RuntimeModel, ...]:
    """The runtimes in their order, the default first."""
    for key, name in (*((("latency", name), name) for name in latency), (("default_runtime",), default)):
        if name and name not in table:
            raise own.error(("hardware", *key), f"names '{name}', which is no runtime; known: {', '.join(table)}")
    for name, stated in table.items():
        for fact in ("fused", "precision", "constants"):
            _needed(own, stated, ("hardware", "runtimes", name, fact))
    ordered = sorted(table, key=lambda name: name != default)
    return tuple(RuntimeModel(name, **table[name], latency=_dotted(latency.get(name, {}))) for name in ordered)


def _dotted(table: Table) -> dict[str, float]:
    """Constants by their dotted names, however they were written."""
    found: dict[str, float] = {}
    for key, value in table.items():
        found.update(
            {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
        )
    return found
