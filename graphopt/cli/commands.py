"""The group of all commands."""

from __future__ import annotations

import click

from graphopt._version import __version__
from graphopt.cli.bench import bench
from graphopt.cli.calibrate_target import calibrate_target
from graphopt.cli.check import check
from graphopt.cli.compare import compare
from graphopt.cli.inspect import inspect
from graphopt.cli.lists import passes, targets
from graphopt.cli.optimize import optimize

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, "-V", "--version", prog_name="graphopt")
def graphopt() -> None:
    """Make a trained ONNX model faster for a target, and prove that it still answers right.

    \b
    Example:
      graphopt optimize model.onnx --target cpu --data samples.npz

    Results go to standard output, everything else to standard error. Exit codes: 0 done and every gate held; 1 a
    gate or check failed; 2 wrong usage; 3 the model or data cannot be read, is unsafe or unsupported, or the result
    cannot be written; 4 a bug in graphopt; 130 interrupted.
    """  # noqa: D301 (\b is click's sign for text that is not to be wrapped)


for command in (optimize, inspect, compare, bench, check, passes, targets, calibrate_target):
    graphopt.add_command(command)
