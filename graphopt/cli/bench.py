"""``graphopt bench``."""

from __future__ import annotations

import json
from typing import Any

import click

from graphopt.cli.options import (
    common_options,
    data_option,
    input_shape_option,
    json_option,
    measuring_providers_option,
    model_argument,
    preprocess_option,
    seconds_option,
    seed_option,
    threads_option,
)
from graphopt.cli.terminal import Terminal


@click.command(short_help="Measure a model's latency.")
@model_argument
@data_option("Take the first sample of this data as input. [default: random numbers]")
@preprocess_option
@input_shape_option
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Size of dynamic first axes.")
@measuring_providers_option
@threads_option
@seconds_option
@seed_option
@click.option("--profile", "kernels", is_flag=True, help="Also time each kernel of ONNX Runtime's optimized graph.")
@json_option
@common_options
@click.pass_obj
def bench(terminal: Terminal, /, *, model: str, as_json: bool, **settings: Any) -> None:
    """Measure how long one call of MODEL takes in ONNX Runtime: median, 10th and 90th percentile.

    \b
    Example:
      graphopt bench model.onnx --threads 4 --profile
    """  # noqa: D301
    from graphopt.timing import bench_model

    with terminal.progress() as progress:
        found = bench_model(model, progress=progress, **settings)
    terminal.result(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else str(found))
