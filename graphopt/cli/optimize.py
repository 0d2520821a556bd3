"""``graphopt optimize``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.options import (
    common_options,
    data_option,
    gate_options,
    input_shape_option,
    json_option,
    metric_option,
    model_argument,
    parse_names,
    parse_pass_options,
    preprocess_option,
    providers_option,
    seed_option,
    threads_option,
)
from graphopt.cli.terminal import Terminal


@click.command(short_help="Make a model faster for a target and prove it.")
@model_argument
@click.option(
    "-t", "--target", metavar="NAME|FILE.toml", default="cpu", show_default=True, help="What to optimize for."
)
@click.option("-o", "--output", type=click.Path(), help="File to write. [default: MODEL.TARGET.onnx beside the input]")
@data_option("Samples for everything, split into disjoint parts.")
@click.option("--calibration-data", metavar="SOURCE", help="Samples for statistics and choices only.")
@click.option("--eval-data", metavar="SOURCE", help="Samples for the verdict only.")
@preprocess_option
@gate_options
@metric_option
@click.option("--passes", metavar="A,B", callback=parse_names, help="Run just these passes, in this order.")
@click.option("--skip", metavar="A,B", callback=parse_names, help="Leave these passes out.")
@click.option(
    "--option",
    "options",
    metavar="PASS.KEY=VALUE",
    multiple=True,
    callback=parse_pass_options,
    help="Set an option of a pass; 'graphopt passes --json' lists them. Repeatable.",
)
@input_shape_option
@click.option("--fix-shapes", is_flag=True, help="Write the shapes of --input-shape into the model: more folds.")
@providers_option(None, "the target's")
@threads_option
@seed_option
@click.option("--jobs", type=click.IntRange(min=1), help="Threads for what is not timed. [default: all cores]")
@click.option(
    "--report",
    "reports",
    metavar="FILE",
    type=click.Path(),
    multiple=True,
    help="Write the report as .html, .json or .md. Repeatable.",
)
@json_option
@click.option("--dry-run", is_flag=True, help="Plan and print, write nothing.")
@click.option("--keep-failed", is_flag=True, help="Write the best candidate even where a gate fails (exit code 1).")
@click.option("--allow-unvalidated", is_flag=True, help="Let approximate passes run without data to judge them by.")
@common_options
@click.pass_obj
def optimize(
    terminal: Terminal,
    /,
    *,
    model: str,
    target: str,
    output: str | None,
    reports: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    keep_failed: bool,
    **settings: Any,
) -> None:
    """Make MODEL faster for a target and prove it: apply the target's passes, judge each, write the result.

    Without data only passes that change nothing beyond rounding run. On any exit code but 0 nothing is written.

    \b
    Example:
      graphopt optimize model.onnx --data samples.npz --max-drop 0.005 --report report.html
    """  # noqa: D301
    from graphopt.cli.output import check_outputs, default_output, write_all
    from graphopt.optimize import optimize as optimize_model
    from graphopt.report import check_report_path
    from graphopt.targets import load_target

    profile = load_target(target)
    destination = Path(output) if output else default_output(Path(model), profile.name)
    files = [Path(report) for report in reports]
    for file in files:
        check_report_path(file)
    if not dry_run:
        sources = [settings[name] for name in ("data", "calibration_data", "eval_data", "preprocess")]
        check_outputs([Path(given) for given in (model, *sources) if given], destination, files)
    settings["skip"] = settings["skip"] or ()
    with terminal.progress() as progress:
        result = optimize_model(model, target=profile, dry_run=dry_run, progress=progress, **settings)
    report = result.report
    held = report.result == "ok"
    written = not dry_run and (held or keep_failed)
    if written:
        report = write_all(lambda: result.save(destination, keep_failed=keep_failed), report, files)
    if as_json:
        terminal.result(report.to_json())
    elif not terminal.quiet:
        terminal.result(str(report))
    if written:
        terminal.note(f"wrote {', '.join(str(path) for path in (destination, *files))}")
    if not held:
        terminal.error("graphopt: no candidate held the gates" + ("" if written else "; nothing was written"))
        raise click.exceptions.Exit(1)
