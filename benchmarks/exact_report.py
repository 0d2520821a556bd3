"""The tables of `benchmarks.exact` and `benchmarks.scale`, as they stand in RESULTS.md."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]
# Group of models by the beginning of their names; what fits none came out of a wheel.
GROUPS = {"light_": "light", "zoo_": "zoo", "ts_": "TorchScript", "dyn_": "dynamo"}
OURS = "graphopt"
# Where ONNX Runtime's own optimizations move outputs by more than this, differences tell of the network, not the tool.
STEADY = 3e-5
NOTE = """Nodes are all but `Constant`, those of subgraphs included. *Right*: ONNX Runtime without its optimizations
runs the result and every output is within 1e-4 of the original's largest value (float16: 2e-2; or thrice what ONNX
Runtime's own optimizations change, where that is more), at two batch and image sizes where they are dynamic. *Left* is
the geometric mean of nodes after over before; a model that a tool fails on, or gets wrong, counts as it was. *Faster*
and *loads* are the original's CPU time over the result's, with all of ONNX Runtime's optimizations on, geometric means
over right results: one thread, interleaved, batch 1. *Largest difference* leaves out networks that
ONNX Runtime's own optimizations change by more than 3e-5. What is blank was not measured.
"""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values if value > 0]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _share(found: Sequence[bool]) -> str:
    return f"{sum(found)} of {len(found)}"


def group(name: str) -> str:
    """Where a model comes from."""
    return next((title for start, title in GROUPS.items() if name.startswith(start)), "wheels")


def tools_of(rows: Rows) -> list[str]:
    """Tools in the order they were first seen, ours first."""
    seen = dict.fromkeys(tool for row in rows.values() for tool in row["results"])
    return sorted(seen, key=lambda tool: tool != OURS)


def left(row: Mapping[str, Any], tool: str) -> float:
    """Nodes after over nodes before; 1 where the tool failed or was wrong."""
    result = row["results"].get(tool, {})
    return result["nodes"] / row["nodes"] if result.get("right") else 1.0


def best_rival(row: Mapping[str, Any]) -> int:
    """Fewest nodes of a rival's right result at the model's own opset, or what the original has."""
    results = (result for tool, result in row["results"].items() if tool != OURS)
    return min([row["nodes"], *(each["nodes"] for each in results if each.get("right") and each.get("opset_kept"))])


def _speed(rows: Rows, tool: str, key: str) -> float:
    ratios = [
        row[key]["original"] / row[key][tool]
        for row in rows.values()
        if tool in row.get(key, {}) and row["results"][tool].get("right")
    ]
    return _mean(ratios)


def summary(rows: Rows) -> str:
    """One row for each tool."""
    rows = {name: row for name, row in rows.items() if row.get("nodes")}
    groups = sorted({group(name) for name in rows})
    head = [
        "tool",
        "right",
        "failed",
        "checker clean",
        "interface kept",
        "not larger",
        "idempotent",
        "left: all",
        *groups,
    ]
    head += ["largest difference", "CPU s", "faster", "loads"]
    lines = []
    for tool in tools_of(rows):
        found = [row["results"].get(tool, {}) for row in rows.values()]
        done = [(row, result) for row, result in zip(rows.values(), found, strict=True) if "nodes" in result]
        right = [result for _, result in done if result.get("right")]
        line = [
            f"**{tool}**" if tool == OURS else tool,
            f"{len(right)} of {len(rows)}",
            str(len(rows) - len(done)),
            str(sum(result.get("checker") is None and "checker" in result for _, result in done)),
            str(sum(bool(result.get("interface")) for _, result in done)),
            str(sum(result.get("bytes", math.inf) <= row["bytes"] for row, result in done)),
            _share([result["idempotent"] for _, result in done if "idempotent" in result]),
            f"{_mean(left(row, tool) for row in rows.values()):.3f}",
        ]
        for title in groups:
            line.append(f"{_mean(left(row, tool) for name, row in rows.items() if group(name) == title):.3f}")
        steady = [each["difference"] for row, each in done if each.get("right") and row["noise"] < STEADY]
        line.append(f"{max(steady, default=float('nan')):.1e}")
        line.append(f"{sum(result.get('cpu_seconds', 0.0) for result in found):.0f}")
        line += [_shown(_speed(rows, tool, key), ".2f") for key in ("milliseconds", "load_milliseconds")]
        lines.append(line)
    return _markdown(head, lines)


def models(rows: Rows) -> str:
    """One row for each model: nodes left by each tool."""
    tools = tools_of(rows)
    rivals = [tool for tool in tools if tool != OURS]
    head = ["model", "nodes", OURS, *rivals, "largest difference", "CPU s", "faster", "loads"]
    lines = []
    for name, row in sorted(rows.items()):
        ours = row["results"].get(OURS, {})
        line = [name, str(row.get("nodes", ""))]
        for tool in (OURS, *rivals):
            result = row["results"].get(tool, {})
            shown = str(result["nodes"]) if "nodes" in result else "failed"
            shown += "" if result.get("right") or "nodes" not in result else " (wrong)"
            line.append(f"**{shown}**" if tool == OURS and result.get("nodes", math.inf) <= best_rival(row) else shown)
        line.append(_shown(ours.get("difference", float("nan")), ".1e"))
        line.append(_shown(ours.get("cpu_seconds", float("nan")), ".2f"))
        for key in ("milliseconds", "load_milliseconds"):
            times = row.get(key, {})
            line.append(_shown(times["original"] / times[OURS], ".2f") if OURS in times else "")
        lines.append(line)
    return _markdown(head, lines)


def table(rows: Rows) -> str:
    """The 'Exact passes' part of RESULTS.md."""
    return "\n".join(["## Exact passes", "", NOTE, summary(rows), "", models(rows), ""])


def scale(rows: Mapping[str, Any]) -> str:
    """How cost grows: CPU seconds, megabytes grown by, nodes left where they are not the fewest possible."""
    parts = ["## Exact passes: cost by size", ""]
    parts += [
        "CPU seconds in the library (MB that the process grew by); 60 CPU s at most. What is blank was not measured.",
        "",
    ]
    for name, sizes in rows.items():
        ordered = sorted(sizes.items(), key=lambda item: int(item[0]))
        tools = sorted({tool for _, entry in ordered for tool in entry["tools"]}, key=lambda tool: (tool != OURS, tool))
        lines = []
        for tool in tools:
            line = [f"**{tool}**" if tool == OURS else tool]
            for _, entry in ordered:
                row = entry["tools"].get(tool, {})
                line.append(_scale_cell(row, entry["ideal"]))
            lines.append(line)
        heads = [f"{entry['original']:,} nodes (ideal {entry['ideal']:,})" for _, entry in ordered]
        parts += [_markdown([name, *heads], lines), ""]
    return "\n".join(parts)


def _scale_cell(row: Mapping[str, Any], ideal: int) -> str:
    if not row:
        return ""
    if error := row.get("error"):
        return {"not tried": "–"}.get(error, "> 60" if error.startswith("not done") else error.split(":")[0])
    shown = f"{row['cpu_seconds']:.2f} ({row['memory_mb']:.0f})"
    shown += f", {row['nodes']:,} left" if row["nodes"] != ideal else ""
    return shown + (", wrong" if row.get("right") is False else "")
