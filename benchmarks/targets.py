"""Every model for every GPU and Jetson target: valid, within the rules, loadable, accurate.

    python -m benchmarks.targets [--models plain,ppocr_rec] [--targets gpu,jetson-nano] [--whole gpu,jetson]
                                 [--cache DIR] [--work DIR] [--only run,report]

Models: the zoo (judged on Fashion-MNIST), the PP-OCR nets and networks of torchvision where the cache of
`benchmarks.corpus` has them, and the light models that come with the onnx wheel (constant weights and random inputs:
nothing to be accurate about, so they run unvalidated). Everything runs without `prune_filters` and
`separate_convolutions`; for the targets named by `--whole` the zoo runs with the whole recipe too, which takes minutes
a model.

Of each result: does onnx's checker take it, does ONNX Runtime load and run it, which rules of the target does it break,
by how much does the metric fall (gates: 0.5 points with int8, 0.1 where there is float16 only), what is the estimated
latency. What was made is kept in `--work`; an interrupted run goes on where it was. Results go to
`benchmarks/results/targets.json` and `targets.md`.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import corpus

RESULTS = Path(__file__).parent / "results" / "targets.json"
INT8_DROP, FLOAT16_DROP = 0.005, 0.001
# Of nets with random weights, whose largest answer is the largest by chance, only the answers' likeness says anything.
COSINE_DROP = 0.02
FEW_SAMPLES = 16
WHOLE = "whole recipe"
SLOW_PASSES = ("prune_filters", "separate_convolutions")
RANDOM_SAMPLES = 8


def targets() -> list[str]:
    """All targets that are not the machine at hand, and its families."""
    from graphopt.targets import TARGETS, load_target

    return [name for name in TARGETS if load_target(name).hardware.device is not None]


def light_models() -> dict[str, Path]:
    """The light models of the onnx wheel."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return {path.stem: path for path in sorted(folder.glob("light_*.onnx"))}


