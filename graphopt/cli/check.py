"""``graphopt check``: announced, not built yet."""

from __future__ import annotations

import click

from graphopt.cli.options import common_options
from graphopt.errors import UsageError


@click.command(context_settings={"ignore_unknown_options": True}, short_help="Static checks (not available yet).")
@click.argument("models", nargs=-1, type=click.UNPROCESSED)
@common_options
def check(models: tuple[str, ...]) -> None:
    """Fast static checks and budgets, for pre-commit and CI. Not available yet.

    \b
    Example:
      graphopt check model.onnx
    """  # noqa: D301
    raise UsageError("'check' is not available yet; 'graphopt inspect MODEL' shows a model's figures")
