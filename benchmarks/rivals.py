"""ONNX Runtime's own quantizer in every sensible configuration: what graphopt is compared with.

    python -m benchmarks.rivals [--cache DIR] [--models a,b] [--out rivals.json] [--fresh]

The grid: per-channel weights or not, u8 or s8 activations, min-max, entropy or percentile ranges, every operator or
only convolutions and matrix products; s8 weights, after `quant_pre_process`, `reduce_range` only where the CPU lacks
VNNI. Each quantization runs in its own process with limited memory; one that runs out is tried again with half the
samples, and that is recorded. Configurations that differ only after calibration share its ranges and its cost.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.corpus import Case
from benchmarks.costs import Cost, run_worker
from benchmarks.int8_share import int8_share
from benchmarks.measure import feeds, has_vnni, interleaved, machine
from benchmarks.scores import Score, evaluate, holds

CALIBRATION_SAMPLES = {"zoo": 500, "other": 256}
MIN_SAMPLES = 8
# Speeds that count as level when choosing the configuration to beat; wider where SQNR is the only accuracy there is.
TIE = {"top1": 0.02, "lines": 0.02, "cosine": 0.02, "sqnr": 0.05}
# Evaluation samples for the whole grid where a sample takes long; the final comparison uses all.
EVAL_SAMPLES = dict.fromkeys(corpus.TORCH, 16) | {"vgg16_bn": 8}


@dataclass(frozen=True)
class Config:
    """One way to call `quantize_static`."""

    method: str
    operators: str  # "all" that the quantizer knows, or "heavy": convolutions and matrix products
    per_channel: bool
    activation: str

    @property
    def name(self) -> str:
        """Such as `minmax-channel-u8` or `percentile-tensor-s8-heavy`."""
        granularity = "channel" if self.per_channel else "tensor"
        return f"{self.method}-{granularity}-{self.activation}" + ("-heavy" if self.operators == "heavy" else "")


GRID = tuple(
    Config(method, "all", per_channel, activation)
    for method in ("minmax", "entropy", "percentile")
    for per_channel in (True, False)
    for activation in ("u8", "s8")
) + tuple(Config(method, "heavy", True, "u8") for method in ("minmax", "entropy", "percentile"))

QUICK_GRID = tuple(
    config for config in GRID if config.per_channel and config.activation == "u8" and config.method != "entropy"
)


@dataclass(frozen=True)
class Quantized:
    """A configuration that was run: its model, or why there is none."""

    config: str
    path: Path
    samples: int
    cost: Cost  # including calibration
    notes: tuple[str, ...] = ()


def calibration_samples(case: Case) -> int:
    """How many calibration samples every tool gets for `case` (fewer where the file holds fewer)."""
    return CALIBRATION_SAMPLES["zoo" if case.name in corpus.ZOO else "other"]


def _calibrate(case: Case, config: Config, folder: Path, samples: int) -> Quantized:
    """Run `config` with its calibration, with fewer samples where memory does not suffice."""
    notes: list[str] = []
    ranges = folder / f"ranges-{config.method}-{config.operators}.json"
    output = folder / f"{config.name}.onnx"
    while True:
        ranges.unlink(missing_ok=True)
        cost = _run(case, config, folder, output, samples, ranges)
        if cost.error is None or "memory" not in cost.error or samples // 2 < MIN_SAMPLES:
            return Quantized(config.name, output, samples, cost, tuple(notes))
        notes.append(f"{samples} samples: {cost.error}")
        samples //= 2


def _run(case: Case, config: Config, folder: Path, output: Path, samples: int, ranges: Path) -> Cost:
    arguments = {
        "model": str(case.model),
        "prepared": str(folder / "prepared.onnx"),
        "calibration": str(case.calibration),
        "output": str(output),
        "samples": samples,
        "cache": str(ranges),
        "reduce_range": not has_vnni(),
    }
    return run_worker("benchmarks.run_quantize_static", arguments | asdict(config))


def quantize_grid(case: Case, folder: Path, grid: tuple[Config, ...] = GRID) -> list[Quantized]:
    """Every configuration of `grid` for `case`, models kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with_data = corpus.load(case.calibration)
    samples = min(calibration_samples(case), len(next(iter(with_data.values()))))
    del with_data
    calibrated: dict[tuple[str, str], Quantized] = {}
    done: list[Quantized] = []
    for config in grid:
        key = (config.method, config.operators)
        if key not in calibrated:
            result = calibrated[key] = _calibrate(case, config, folder, samples)
        elif calibrated[key].cost.error is not None:
            source = calibrated[key]
            result = Quantized(config.name, folder / f"{config.name}.onnx", source.samples, source.cost, source.notes)
        else:
            source = calibrated[key]
            ranges = folder / f"ranges-{config.method}-{config.operators}.json"
            output = folder / f"{config.name}.onnx"
            cost = _run(case, config, folder, output, source.samples, ranges)
            shared = cost if cost.error else source.cost
            result = Quantized(config.name, output, source.samples, shared, source.notes)
        print(f"  {result.config}: {result.cost.error or f'{result.cost.cpu_seconds:.1f} CPU s'}", flush=True)
        done.append(result)
    return done


