"""Options that several commands share, and the functions that parse their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from graphopt.cli.terminal import Terminal

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9,
          "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip


class Finite(click.FloatRange):
    """A number in a range. A plain range lets nan through, which is above nothing and below nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or fail where it is none or infinite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def parse_shapes(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``NAME:1,3,224,224`` as name -> sizes; the name may hold colons."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition(":")
        if not name or not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", sizes):
            raise click.BadParameter(f"{value!r} is not of the form NAME:1,3,224,224 with sizes of at least 1")
        shapes[name] = tuple(int(size) for size in sizes.split(","))
    return shapes


def parse_pass_options(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """``PASS.KEY=VALUE`` as dotted name -> text."""
    options = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not re.fullmatch(r"\w+\.\w+", key):
            raise click.BadParameter(f"{value!r} is not of the form PASS.KEY=VALUE")
        options[key] = text
    return options


def parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """``500000``, ``4MB`` (decimal) or ``4MiB`` (binary) as bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", value)
    if not match or match[2].lower() not in _UNITS:
        raise click.BadParameter(f"{value!r} is not a size such as 500000, 4MB or 4MiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """``a,b,c`` as a tuple."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if "" in names:
        raise click.BadParameter(f"{value!r} has an empty name")
    return names


def _set(attribute: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.find_object(Terminal), attribute, True)

    return callback


def common_options(command: Command) -> Command:
    """Add ``-q``, ``-v`` and ``--traceback``."""
    for flags, attribute, text in (
        (("--traceback",), "traceback", "On an error, show where in graphopt it was raised."),
        (("-v", "--verbose"), "verbose", "Also show each step and what the libraries warn of."),
        (("-q", "--quiet"), "quiet", "Show errors and what was asked for, nothing else."),
    ):
        add = click.option(*flags, is_flag=True, expose_value=False, is_eager=True, callback=_set(attribute), help=text)
        command = add(command)
    return command


def data_option(text: str) -> Callable[[Command], Command]:
    """``-d/--data`` with what the command does with it."""
    return click.option("-d", "--data", metavar="SOURCE", help=f"{text} {SOURCE}")


def gate_options(command: Command) -> Command:
    """Add ``--max-drop``, ``--min-speedup``, ``--max-size`` and ``--max-macs``."""
    add_macs = click.option(
        "--max-macs", type=Finite(0.0, 1.0), help="Most multiply-adds, as a share of the original's: 0.5."
    )
    add_size = click.option("--max-size", metavar="SIZE", callback=parse_size, help="Most bytes, e.g. 4MB or 4MiB.")
    add_speedup = click.option(
        "--min-speedup",
        type=Finite(min=0.0),
        default=1.0,
        show_default=True,
        help="Least that it must be faster.",
    )
    add_drop = click.option(
        "--max-drop",
        type=Finite(0.0, 1.0),
        default=0.01,
        show_default=True,
        help="Most that the metric may fall, on its scale from 0 to 1.",
    )
    return add_drop(add_speedup(add_size(add_macs(command))))


def providers_option(default: str | None, shown: str) -> Callable[[Command], Command]:
    """``--providers``; ``default`` as text, ``shown`` how the help names it."""
    return click.option(
        "--providers",
        metavar="A,B",
        default=default,
        callback=parse_names,
        help=f"ONNX Runtime execution providers, the preferred first. [default: {shown}]",
    )


SOURCE = (
    "SOURCE is FILE.npz (one array per input, 'labels' optional), a folder of .npy or .npz files, a folder of images "
    "in class folders, an ONNX test data directory, or MODULE:FUNCTION."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")
input_shape_option = click.option(
    "--input-shape",
    "input_shapes",
    metavar="NAME:1,3,224,224",
    multiple=True,
    callback=parse_shapes,
    help="Shape of a dynamic input. Repeatable.",
)
metric_option = click.option(
    "--metric",
    metavar="NAME|MODULE:FUNCTION",
    default="auto",
    show_default=True,
    help="auto (top1 with labels, else agreement or cosine), top1, top5, agreement, cosine, or a function of yours.",
)
preprocess_option = click.option(
    "--preprocess", metavar="FILE.toml", help="How images become inputs: size, mean, std, layout, colour order."
)
measuring_providers_option = providers_option("CPUExecutionProvider", "CPUExecutionProvider")
seconds_option = click.option(
    "--seconds",
    type=Finite(min=0.1),
    default=5.0,
    show_default=True,
    help="Most time to measure latency for.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads that latency is measured with."
)
model_argument = click.argument("model", type=click.Path())
