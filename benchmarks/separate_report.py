"""The tables of `benchmarks.separate`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What is to be reached: drops in points at each rank, and the speed-up at the ranks that are chosen for one point.
MOST_DROP = {"plain": {"rank1": 3.0, "rank2": 0.8, "rank3": 0.4}, "resnet20": {"rank2": 2.0, "rank3": 0.8}}
LEAST_SPEEDUP = {"plain": 2.5}
PUBLISHED = {"plain": (4866e6, 29.3e6), "mobilenet": (569e6, 4.2e6)}  # arXiv 1704.04861, table 4
NOTE = """No labels and no training. *Rank n*: every k x k convolution but the first as n pairs of a depthwise and a
pointwise convolution, refitted on 512 training images. *Chosen*: form and rank of each layer (or none) chosen for a
drop of at most one point, in float, with 4,096 labelled training images to choose by. Top-1 is on all 10,000 test
images of Fashion-MNIST. *Speed-up* is over the original as exported: ratio of medians of CPU time, interleaved, one
thread, batch 1, all of ONNX Runtime's optimizations on for both; brackets are 95 % bootstrap intervals.
"""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def counting(found: Mapping[str, Any]) -> str:
    """The plain net in MobileNet's shape at rank 1, MobileNet, and what was published."""
    rows = []
    named = {"plain": "plain convolutions", "rank1": "the same at rank 1", "mobilenet": "MobileNet"}
    for key, label in named.items():
        row = found.get(key, {})
        if row.get("error") or "macs" not in row:
            rows.append([label, str(row.get("error") or "failed"), "", ""])
            continue
        macs, parameters = PUBLISHED["mobilenet" if key == "rank1" else key]
        published = f"{macs / 1e6:,.0f} M, {parameters / 1e6:.1f} M"
        rows.append([label, f"{row['macs'] / 1e6:,.1f} M", f"{row['parameters'] / 1e6:.2f} M", published])
    return _markdown(["1.0 at 224, 1000 classes", "multiply-adds", "parameters", "published"], rows)


def nets(found: Mapping[str, Any]) -> str:
    """One row for each net and rank."""
    rows = []
    for name, one in found.items():
        original = one["original"]
        time = f"{original['milliseconds']:.3f}" if "milliseconds" in original else ""
        macs = f"{original['macs'] / 1e6:.1f} M"
        rows.append([f"**{name}**", "original", f"{100 * original['top1']:.2f}", "", "", macs, time, "", ""])
        for row in one["rows"]:
            rows.append(["", row["variant"].replace("rank", "rank "), *_figures(name, row, original)])
    head = ["net", "", "top-1", "drop", "at most", "multiply-adds", "ms", "speed-up", "CPU s"]
    return _markdown(head, rows)


def _figures(name: str, row: Mapping[str, Any], original: Mapping[str, Any]) -> list[str]:
    if "top1" not in row:
        return [str(row.get("error") or "no model holds the gates"), *[""] * 6]
    limit = 1.0 if row["variant"] == "chosen" else MOST_DROP.get(name, {}).get(row["variant"])
    drop = f"{100 * (original['top1'] - row['top1']):+.2f}"
    speed = ""
    if "speedup" in row:
        speed = f"**{row['speedup']:.2f}x** [{row['low']:.2f}, {row['high']:.2f}]"
        if row["variant"] == "chosen" and name in LEAST_SPEEDUP:
            speed += f", wanted {LEAST_SPEEDUP[name]:g}x"
    return [
        f"{100 * row['top1']:.2f}",
        drop,
        "" if limit is None else f"{limit:g}",
        f"{row['macs'] / 1e6:.1f} M",
        f"{row['milliseconds']:.3f}" if "milliseconds" in row else "",
        speed,
        f"{row['cpu_seconds']:.0f}",
    ]


def markdown(kept: Mapping[str, Any]) -> str:
    """All tables."""
    parts = ["## Depthwise-separable substitution\n"]
    if kept.get("counting"):
        parts.append(counting(kept["counting"]))
    if kept.get("nets"):
        parts.append(NOTE + "\n" + nets(kept["nets"]))
    return "\n".join(parts)