def survey(case: Case, quantized: list[Quantized], eval_samples: int | None, seconds: float = 30) -> dict[str, Any]:
    """Accuracy, SQNR, latency and int8 share of everything that was quantized, as JSON."""
    rows: dict[str, dict[str, Any]] = {}
    paths: dict[str, Path] = {}
    feed = first_feed(case)
    for item in quantized:
        row = {"samples": item.samples, "notes": list(item.notes), "path": item.path.name, "error": item.cost.error}
        row |= {"cpu_seconds": item.cost.cpu_seconds, "peak_mb": item.cost.peak_mb}
        rows[item.config] = row
        if item.cost.error is None:
            try:
                share = int8_share(item.path, feed)
            except Exception as error:  # a model that ONNX Runtime refuses is a result too
                row["error"] = f"does not run: {str(error).splitlines()[0][:200]}"
                continue
            row |= {"int8_share": share.int8, "float_nodes": len(share.float_nodes)}
            paths[item.config] = item.path
    scores = evaluate(case, paths, eval_samples)
    latency = interleaved({"original": case.model} | paths, feed, "original", seconds, rounds=(7, 60))
    original = scores["original"]
    for name in paths:
        rows[name] |= score_row(case, scores[name], original) | asdict(latency[name])
    baseline = {"accuracy": original.value, **original.extra, "milliseconds": latency["original"].milliseconds}
    return {"metric": case.accuracy, "original": baseline, "configurations": rows}


def folder(case: Case, cache: Path, quick: bool = False) -> Path:
    """Where the quantized models of `case` and their survey are kept."""
    return cache / ("rivals-quick" if quick else "rivals") / case.name


def results(case: Case, cache: Path, *, fresh: bool = False, quick: bool = False) -> dict[str, Any]:
    """The survey of the grid; from the cache when it was made on this machine with these versions."""
    kept = folder(case, cache, quick) / "survey.json"
    here = machine()
    if kept.is_file() and not fresh:
        found: dict[str, Any] = json.loads(kept.read_text())
        if all(found["machine"][key] == here[key] for key in ("cpu", "flags", "onnxruntime")):
            return found
    quantized = quantize_grid(case, kept.parent, QUICK_GRID if quick else GRID)
    samples = 32 if quick else EVAL_SAMPLES.get(case.name)
    found = survey(case, quantized, samples, seconds=10 if quick else 30)
    found |= {"best": best(found), "machine": here}
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def score_row(case: Case, score: Score, original: Score) -> dict[str, Any]:
    """A score as JSON."""
    held = holds(case.accuracy, score.value, original.value)
    return {"accuracy": score.value, "sqnr_db": score.sqnr_db, "holds": held, **score.extra}


def first_feed(case: Case) -> dict[str, Any]:
    """The first evaluation sample, for latency and shapes."""
    return dict(next(feeds(corpus.load(case.evaluation, 1))))


def best(result: dict[str, Any]) -> str | None:
    """The configuration to beat.

    The fastest that holds the accuracy gate; among those within `TIE` of it the one with the highest SQNR, since
    neither timing nor the tool's user tells them apart. None when nothing holds the gate.
    """
    every: dict[str, dict[str, Any]] = result["configurations"]
    rows = {name: row for name, row in every.items() if row["error"] is None and row["holds"]}
    if not rows:
        return None
    fastest = max(row["speedup"] for row in rows.values())
    near = [name for name, row in rows.items() if row["speedup"] >= (1 - TIE[result["metric"]]) * fastest]
    return max(near, key=lambda name: float(rows[name]["sqnr_db"]))


def main() -> None:
    """Run the grid and write everything measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=corpus.CACHE)
    parser.add_argument("--models", default=",".join((*corpus.TORCH, *corpus.OCR)))
    parser.add_argument("--out", type=Path, help="default: rivals.json in the cache; existing entries are updated")
    parser.add_argument("--eval-samples", help=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true", help="run the grid again")
    options = parser.parse_args()
    cache = options.cache.resolve()
    out = options.out or cache / "rivals.json"
    everything = json.loads(out.read_text()) if out.is_file() else {"models": {}}
    everything["machine"] = machine()
    for name in options.models.split(","):
        print(name, flush=True)
        found = results(corpus.build(name, cache), cache, fresh=options.fresh)
        everything["models"][name] = found
        out.write_text(json.dumps(everything, indent=1) + "\n")
        print(f"  best: {found['best']}", flush=True)


if __name__ == "__main__":
    main()
