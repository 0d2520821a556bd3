"""The tables of the latency benchmark as Markdown."""

from typing import Any

_NAMES = {"titan_xp": "Titan Xp", "jetson_tx1": "Jetson TX1"}


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Predicted latency",
        "",
        f"`python -m benchmarks.latency`: {result['nets']} nets of 11 families, eager PyTorch 0.4 in float32, published"
        " in arXiv 1810.00736. Every figure but those of the second table is for nets that were not in the fit.",
        "Cells: Spearman's rho / mean absolute percentage error / largest ratio (either way) / pairs of one family in"
        " the right order (pairs that differ by 5 % or more).",
    ]
    for title, rows in result["tables"].items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *_table(rows)]
    lines += ["", "## Fitted on a random half of the nets, for the other half (mean of five draws)", ""]
    lines += ["| | rho | MAPE | largest ratio |", "|---|---|---|---|"]
    for cell, row in result["halves"].items():
        lines.append(f"| {_cell(cell)} | {row['spearman']:.3f} | {row['mape']:.1%} | {row['ratio']:.2f}x |")
    lines += ["", "## Spread of log(measured / predicted), batch 1 and 16 together", ""]
    lines += ["| | root mean square | 90 % are within | in the 90 % interval |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['rms']:.3f} | {row['p90']:.3f} | {row['within']:.0%} |"
        for name, row in result["spread"].items()
    ]
    lines += ["", "## TensorRT on one device by what the others taught", "", *_engines(result["engines"])]
    lines += ["", "## Errors net by net, its family left out", "", *_errors(result["errors"])]
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| | rho | tau | MAPE | median | largest ratio | order within a family | ratios there: median, 90 % within |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell, row in rows.items():
        lines.append(
            f"| {_cell(cell)} | {row['spearman']:.3f} | {row['kendall']:.3f} | {row['mape']:.1%} | {row['median']:.1%}"
            f" | {row['ratio']:.2f}x {row['worst']} | {row['ordered']}/{row['pairs']}"
            f" | {row['ratio_median']:.1%}, {row['ratio_p90']:.1%} |"
        )
    return lines


def _engines(engines: dict[str, Any]) -> list[str]:
    lines = [
        "*Judged*: the eager runtime's constants with the judgements of `benchmarks/latency_fit.py`. *Left out*: bent"
        " by the other devices (`benchmarks/data/latency/tensorrt.csv` names the sources).",
        "",
        "| | measured ms | judged | left out |",
        "|---|---|---|---|",
    ]
    for name, row in engines["rows"].items():
        lines.append(f"| {name} | {row['ms']:g} | {row['judged']:+.0%} | {row['left_out']:+.0%} |")
    lines += [
        "",
        "| | MAPE | root mean square of the log | 90 % are within | in the 90 % interval |",
        "|---|---|---|---|---|",
    ]
    for name, row in engines["spread"].items():
        lines.append(f"| {name} | {row['mape']:.1%} | {row['rms']:.3f} | {row['p90']:.3f} | {row['within']:.0%} |")
    return lines


def _errors(errors: dict[str, float]) -> list[str]:
    nets: dict[str, dict[str, float]] = {}
    for key, error in errors.items():
        device, rest = key.split(" ", 1)
        net, batch = rest.rsplit(" ", 1)
        nets.setdefault(net, {})[f"{device} {batch}"] = error
    columns = list(dict.fromkeys(column for row in nets.values() for column in row))
    lines = [f"| net | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for net, row in sorted(nets.items()):
        lines.append(f"| {net} | {' | '.join(f'{row[c]:+.0%}' if c in row else '' for c in columns)} |")
    return lines


def _cell(cell: str) -> str:
    device, batch = cell.split(" b")
    return f"{_NAMES[device]}, batch {batch}"
