"""Depthwise-separable substitution: what it counts, what it costs in accuracy, what it gains in time.

    python -m benchmarks.separate [--models plain,resnet20] [--ranks 1,2,3] [--only counting,ranks,chosen,latency]
                                  [--work DIR] [--fresh]

- counting: the plain-convolution net in MobileNet's shape at rank 1 (`models.mobilenet_v1`, random weights), beside the
  published figures;
- ranks: zoo nets (trained on Fashion-MNIST) with every k x k convolution but the first at a fixed rank, refitted on 512
  training images without labels;
- chosen: the rank of each layer chosen by graphopt for a drop of at most one point, in float, with 4,096 labelled
  training images to choose by;
- latency: all of them in turns in one process, against the original as exported.

Top-1 is on all 10,000 test images. What was made is kept in the folder `--work` until `--fresh`; results go to
`benchmarks/results/separate.json` and `separate.md`.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import corpus, separate_report
from benchmarks.costs import run_worker
from benchmarks.cpu import stored, training_images
from benchmarks.measure import interleaved, machine
from benchmarks.prune import top1

MODELS = ("plain", "resnet20")
RANKS = (1, 2, 3)
SAMPLES = 512
MAX_DROP = 0.01
TIMING, ROUNDS = 40, (31, 101)
PARTS = ("counting", "ranks", "chosen", "latency")
RESULTS = Path(__file__).parent / "results" / "separate.json"


def counted(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds for one sample, parameters, and convolutions by kind."""
    from graphopt.graph.cost import cost

    found = cost(model)
    kinds = [layer.kind for layer in found.layers]
    by_kind = {kind: kinds.count(kind) for kind in ("dense_kxk", "depthwise", "pointwise")}
    return {"macs": found.known_macs, "parameters": found.parameters, **by_kind}


def make(folder: Path, variant: str, order: dict[str, Any]) -> dict[str, Any]:
    """What graphopt made of a model by `order`; from the folder where it was made before."""
    kept, output = folder / f"{variant}.json", folder / f"{variant}.onnx"
    known = stored(kept)
    if known and known["error"] is None:  # what failed may have been interrupted
        return known
    folder.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    cost = run_worker("benchmarks.separate_graphopt", {"output": str(output), **order})
    row = {"variant": variant, **asdict(cost), "report": cost.details.get("report")}
    del row["details"]
    if output.is_file():
        row |= counted(onnx.load(output))
    print(f"{folder.name} {variant}: {cost.error or f'{cost.cpu_seconds:.0f} CPU s'}", flush=True)
    kept.write_text(json.dumps(row, indent=1))
    return row


def count_mobilenet(work: Path) -> dict[str, Any]:
    """The plain net in MobileNet's shape, before and after, and MobileNet itself."""
    from models.mobilenet_v1 import Net, build

    folder = work / "mobilenet_v1"
    folder.mkdir(parents=True, exist_ok=True)
    plain = folder / "original.onnx"
    if not plain.is_file():
        onnx.save(build(Net(plain=True)), plain)
    order = {"model": str(plain), "data": None, "samples": 0, "keep_first": True}
    made = make(folder, "rank1", order | {"options": {"rank": 1}})
    structures = {name: counted(build(Net(plain=name == "plain"), seed=None)) for name in ("plain", "mobilenet")}
    return {"rank1": made, **structures}


def judged(row: dict[str, Any], case: corpus.Case, path: Path) -> dict[str, Any]:
    """A row with its accuracy."""
    if path.is_file() and "top1" not in row:
        evaluation = corpus.load(case.evaluation)
        row["top1"] = top1(path, evaluation["image"], evaluation["labels"])
        path.with_suffix(".json").write_text(json.dumps(row, indent=1))
    return row


def net(case: corpus.Case, work: Path, ranks: list[int], parts: list[str]) -> dict[str, Any]:
    """One zoo net: what is asked for and what was made before."""
    folder = work / case.name
    model = {"model": str(case.model)}
    fixed = model | {"data": str(case.calibration), "samples": SAMPLES, "keep_first": True}
    orders = {f"rank{rank}": fixed | {"options": {"rank": rank}} for rank in ranks if "ranks" in parts}
    if "chosen" in parts:
        files = {"calibration": str(training_images(work)), "evaluation": str(case.evaluation)}
        orders["chosen"] = model | files | {"max_drop": MAX_DROP, "options": {}, "keep_first": False}
    for variant, order in orders.items():
        judged(make(folder, variant, order), case, folder / f"{variant}.onnx")
    rows = [
        json.loads(path.read_text())
        for path in sorted(folder.glob("*.json"), key=lambda path: (path.stem == "chosen", path.stem))
    ]
    evaluation = corpus.load(case.evaluation)
    found: dict[str, Any] = {"rows": rows, "original": counted(onnx.load(case.model))}
    found["original"]["top1"] = top1(case.model, evaluation["image"], evaluation["labels"])
    if "latency" in parts:
        paths = {row["variant"]: folder / f"{row['variant']}.onnx" for row in rows if "top1" in row}
        feed = {"image": np.asarray(evaluation["image"][:1])}
        timed = interleaved({"original": case.model} | paths, feed, "original", TIMING, ROUNDS)
        found["original"]["milliseconds"] = timed["original"].milliseconds
        for row in rows:
            if row["variant"] in paths:
                row.update(asdict(timed[row["variant"]]))
        found["machine"] = machine()
    return found


def main() -> None:
    """Measure, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated zoo nets")
    parser.add_argument("--ranks", default=",".join(map(str, RANKS)))
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated parts of {', '.join(PARTS)}")
    parser.add_argument("--cache", type=Path, default=corpus.CACHE, help="where the samples are")
    parser.add_argument("--work", type=Path, help="what was made; default: separate in the cache")
    parser.add_argument("--fresh", action="store_true", help="make everything anew")
    parser.add_argument("--report", action="store_true", help="only write the tables again")
    options = parser.parse_args()
    parts = [] if options.report else options.only.split(",")
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    cache = options.cache.resolve()
    work = (options.work or cache / "separate").resolve()
    ranks = [int(rank) for rank in options.ranks.split(",")]
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    names = options.models.split(",") if set(parts) - {"counting"} else []
    if options.fresh and parts != ["latency"]:
        for name in [*names, *(["mobilenet_v1"] if "counting" in parts else [])]:
            shutil.rmtree(work / name, ignore_errors=True)
    found: dict[str, Any] = {"counting": count_mobilenet(work)} if "counting" in parts else {}
    _write(kept | found, work, cache)
    for name in names:
        case = corpus.build(name, cache)
        found.setdefault("nets", {})[name] = net(case, work, ranks, parts)
        _write(kept | found | {"nets": kept.get("nets", {}) | found["nets"]}, work, cache)


def _write(everything: dict[str, Any], work: Path, cache: Path) -> None:
    # Messages may name files; where the folders were is nobody's business.
    text = json.dumps(everything, indent=1, sort_keys=True).replace(str(work), "WORK").replace(str(cache), "CACHE")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text + "\n")
    RESULTS.with_suffix(".md").write_text(separate_report.markdown(json.loads(text)))


if __name__ == "__main__":
    main()
