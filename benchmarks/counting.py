"""Multiply-adds and parameters as graphopt counts them, against a second count and against the literature.

    python -m benchmarks.counting_export          # in an environment with torch, torchvision, timm and onnxscript
    python -m benchmarks.counting [--architectures DIR]

Three tables, written to `results/counting.json` and `results/counting.md`:

- the architectures of `data/architectures.csv` that can be built, against torch's own count of the same network and
  against what the papers print;
- the nets of `data/latency`, against the counts in its `nets.csv`;
- with `--architectures`, the files that `python -m benchmarks.prune_architectures` writes, against torch's own count.

No weights are needed. Parameters are those of `graphopt.graph.cost.parameters`: all numbers that nodes compute with
but BatchNormalization's statistics; torch counts neither masks nor tables of positions that it calls buffers.
"""

import argparse
import csv
import io
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from benchmarks.counting_nets import EXPLAINED, NETS, Net, Row, net_of, rows
from benchmarks.results import FOLDER
from graphopt.errors import GraphoptError
from graphopt.graph.cost import cost
from graphopt.model import read
from models import mobilenet_v1

HERE = Path(__file__).parent
CACHE = HERE / ".cache" / "counting"
LATENCY = HERE / "data" / "latency"
DEFINITION, PUBLISHED = 0.01, 0.05  # the largest differences that pass
CLASSES = 1000


def count(model: onnx.ModelProto | Path) -> dict[str, Any]:
    """What graphopt counts, or why it does not."""
    try:
        found = cost(read(model, weights=False).proto)
    except GraphoptError as error:
        return {"error": str(error)}
    if found.macs is None:
        return {"error": found.unknown[0]}
    return {"macs": found.macs, "parameters": found.parameters}


