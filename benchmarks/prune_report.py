"""The tables of `benchmarks.prune` and `benchmarks.prune_coverage`, as they stand in RESULTS.md."""

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
    return [
        f"**{100 * row['top1']:.2f}** ({change:+.2f})",
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
    return max(of_tool, key=lambda row: (row.get("chosen", False), row.get("top1", -1.0)), default=None)


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


def markdown(kept: Mapping[str, Any]) -> str:
    """The section on pruning."""
    parts = ["## Filter pruning without labels or training\n\n" + NOTE]
    if kept.get("zoo"):
        parts.append(zoo(kept["zoo"]) + "\n")
    if kept.get("large"):
        parts.append("### Large nets at half their multiply-adds\n\n" + LARGE_NOTE)
        parts.append(large(kept["large"]) + "\n")
    return "\n".join(parts)
