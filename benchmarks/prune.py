"""Filter pruning: accuracy and latency against multiply-adds, beside Torch-Pruning and onnxsim.

    python -m benchmarks.prune [--models plain,resnet20] [--shares 0.75,0.5,0.35,0.25] [--cache DIR]
                               [--torch-python PYTHON] [--fresh] [--keep]
    python -m benchmarks.prune --large resnet50,vgg16_bn,mobilenet_v2
    python -m benchmarks.prune --report

For each zoo net (trained on Fashion-MNIST) and each share of its multiply-adds: graphopt (exact passes, then
`prune_filters`, with 512 unlabelled training images), Torch-Pruning and onnxsim in their best variants, none of them
fine-tuned. Top-1 on all 10,000 test images; latency of all of them in turns in one process, against the original as
it was exported and after graphopt's exact passes. `--large` cuts torchvision nets with random weights to half their
multiply-adds, each in a process of its own, for latency, wall time and memory. Results go to
`benchmarks/results/prune.json` and `prune.md`; rivals' models are kept in the cache until `--fresh`.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import corpus, prune_report
from benchmarks.costs import RESULT_MARK, ROOT, run_worker
from benchmarks.measure import interleaved, machine, session
from benchmarks.prune_rivals import macs

SHARES = (0.75, 0.5, 0.35, 0.25)
SAMPLES = 512
LARGE_SAMPLES, LARGE_SHARE = 256, 0.5
RIVALS = ("torch-pruning", "onnxsim")
SEED_LARGE = 5  # images for large nets, unlike those that judge them
BATCH = 500
FIRST = 2000  # images on which the best variant of a tool is found
TIMING = 15  # CPU seconds for all of a net's models
RESULTS = Path(__file__).parent / "results" / "prune.json"
COVERAGE = RESULTS.with_name("prune_coverage.json")


def rivals(
    name: str, model: Path, folder: Path, shares: Sequence[float], python: str, fresh: bool
) -> dict[str, list[dict[str, Any]]]:
    """What the other tools made of a net: for each of them a row a variant and share, or none where it fails."""
    found: dict[str, list[dict[str, Any]]] = {}
    for tool in RIVALS:
        kept = folder / f"{name}.{tool}.json"
        if kept.is_file() and not fresh:
            found[tool] = json.loads(kept.read_text())["rows"]
            continue
        order = {"tool": tool, "name": name, "model": str(model), "folder": str(folder), "shares": list(shares)}
        command = [python, "-m", "benchmarks.prune_rivals", json.dumps(order)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
        reports = [line for line in done.stdout.splitlines() if line.startswith(RESULT_MARK)]
        if reports:
            found[tool] = json.loads(reports[-1].removeprefix(RESULT_MARK))["details"]["rows"]
            kept.write_text(json.dumps({"rows": found[tool]}, indent=1))
        else:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            found[tool] = [{"variant": "", "wanted": share, "path": None, "error": last[:200]} for share in shares]
    return found


def score(rows: Sequence[dict[str, Any]], original: int, case: corpus.Case) -> None:
    """Accuracy and share of the multiply-adds, where they are not known yet.

    Of several variants for one share all are tried on the first images, and the best of them on all; it is `chosen`.
    """
    evaluation = corpus.load(case.evaluation)
    images, labels = evaluation["image"], evaluation["labels"]
    for row in rows:
        if row["path"] and "macs_share" not in row:
            row["macs_share"] = macs(onnx.load(row["path"])) / original
    for wanted in dict.fromkeys(row["wanted"] for row in rows):
        variants = [row for row in rows if row["wanted"] == wanted and row["path"]]
        if any("top1" in row for row in variants) or not variants:
            continue
        if len(variants) > 1:
            for row in variants:
                row["top1_first"] = top1(Path(row["path"]), images[:FIRST], labels[:FIRST])
        best = max(variants, key=lambda row: row.get("top1_first", 0.0))
        best |= {"top1": top1(Path(best["path"]), images, labels), "chosen": True}


def graphopt_rows(
    name: str, model: Path, folder: Path, data: Path, shares: Sequence[float | None], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """graphopt's model for each share, each in a process of its own; share None is the exact passes alone."""
    rows = []
    for share in shares:
        path = folder / f"{name}.graphopt.{'exact' if share is None else f'{share:g}'}.onnx"
        path.unlink(missing_ok=True)
        order = {
            "model": str(model),
            "output": str(path),
            "data": str(data),
            "samples": SAMPLES,
            "share": share,
            "options": dict(options),
        }
        cost = run_worker("benchmarks.prune_graphopt", order)
        rows.append(
            {
                "variant": "exact" if share is None else "prune_filters",
                "wanted": share,
                "path": str(path) if path.is_file() else None,
                "error": cost.error,
                "cpu_seconds": cost.cpu_seconds,
                "wall_seconds": cost.wall_seconds,
                "peak_mb": cost.peak_mb,
            }
        )
        print(f"{name} graphopt {share}: {cost.error or f'{cost.cpu_seconds:.1f} CPU s'}", flush=True)
    return rows


def top1(model: Path, images: Any, labels: Any) -> float:
    """Share of images, 0..1, whose largest output is the label's."""
    runner = session(model)
    name = runner.get_inputs()[0].name
    right = 0
    for start in range(0, len(images), BATCH):
        (found, *_) = runner.run(None, {name: images[start : start + BATCH]})
        right += int((found.argmax(axis=1) == labels[start : start + BATCH]).sum())
    return right / len(images)


