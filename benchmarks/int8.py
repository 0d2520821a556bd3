"""The comparison: original, ONNX Runtime's quantizer at its best, and graphopt, in one run.

    python -m benchmarks.int8 [--models a,b] [--cache DIR] [--quick]

For each model: ONNX Runtime's grid (`benchmarks.rivals`; kept in the cache until `--fresh`), graphopt in its own
process, then all of them together on the same evaluation samples and in turns on the clock. Prints a table; updates
`benchmarks/results/int8.json` and `benchmarks/RESULTS.md` (not with `--quick`, which only looks: three
configurations, few samples, little timing).
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import corpus, results, rivals
from benchmarks.corpus import Case
from benchmarks.costs import Cost, run_worker
from benchmarks.int8_share import int8_share
from benchmarks.measure import interleaved, machine
from benchmarks.scores import MAX_DROP, evaluate

SHORTLIST = 4  # rival configurations that enter the joint measurement
# Keywords for graphopt.optimize where a model's data say more than the defaults know: the classes of random weights are
# near ties, whose arg-max any rounding flips, so those nets are gated by cosine, as the rivals are.
KEYWORDS: dict[str, dict[str, Any]] = {
    name: {"metric": "cosine", "max_drop": MAX_DROP["sqnr"]} for name in corpus.TORCH
}


def shortlist(found: dict[str, Any]) -> list[str]:
    """The configurations that might be the best one, the favourite first."""
    rows = {name: row for name, row in found["configurations"].items() if row["error"] is None}
    favourite = rivals.best(found)
    order = sorted(rows, key=lambda name: (name != favourite, not rows[name]["holds"], -rows[name]["speedup"]))
    return order[:SHORTLIST]


def run_graphopt(case: Case, cache: Path, output: Path) -> Cost:
    """graphopt on `case`, in its own process."""
    output.parent.mkdir(parents=True, exist_ok=True)
    arguments = {
        "name": case.name,
        "cache": str(cache),
        "output": str(output),
        "samples": rivals.calibration_samples(case),
        "keywords": KEYWORDS.get(case.name, {}),
    }
    return run_worker("benchmarks.run_graphopt", arguments)


def joint(case: Case, paths: dict[str, Path], quick: bool) -> dict[str, dict[str, Any]]:
    """Accuracy, SQNR, latency and int8 share of `paths` beside the original, all in one process."""
    feed = rivals.first_feed(case)
    scores = evaluate(case, paths, 32 if quick else None)
    latency = interleaved({"original": case.model} | paths, feed, "original", seconds=15 if quick else 60)
    rows: dict[str, dict[str, Any]] = {}
    for name in ("original", *paths):
        rows[name] = rivals.score_row(case, scores[name], scores["original"]) | asdict(latency[name])
        rows[name]["error"] = None
    for name, path in paths.items():
        share = int8_share(path, feed)
        rows[name] |= {"int8_share": share.int8, "float_nodes": [list(entry) for entry in share.float_nodes]}
    return rows


def compare(case: Case, cache: Path, fresh: bool, quick: bool) -> dict[str, Any]:
    """Everything about one model, as JSON."""
    found = rivals.results(case, cache, fresh=fresh, quick=quick)
    folder = rivals.folder(case, cache, quick)
    paths = {name: folder / found["configurations"][name]["path"] for name in shortlist(found)}
    output = cache / "graphopt" / f"{case.name}.onnx"
    cost = run_graphopt(case, cache, output)
    if cost.error is None:
        paths["graphopt"] = output
    rows = joint(case, paths, quick)
    for name in paths.keys() - {"graphopt"}:
        kept = found["configurations"][name]
        rows[name] |= {key: kept[key] for key in ("cpu_seconds", "peak_mb", "samples", "notes")}
    candidates = {name: row for name, row in rows.items() if name not in ("original", "graphopt")}
    chosen = rivals.best({"metric": case.accuracy, "configurations": candidates})
    graphopt: dict[str, Any] = {"error": cost.error, "samples": rivals.calibration_samples(case)}
    if cost.error is None:
        told = {key: cost.details["report"][key] for key in ("stages", "accuracy", "latency", "warnings")}
        graphopt |= rows["graphopt"] | {"cpu_seconds": cost.cpu_seconds, "peak_mb": cost.peak_mb, "report": told}
    return {
        "metric": case.accuracy,
        "machine": machine(),
        "original": rows["original"],
        "rival": None if chosen is None else {"configuration": chosen} | rows[chosen],
        "rival_configurations": found["configurations"],
        "graphopt": graphopt,
    }


def available(names: list[str]) -> list[str]:
    """Names as given; without any, every model whose file exists or can be built."""
    return names or [name for name in corpus.NAMES if name not in corpus.ZOO or corpus.case(name).model.is_file()]


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="comma-separated; default: all")
    parser.add_argument("--cache", type=Path, default=corpus.CACHE)
    parser.add_argument("--quick", action="store_true", help="few configurations and samples; writes no results")
    parser.add_argument("--fresh", action="store_true", help="run ONNX Runtime's grid again")
    options = parser.parse_args()
    cache = options.cache.resolve()
    everything = results.read("int8")
    for name in available([name for name in options.models.split(",") if name]):
        case = corpus.build(name, cache)
        row = compare(case, cache, options.fresh, options.quick)
        print(results.int8_table({name: row}), flush=True)
        # Messages may name files; where the cache was is nobody's business.
        everything[name] = json.loads(json.dumps(row).replace(str(cache), "CACHE"))
        if not options.quick:
            results.write("int8", everything)


if __name__ == "__main__":
    main()
