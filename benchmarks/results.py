"""Raw results as JSON under `benchmarks/results/`, and the tables people read in `benchmarks/RESULTS.md`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import exact_report

HERE = Path(__file__).parent
FOLDER = HERE / "results"
HEADER = """# Benchmark results

Written by `python -m benchmarks.int8`, `.calibration`, `.exact` and `.scale`; raw numbers in `results/`. Pruning, by
`python -m benchmarks.prune`: [results/prune.md](results/prune.md). Depthwise-separable substitution, by
`python -m benchmarks.separate`: [results/separate.md](results/separate.md). Everything together on a CPU, against ONNX
Runtime's quantizer and onnxsim's pipelines, by `python -m benchmarks.cpu`: [results/cpu.md](results/cpu.md).

Ratios come from one process that runs the models in turns: one thread, batch 1, CPU time, all of ONNX Runtime's
optimizations on for every model, the original included. Brackets are 95 % bootstrap intervals. *quantize_static* is
ONNX Runtime's own quantizer in the best of 15 configurations: the fastest that loses at most 0.01 of accuracy, and
among equals the one with the highest SQNR; its cost is that of this one configuration, not of the search for it.
Peak memory is that of the whole process. *MACs in int8* is read from the graph that ONNX Runtime runs. torchvision
nets have random weights with fitted BatchNorm statistics: they have no accuracy to lose, and every tool may lose 0.05
of cosine.
"""
METRICS = {
    "top1": "top-1",
    "lines": "lines right",
    "cosine": "cosine to the original",
    "sqnr": "cosine to the original, random weights",
}


def read(name: str) -> dict[str, Any]:
    """What `write` left, or nothing."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def write(name: str, content: Mapping[str, Any]) -> None:
    """Keep raw results and bring RESULTS.md up to date."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    (HERE / "RESULTS.md").write_text(markdown())


def _accuracy(metric: str, row: Mapping[str, Any]) -> str:
    shown = f"{row['cosine'] if metric == 'sqnr' else row['accuracy']:.4f}"
    return f"{shown} ({row['characters']:.4f} of characters)" if "characters" in row else shown


def _row(who: str, metric: str, row: Mapping[str, Any]) -> list[str]:
    if row.get("error"):
        return [who, f"failed: {row['error']}", *[""] * 5]
    own = "cpu_seconds" in row
    return [
        who,
        _accuracy(metric, row),
        "" if row["sqnr_db"] == float("inf") else f"{row['sqnr_db']:.1f}",
        f"{row['milliseconds']:.2f} ms"
        if who == "original"
        else f"**{row['speedup']:.2f}x** [{row['low']:.2f}, {row['high']:.2f}]",
        f"{100 * row['int8_share']:.0f} %" if "int8_share" in row else "",
        f"{row['cpu_seconds']:.1f}" if own else "",
        f"{row['peak_mb']:.0f}" if own else "",
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def int8_table(models: Mapping[str, Any]) -> str:
    """One row for each model and tool."""
    head = ["model", "tool", "accuracy", "SQNR dB", "latency", "MACs in int8", "CPU s", "peak MB"]
    rows: list[list[str]] = []
    for name, result in models.items():
        metric = result["metric"]
        rows.append([f"**{name}** ({METRICS[metric]})", *_row("original", metric, result["original"])])
        rival = result["rival"] or {"error": "no configuration holds the accuracy gate", "configuration": ""}
        rows.append(["", *_row(f"quantize_static {rival['configuration']}".strip(), metric, rival)])
        rows.append(["", *_row("graphopt", metric, result["graphopt"])])
    return _table(head, rows)


def calibration_table(rows: Mapping[str, Any]) -> str:
    """Cost of calibration, one row for each run."""
    head = ["tool", "ranges", "samples", "calibration, CPU s", "whole quantization, CPU s", "peak MB"]
    lines = []
    for row in rows.values():
        failed = row["error"]
        cost = [f"failed: {failed}", "", ""]
        if not failed:
            cost = [f"{row['calibration_cpu_seconds']:.1f}", f"{row['cpu_seconds']:.1f}", f"{row['peak_mb']:.0f}"]
        lines.append([row["tool"], row["ranges"], str(row["samples"]), *cost])
    return _table(head, lines)


def _machines(models: Mapping[str, Any]) -> str:
    """Each machine that results were made on, with the models measured there."""
    groups: dict[str, list[str]] = {}
    for name, row in models.items():
        text = ", ".join(f"{key} {value}" if key not in ("cpu", "flags") else value for key, value in row.items())
        groups.setdefault(text, []).append(name)
    return "\n".join(
        f"- {text}" + (f": {', '.join(names)}" if len(groups) > 1 else "") for text, names in groups.items()
    )


def markdown() -> str:
    """The whole of RESULTS.md from the raw results."""
    int8, calibration = read("int8"), read("calibration")
    parts = [HEADER]
    if int8:
        parts.append("## int8\n\n" + int8_table(int8) + "\n")
    if calibration:
        title = "## Cost of calibration: MobileNetV2 at 224, samples streamed\n\n"
        parts.append(title + calibration_table(calibration["runs"]) + "\n")
    if exact := read("exact"):
        parts.append(exact_report.table(exact))
    if scale := read("scale"):
        parts.append(exact_report.scale(scale))
    machines = {name: row["machine"] for name, row in int8.items()}
    if calibration:
        machines["calibration"] = calibration["machine"]
    parts.append("## Machine\n\n" + _machines(machines) + "\n")
    return "\n".join(parts)
