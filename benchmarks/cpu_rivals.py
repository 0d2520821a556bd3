"""What other tools make of a zoo net: candidates are timed shortly, then judged from the fastest down.

Each tool keeps what it made and measured in its folder; what is there is not made again.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import corpus
from benchmarks.costs import MEMORY_LIMIT, RESULT_MARK, ROOT, run_worker
from benchmarks.cpu_grid import METHODS, Static, arguments_of, grid
from benchmarks.measure import interleaved, session
from benchmarks.prune import top1

SAMPLES = 500  # of calibration, as everywhere in these benchmarks
MAX_DROP = 0.01
SHORTLIST = 6  # candidates that hold the accuracy and are timed again beside everybody else's
TOGETHER = 8  # models that are timed in turns at a time
SCREEN_SECONDS = 2.0  # for one such group
SCREEN_ROUNDS = (5, 15)


def quantize_static(case: corpus.Case, folder: Path) -> dict[str, Any]:
    """ONNX Runtime's quantizer, every configuration of `cpu_grid.grid` that can be the fastest that holds.

    One of all configurations that run the same kernels is timed; from the fastest down, the others of its kind are
    tried only until one holds the accuracy, and kinds until `SHORTLIST` have one that does.
    """
    kept = folder / "survey.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    errors: dict[str, str] = {}
    kinds: dict[Static, list[Static]] = {}
    for way in grid():
        kinds.setdefault(way.kernels, []).append(way)
    paths = _quantized(case, folder, tuple(kinds), errors)
    speeds = screen(case, paths, errors)
    judge = Judge(case)
    shortlist: list[str] = []
    for kind in sorted((kind for kind in kinds if kind.name in speeds), key=lambda kind: -speeds[kind.name]):
        if len(shortlist) == SHORTLIST:
            break
        for way in sorted(kinds[kind], key=lambda way: (way.reduce_range, METHODS.index(way.method))):
            found = _quantized(case, folder, (way,), errors)
            paths |= found
            if found and judge.holds(way.name, found[way.name]):
                shortlist.append(way.name)
                speeds.setdefault(way.name, speeds[kind.name])
                break
    return _finish(_survey(len(paths), errors, speeds, judge, shortlist), kept, paths)


def _quantized(case: corpus.Case, folder: Path, ways: tuple[Static, ...], errors: dict[str, str]) -> dict[str, Path]:
    """The models of configurations, those that could be made; why not goes to `errors`."""
    missing = tuple(way for way in ways if not (folder / f"{way.name}.onnx").is_file())
    if missing:
        order = arguments_of(case.model, folder, case.calibration, SAMPLES, missing)
        cost = run_worker("benchmarks.cpu_grid", order)
        told = cost.error or f"{cost.cpu_seconds:.0f} CPU s"
        print(f"{case.name} quantize_static {missing[0].name} and {len(missing) - 1} more: {told}", flush=True)
        errors |= cost.details.get("errors", {}) if cost.error is None else {way.name: cost.error for way in missing}
    return {way.name: path for way in ways if (path := folder / f"{way.name}.onnx").is_file()}


def onnxsim(case: corpus.Case, folder: Path, static: Mapping[str, Any], python: str) -> dict[str, Any]:
    """onnxsim's own pipelines, and its pruning with the best of `static` behind it where the pruned net still holds."""
    kept = folder / "survey.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    names = {way.name: way for way in grid()}
    order = arguments_of(case.model, folder, case.calibration, SAMPLES, ())
    order["static"] = [asdict(way) for way in _unlike([names[name] for name in static["shortlist"]])]
    errors = _run_onnxsim(order | {"quantize": []}, python)
    judge = Judge(case)
    holding = [path.stem for path in sorted(folder.glob("float-*.onnx")) if judge.holds(path.stem, path)]
    print(f"{case.name} onnxsim: in float {', '.join(holding) or 'nothing'} holds", flush=True)
    errors |= _run_onnxsim(order | {"quantize": holding}, python)
    paths = {path.stem: path for path in sorted(folder.glob("*.onnx")) if path.stem != "partial"}
    worth = {name: path for name, path in paths.items() if judge.top1.get(name) is None or name in holding}
    speeds = screen(case, worth, errors)
    shortlist: list[str] = []
    for name in sorted(speeds, key=lambda name: -speeds[name]):
        if len(shortlist) < SHORTLIST and judge.holds(name, paths[name]):
            shortlist.append(name)
    return _finish(_survey(len(paths), errors, speeds, judge, shortlist), kept, paths)


def _run_onnxsim(order: Mapping[str, Any], python: str) -> dict[str, str]:
    """Run the worker with another interpreter; what failed, and why."""
    command = [python, "-m", "benchmarks.cpu_onnxsim", json.dumps(dict(order))]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=_limit,
    )
    reports = [line for line in done.stdout.splitlines() if line.startswith(RESULT_MARK)]
    if reports:
        return dict(json.loads(reports[-1].removeprefix(RESULT_MARK))["details"]["errors"])
    return {"worker": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _unlike(ways: list[Static], most: int = 2) -> list[Static]:
    """The first few that differ in more than what `quant_pre_process` did."""
    found: dict[Static, Static] = {}
    for way in ways:
        found.setdefault(Static(**{**asdict(way), "prepared": False}), way)
    return list(found.values())[:most]


class Judge:
    """Accuracy of candidates on the full test set.

    Attributes:
        original: top-1 of the original.
        top1: of each candidate judged so far.
    """

    def __init__(self, case: corpus.Case) -> None:
        evaluation = corpus.load(case.evaluation)
        self._images, self._labels = evaluation["image"], evaluation["labels"]
        self.original = top1(case.model, self._images, self._labels)
        self.top1: dict[str, float] = {}

    def holds(self, name: str, path: Path) -> bool:
        """Whether a candidate loses at most `MAX_DROP`."""
        if name not in self.top1:
            self.top1[name] = top1(path, self._images, self._labels)
        return self.original - self.top1[name] <= MAX_DROP + 1e-9


def screen(case: corpus.Case, paths: Mapping[str, Path], failed: dict[str, str]) -> dict[str, float]:
    """Speed-up of each candidate over the original, in groups that take turns; adds what does not run to `failed`."""
    image = np.asarray(corpus.load(case.evaluation, 1)["image"])
    running: dict[str, Path] = {}
    for name, path in paths.items():
        try:
            session(path).run(None, {"image": image})
            running[name] = path
        except Exception as error:  # a model that ONNX Runtime refuses is a result, too
            failed[name] = f"does not run: {str(error).splitlines()[0][:160]}"
    speeds: dict[str, float] = {}
    names = list(running)
    for start in range(0, len(names), TOGETHER):
        group = {name: running[name] for name in names[start : start + TOGETHER]}
        timed = interleaved(
            {"original": case.model} | group, {"image": image}, "original", SCREEN_SECONDS, SCREEN_ROUNDS
        )
        speeds |= {name: timed[name].speedup for name in group}
    return speeds


def _survey(
    made: int, errors: dict[str, str], speeds: dict[str, float], judge: Judge, shortlist: list[str]
) -> dict[str, Any]:
    return {
        "tried": made + sum(name not in speeds for name in errors),
        "errors": errors,
        "speedup": speeds,
        "top1": judge.top1,
        "original": judge.original,
        "shortlist": shortlist,
    }


def _finish(found: dict[str, Any], kept: Path, paths: Mapping[str, Path]) -> dict[str, Any]:
    """Keep the survey and the models of its shortlist, and remove the others."""
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(kept)
    for name, path in paths.items():
        if name not in found["shortlist"]:
            path.unlink()
    return found