def random_samples(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs of a model: for calibration where nothing is validated."""
    from graphopt.runtime import input_specs

    generator = np.random.default_rng(0)
    found = {}
    for spec in input_specs(model):
        sizes = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
        found[spec.name] = generator.standard_normal((RANDOM_SAMPLES, *sizes)).astype(spec.dtype)
    return found


def settings(name: str, cache: Path, hardware: Any) -> dict[str, Any]:
    """What to optimize a model with: its data and the gate."""
    lights = light_models()
    if name in lights:
        data = random_samples(onnx.load(lights[name]))
        return {"model": lights[name], "calibration_data": data, "allow_unvalidated": True}
    case = corpus.case(name, cache)
    drop = INT8_DROP if hardware.int8 is not None else FLOAT16_DROP
    if case.accuracy != "top1":
        drop = COSINE_DROP
    found: dict[str, Any] = {"model": case.model, "max_drop": drop}
    if case.accuracy == "sqnr":
        few = {"calibration_data": case.calibration, "eval_data": case.evaluation}
        return found | {"metric": "cosine"} | {key: corpus.load(path, FEW_SAMPLES) for key, path in few.items()}
    if name in corpus.ZOO:
        return found | {"data": str(case.model.parent / "fashion_mnist_test.npz")}
    return found | {"calibration_data": str(case.calibration), "eval_data": str(case.evaluation)}


def run(name: str, target: str, cache: Path, *, whole: bool) -> dict[str, Any]:
    """Optimize one model for one target, and look at the result."""
    import graphopt
    from graphopt import runtime
    from graphopt.rules import check_model
    from graphopt.targets import load_target

    hardware = load_target(target).hardware
    given = settings(name, cache, hardware)
    started = time.process_time()
    skip = () if whole else SLOW_PASSES
    result = graphopt.optimize(given.pop("model"), target=target, skip=skip, **given)
    report = result.report
    found: dict[str, Any] = {
        "result": report.result,
        "cpu_seconds": round(time.process_time() - started, 1),
        "drop": report.accuracy.drop if report.accuracy else None,
        "metric": report.accuracy.metric if report.accuracy else None,
        "sqnr_db": report.accuracy.sqnr_db if report.accuracy else None,
        "speedup": report.latency.speedup if report.latency else None,
        "source": report.latency.source if report.latency else None,
        "milliseconds": report.latency.optimized_ms if report.latency else None,
        "stages": {stage.name: stage.reason for stage in report.stages if stage.metric is not None or stage.changes},
        "command": report.deployment.command if report.deployment else None,
        "files": list(report.deployment.files) if report.deployment else [],
        "refusal": report.warnings[-1] if report.result != "ok" else None,
    }
    findings = check_model(result.model, hardware)
    found["broken"] = [f"{each.code} {each.where}: {each.message}" for each in findings if each.level == "error"]
    found["warned"] = sorted({each.code for each in findings if each.level == "warning"})
    onnx.checker.check_model(result.model, full_check=True)
    opened = runtime.session(result.model, threads=1)
    sizes = {spec.name: spec for spec in runtime.input_specs(result.model)}
    feed = {
        each: np.zeros([size if isinstance(size, int) else 1 for size in spec.shape or ()], spec.dtype)
        for each, spec in sizes.items()
    }
    if all(isinstance(size, int) for spec in sizes.values() for size in (spec.shape or ())[2:]):
        runtime.run(opened, feed)
    kinds = [node.op_type for node in result.model.graph.node]
    found["quantizers"] = kinds.count("QuantizeLinear")
    found["float16"] = sum(each.data_type == onnx.TensorProto.FLOAT16 for each in result.model.graph.initializer)
    return found


def wanted(models: list[str], cache: Path) -> list[str]:
    """The models that are there."""
    there = [*corpus.ZOO, *(name for name in corpus.NAMES if corpus.case(name, cache).model.is_file()), *light_models()]
    return [name for name in dict.fromkeys(there) if not models or name in models]


def table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The results as Markdown."""
    yield "# Every model for every GPU and Jetson target"
    yield ""
    yield "Written by `python -m benchmarks.targets`. Latencies are estimated (docs/latency.md), never measured."
    yield ""
    runs = list(results.values())
    held = [each for each in runs if each.get("result") == "ok" and not each.get("broken")]
    yield f"{len(held)} of {len(runs)} runs gave a model that is valid, within the rules, loadable and accurate enough."
    yield ""
    yield "| target | models | held | int8 | largest drop, zoo (points) | estimated speed-up, mean | broken rules |"
    yield "|---|---|---|---|---|---|---|"
    for target in dict.fromkeys(_row(key) for key in results):
        rows = {key.split(" ")[1]: each for key, each in results.items() if _row(key) == target}
        ok = [each for each in rows.values() if each.get("result") == "ok" and not each.get("broken")]
        drops = [each["drop"] for name, each in rows.items() if name in corpus.ZOO and each.get("drop") is not None]
        speeds = [each["speedup"] for each in rows.values() if each.get("speedup")]
        mean = float(np.exp(np.mean(np.log(speeds)))) if speeds else float("nan")
        int8 = sum(bool(each.get("quantizers") or each.get("files")) for each in rows.values())
        broken = sum(len(each.get("broken", ())) for each in rows.values())
        largest = f"{100 * max(drops):.2f}" if drops else ""
        yield f"| {target} | {len(rows)} | {len(ok)} | {int8} | {largest} | {mean:.2f}x | {broken} |"
    warned: dict[str, int] = {}
    for each in runs:
        for code in each.get("warned", ()):
            warned[code] = warned.get(code, 0) + 1
    if warned:
        told = ", ".join(f"{code} in {count}" for code, count in sorted(warned.items()))
        yield ""
        yield f"Warnings, which cost time at the most (docs/rules.md): {told}."
    failed = {key: each for key, each in results.items() if each.get("result") != "ok" or each.get("broken")}
    if failed:
        yield ""
        yield "## Did not hold"
        yield ""
        for key, each in failed.items():
            yield f"- {key}: {each.get('error') or each.get('refusal') or '; '.join(each.get('broken', ())[:3])}"


def _row(key: str) -> str:
    """The target of a result, and whether its whole recipe ran."""
    target, _, *more = key.split(" ", 2)
    return ", ".join([target, *more])


def main() -> None:
    """Run what is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="")
    parser.add_argument("--targets", default="")
    parser.add_argument("--whole", default="gpu,jetson")
    parser.add_argument("--cache", type=Path, default=corpus.CACHE)
    parser.add_argument("--work", type=Path, default=corpus.CACHE / "targets")
    parser.add_argument("--only", default="run,report")
    options = parser.parse_args()
    chosen = [name for name in options.targets.split(",") if name] or targets()
    names = wanted([name for name in options.models.split(",") if name], options.cache)
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("GRAPHOPT_CACHE_DIR", str(options.work / "graphopt-cache"))
    results: dict[str, dict[str, Any]] = {}
    for target in chosen:
        named = [(name, False) for name in names]
        if target in options.whole.split(","):
            named += [(name, True) for name in names if name in corpus.ZOO]
        for name, whole in named:
            kept = options.work / f"{target}.{name}{'.whole' if whole else ''}.json"
            if not kept.is_file() and "run" in options.only:
                try:
                    found = run(name, target, options.cache, whole=whole)
                except Exception as error:  # the table tells of it
                    found = {"result": "error", "error": f"{type(error).__name__}: {error}"}
                kept.write_text(json.dumps(found, indent=1))
                shown = {
                    key: found.get(key) for key in ("result", "drop", "speedup", "cpu_seconds", "error", "refusal")
                }
                print(target, name, json.dumps(shown), flush=True)
            if kept.is_file():
                results[f"{target} {name}{f' {WHOLE}' if whole else ''}"] = json.loads(kept.read_text())
    if "report" in options.only:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text("\n".join(table(results)) + "\n")


if __name__ == "__main__":
    main()
