"""Everything together on a CPU: graphopt's whole recipe, ONNX Runtime's quantizer at its best, onnxsim's own pipelines.

    python -m benchmarks.cpu [--models plain,resnet20] [--only quantize_static,onnxsim,graphopt,latency,report]
                             [--ablate] [--work DIR] [--onnxsim-python PYTHON] [--fresh]

For each zoo net (trained on Fashion-MNIST): the fastest that each tool makes of it at a drop of at most one point of
top-1 on all 10,000 test images, against the original as it was exported. graphopt gets 4,096 labelled training images
to choose by; the rivals' settings are chosen on the test images themselves (`benchmarks.cpu_rivals`). `--ablate` also
runs graphopt without each of its approximate passes, which says what each is worth. Latency of everybody's shortlist
is measured last, in turns in one process.

What was made and measured is kept in the folder `--work`, so that an interrupted run goes on where it was and
`--only latency,report` times the stored models again; `--fresh` makes the parts named by `--only` anew. Results go to
`benchmarks/results/cpu.json` and `cpu.md`.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import corpus, cpu_report, cpu_rivals
from benchmarks.costs import run_worker
from benchmarks.measure import interleaved, machine
from benchmarks.prune import top1

TRAINING_IMAGES = 4096
SEED = 7  # which training images
MAX_DROP = cpu_rivals.MAX_DROP
TIMING = 60  # CPU seconds for all models of a net
ROUNDS = (31, 101)
PARTS = ("quantize_static", "onnxsim", "graphopt", "latency", "report")
RESULTS = Path(__file__).parent / "results" / "cpu.json"


def training_images(folder: Path) -> Path:
    """A file of labelled training images, drawn at random."""
    path = folder / f"training.{TRAINING_IMAGES}.npz"
    if not path.is_file():
        from models import fashion_mnist

        folder.mkdir(parents=True, exist_ok=True)
        labels = fashion_mnist.read_labels("train")
        chosen = np.random.default_rng(SEED).permutation(len(labels))[:TRAINING_IMAGES]
        pixels = fashion_mnist.read_pixels("train")[chosen]
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, image=fashion_mnist.to_model_input(pixels), labels=labels[chosen])
        partial.replace(path)
    return path


def approximate_passes() -> list[str]:
    """The approximate passes of the recipe for CPUs."""
    from graphopt import PASSES, load_target

    return [name for name in load_target("cpu").recipe if not PASSES[name].exact]


def graphopt(case: corpus.Case, folder: Path, variant: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """graphopt on a net, in its own process; `variant` names the files."""
    kept, output = folder / f"{variant}.json", folder / f"{variant}.onnx"
    known = stored(kept)
    if known and known["error"] is None:  # what failed may have been interrupted
        return known
    folder.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    order = {
        "model": str(case.model),
        "output": str(output),
        "calibration": str(training_images(folder.parent.parent)),
        "evaluation": str(case.evaluation),
        "keywords": {"max_drop": MAX_DROP, **keywords},
    }
    cost = run_worker("benchmarks.cpu_graphopt", order)
    found = asdict(cost) | {"report": cost.details.get("report")}
    del found["details"]
    if cost.error is None and output.is_file():
        evaluation = corpus.load(case.evaluation)
        found["top1"] = top1(output, evaluation["image"], evaluation["labels"])
    shown = cost.error or f"{cost.cpu_seconds:.0f} CPU s, top-1 {found.get('top1')}"
    print(f"{case.name} graphopt {variant}: {shown}", flush=True)
    kept.write_text(json.dumps(found, indent=1))
    return found


def latency(case: corpus.Case, models: dict[str, Path], kept: Path) -> dict[str, Any]:
    """Latency of models beside the original, in turns; also written to `kept`."""
    image = np.asarray(corpus.load(case.evaluation, 1)["image"])
    timed = interleaved({"original": case.model} | models, {"image": image}, "original", TIMING, ROUNDS)
    found = {"machine": machine(), "models": {name: asdict(ratio) for name, ratio in timed.items()}}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1))
    return found


def stored(path: Path) -> dict[str, Any]:
    """A part that was made before; empty if it was not."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def shortlisted(name: str, work: Path) -> dict[str, Path]:
    """The models of a net that are to be timed, by `TOOL/VARIANT`."""
    found = {}
    for tool in ("quantize_static", "onnxsim"):
        folder = work / tool / name
        for variant in stored(folder / "survey.json").get("shortlist", ()):
            found[f"{tool}/{variant}"] = folder / f"{variant}.onnx"
    for path in sorted((work / "graphopt" / name).glob("*.onnx")):
        found[f"graphopt/{path.stem}"] = path
    return found