def compare(name: str, cache: Path, shares: Sequence[float], python: str, fresh: bool, keep: bool) -> dict[str, Any]:
    """Every tool on one zoo net."""
    case = corpus.build(name, cache)
    folder = cache / "prune"
    folder.mkdir(parents=True, exist_ok=True)
    original = macs(onnx.load(case.model))
    made = rivals(name, case.model, folder, shares, python, fresh)
    for tool, its in made.items():
        score(its, original, case)
        (folder / f"{name}.{tool}.json").write_text(json.dumps({"rows": its}, indent=1))
    known = folder / f"{name}.graphopt.json"
    if keep and known.is_file():
        ours = json.loads(known.read_text())["rows"]
    else:
        ours = graphopt_rows(name, case.model, folder, case.calibration, (None, *shares), {})
    score(ours, original, case)
    known.write_text(json.dumps({"rows": ours}, indent=1))
    rows = [{"tool": tool, **row} for tool, its in {"graphopt": ours, **made}.items() for row in its]
    chosen = {f"{row['tool']} {row['wanted']}": row for row in rows if row.get("chosen")}
    models = {"original": case.model} | {key: Path(row["path"]) for key, row in chosen.items()}
    evaluation = corpus.load(case.evaluation)
    images, labels = evaluation["image"], evaluation["labels"]
    latency = interleaved(models, {"image": np.asarray(images[:1])}, "original", seconds=TIMING)
    for key, row in chosen.items():
        row["milliseconds"] = latency[key].milliseconds
        row["latency"] = 1 / latency[key].speedup
        row["latency_range"] = [1 / latency[key].high, 1 / latency[key].low]
    for row in rows:
        row["path"] = None  # of no use on another machine
    base = {
        "top1": top1(case.model, images, labels),
        "macs": original,
        "milliseconds": latency["original"].milliseconds,
    }
    return {"original": base, "rows": rows, "machine": machine()}


def large(name: str, cache: Path) -> dict[str, Any]:
    """A torchvision net at 224, to half its multiply-adds."""
    from benchmarks import images

    case = corpus.build(name, cache)
    data = cache / f"prune_images.{LARGE_SAMPLES}.npz"
    if not data.is_file():
        partial = data.with_suffix(".partial.npz")
        np.savez(partial, input=np.stack(list(images.images(SEED_LARGE, LARGE_SAMPLES))))
        partial.replace(data)
    folder = cache / "prune"
    folder.mkdir(parents=True, exist_ok=True)
    original = macs(onnx.load(case.model, load_external_data=False))
    rows: dict[str, Any] = {}
    for key, share in (("exact", None), ("pruned", LARGE_SHARE)):
        output = folder / f"{name}.graphopt.{key}.onnx"
        output.unlink(missing_ok=True)
        order = {
            "model": str(case.model),
            "output": str(output),
            "data": str(data),
            "samples": LARGE_SAMPLES,
            "share": share,
            "options": {},
        }
        cost = run_worker("benchmarks.prune_graphopt", order)
        rows[key] = {
            "error": cost.error,
            "cpu_seconds": cost.cpu_seconds,
            "wall_seconds": cost.wall_seconds,
            "peak_mb": cost.peak_mb,
        }
        print(f"{name} {key}: {cost}", flush=True)
        if output.is_file():
            rows[key]["macs_share"] = macs(onnx.load(output)) / original
            rows[key]["path"] = str(output)
    models = {"original": case.model} | {key: Path(row["path"]) for key, row in rows.items() if "path" in row}
    columns = corpus.load(case.evaluation)
    latency = interleaved(models, {"input": np.asarray(columns["input"][:1])}, "original")
    for key, row in rows.items():
        if row.pop("path", None):
            row["milliseconds"] = latency[key].milliseconds
            row["latency"] = 1 / latency[key].speedup
            row["latency_range"] = [1 / latency[key].high, 1 / latency[key].low]
    base = {"macs": original, "milliseconds": latency["original"].milliseconds}
    return {"original": base, **rows, "machine": machine()}


def main() -> None:
    """Measure the chosen nets, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help=f"comma-separated, of {', '.join(corpus.ZOO)}; default: all")
    parser.add_argument("--shares", default=",".join(f"{share:g}" for share in SHARES))
    parser.add_argument("--large", default="", help="comma-separated torchvision nets, instead of zoo nets")
    parser.add_argument("--cache", type=Path, default=corpus.CACHE)
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with torch and torch-pruning")
    parser.add_argument("--fresh", action="store_true", help="run the other tools again")
    parser.add_argument("--keep", action="store_true", help="take graphopt's own models from the cache, too")
    parser.add_argument("--report", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    cache = options.cache.resolve()
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    shares = [float(share) for share in options.shares.split(",")]
    jobs = [("large", name) for name in filter(None, options.large.split(","))]
    if not jobs and not options.report:
        jobs = [("zoo", name) for name in options.models.split(",") if name] or [("zoo", name) for name in corpus.ZOO]
    for part, name in jobs:
        found = (
            large(name, cache)
            if part == "large"
            else compare(name, cache, shares, options.torch_python, options.fresh, options.keep)
        )
        kept.setdefault(part, {})[name] = found
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    covered: dict[str, Any] = json.loads(COVERAGE.read_text()) if COVERAGE.is_file() else {}
    RESULTS.with_suffix(".md").write_text(prune_report.markdown(kept, covered))


if __name__ == "__main__":
    main()
