"""``graphopt bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.options import (
    common_options,
    data_option,
    input_shape_option,
    json_option,
    measuring_providers_option,
    preprocess_option,
    seconds_option,
    seed_option,
    threads_option,
)
from graphopt.cli.terminal import Terminal

if TYPE_CHECKING:
    from graphopt.measured.table import Measurement
    from graphopt.timing import Bench

# What targets call the runtime behind an execution provider of ONNX Runtime.
_RUNTIMES = {
    "CUDAExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "tensorrt",
    "TensorrtExecutionProvider": "tensorrt",
}


@click.command(short_help="Measure the latency of models.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@data_option("Take the first sample of this data as input. [default: random numbers]")
@preprocess_option
@input_shape_option
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Size of dynamic first axes.")
@measuring_providers_option
@threads_option
@seconds_option
@seed_option
@click.option("--profile", "kernels", is_flag=True, help="Also time each kernel of ONNX Runtime's optimized graph.")
@click.option(
    "--csv",
    "table",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append a row for each model to this file, which 'graphopt calibrate-target' reads.",
)
@json_option
@common_options
@click.pass_obj
def bench(
    terminal: Terminal, /, *, models: tuple[str, ...], batch: int, table: Path | None, as_json: bool, **settings: Any
) -> None:
    """Measure how long one call of each MODEL takes in ONNX Runtime: median, 10th and 90th percentile.

    With --json, several models make a list.

    \b
    Example:
      graphopt bench model.onnx --threads 4 --profile
      graphopt bench nets/*.onnx --providers TensorrtExecutionProvider --batch 8 --csv measured.csv
    """  # noqa: D301
    from graphopt.measured.table import append
    from graphopt.timing import bench_model

    done = []
    for model in models:
        with terminal.progress() as progress:
            found = bench_model(model, progress=progress, batch=batch, **settings)
        if table is not None:
            append(table, _row(found, model, batch))
        done.append(found)
        if not as_json:
            terminal.result((f"{model}\n" if len(models) > 1 else "") + str(found))
    if as_json:
        dicts = [found.to_dict() for found in done]
        terminal.result(json.dumps(dicts if len(dicts) > 1 else dicts[0], indent=2, ensure_ascii=False))


def _row(found: Bench, model: str, asked: int) -> Measurement:
    from graphopt.measured.table import Measurement

    batches = {shape[0] for shape in found.inputs.values() if shape}
    return Measurement(
        model=model,
        sha256=found.sha256,
        runtime=_RUNTIMES.get(found.provider, "onnxruntime"),
        provider=found.provider,
        batch=batches.pop() if len(batches) == 1 else asked,
        threads=found.threads,
        median_ms=found.timing.median_ms,
        p10_ms=found.timing.p10_ms,
        p90_ms=found.timing.p90_ms,
    )
