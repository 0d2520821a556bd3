"""What other tools make of a zoo net: every candidate timed shortly, the fastest judged until enough of them hold.

Both stages keep what they made and measured in their folder and go on where they were interrupted.
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
from benchmarks.measure import interleaved
from benchmarks.prune import top1

SAMPLES = 500  # of calibration, as everywhere in these benchmarks
MAX_DROP = 0.01
SHORTLIST = 6  # candidates that hold the accuracy and are timed again beside everybody else's
TOGETHER = 8  # models that are timed in turns at a time
SCREEN_SECONDS = 0.8  # for one such group
SCREEN_ROUNDS = (3, 9)
JUDGED = 60  # candidates judged at most


def quantize_static(case: corpus.Case, folder: Path) -> dict[str, Any]:
    """ONNX Runtime's quantizer in every configuration of `cpu_grid.grid`."""
    kept = folder / "survey.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    errors: dict[str, str] = {}
    ways = grid()
    for method in METHODS:
        chosen = tuple(way for way in ways if way.method == method)
        order = arguments_of(case.model, folder, case.calibration, SAMPLES, chosen)
        cost = run_worker("benchmarks.cpu_grid", order)
        print(f"{case.name} quantize_static {method}: {cost.error or f'{cost.cpu_seconds:.0f} CPU s'}", flush=True)
        errors |= cost.details.get("errors", {}) if cost.error is None else {way.name: cost.error for way in chosen}
    paths = {way.name: path for way in ways if (path := folder / f"{way.name}.onnx").is_file()}
    return _finish(survey(case, paths, errors), kept, paths)


def onnxsim(case: corpus.Case, folder: Path, static: Mapping[str, Any], python: str) -> dict[str, Any]:
    """onnxsim's own pipelines, and its pruning with the best of `static` behind it."""
    kept = folder / "survey.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    names = {way.name: way for way in grid()}
    order = arguments_of(case.model, folder, case.calibration, SAMPLES, ())
    order["static"] = [asdict(way) for way in _unlike([names[name] for name in static["shortlist"]])]
    command = [python, "-m", "benchmarks.cpu_onnxsim", json.dumps(order)]
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
    errors: dict[str, str] = {}
    if reports:
        errors = json.loads(reports[-1].removeprefix(RESULT_MARK))["details"]["errors"]
    else:
        errors["worker"] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
    paths = {path.stem: path for path in sorted(folder.glob("*.onnx")) if path.stem != "partial"}
    return _finish(survey(case, paths, errors), kept, paths)


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _unlike(ways: list[Static], most: int = 2) -> list[Static]:
    """The first few that differ in more than what `quant_pre_process` did."""
    found: dict[Static, Static] = {}
    for way in ways:
        found.setdefault(Static(**{**asdict(way), "prepared": False}), way)
    return list(found.values())[:most]


def survey(case: corpus.Case, paths: Mapping[str, Path], errors: Mapping[str, str]) -> dict[str, Any]:
    """Speed of all candidates, accuracy of the fastest, and which of them hold.

    Accuracy is measured from the fastest down, on the full test set, until `SHORTLIST` candidates lose at most
    `MAX_DROP`; so nothing left out is both accurate enough and, but for noise, faster.
    """
    evaluation = corpus.load(case.evaluation)
    images, labels = evaluation["image"], evaluation["labels"]
    failed = dict(errors)
    speeds = _screen(case, paths, np.asarray(images[:1]), failed)
    original = top1(case.model, images, labels)
    judged: dict[str, float] = {}
    shortlist: list[str] = []
    for name in sorted(speeds, key=lambda name: -speeds[name])[:JUDGED]:
        judged[name] = top1(paths[name], images, labels)
        if original - judged[name] <= MAX_DROP + 1e-9:
            shortlist.append(name)
        if len(shortlist) == SHORTLIST:
            break
    return {
        "tried": len(paths) + len(errors),
        "errors": failed,
        "speedup": speeds,
        "top1": judged,
        "original": original,
        "shortlist": shortlist,
    }


def _screen(case: corpus.Case, paths: Mapping[str, Path], image: Any, failed: dict[str, str]) -> dict[str, float]:
    """Speed-up of each candidate over the original, in groups that take turns; adds what does not run to `failed`."""
    from benchmarks.measure import session

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


def _finish(found: dict[str, Any], kept: Path, paths: Mapping[str, Path]) -> dict[str, Any]:
    """Keep the survey and the models of its shortlist, and remove the others."""
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1))
    partial.replace(kept)
    for name, path in paths.items():
        if name not in found["shortlist"]:
            path.unlink()
    return found