def mobilenet_by_formula(width: float, size: int, plain: bool) -> dict[str, int]:
    """Table 1 of arXiv 1704.04861 in closed form: the count that torch cannot make of a net built without it."""

    def scaled(channels: int) -> int:
        return max(8, int(channels * width + 4) // 8 * 8)

    side, channels = size // 2, scaled(mobilenet_v1.STEM)
    macs = parameters = 3 * 9 * channels
    macs *= side * side
    for filters, stride in mobilenet_v1.BLOCKS:
        inside, outside = channels, scaled(filters)
        side //= stride
        weights = 9 * inside * outside if plain else 9 * inside + inside * outside
        macs, parameters, channels = macs + weights * side * side, parameters + weights, outside
    return {"macs": macs + channels * CLASSES, "parameters": parameters + channels * CLASSES}


def counted_nets(cache: Path, measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Key of each net of `NETS` that is written -> our count and the second one.

    ``measured`` has those of `latency_nets`.
    """
    others = json.loads((cache / "counts.json").read_text())
    result = {}
    for net in NETS:
        if net.library == "latency":
            result[net.key] = measured[net.name]
        elif net.library == "own":
            options = dict(net.options)
            ours = count(mobilenet_v1.build(mobilenet_v1.Net(size=net.size, **options), seed=None))
            result[net.key] = {"ours": ours, "other": mobilenet_by_formula(size=net.size, **options)}
        else:
            path = cache / f"{net.key}.onnx"
            if path.is_file() and net.key in others:
                result[net.key] = {"ours": count(path), "other": others[net.key]}
    return result


def latency_nets(names: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Each net with measured latency -> our count and that of its table; all of them, or those named."""
    with tarfile.open(LATENCY / "graphs.tar.xz") as packed:
        files = {Path(member.name).stem: packed.extractfile(member) for member in packed if member.isfile()}
        graphs = {name: file.read() for name, file in files.items() if file is not None}
    published = {line["model"]: Path(line["graph"]).stem for line in _table(LATENCY / "published.csv")}
    result = {}
    for line in _table(LATENCY / "nets.csv"):
        if names and line["model"] not in names:
            continue
        proto = onnx.load_from_string(graphs[published[line["model"]]])
        other = {"macs": float(line["macs_M"]) * 1e6, "parameters": float(line["params_M"]) * 1e6}
        result[line["model"]] = {"ours": count(proto), "other": other}
    return result


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def written_architectures(folder: Path, cache: Path) -> dict[str, dict[str, Any]]:
    """Each file of `benchmarks.prune_architectures` that torch could count, by either exporter."""
    others = json.loads((cache / "counts.json").read_text())
    result = {}
    for path in sorted(folder.glob("*.onnx")):
        other = others.get("ts_" + path.stem.split("_", 1)[1])
        if other is not None and "error" not in other:
            result[path.stem] = {"ours": count(path), "other": other}
    return result


def difference(ours: Mapping[str, Any], other: Mapping[str, Any], figure: str) -> float | None:
    """How far our figure is from the other, relative to it; None where there is no count."""
    if "error" in ours or "error" in other:
        return None
    return float(ours[figure] / other[figure] - 1)


def published(nets: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every published figure of a net that was built, beside ours, each once for a paper and a net."""
    seen = set()
    for row in rows():
        net = net_of(row)
        if not isinstance(net, Net) or net.key not in nets:
            continue
        for figure, value in (("macs", row.macs), ("parameters", row.parameters)):
            if value is None or (row.paper, net.key, figure, value) in seen:
                continue
            seen.add((row.paper, net.key, figure, value))
            ours = nets[net.key]["ours"].get(figure)
            yield {
                "paper": row.paper, "table": row.table, "architecture": row.architecture, "net": net.key,
                "figure": figure, "published": value * 1e6, "ours": ours,
                "difference": None if ours is None else ours / (value * 1e6) - 1,
                "explanation": EXPLAINED.get((row.paper, row.architecture, figure), ""),
            }  # fmt: skip


def left_out() -> dict[str, list[str]]:
    """Why rows of the table have no net -> the rows."""
    result: dict[str, list[str]] = {}
    for row in rows():
        reason = net_of(row)
        if isinstance(reason, str):
            result.setdefault(reason, []).append(_shown(row))
    return result


def _shown(row: Row) -> str:
    return f"{row.paper} {row.architecture}"


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that the benchmark is run for."""
    groups = {
        name: [difference(one["ours"], one["other"], "macs") for one in result[name].values()]
        for name in ("nets", "latency_nets", "architectures")
    }
    papers = result["published"]
    return {
        "within_definition": {
            name: {"nets": len(found), "within": sum(one is not None and abs(one) <= DEFINITION for one in found)}
            for name, found in groups.items()
        },
        "within_published": {
            figure: {
                "figures": sum(one["figure"] == figure for one in papers),
                "within": sum(one["figure"] == figure and _near(one) for one in papers),
            }
            for figure in ("macs", "parameters")
        },
    }


def _near(one: Mapping[str, Any]) -> bool:
    return one["difference"] is not None and abs(one["difference"]) <= PUBLISHED


def markdown(result: Mapping[str, Any]) -> str:
    """The tables that people read."""
    found = result["summary"]
    lines = ["# Counting multiply-adds and parameters", "", "Written by `python -m benchmarks.counting`.", ""]
    titles = {
        "nets": "architectures of the literature, against torch's own count (or the formula)",
        "latency_nets": "nets with published latency, against the counts of their table",
        "architectures": "files of two exporters, against torch's own count",
    }
    lines += ["| multiply-adds within 1 % of the definition | nets | within |", "|---|---|---|"]
    lines += [
        f"| {titles[key]} | {one['nets']} | {one['within']} |"
        for key, one in found["within_definition"].items()
        if one["nets"]
    ]
    lines += ["", "| within 5 % of the published figure | figures | within | share |", "|---|---|---|---|"]
    for figure, one in found["within_published"].items():
        name = "multiply-adds" if figure == "macs" else figure
        lines.append(f"| {name} | {one['figures']} | {one['within']} | {one['within'] / one['figures']:.1%} |")
    far = [one for one in result["published"] if not _near(one)]
    lines += ["", "## Further than 5 % from the paper", "", "| paper | net | figure | published | ours | why |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [
        f"| {one['paper']} | {one['architecture']} | {one['figure']} | {one['published'] / 1e6:,.1f} M |"
        f" {_millions(one['ours'])} | {one['explanation']} |"
        for one in far
    ]
    other = [
        (group, name, one)
        for group in ("nets", "latency_nets", "architectures")
        for name, one in result[group].items()
        if not _same(one)
    ]
    lines += ["", "## Further than 1 % from the second count, or not counted", ""]
    lines += ["| net | ours | second count |", "|---|---|---|"] if other else ["None."]
    lines += [f"| {name} | {_both(one['ours'])} | {_both(one['other'])} |" for _, name, one in other]
    lines += ["", "## Every architecture", "", "| net | multiply-adds | second count | parameters | second count |"]
    lines.append("|---|---|---|---|---|")
    lines += [
        f"| {name} | {_millions(one['ours'].get('macs'))} | {_millions(one['other'].get('macs'))} |"
        f" {_millions(one['ours'].get('parameters'))} | {_millions(one['other'].get('parameters'))} |"
        for name, one in result["nets"].items()
    ]
    if result["not_written"]:
        lines += ["", f"Not written by `benchmarks.counting_export` yet: {', '.join(result['not_written'])}."]
    lines += ["", "## Rows of the table without a net", ""]
    lines += [f"- {reason}: {', '.join(sorted(set(names)))}" for reason, names in result["left_out"].items()]
    return "\n".join(lines) + "\n"


def _same(one: Mapping[str, Any]) -> bool:
    off = [difference(one["ours"], one["other"], figure) for figure in ("macs", "parameters")]
    return all(each is not None and abs(each) <= DEFINITION for each in off)


def _both(counts: Mapping[str, Any]) -> str:
    if "error" in counts:
        return str(counts["error"])
    return f"{_millions(counts['macs'])} multiply-adds, {_millions(counts['parameters'])} parameters"


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.2f} M" if value < 1e8 else f"{value / 1e6:,.1f} M"


def main() -> None:
    """Count everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="what benchmarks.counting_export wrote")
    parser.add_argument("--architectures", type=Path, help="what benchmarks.prune_architectures wrote")
    options = parser.parse_args()
    measured = latency_nets()
    nets = counted_nets(options.cache, measured)
    result: dict[str, Any] = {
        "nets": nets,
        "latency_nets": measured,
        "architectures": written_architectures(options.architectures, options.cache) if options.architectures else {},
        "published": list(published(nets)),
        "left_out": left_out(),
        "not_written": [net.key for net in NETS if net.key not in nets],
    }
    result["summary"] = summary(result)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "counting.json").write_text(json.dumps(result, indent=1) + "\n")
    (FOLDER / "counting.md").write_text(markdown(result))
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
