"""What to report of passes that worked together: what each of them contributed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import onnx

from graphopt.composition.finishing import Finished
from graphopt.composition.mixtures import Mixed, Mixer
from graphopt.passes.base import ApproximatePass, Candidate
from graphopt.report.schema import Stage, Status
from graphopt.stages import StageRunner, Step, Trial, stage


def step_of(
    finished: Finished,
    passes: Sequence[ApproximatePass],
    mixer: Mixer,
    idle: Mapping[str, str],
    runner: StageRunner,
    refusals: Sequence[str],
    started: float,
) -> Step:
    """Tell of a model that passes made together; each stage's figures are those of the model up to it.

    A pass whose part was not recovered, because a later one did so for both, is run again with recovery for that.
    """
    stages: list[Stage] = []
    model = mixer.model
    mixed = finished.mixed
    followed = iter(finished.followed)
    files: dict[str, bytes] = {}
    parts = list(mixed.parts)
    for one in passes:
        if one.name in mixer.dials or one.name in idle:
            if one.name not in mixed.parts:
                reason = mixer.failures.get(one.name) or _why_not(one.name, mixed, idle)
                stages.append(_idle(one.name, reason, model, runner))
                continue
            upto = mixed if one.name == parts[-1] else mixer.mix(parts[: parts.index(one.name) + 1], mixed.price)
            candidate = upto.parts.get(one.name, mixed.parts[one.name])
            trial = runner.judge.trial(upto.model, model, faster=True)
            model = upto.model
            seconds = time.perf_counter() - started if one.name == parts[-1] else 0.0
            stages.append(_done(one.name, candidate, trial, refusals, model, runner, seconds))
            continue
        found = next(followed)
        if found.candidate is None or found.trial is None:
            stages.append(_idle(one.name, found.reason, model, runner))
            continue
        model = found.candidate.model
        files |= found.candidate.files
        reasons = [*refusals, *([found.reason] if found.reason else [])]
        stages.append(_done(one.name, found.candidate, found.trial, reasons, model, runner, found.seconds))
    return Step(finished.model, tuple(stages), files=files)


def step_without(
    current: onnx.ModelProto,
    passes: Sequence[ApproximatePass],
    idle: Mapping[str, str],
    runner: StageRunner,
    refusals: Sequence[str],
    started: float,
) -> Step:
    """Tell that nothing which the passes made together holds."""
    reason = "; ".join(dict.fromkeys(refusals))
    stages: list[Stage] = []
    for number, one in enumerate(passes):
        seconds = time.perf_counter() - started if number == 0 else 0.0
        if reason:
            stages.append(stage(one.name, "rolled_back", reason, runner.costs.of(current), seconds))
        else:
            stages.append(_idle(one.name, idle.get(one.name) or "nothing faster was found", current, runner))
    names = " and ".join(one.name for one in passes)
    return Step(current, tuple(stages), (f"{names} were rolled back: {reason}",) if reason else ())


def _why_not(name: str, mixed: Mixed, idle: Mapping[str, str]) -> str:
    if name in idle:
        return idle[name]
    if name in mixed.names:
        return "at the price of noise that the accuracy allows, nothing that it could do pays"
    return "the result without it was faster at the accuracy asked for, or all but as fast"


def _idle(name: str, reason: str, model: onnx.ModelProto, runner: StageRunner) -> Stage:
    return stage(name, "skipped", reason, runner.costs.of(model), 0.0)


def _done(
    name: str,
    candidate: Candidate,
    trial: Trial,
    refusals: Sequence[str],
    model: onnx.ModelProto,
    runner: StageRunner,
    seconds: float,
) -> Stage:
    reason = candidate.label
    if refusals:
        reason = f"{'; '.join(refusals)}; kept: {candidate.label or 'a gentler one'}"
    status: Status = "backed_off" if refusals else "applied"
    figures = runner.costs.of(model)
    return stage(name, status, reason, figures, seconds, report=candidate.report, trial=trial)
