"""``graphopt compare``."""

from __future__ import annotations

import json
from typing import Any

import click

from graphopt.cli.options import (
    common_options,
    data_option,
    gate_options,
    input_shape_option,
    json_option,
    measuring_providers_option,
    metric_option,
    preprocess_option,
    seconds_option,
    seed_option,
    threads_option,
)
from graphopt.cli.terminal import Terminal


@click.command(short_help="Compare accuracy and latency of two models.")
@click.argument("baseline", type=click.Path())
@click.argument("candidate", type=click.Path())
@data_option("Samples to judge accuracy on, all of them. Without, only latency is compared.")
@preprocess_option
@gate_options
@metric_option
@input_shape_option
@measuring_providers_option
@threads_option
@seconds_option
@seed_option
@json_option
@common_options
@click.pass_obj
def compare(
    terminal: Terminal,
    /,
    *,
    baseline: str,
    candidate: str,
    max_drop: float,
    min_speedup: float,
    max_size: int | None,
    max_macs: float | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compare the accuracy and latency of CANDIDATE with those of BASELINE. Exit code 1 where a gate does not hold.

    \b
    Example:
      graphopt compare model.onnx model.cpu.onnx --data samples.npz --max-drop 0.005 --min-speedup 2
    """  # noqa: D301
    from graphopt.comparison import compare as compare_models
    from graphopt.validation import Gates

    gates = Gates(max_drop, min_speedup, max_size, max_macs)
    with terminal.progress() as progress:
        found = compare_models(baseline, candidate, gates=gates, progress=progress, **settings)
    terminal.result(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else str(found))
    if not found.passed:
        raise click.exceptions.Exit(1)
