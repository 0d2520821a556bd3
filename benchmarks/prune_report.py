"""The tables of `benchmarks.prune` and `benchmarks.prune_coverage`, as they stand in RESULTS.md."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TOOLS = ("graphopt", "torch-pruning", "onnxsim")
NOTE = """No tool sees a label or trains. *Share* is of the original's multiply-adds; each tool stays at or below it.
Top-1 is on all 10,000 test images of Fashion-MNIST, in percent, with the difference to the original in brackets.
*Latency* is a share, too: CPU time over the original's as exported (ratio of medians, interleaved, one thread, batch 1,
all of ONNX Runtime's optimizations on for both), behind it over the original's after graphopt's exact passes.
graphopt: exact passes, then `prune_filters` with 512 unlabelled training images. Torch-Pruning (group L2 importance)
and onnxsim (`apply_structured_pruning`) in their best variant of those named: one ranking for the whole net or the
same ratio everywhere; onnxsim on the exported file (raw) or after `onnxsim.simplify`.
"""
LARGE_NOTE = """torchvision nets at 224 with random weights, cut to half their multiply-adds with 256 samples, refit
included, each in a process of its own; wall time on two shared cores. Latency as above.
"""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _latency(row: Mapping[str, Any], exact: Mapping[str, Any]) -> str:
    if "latency" not in row:
        return ""
    beside = f" ({row['milliseconds'] / exact['milliseconds']:.2f})" if exact.get("milliseconds") else ""
    return f"{row['latency']:.2f}{beside}"


def _tool(row: Mapping[str, Any] | None, original: float, exact: Mapping[str, Any]) -> list[str]:
    """Accuracy, latency and what was reached of one tool."""
    if row is None:
        return ["", "", ""]
    if "top1" not in row:
        return [str(row.get("error") or "failed"), "", ""]
    change = 100 * (row["top1"] - original)
    variant = "" if row["tool"] == "graphopt" else f"{row['variant']}, "
    shown = f"{100 * row['top1']:.2f}"
    return [
        f"{f'**{shown}**' if row['tool'] == TOOLS[0] else shown} ({change:+.2f})",
        _latency(row, exact),
        f"{variant}{100 * row['macs_share']:.1f} %",
    ]


def zoo(found: Mapping[str, Any]) -> str:
    """One row for each net and share."""
    head = ["net", "share"]
    for tool in ("graphopt", "Torch-Pruning", "onnxsim"):
        head += [f"{tool}: top-1", "latency", "reached"]
    rows = []
    for name, one in found.items():
        original = one["original"]["top1"]
        exact = next((row for row in one["rows"] if row["variant"] == "exact"), {})
        shares = sorted({row["wanted"] for row in one["rows"] if row["wanted"] is not None}, reverse=True)
        for index, share in enumerate(shares):
            label = f"**{name}** {100 * original:.2f}" if index == 0 else ""
            line = [label, f"{100 * share:.0f} %"]
            for tool in TOOLS:
                line += _tool(_best(one["rows"], tool, share), original, exact)
            rows.append(line)
    return _markdown(head, rows)


def _best(rows: Sequence[Mapping[str, Any]], tool: str, share: float) -> Mapping[str, Any] | None:
    of_tool = [row for row in rows if row["tool"] == tool and row["wanted"] == share]
    return max(of_tool, key=lambda row: (row.get("chosen", False), row["error"] is None), default=None)


def large(found: Mapping[str, Any]) -> str:
    """One row for each large net."""
    head = ["net", "multiply-adds", "latency", "95 %", "after exact passes", "CPU s", "wall s", "peak MB"]
    rows = []
    for name, one in found.items():
        pruned, exact = one["pruned"], one["exact"]
        if pruned.get("error") or "latency" not in pruned:
            rows.append([name, f"failed: {pruned.get('error')}", *[""] * 6])
            continue
        low, high = pruned["latency_range"]
        rows.append(
            [
                name,
                f"{100 * pruned['macs_share']:.1f} %",
                f"**{pruned['latency']:.2f}**",
                f"{low:.2f} to {high:.2f}",
                f"{pruned['milliseconds'] / exact['milliseconds']:.2f}" if exact.get("milliseconds") else "",
                f"{pruned['cpu_seconds']:.0f}",
                f"{pruned['wall_seconds']:.0f}",
                f"{pruned['peak_mb']:.0f}",
            ]
        )
    return _markdown(head, rows)


COVERAGE_NOTE = """Networks with random weights from torchvision, timm and `benchmarks.prune_nets`, through the
TorchScript exporter (`ts_`, nothing folded) and the dynamo exporter (`dyn_`). *In groups* is the share of convolution
parameters whose filters or input slices can be cut, as exported and, where that is less than 98 %, after graphopt's
exact passes. *Left* is the share of all parameters when half of every group goes: a quarter and a bit where everything
can be cut. Torch-Pruning: ratio 0.5 for every layer of the PyTorch module, group L2 importance, output layers left
whole; the kind of error where it fails. *Off* is the largest difference of all draws between the cut model and the
original with the same channels at zero, relative to the largest output.
"""


def coverage(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each file."""
    head = ["file", "groups", "in groups", "after exact passes", "left", "Torch-Pruning: left", "draws", "off"]
    rows = []
    for name, one in files.items():
        ours, theirs, cut = one["graphopt"] or {}, one["torch_pruning"] or {}, one["surgery"] or {}
        failed = ours.get("error")
        rows.append(
            [
                name,
                str(ours.get("groups", "")),
                str(failed) if failed else _percent(ours.get("raw", {}).get("convolution")),
                _percent(ours.get("exact", {}).get("convolution")),
                _percent(ours.get("left")),
                _percent(theirs.get("left")) or _cell(theirs.get("error") or "").split(":")[0],
                str(cut.get("draws", "")),
                _off(cut),
            ]
        )
    return _markdown(head, rows)


