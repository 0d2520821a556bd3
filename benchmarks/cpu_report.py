"""The tables of `benchmarks.cpu`."""

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from typing import Any

MAX_DROP = 0.01
TOOLS = ("quantize_static", "onnxsim", "graphopt")
# What is to be reached: speed-ups over the original, and over quantize_static on the geometric mean.
LEAST = {"plain": 7.5, "resnet20": 4.5}
LEAST_OTHERS, LEAST_RATIO = 1.5, 1.5
NOTE = """The fastest that each tool makes of a net at a drop of at most one point of top-1 on all 10,000 test images
of Fashion-MNIST. *Speed-up* is over the original as exported: ratio of medians of CPU time, all models of a net in
turns in one process, one thread, batch 1, all of ONNX Runtime's optimizations on for every model; brackets are 95 %
bootstrap intervals. Where nothing of a tool holds the drop, its user keeps the original: 1.00x in the means.

graphopt: the recipe for CPUs as it is, `max_drop` 0.01, 4,096 labelled training images to choose by, the test images
for its verdict. quantize_static: ONNX Runtime's quantizer in 288 configurations (min-max, entropy and percentile
ranges; QDQ and QOperator; u8 and s8; scales a channel or a tensor; 8 or 7 bits; all operators or the heavy ones; with
and without `quant_pre_process`), 500 training images, the fastest that holds on the test images; of configurations
that run the same kernels one is timed, and the others are tried until one holds. onnxsim: its
`apply_optimization_pipeline` in all variants, its own `quantize_static` and ONNX Runtime's behind `simplify` and its
pruning of 1/32 and 1/8 in four rankings with its refit, as far as the pruned net holds, chosen in the same way.
"""
STAGES_NOTE = """What became of the model stage by stage, from graphopt's own report: top-1 on the training images that
choices are made by, latency as measured in that run.
"""
ABLATION_NOTE = """graphopt with its recipe but for one pass: what that pass is worth beside the others.
"""


def best(net: Mapping[str, Any], tool: str) -> Mapping[str, Any] | None:
    """The fastest of a tool's models whose drop is allowed; of graphopt the whole recipe. None where nothing holds."""
    rows = [row for row in net["rows"] if row["tool"] == tool and "top1" in row and "speedup" in row]
    rows = [row for row in rows if net["top1"] - row["top1"] <= MAX_DROP + 1e-9]
    if tool == "graphopt":
        rows = [row for row in rows if row["variant"] == "all"]
    return max(rows, key=lambda row: float(row["speedup"]), default=None)


def speedup(net: Mapping[str, Any], tool: str) -> float:
    """Of the best model of a tool over the original; 1 where nothing holds."""
    found = best(net, tool)
    return float(found["speedup"]) if found else 1.0


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def _measured(nets: Mapping[str, Any], tool: str) -> list[str]:
    """Nets whose models of a tool were timed, or of which none held."""
    names = []
    for name, net in nets.items():
        rows = [row for row in net["rows"] if row["tool"] == tool]
        known = tool in net["tools"] or any(row["variant"] == "all" for row in rows)
        if known and "milliseconds" in net and all("speedup" in row for row in rows if "top1" in row):
            names.append(name)
    return names


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _row(net: Mapping[str, Any], row: Mapping[str, Any], label: str) -> list[str]:
    drop = 100 * (net["top1"] - row["top1"])
    cells = ["", label, f"{100 * row['top1']:.2f}", f"{drop:+.2f}"]
    if "speedup" not in row:
        return [*cells, "", "not timed"]
    cells.append(f"{row['milliseconds']:.3f}")
    return [*cells, f"**{row['speedup']:.2f}x** [{row['low']:.2f}, {row['high']:.2f}]"]


def speeds(nets: Mapping[str, Any]) -> str:
    """Best of each tool, net by net, and the geometric means."""
    rows = []
    for name, net in nets.items():
        if "top1" not in net:
            continue
        time = f"{net['milliseconds']:.3f}" if "milliseconds" in net else ""
        rows.append([f"**{name}**", "original", f"{100 * net['top1']:.2f}", "", time, ""])
        for tool in TOOLS:
            found = best(net, tool) or _untimed(net, tool)
            if found is not None:
                label = tool if tool == "graphopt" else f"{tool} {found['variant']}"
                rows.append(_row(net, found, label))
            elif tool in net["tools"] or any(row["tool"] == tool for row in net["rows"]):
                rows.append(["", tool, _why_none(net, tool), "", "", ""])
    for tool in TOOLS:
        names = _measured(nets, tool)
        if names:
            mean = geometric_mean(speedup(nets[name], tool) for name in names)
            rows.append([f"geometric mean of {len(names)}", tool, "", "", "", f"**{mean:.2f}x**"])
    return _markdown(["net", "tool", "top-1", "drop", "ms", "speed-up"], rows)


