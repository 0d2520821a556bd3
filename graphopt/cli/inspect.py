"""``graphopt inspect``."""

from __future__ import annotations

import json

import click

from graphopt.cli.options import common_options, input_shape_option, json_option, model_argument, threads_option
from graphopt.cli.terminal import Terminal


@click.command(short_help="Show a model's parameters, multiply-adds, memory and layers.")
@model_argument
@click.option("-t", "--target", default="cpu", show_default=True, help="Target: passes, rules, latency.")
@click.option("--runtime", default=None, help="Runtime of the target, as 'graphopt targets NAME' lists them.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Size of dynamic first axes.")
@input_shape_option
@click.option("--top", type=click.IntRange(min=0), default=15, show_default=True, help="Layers to list; JSON has all.")
@click.option("--groups", is_flag=True, help="List the channels that must be cut together, and what cannot be cut.")
@click.option("--measure", is_flag=True, help="Time the model and its kernels on this machine (target cpu).")
@threads_option
@json_option
@common_options
@click.pass_obj
def inspect(
    terminal: Terminal,
    /,
    *,
    model: str,
    target: str,
    runtime: str | None,
    batch: int,
    input_shapes: dict[str, tuple[int, ...]],
    top: int,
    groups: bool,
    measure: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Show parameters, multiply-adds, memory, the work by kind and by layer, and what each pass could do.

    For a target with a device (graphopt targets) also the estimated latency, where it goes, what cuts, separation and
    int8 would change, and broken rules. Only the structure is read: the external weights of MODEL may be absent.

    \b
    Example:
      graphopt inspect model.onnx --target jetson-orin-nano --batch 8
    """  # noqa: D301
    from graphopt.inspection import inspect as inspect_model
    from graphopt.inspection.text import as_text

    found = inspect_model(
        model,
        target=target,
        runtime=runtime,
        batch=batch,
        input_shapes=input_shapes,
        groups=groups,
        measure=measure,
        threads=threads,
    )
    terminal.result(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else as_text(found, top))
