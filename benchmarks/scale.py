"""How cost grows with the graph: graphopt beside the other simplifiers on graphs of 1k to 100k nodes.

    python -m benchmarks.scale [--graphs convbn,shape] [--sizes 1000,10000] [--tools graphopt,onnxsim]

Every run is a process of its own with 60 CPU seconds and 12 GB; a tool that does not finish a size is not asked for
the larger ones. Seconds are CPU time in the library, memory is what the process grew by. Results up to 10k nodes are
run and compared with the original. Numbers go to `results/scale.json`, the table to RESULTS.md.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnx

from benchmarks import exact_process, results
from benchmarks.exact_tools import TOOLS
from benchmarks.scale_models import GRAPHS

SIZES = (1000, 10_000, 50_000, 100_000)
CPU_SECONDS = 60
COMPARED = 10_000


def measure(graph: str, size: int, tool: str, path: Path) -> dict[str, Any]:
    """Run one tool on one graph."""
    out = path.with_suffix(f".{tool}.onnx")
    order = {"tool": tool, "model": str(path), "out": str(out) if size <= COMPARED else ""}
    # What it takes to start Python and read the file is not the library's.
    row = exact_process.run("benchmarks.exact_tools", order, CPU_SECONDS + 15)
    if row.get("cpu_seconds", 0.0) > CPU_SECONDS:
        row = {"error": f"not done after {CPU_SECONDS} CPU s"}
    if out.exists():
        order = {"name": f"scale_{graph}", "original": str(path), "results": {tool: str(out)}}
        judged = exact_process.run("benchmarks.exact_judge", order, 300).get("results", {}).get(tool, {})
        row["right"], row["difference"] = judged.get("right"), judged.get("difference")
        out.unlink()
    return row


def main() -> None:
    """Measure what is asked for and bring the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", default=",".join(GRAPHS))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    arguments = parser.parse_args()
    known = results.read("scale")
    for graph in arguments.graphs.split(","):
        failed: set[str] = set()
        for size in sorted(map(int, arguments.sizes.split(","))):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{graph}.onnx"
                model, ideal = GRAPHS[graph](size)
                onnx.save(model, path)
                entry = known.setdefault(graph, {}).setdefault(str(size), {"tools": {}})
                entry["original"], entry["ideal"] = len(model.graph.node), ideal
                for tool in arguments.tools.split(","):
                    row = {"error": "not tried"} if tool in failed else measure(graph, size, tool, path)
                    if row.get("error"):
                        failed.add(tool)
                    entry["tools"][tool] = row
                    shown = (
                        row.get("error")
                        or f"{row['cpu_seconds']:.2f} s, +{row['memory_mb']:.0f} MB, {row['nodes']} left"
                    )
                    print(f"{graph} {size} {tool}: {shown} (ideal {ideal}, right {row.get('right')})", flush=True)
            if not arguments.dry:
                results.write("scale", known)


if __name__ == "__main__":
    main()