def coverage_summary(files: Mapping[str, Mapping[str, Any]]) -> str:
    """What the table says on the whole."""
    ours = [one["graphopt"] for one in files.values() if one["graphopt"] and not one["graphopt"]["error"]]
    shares = [row.get("exact", row["raw"])["convolution"] for row in ours]
    raw = [row["raw"]["convolution"] for row in ours]
    every = {one["architecture"]: one["torch_pruning"] for one in files.values() if one["torch_pruning"]}
    runs = [row["left"] for row in every.values() if row["left"] is not None]
    cuts = [one["surgery"] for one in files.values() if one["surgery"]]
    lines = [
        f"{len(files)} files of {len({one['architecture'] for one in files.values()})} architectures, "
        f"{sum(one['exporter'] == 'dynamo' for one in files.values())} of them from the dynamo exporter.",
        f"- graphopt: at least 90 % of convolution parameters in groups in {_at_least(shares)} of {len(shares)} files "
        f"({_at_least(raw)} as exported); median of what half of every group leaves: "
        f"{_percent(_median([row['left'] for row in ours]))} of the parameters.",
        f"- Torch-Pruning runs on {len(runs)} of {len(every)} architectures and leaves {_percent(_median(runs))} "
        f"(median) of the parameters; {sum(left <= 0.9 for left in runs)} have less than 90 % left.",
        f"- Surgery: {sum(row['draws'] for row in cuts)} draws on {len(cuts)} files, "
        f"{sum(bool(row['faults']) for row in cuts)} files with a fault, largest difference "
        f"{max((row['difference'] for row in cuts), default=0):.1e}.",
    ]
    return "\n".join(lines) + "\n"


def _at_least(shares: Sequence[float], limit: float = 0.9) -> int:
    return sum(share >= limit for share in shares)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _off(cut: Mapping[str, Any]) -> str:
    if cut.get("faults"):
        return _cell(cut["faults"][0])
    return f"{cut['difference']:.1e}" if cut.get("draws") else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:120]


def markdown(kept: Mapping[str, Any], covered: Mapping[str, Any]) -> str:
    """The section on pruning."""
    parts = ["## Filter pruning without labels or training\n\n" + NOTE]
    if kept.get("zoo"):
        parts.append(zoo(kept["zoo"]) + "\n")
    if kept.get("large"):
        parts.append("### Large nets at half their multiply-adds\n\n" + LARGE_NOTE)
        parts.append(large(kept["large"]) + "\n")
    if covered.get("files"):
        parts.append("### What can be cut: architectures\n\n" + COVERAGE_NOTE)
        parts.append(coverage_summary(covered["files"]))
        parts.append(coverage(covered["files"]) + "\n")
    return "\n".join(parts)
