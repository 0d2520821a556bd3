"""``graphopt check``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from graphopt.cli.options import Finite, common_options, input_shape_option, json_option, parse_names, parse_size
from graphopt.cli.terminal import Terminal

if TYPE_CHECKING:
    from graphopt.checking import CheckResult


@click.command(short_help="Check models against rules and budgets; runs nothing.")
@click.argument("models", metavar="MODEL...", nargs=-1, type=click.Path())
@click.option("-t", "--target", metavar="NAME|FILE.toml", help="Also check the rules of this target.")
@click.option("--runtime", default=None, help="Runtime of the target that latency is estimated for.")
@click.option("--batch", type=click.IntRange(min=1), default=None, help="Size of dynamic first axes. [default: 1]")
@input_shape_option
@click.option("--max-bytes", metavar="SIZE", callback=parse_size, help="Most bytes of a model, e.g. 4MB or 4MiB.")
@click.option("--max-parameters", type=click.IntRange(min=0), help="Most parameters.")
@click.option("--max-macs", type=click.IntRange(min=0), help="Most multiply-adds.")
@click.option("--max-latency-ms", type=Finite(min=0, min_open=True), help="Most milliseconds, estimated.")
@click.option(
    "--ignore", metavar="A,B", callback=parse_names, help="Codes, beginnings of codes or names of rules to leave out."
)
@click.option("--strict", is_flag=True, help="Fail on warnings, too.")
@click.option(
    "--config", metavar="FILE.toml", help="Configuration. [default: graphopt.toml or pyproject.toml, here or above]"
)
@click.option("--no-config", is_flag=True, help="Read no configuration.")
@click.option("--explain", metavar="CODE", help="Explain a rule, and check nothing.")
@click.option("--rules", is_flag=True, help="List all rules, and check nothing.")
@json_option
@common_options
@click.pass_obj
def check(
    terminal: Terminal, /, *, models: tuple[str, ...], explain: str | None, rules: bool, as_json: bool, **settings: Any
) -> int:
    """Check MODEL files, and the .onnx files below folders, without running them; for pre-commit and CI.

    One line for each finding: 'path: CODE where: message'. The exit code is 0 where nothing fails, 1 where something
    does, 3 where a file cannot be read at all.

    \b
    Example:
      graphopt check models/*.onnx --target jetson-orin-nano
    """  # noqa: D301
    if explain is not None or rules:
        terminal.result(_rules(explain, as_json))
        return 0
    if not models:
        raise click.UsageError("Missing argument 'MODEL...'.")
    found = _checked(models, **settings)
    if as_json:
        terminal.result(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        for file in found.files:
            for line in file.lines(notes=terminal.verbose):
                terminal.result(line)
    terminal.note(_summary(found))
    return found.exit_code


def _checked(
    models: tuple[str, ...],
    *,
    input_shapes: dict[str, tuple[int, ...]],
    ignore: tuple[str, ...] | None,
    strict: bool,
    no_config: bool,
    **settings: Any,
) -> CheckResult:
    from graphopt.checking import check as check_models

    return check_models(
        models,
        input_shapes=input_shapes,
        ignore=ignore or (),
        fail_on="warning" if strict else None,
        use_config=not no_config,
        **settings,
    )


def _summary(found: CheckResult) -> str:
    counts = found.counts
    files = f"{len(found.files)} file{'' if len(found.files) == 1 else 's'}"
    told = [
        f"{counts[level]} {level}{'' if counts[level] == 1 else 's'}" for level in ("error", "warning") if counts[level]
    ]
    return f"checked {files}: {', '.join(told) or 'no findings'}"


def _rules(name: str | None, as_json: bool) -> str:
    from graphopt.checking import catalog
    from graphopt.errors import UsageError

    rules = [rule for rule in catalog().values() if name is None or name in (rule.code, rule.name)]
    if not rules:
        raise UsageError(f"no rule has the code or name {name!r}; 'graphopt check --rules' lists them")
    if as_json:
        keys = ("code", "name", "level", "summary", "explanation", "source", "fix")
        return json.dumps([{key: getattr(rule, key) for key in keys} for rule in rules], indent=2, ensure_ascii=False)
    if name is None:
        return "\n".join(f"{rule.code}  {rule.level:<7}  {rule.name}: {rule.summary}" for rule in rules)
    import textwrap

    rule = rules[0]
    parts = [f"{rule.code} {rule.name} ({rule.level}): {rule.summary}", textwrap.fill(rule.explanation, 100)]
    parts += [f"Source: {rule.source}"]
    parts += [f"Mended by: {', '.join(rule.fix)}"] if rule.fix else []
    return "\n\n".join(parts)
