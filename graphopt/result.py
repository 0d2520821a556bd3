"""What comes of ``optimize``: the model with its provenance, and the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from graphopt._version import __version__
from graphopt.deployment import engine_command, left_in_float32
from graphopt.errors import GateError, UsageError
from graphopt.facts import environment, model_facts
from graphopt.judge import HOW_TO_GIVE, DataJudge, Finding
from graphopt.model import LoadedModel, save, stamp
from graphopt.passes.base import Pass
from graphopt.pipeline import Attempt
from graphopt.report.schema import Deployment, Report, Stage
from graphopt.targets import Target


@dataclass
class Result:
    """What came of ``optimize``.

    Attributes:
        model: the result, with its provenance in ``metadata_props``; when rejected, the best that there was.
        report: what was done and what came of it; ``print(result.report)``.
        protected: the files that the model was read from, which ``save`` never overwrites.
        planned: it was a dry run: there is no result, only the plan.
        files: what travels beside the model, by the ending that takes the place of ``.onnx`` in its path.
        deploy: makes of the model's path what to say of its deployment.
    """

    model: onnx.ModelProto
    report: Report
    protected: tuple[Path, ...] = ()
    planned: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)
    deploy: Callable[[Path], Deployment | None] = lambda path: None

    def save(self, path: str | os.PathLike[str], keep_failed: bool = False) -> Report:
        """Write the model, whole or not at all, and return the report with its path, hash and size.

        Args:
            path: where to; never the input.
            keep_failed: write it even though it was rejected.

        Raises:
            GateError: the result was rejected and ``keep_failed`` is False; nothing is written.
            OutputError: the file cannot be written.
            UsageError: it was a dry run.
        """
        if self.planned:
            raise UsageError("a dry run has no result to save; run optimize without dry_run")
        if self.report.result == "rejected" and not keep_failed:
            raise GateError(
                f"{self.report.warnings[-1]}; nothing was written (keep_failed=True writes it all the same)"
            )
        beside = {Path(path).with_suffix(ending): content for ending, content in self.files.items()}
        saved = save(self.model, path, protect=self.protected, beside=beside)
        output = self.report.output or model_facts(self.model)
        output = replace(output, path=str(saved.path), sha256=saved.sha256, bytes=saved.size)
        self.report = replace(self.report, output=output, deployment=self.deploy(saved.path))
        return self.report


def judged(loaded: LoadedModel, profile: Target, attempt: Attempt, judge: DataJudge, told: Sequence[str]) -> Result:
    """Stamp the model that the search ended with, and report on it."""
    finding = judge.finding(attempt.model, attempt.stages)
    hardware, shapes, endings = profile.hardware, judge.shapes, tuple(sorted(attempt.files))
    float32 = left_in_float32(attempt.stages)

    def deploy(path: Path) -> Deployment | None:
        command = engine_command(final, path, hardware, shapes, endings, float32=float32)
        names = tuple(path.with_suffix(ending).name for ending in endings)
        return Deployment(command, names) if command or names else None

    kept = [stage.name for stage in attempt.stages if stage.changes]
    # In place: everything that is judged is judged by now, and the model may fill half of the memory.
    final = _stamped(attempt.model, loaded, profile, kept)
    rejected = finding.refusal is not None
    warnings = [*attempt.warnings, *_notes(attempt.stages, finding), *judge.warnings]
    if rejected:
        warnings.append(f"no candidate held the gates: {finding.refusal}")
    report = replace(
        _report(loaded, profile, judge, [*told, *warnings]),
        result="rejected" if rejected else "ok",
        output=None if rejected else model_facts(final, costs=judge.costs),
        stages=attempt.stages,
        accuracy=finding.accuracy,
        latency=finding.latency,
        findings=finding.findings,
        deployment=None if rejected else deploy(Path(f"{loaded.name}.{profile.name}.onnx")),
    )
    return Result(final, report, _files(loaded), files=attempt.files, deploy=deploy)


def planned(
    loaded: LoadedModel, profile: Target, chosen: Sequence[Pass], judge: DataJudge, told: Sequence[str]
) -> Result:
    """Say what would be run and what could not be; nothing is."""
    stages = []
    for one in chosen:
        unjudged = None if one.exact else judge.why_unjudged(getattr(one, "needs", frozenset()))
        reason = f"would be skipped: {unjudged}" if unjudged else "planned"
        stages.append(Stage(one.name, "skipped", reason))
    report = _report(loaded, profile, judge, [*told, "a dry run: nothing was run and nothing is written"], timed=False)
    return Result(loaded.proto, replace(report, stages=tuple(stages)), _files(loaded), planned=True)


def stamp_bytes(loaded: LoadedModel, profile: Target, chosen: Sequence[Pass]) -> int:
    """Return the most bytes that the provenance adds to the file."""
    return int(_stamped(onnx.ModelProto(), loaded, profile, [one.name for one in chosen]).ByteSize())


def _report(
    loaded: LoadedModel, profile: Target, judge: DataJudge, warnings: Sequence[str], *, timed: bool = True
) -> Report:
    measured = "recalled from an earlier run on this machine" if judge.recalled else "measured in this run"
    if judge.speed.source == "estimated":
        measured = "estimated"
    path = str(loaded.path) if loaded.path else None
    return Report(
        graphopt_version=__version__,
        environment={**environment(judge.providers), "latency": measured if timed else None},
        result="ok",
        target=profile.name,
        input=model_facts(loaded.proto, path=path, written=(loaded.sha256, loaded.size), costs=judge.costs),
        output=None,
        warnings=tuple(dict.fromkeys([*loaded.warnings, *warnings])),
    )


def _stamped(model: onnx.ModelProto, loaded: LoadedModel, profile: Target, names: Sequence[str]) -> onnx.ModelProto:
    stamp(model, target=profile.name, passes=names, source_sha256=loaded.sha256, version=__version__)
    return model


def _notes(stages: Sequence[Stage], finding: Finding) -> Iterator[str]:
    """What the user should know of stages that held."""
    for stage in stages:
        if stage.changes and isinstance(stage.details.get("opset"), str):
            yield f"{stage.name}: {stage.details['opset']}"
    # Only candidates of approximate passes are timed by themselves.
    tried = [stage.name for stage in stages if stage.changes and stage.latency_ms is not None]
    if tried and finding.accuracy is None:
        yield f"accuracy was not validated: there were no evaluation samples for {' and '.join(tried)}"
    unjudged = [stage for stage in stages if stage.status == "skipped" and HOW_TO_GIVE in stage.reason]
    if unjudged:
        names = " and ".join(dict.fromkeys(stage.name for stage in unjudged))
        yield f"only passes that change nothing beyond rounding ran, {names} did not: {unjudged[0].reason}"


def _files(loaded: LoadedModel) -> tuple[Path, ...]:
    return ((loaded.path,) if loaded.path else ()) + loaded.data_files