def _untimed(net: Mapping[str, Any], tool: str) -> Mapping[str, Any] | None:
    rows = [row for row in net["rows"] if row["tool"] == tool and "top1" in row and "speedup" not in row]
    rows = [row for row in rows if tool != "graphopt" or row["variant"] == "all"]
    return max(rows, key=lambda row: float(row.get("screened", 0)), default=None)


def _why_none(net: Mapping[str, Any], tool: str) -> str:
    errors = [row["error"] for row in net["rows"] if row["tool"] == tool and row.get("error")]
    tried = net["tools"].get(tool, {}).get("tried")
    return str(errors[0]) if errors else f"nothing holds the drop ({tried} models tried)" if tried else "nothing holds"


def targets(nets: Mapping[str, Any]) -> str:
    """What was to be reached, and what was."""
    lines = []
    for name in _measured(nets, "graphopt"):
        wanted, found = LEAST.get(name, LEAST_OTHERS), speedup(nets[name], "graphopt")
        lines.append(f"- {name}: {found:.2f}x, wanted {wanted:g}x: {'reached' if found >= wanted else 'missed'}")
    both = [name for name in _measured(nets, "graphopt") if name in _measured(nets, "quantize_static")]
    if both:
        ratio = geometric_mean(speedup(nets[n], "graphopt") / speedup(nets[n], "quantize_static") for n in both)
        verdict = "reached" if ratio >= LEAST_RATIO else "missed"
        lines.append(f"- over quantize_static, geometric mean of {len(both)}: {ratio:.2f}x, wanted 1.5x: {verdict}")
    return "\n".join(lines) + "\n"


def stages(nets: Mapping[str, Any]) -> str:
    """What the approximate passes of graphopt did to each net, one after the other."""
    rows = []
    for name, net in nets.items():
        found = next((row for row in net["rows"] if row["tool"] == "graphopt" and row["variant"] == "all"), None)
        if found is None or not found.get("stages"):
            continue
        cost = f"{found['cpu_seconds']:.0f} CPU s, {found['peak_mb']:.0f} MB"
        rows.append([f"**{name}**", cost, "", "", "", ""])
        for stage in found["stages"]:
            if not (stage["metric"] is not None or stage["latency_ms"] is not None or stage["status"] != "applied"):
                continue
            if stage["status"] == "skipped" and stage["metric"] is None:
                rows.append(["", stage["name"], "skipped", "", "", ""])
                continue
            macs = f"{stage['macs'] / 1e6:.1f} M" if stage["macs"] else ""
            metric = f"{100 * stage['metric']:.2f}" if stage["metric"] is not None else ""
            time = f"{stage['latency_ms']:.3f}" if stage["latency_ms"] is not None else ""
            rows.append(["", stage["name"], stage["status"].replace("_", " "), macs, metric, time])
    return _markdown(["net", "stage", "", "multiply-adds", "top-1", "ms"], rows) if rows else ""


def ablation(nets: Mapping[str, Any]) -> str:
    """Speed-up and drop without each pass."""
    rows = []
    for name, net in nets.items():
        runs = [row for row in net["rows"] if row["tool"] == "graphopt" and "top1" in row]
        if len(runs) < 2:
            continue
        for row in sorted(runs, key=lambda row: (row["variant"] != "all", row["variant"])):
            cells = _row(net, row, row["variant"].replace("without_", "without "))
            rows.append([f"**{name}**" if row["variant"] == "all" else "", *cells[1:]])
    return _markdown(["net", "recipe", "top-1", "drop", "ms", "speed-up"], rows) if rows else ""


def markdown(nets: Mapping[str, Any]) -> str:
    """All tables."""
    parts = ["## Everything together on a CPU\n", NOTE, speeds(nets)]
    told = targets(nets)
    if told.strip():
        parts.append("### What was to be reached\n\n" + told)
    staged = stages(nets)
    if staged:
        parts.append("### What each stage contributed\n\n" + STAGES_NOTE + "\n" + staged)
    without = ablation(nets)
    if without:
        parts.append("### Without one pass\n\n" + ABLATION_NOTE + "\n" + without)
    return "\n".join(parts)
