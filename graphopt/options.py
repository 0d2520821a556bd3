"""Builds passes from their names and from options in the form ``pass.key = value``."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union

from graphopt.errors import UsageError
from graphopt.passes.base import Pass

Registry = Mapping[str, Callable[..., Pass]]

TRUE = frozenset({"true", "yes", "on", "1"})
FALSE = frozenset({"false", "no", "off", "0"})


def chosen_names(
    recipe: Sequence[str], only: Sequence[str] | None, skip: Iterable[str], known: Iterable[str]
) -> list[str]:
    """Return the names of the passes to run.

    Args:
        recipe: the target's.
        only: run just these, in this order; None runs the recipe.
        skip: leave these out.
        known: every name there is.

    Raises:
        UsageError: a name is unknown.
    """
    known = sorted(known)
    skip = list(skip)
    for name in (*(only or ()), *skip):
        if name not in known:
            raise UsageError(f"unknown pass '{name}'; there are: {', '.join(known)}")
    for name in recipe if only is None else ():
        if name not in known:
            raise UsageError(f"the target's recipe names the unknown pass '{name}'; there are: {', '.join(known)}")
    return [name for name in (recipe if only is None else only) if name not in skip]


def build_passes(
    names: Sequence[str],
    options: Mapping[str, Any] | None,
    registry: Registry,
    given: Mapping[str, Pass] | None = None,
) -> tuple[Pass, ...]:
    """Make the passes called ``names`` with the options meant for each.

    Args:
        names: pass names, in the order they run.
        options: ``pass.key`` -> value; texts are converted to the type of the option.
        registry: name -> dataclass of the pass.
        given: passes that are there already, by name; options change a copy.

    Raises:
        UsageError: an option names no pass of the run or no option of it, or its value has the wrong type.
    """
    given = given or {}
    registry = {**registry, **{name: type(one) for name, one in given.items()}}
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for dotted, value in (options or {}).items():
        name, dot, key = dotted.partition(".")
        if not dot or name not in registry:
            raise UsageError(f"option '{dotted}': write PASS.KEY=VALUE; the passes are {', '.join(sorted(registry))}")
        if name not in names:
            raise UsageError(
                f"option '{dotted}': the pass {name} is not part of this run ({', '.join(names) or 'none'})"
            )
        chosen[name][key] = _option(registry[name], name, key, value)
    return tuple(
        dataclasses.replace(given[name], **chosen[name])  # type: ignore[type-var]
        if name in given
        else registry[name](**chosen[name])
        for name in names
    )


def describe_options(maker: Callable[..., Pass]) -> dict[str, tuple[str, Any]]:
    """Return option -> (type in words, default) of one pass."""
    hints = typing.get_type_hints(maker)
    found = {}
    for item in dataclasses.fields(maker):  # type: ignore[arg-type]
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        found[item.name] = (_in_words(hints[item.name]), default)
    return found


def _option(maker: Callable[..., Pass], name: str, key: str, value: Any) -> Any:
    hints = typing.get_type_hints(maker)
    keys = sorted(describe_options(maker))
    if key not in keys:
        has = f"it has {', '.join(keys)}" if keys else "it has no options"
        raise UsageError(f"option '{name}.{key}': the pass {name} has no option '{key}'; {has}")
    try:
        return convert(value, hints[key])
    except ValueError as error:
        raise UsageError(f"option '{name}.{key}': {value!r} is not {_in_words(hints[key])}") from error


def convert(value: Any, wanted: Any) -> Any:
    """Convert ``value`` to the annotated type ``wanted``: bool, int, float, str, Literal, unions, tuples of these.

    Raises:
        ValueError: the value does not fit.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_fit(value, arguments)
    if origin is Literal:
        for choice in arguments:
            if value == choice or str(value) == str(choice):
                return choice
        raise ValueError(value)
    if origin in (tuple, list, frozenset, set, Sequence, Iterable):
        items = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
        collection = origin if isinstance(origin, type) and origin in (list, frozenset, set) else tuple
        return collection(convert(item, arguments[0] if arguments else str) for item in items)
    return _scalar(value, wanted)


def _first_fit(value: Any, choices: Sequence[Any]) -> Any:
    if type(None) in choices and (value is None or str(value).lower() == "none"):
        return None
    # A text fits everywhere: it comes last.
    for choice in sorted((one for one in choices if one is not type(None)), key=lambda one: one is str):
        try:
            return convert(value, choice)
        except ValueError:
            continue
    raise ValueError(value)


def _scalar(value: Any, wanted: Any) -> Any:
    if wanted is bool:
        text = str(value).lower()
        if text not in TRUE | FALSE:
            raise ValueError(value)
        return text in TRUE
    if wanted in (int, float):
        if isinstance(value, bool) or (wanted is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError(value)
        return wanted(value)
    if wanted is str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value
    if isinstance(wanted, type) and isinstance(value, wanted):
        return value
    raise ValueError(value)


def _in_words(wanted: Any) -> str:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in arguments)
    if origin is Literal:
        return f"one of {', '.join(str(one) for one in arguments)}"
    if origin in (tuple, list, frozenset, set, Sequence, Iterable):
        return f"a list of {_in_words(arguments[0]) if arguments else 'texts'}, separated by commas"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    return names.get(wanted, getattr(wanted, "__name__", str(wanted)))
