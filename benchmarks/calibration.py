"""What calibration costs: MobileNetV2 at 224, samples streamed from a generator, each run in its own process.

    python -m benchmarks.calibration [--cache DIR] [--only graphopt]

ONNX Runtime's `quantize_static` with min-max and with percentile ranges (256 samples), graphopt with percentile
ranges (64, 256 and 1,024 samples). CPU seconds leave out imports and the making of the images; those of the whole
quantization include graphopt's measuring of kernels and choosing of settings. Updates
`benchmarks/results/calibration.json` and `benchmarks/RESULTS.md`.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import corpus, results
from benchmarks.corpus import Case
from benchmarks.costs import Cost, run_worker
from benchmarks.measure import has_vnni, machine

NET = "mobilenet_v2"


@dataclass(frozen=True)
class Run:
    """One calibration."""

    tool: str
    ranges: str
    samples: int


RUNS = (
    Run("quantize_static", "minmax", 256),
    Run("quantize_static", "percentile", 64),
    Run("quantize_static", "percentile", 256),
    Run("graphopt", "percentile", 64),
    Run("graphopt", "percentile", 256),
    Run("graphopt", "percentile", 1024),
)


def execute(run: Run, case: Case, folder: Path) -> Cost:
    """Run it in a worker."""
    output = str(folder / "quantized.onnx")
    if run.tool == "graphopt":
        arguments: dict[str, Any] = {"model": str(case.model), "output": output, "observer": run.ranges}
        return run_worker("benchmarks.run_calibration", arguments | {"samples": run.samples})
    arguments = {
        "model": str(case.model),
        "prepared": str(folder / "prepared.onnx"),
        "output": output,
        "stream": True,
        "samples": run.samples,
        "method": run.ranges,
        "operators": "all",
        "per_channel": True,
        "activation": "u8",
        "reduce_range": not has_vnni(),
    }
    return run_worker("benchmarks.run_quantize_static", arguments)


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=corpus.CACHE)
    parser.add_argument("--only", choices=("graphopt", "quantize_static"), help="repeat this tool's runs only")
    options = parser.parse_args()
    case = corpus.build(NET, options.cache.resolve())
    rows: dict[str, Any] = results.read("calibration").get("runs", {})
    for run in RUNS:
        if options.only not in (None, run.tool):
            continue
        with tempfile.TemporaryDirectory() as folder:
            cost = execute(run, case, Path(folder))
        spent = cost.cpu_seconds - cost.details.get("data_cpu_seconds", 0.0)
        row = {"tool": run.tool, "ranges": run.ranges, "samples": run.samples, "cpu_seconds": spent}
        row |= {"peak_mb": cost.peak_mb, "error": cost.error}
        row["calibration_cpu_seconds"] = cost.details.get("calibration_cpu_seconds", 0.0)
        rows[f"{run.tool} {run.ranges} {run.samples}"] = row
        print(results.calibration_table({"run": row}).splitlines()[-1], flush=True)
        results.write("calibration", {"machine": machine(), "runs": rows})


if __name__ == "__main__":
    main()
