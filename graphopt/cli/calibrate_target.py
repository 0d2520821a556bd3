"""``graphopt calibrate-target``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.options import common_options, input_shape_option, json_option
from graphopt.cli.terminal import Terminal

if TYPE_CHECKING:
    from graphopt.measured import Refit

SCHEMA = "graphopt.calibrate-target/1"


@click.command(name="calibrate-target", short_help="Refit a target's latency model to measurements on the device.")
@click.argument("target", metavar="TARGET")
@click.argument("table", metavar="MEASURED.csv", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, metavar="FILE.toml", type=click.Path(dir_okay=False, path_type=Path),
    help="The profile to write; it inherits everything else from TARGET.",
)  # fmt: skip
@click.option(
    "--models", type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder with the models, where they lie elsewhere than when measured; weights may be absent.",
)  # fmt: skip
@click.option("--runtime", default=None, help="Runtime of TARGET that was measured. [default: as the CSV says]")
@input_shape_option
@json_option
@common_options
@click.pass_obj
def calibrate_target(
    terminal: Terminal,
    /,
    *,
    target: str,
    table: Path,
    output: Path,
    models: Path | None,
    runtime: str | None,
    input_shapes: dict[str, tuple[int, ...]],
    as_json: bool,
) -> None:
    """Refit the latency model of TARGET to a few nets that were measured on the device.

    MEASURED.csv is what 'graphopt bench --csv' wrote there; of other tools' files only the columns model, batch and
    median_ms are needed (milliseconds of a call, for the whole batch). Measure at least one net for each kind of layer
    that matters. The error after refitting is told for each net by constants that were fitted without it.

    \b
    Example:
      graphopt calibrate-target jetson-orin-nano measured.csv -o my-orin.toml
    """  # noqa: D301
    from graphopt.measured import as_toml, choose_runtime, find_models, read_measurements, refit_target
    from graphopt.targets import load_target

    _check_output(output, target, table)
    profile = load_target(target)
    rows = read_measurements(table)
    chosen = choose_runtime(rows, profile.hardware, runtime)
    fitting = [row for row in rows if row.runtime in ("", chosen)] if runtime is None else rows
    measured, warnings = find_models(fitting, table, models, input_shapes)
    with terminal.progress() as progress:
        found = refit_target(profile, measured, chosen, progress=progress)
    _write(output, as_toml(found, _inherited(target, output), table))
    for warning in (*warnings, *found.warnings):
        terminal.note(f"warning: {warning}")
    terminal.result(json.dumps(_as_dict(found, warnings), indent=2) if as_json else _as_text(found))
    terminal.note(f"wrote {output}; use it with --target {output}")


def _check_output(output: Path, target: str, table: Path) -> None:
    """Refuse to write where a profile would not be found, or over what it is made from."""
    from graphopt.cli.output import check_outputs
    from graphopt.errors import UsageError
    from graphopt.targets.inheritance import split_selectors

    if output.suffix != ".toml":
        raise UsageError(f"{output}: a profile's name ends in .toml, by which --target knows it")
    parent = split_selectors(target)[0]
    check_outputs([table, *([Path(parent)] if parent.endswith(".toml") else [])], output, [])


def _inherited(target: str, output: Path) -> str:
    """How the profile names its parent: a profile's path is relative to the file that inherits from it."""
    from graphopt.targets.inheritance import split_selectors

    name, selectors = split_selectors(target)
    if not name.endswith(".toml"):
        return target
    suffix = f"@{','.join(selectors)}" if selectors else ""
    relative = os.path.relpath(Path(name).resolve(), output.resolve().parent)
    return f"{Path(relative).as_posix()}{suffix}"


def _write(output: Path, text: str) -> None:
    from graphopt.errors import OutputError
    from graphopt.model.transaction import Transaction

    try:
        with Transaction() as transaction:
            transaction.write(output, [text.encode()])
            transaction.commit()
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from error


def _as_dict(found: Refit, warnings: tuple[str, ...]) -> dict[str, Any]:
    from graphopt.report.schema import plain

    return {
        "schema": SCHEMA,
        "target": found.target,
        "runtime": found.runtime,
        "constants": dict(found.constants),
        "error": {which: found.error(which) for which in ("before", "after", "left_out")},
        "measurements": [plain(one) for one in found.predictions],
        "warnings": [*warnings, *found.warnings],
    }


def _as_text(found: Refit) -> str:
    header = ("net", "batch", "measured ms", "before", "refitted", "left out")
    rows: list[tuple[str, ...]] = [header]
    for one in found.predictions:
        shown = [_off(value, one.measured) for value in (one.before, one.after, one.left_out)]
        rows.append((one.net, str(one.batch), f"{one.measured:.3f}", *shown))
    errors = [found.error(which) for which in ("before", "after", "left_out")]
    rows.append(("mean error", "", "", *(f"{100 * error:.1f} %" if error is not None else "-" for error in errors)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) if column else cell.ljust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )  # fmt: skip


def _off(value: float | None, measured: float) -> str:
    return "-" if value is None else f"{value:.3f} ({100 * (value / measured - 1):+.0f} %)"