def gathered(case: corpus.Case, work: Path) -> dict[str, Any]:
    """All that is known of a net, as JSON."""
    times = stored(work / "latency" / f"{case.name}.json")
    net: dict[str, Any] = {"machine": times.get("machine"), "rows": [], "tools": {}}
    timed = times.get("models", {})
    if "original" in timed:
        net["milliseconds"] = timed["original"]["milliseconds"]
    for tool in ("quantize_static", "onnxsim"):
        survey = stored(work / tool / case.name / "survey.json")
        if not survey:
            continue
        net["top1"] = survey["original"]
        net["tools"][tool] = {"tried": survey["tried"], "failed": len(survey["errors"]), "judged": len(survey["top1"])}
        for variant in survey["shortlist"]:
            row = {"tool": tool, "variant": variant, "top1": survey["top1"][variant]}
            net["rows"].append(row | timed.get(f"{tool}/{variant}", {"screened": survey["speedup"][variant]}))
    for path in sorted((work / "graphopt" / case.name).glob("*.json")):
        run = stored(path)
        report = run.pop("report") or {}
        run |= {key: report.get(key) for key in ("result", "stages", "accuracy", "latency", "warnings")}
        net["rows"].append({"tool": "graphopt", "variant": path.stem} | run | timed.get(f"graphopt/{path.stem}", {}))
    return net


def run_parts(case: corpus.Case, work: Path, parts: list[str], options: argparse.Namespace) -> None:
    """Make and measure what was asked for of one net."""
    name = case.name
    if options.fresh:
        for part in set(parts) & {"quantize_static", "onnxsim", "graphopt"}:
            shutil.rmtree(work / part / name, ignore_errors=True)
    if "quantize_static" in parts:
        cpu_rivals.quantize_static(case, work / "quantize_static" / name)
    if "onnxsim" in parts:
        static = stored(work / "quantize_static" / name / "survey.json")
        if not static:
            raise SystemExit(f"{name}: onnxsim's models are quantized as quantize_static did best; run that first")
        cpu_rivals.onnxsim(case, work / "onnxsim" / name, static, options.onnxsim_python)
    if "graphopt" in parts:
        folder = work / "graphopt" / name
        graphopt(case, folder, "all", {})
        for left_out in approximate_passes() if options.ablate else ():
            graphopt(case, folder, f"without_{left_out}", {"skip": [left_out]})
    if "latency" in parts:
        latency(case, shortlisted(name, work), work / "latency" / f"{name}.json")


def main() -> None:
    """Measure, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(corpus.ZOO), help="comma-separated; default: the whole zoo")
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated parts of {', '.join(PARTS)}")
    parser.add_argument("--ablate", action="store_true", help="graphopt also without each approximate pass")
    parser.add_argument("--cache", type=Path, default=corpus.CACHE, help="where the samples are")
    parser.add_argument("--work", type=Path, help="what was made and measured; default: cpu in the cache")
    parser.add_argument("--onnxsim-python", default=sys.executable, help="interpreter with onnxsim and onnxruntime")
    parser.add_argument("--fresh", action="store_true", help="make the chosen parts anew")
    options = parser.parse_args()
    parts = options.only.split(",")
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    cache = options.cache.resolve()
    work = (options.work or cache / "cpu").resolve()
    for name in options.models.split(","):
        case = corpus.build(name, cache)
        run_parts(case, work, parts, options)
        if "report" in parts:
            kept = stored(RESULTS)
            # Messages may name files; where the folders were is nobody's business.
            text = json.dumps(gathered(case, work)).replace(str(work), "WORK").replace(str(cache), "CACHE")
            kept[name] = json.loads(text)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
            RESULTS.with_suffix(".md").write_text(cpu_report.markdown(kept))


if __name__ == "__main__":
    main()
