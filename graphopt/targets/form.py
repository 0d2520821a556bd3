"""The form of a profile: which keys a TOML file may hold, and what each must be.

A form is a mapping from key to what its value must be: a check, or the form of a nested table. A check returns what is
wrong with a value, in words that follow the key's name, or None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[object], str | None]
Form: TypeAlias = "Mapping[str, Check | Form | Each]"


@dataclass(frozen=True)
class Each:
    """A table whose keys are free, or what ``key`` asks for, each with a value of one form."""

    value: Check | Form | Each
    key: Check | None = None


# Facts are looked up by these names: by any other, one would be stated and never found.
DATA_TYPES = ("float64", "float32", "float16", "bfloat16", "float8", "int8", "uint8", "int4")
# Beyond this a share of the clock was meant as megahertz.
_MOST_SHARE = 10


def _text(value: object) -> str | None:
    return None if isinstance(value, str) and value else "must be a text"


def _name(value: object) -> str | None:
    """It becomes a part of file names."""
    right = isinstance(value, str) and re.fullmatch(r"[\w.\-]+", value)
    return None if right else _text(value) or "must be of letters, digits, '.', '-' and '_'"


def _text_or_empty(value: object) -> str | None:
    return None if isinstance(value, str) else "must be a text"


def _texts(value: object) -> str | None:
    right = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return None if right else "must be given, as a list of texts"


def _text_or_texts(value: object) -> str | None:
    return (
        None if _text(value) is None or (_texts(value) is None and value) else "must be the name of a target, or a list"
    )


def _flag(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _whole(value: object) -> str | None:
    right = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if right else "must be a whole number above 0"


def _count(value: object) -> str | None:
    right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return None if right else "must be a whole number"


def _number(value: object) -> str | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return None if right else "must be a number above 0"


def _finite(value: object) -> str | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    return None if right else "must be a number"


def _share(value: object) -> str | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MOST_SHARE
    return None if right else "must be a share of the device's figures, such as 0.6 (no megahertz)"


def _type(value: object) -> str | None:
    return None if value in DATA_TYPES else f"must be a data type: {', '.join(DATA_TYPES)}"


def _types(value: object) -> str | None:
    wrong = next((one for one in value if _type(one)), None) if isinstance(value, list) else None
    return _texts(value) if wrong is None else f"names {wrong!r}; data types are {', '.join(DATA_TYPES)}"


def _constants(value: object) -> str | None:
    """A number, or a table of numbers: dotted names of constants may be written with and without quotes."""
    numbers = value.values() if isinstance(value, dict) else (value,)
    return "must be a number" if any(_finite(one) for one in numbers) else None


def _opset(value: object) -> str | None:
    right = isinstance(value, list) and len(value) == 2 and all(_whole(version) is None for version in value)
    return None if right and isinstance(value, list) and value[0] <= value[1] else "must be [lowest, highest]"


def _bits(value: object) -> str | None:
    right = value == "auto" or (isinstance(value, int) and value in {7, 8})
    return None if right else "must be 7, 8 or 'auto' (this machine's CPU decides)"


def _any(_: object) -> str | None:
    return None


def _one_of(*allowed: str) -> Check:
    words = " or ".join(f"'{one}'" for one in allowed)
    return lambda value: None if isinstance(value, str) and value in allowed else f"must be {words}"


INT8: Form = {
    "activation_dtype": _one_of("uint8", "int8"),
    "weight_bits": _bits,
    "per_channel": _flag,
    "quantize_bias": _flag,
    "symmetric": _flag,
    "quantized_operators": _texts,
    "quantize_outputs": _flag,
    "residual_inputs": _one_of("both", "skip"),
    "shared_concat_scale": _flag,
    "weight_nodes": _flag,
    "minimum_channels": _count,
    "group_multiple": _whole,
    "implicit": _flag,
}
POWER_MODE: Form = {"clock": _share, "bandwidth": _share}
DEVICE: Form = {
    "compute_capability": _text,
    "multiprocessors": _whole,
    "peak_tops": Each(_number, _type),
    "bandwidth_gb_s": _number,
    "memory_gb": _number,
    "launch_us": _number,
    "power_modes": Each(POWER_MODE),
    "unverified": _texts,
}
RUNTIME: Form = {"fused": _flag, "precision": _type, "constants": _text, "fitted": _flag}
HARDWARE: Form = {
    "runtime": _text,
    "default_runtime": _text,
    "runtime_version": _text,
    "providers": _texts,
    "opset": _opset,
    "write_opset": _whole,
    "precisions": _types,
    "channel_multiple": Each(_whole, _type),
    "int8": INT8,
    "int8_refusal": _text_or_empty,
    "refused_operators": _texts,
    "written_out": _texts,
    "strongly_typed": _flag,
    "dynamic_shapes": _one_of("any", "profiles", "fixed"),
    "accelerator": _one_of("", "dla"),
    "rules": _texts,
    "device": DEVICE,
    "runtimes": Each(RUNTIME),
    "latency": Each(Each(_constants)),
}
PROFILE: Form = {
    "name": _name,
    "summary": _text,
    "inherits": _text_or_texts,
    "recipe": _texts,
    "options": Each(Each(_any)),
    "hardware": HARDWARE,
    "versions": Each(Each(HARDWARE)),
    "releases": Each({"note": _text, "also": _texts, **HARDWARE}),
    "offered_releases": _texts,
    "release": _text,
    "power_mode": _text,
}


def problems(
    value: object, form: Check | Form | Each, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is wrong in a table: the path of keys to it, and the problem in words."""
    if callable(form):
        if wrong := form(value):
            yield path, wrong
        return
    if not isinstance(value, dict):
        yield path, "must be a table"
        return
    table: dict[str, Any] = value
    for key, item in table.items():
        if isinstance(form, Each):
            if form.key is not None and (wrong := form.key(key)):
                yield (*path, key), wrong
            yield from problems(item, form.value, (*path, key))
        elif key in form:
            yield from problems(item, form[key], (*path, key))
        else:
            yield (*path, key), f"is not known; known here: {', '.join(form)}"
