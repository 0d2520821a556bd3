"""Checks files one by one, each against its settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from graphopt.checking.budgets import judge
from graphopt.checking.catalog import selected
from graphopt.checking.config import find_config, read_config
from graphopt.checking.duplicates import duplicates
from graphopt.checking.modes import training_mode, unfolded_batchnorms
from graphopt.checking.opening import open_model
from graphopt.checking.result import CheckedFile, CheckResult
from graphopt.checking.settings import LEVELS, Config, Settings
from graphopt.checking.unused import unused
from graphopt.errors import GraphoptError, UsageError
from graphopt.model import LoadedModel, ModelSource
from graphopt.rules import Finding, check_model
from graphopt.rules.view import View
from graphopt.targets import Target, load_target


def check(
    models: ModelSource | Iterable[ModelSource],
    *,
    target: str | Target | None = None,
    runtime: str | None = None,
    batch: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    max_bytes: int | None = None,
    max_parameters: int | None = None,
    max_macs: int | None = None,
    max_latency_ms: float | None = None,
    ignore: Iterable[str] = (),
    fail_on: str | None = None,
    config: str | os.PathLike[str] | None = None,
    use_config: bool = True,
) -> CheckResult:
    """Check models without running them: files, graphs, the rules of a target, budgets.

    Args:
        models: a path, bytes or ``onnx.ModelProto``, or several. A folder stands for the ``.onnx`` files below it.
        target: whose rules hold; by default the configuration's, and where it names none, no target's.
        runtime: which of its runtimes latency is estimated for.
        batch: size of dynamic first axes.
        input_shapes: shapes of dynamic inputs by name.
        max_bytes: most bytes of a model and its external data.
        max_parameters: most parameters.
        max_macs: most multiply-adds.
        max_latency_ms: most milliseconds, estimated.
        ignore: codes, beginnings of codes, and names of rules that are not reported.
        fail_on: ``error`` or ``warning``.
        config: configuration file; by default the one found from the working directory upwards.
        use_config: False reads none.

    What is given here goes before what the configuration says, for all files.

    Raises:
        UsageError: unknown target, rule or key.
    """
    sources = [models] if isinstance(models, str | os.PathLike | bytes | onnx.ModelProto) else list(models)
    ignored = tuple(ignore)
    for name in ignored:
        if not selected(name):
            raise UsageError(f"no rule has the code or name {name!r}; 'graphopt check --rules' lists them")
    if fail_on is not None and fail_on not in LEVELS:
        raise UsageError(f"a check can fail on {' or '.join(LEVELS)}, not on {fail_on!r}")
    given = Settings(
        target=target.name if isinstance(target, Target) else target,
        runtime=runtime,
        batch=batch,
        input_shapes={name: tuple(shape) for name, shape in (input_shapes or {}).items()},
        max_bytes=max_bytes,
        max_parameters=max_parameters,
        max_macs=max_macs,
        max_latency_ms=max_latency_ms,
        ignore=ignored,
    )
    found = (Path(config) if config is not None else find_config(Path())) if use_config else None
    configured = read_config(found) if found is not None else Config()
    targets = _Targets({target.name: target} if isinstance(target, Target) else {})
    for settings in (given, configured.settings, *(settings for _, settings in configured.by_path)):
        targets.of(settings)
    files = tuple(_checked(source, configured, given, targets) for source in _expanded(sources, configured))
    return CheckResult(files, fail_on or configured.fail_on, str(found) if found is not None else None)


class _Targets:
    """Profiles, each read once."""

    def __init__(self, known: dict[str, Target]) -> None:
        self._known = known

    def of(self, settings: Settings) -> Target | None:
        """The profile that the settings name, None where they name none."""
        if settings.target is None:
            return None
        if settings.target not in self._known:
            self._known[settings.target] = load_target(settings.target)
        return self._known[settings.target]


def _expanded(sources: Sequence[ModelSource], config: Config) -> Iterator[ModelSource]:
    """Sources with the files in the place of folders, what the configuration excludes left out."""
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            yield source
            continue
        path = Path(source)
        files = sorted(path.rglob("*.onnx")) if path.is_dir() else [path]
        for file in files:
            hidden = path.is_dir() and any(part.startswith(".") for part in file.relative_to(path).parts)
            if not hidden and not (file.is_dir() and file != path) and not config.excludes(file):
                yield file


def _checked(source: ModelSource, config: Config, given: Settings, targets: _Targets) -> CheckedFile:
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    name = str(source) if path is not None else f"<{'bytes' if isinstance(source, bytes) else 'ModelProto'}>"
    settings = config.settings_for(path).under(given)
    target = targets.of(settings)
    try:
        return _judged(source, name, settings, target)
    except GraphoptError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:
        raise GraphoptError(f"{name}: {type(error).__name__}: {error}") from error


def _judged(source: ModelSource, name: str, settings: Settings, target: Target | None) -> CheckedFile:
    opened = open_model(source)
    findings = list(opened.findings)
    figures, digest = None, None
    if opened.model is not None:
        view = View(opened.model.proto)
        findings += _graph_findings(opened.model, view)
        if target is not None:
            findings += check_model(view, target.hardware)
        figures, over = judge(opened.model, settings, target)
        findings += over
        digest = opened.model.sha256
    ignored = settings.ignored()
    kept = sorted((found for found in findings if found.code not in ignored), key=lambda found: found.code)
    return CheckedFile(
        path=name,
        target=target.name if target is not None else None,
        findings=tuple(kept),
        ignored=len(findings) - len(kept),
        figures=figures,
        sha256=digest,
        out_of_reach=opened.out_of_reach,
    )


def _graph_findings(model: LoadedModel, view: View) -> Iterator[Finding]:
    yield from unused(model.proto)
    yield from duplicates(model.proto)
    yield from unfolded_batchnorms(view)
    yield from training_mode(model.proto, view)
