"""Exact simplification of real models: graphopt beside onnxsim, OnnxSlim, onnxoptimizer and onnxscript.

    python -m benchmarks.exact --corpus DIR [--models a,b] [--tools graphopt,onnxsim] [--speed] [--show]

The corpus is what `python -m benchmarks.exact_corpus` gathers. Each tool runs on each model in a process of its own,
60 CPU seconds at most; the results are judged in another one. Raw numbers go to `results/exact.json`, one entry a
model, the table to RESULTS.md. Needs the `benchmark` extra.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import exact_process, results
from benchmarks.exact_report import table
from benchmarks.exact_tools import TOOLS

CPU_SECONDS = 60
JUDGE_SECONDS = 300


def measure(
    path: Path, tools: Iterable[str], folder: Path, *, speed: bool = False, again: bool = True
) -> dict[str, Any]:
    """Simplify one model with each tool and judge what comes out."""
    outcomes: dict[str, dict[str, Any]] = {}
    made: dict[str, str] = {}
    for tool in tools:
        out = folder / f"{path.stem}.{tool}.onnx"
        order = {"tool": tool, "model": str(path), "out": str(out), "again": again}
        outcomes[tool] = exact_process.run("benchmarks.exact_tools", order, (1 + again) * CPU_SECONDS)
        # What fails only on its own result has done its work once.
        if "nodes" in outcomes[tool] and out.exists():
            if again:
                outcomes[tool].setdefault("idempotent", False)
            if "error" in outcomes[tool]:
                outcomes[tool]["again_error"] = outcomes[tool].pop("error")
            made[tool] = str(out)
    order = {"name": path.stem, "original": str(path), "results": made, "speed": speed}
    judged = exact_process.run("benchmarks.exact_judge", order, JUDGE_SECONDS)
    for tool, outcome in outcomes.items():
        outcome.update(judged.get("results", {}).get(tool, {}))
        if tool in made and "right" not in outcome:
            outcome["error"] = f"judging it: {judged.get('error')}"
    return {**judged, "results": outcomes}


def main() -> None:
    """Measure what is asked for and bring the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--models", default="", help="names without .onnx; all by default")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--speed", action="store_true", help="latency and session load too")
    parser.add_argument("--show", action="store_true", help="print the table of what is known and measure nothing")
    parser.add_argument("--out", type=Path, help="write here instead of results/exact.json, and no RESULTS.md")
    arguments = parser.parse_args()
    known = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    known = known if arguments.out else results.read("exact")
    if arguments.show:
        print(table(known))
        return
    wanted = set(filter(None, arguments.models.split(",")))
    paths = [path for path in sorted(arguments.corpus.glob("*.onnx")) if not wanted or path.stem in wanted]
    if missing := wanted - {path.stem for path in paths}:
        parser.error(f"not in the corpus: {', '.join(sorted(missing))}")
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            row = measure(path, arguments.tools.split(","), Path(folder), speed=arguments.speed)
            old = known.get(path.stem, {}).get("results", {})
            known[path.stem] = {**row, "results": {**old, **row["results"]}}
            shown = {tool: result.get("nodes", result.get("error")) for tool, result in row["results"].items()}
            print(path.stem, row.get("nodes"), shown, flush=True)
            for leftover in Path(folder).iterdir():
                leftover.unlink()
            if arguments.out:
                arguments.out.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            else:
                results.write("exact", known)


if __name__ == "__main__":
    main()
