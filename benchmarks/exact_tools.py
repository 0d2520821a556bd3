"""The simplifiers compared, each as one function, and the process that runs one of them on one model.

    python -m benchmarks.exact_tools '{"tool": "onnxsim", "model": "in.onnx", "out": "out.onnx", "again": true}'

Every tool runs with its defaults; onnxoptimizer with all of its fusing and eliminating passes to a fixed
point. Cost is counted in the library: reading and writing files and importing the tool are left out.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from benchmarks.costs import peak_memory_mb
from benchmarks.exact_process import report


def _graphopt(model: onnx.ModelProto) -> onnx.ModelProto:
    import graphopt
    from graphopt.passes import PASSES

    exact = [name for name in graphopt.load_target("cpu").recipe if PASSES[name].exact]
    return graphopt.run(model, exact)


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    simplified, _ = onnxsim.simplify(model)
    return simplified


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def _onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxoptimizer

    return onnxoptimizer.optimize(model, onnxoptimizer.get_fuse_and_elimination_passes(), fixed_point=True)


def _onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer

    return onnxscript.optimizer.optimize(model)


TOOLS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "graphopt": _graphopt,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxoptimizer": _onnxoptimizer,
    "onnxscript": _onnxscript,
}
MODULES = {"onnxscript": "onnxscript.optimizer", "graphopt": "graphopt.stages"}


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Every node, those of subgraphs and functions too."""
    found: list[onnx.NodeProto] = []
    pending: list[onnx.NodeProto] = [
        *model.graph.node,
        *(node for function in model.functions for node in function.node),
    ]
    while pending:
        node = pending.pop()
        found.append(node)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)
    return found


def count(model: onnx.ModelProto) -> int:
    """Nodes that compute: `Constant` left out."""
    return sum(node.op_type != "Constant" for node in nodes_of(model))


def _resident_mb() -> float:
    """Memory that this process holds now, in 2**20 bytes; the peak where /proc does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmRSS:")]
    return found[0] if found else peak_memory_mb()


def _same_again(tool: Callable[[onnx.ModelProto], onnx.ModelProto], first: onnx.ModelProto) -> bool:
    """Whether the tool leaves its own result as it is: the same operators and as much data."""

    def form(model: onnx.ModelProto) -> tuple[list[str], int]:
        return sorted(node.op_type for node in nodes_of(model)), len(model.graph.initializer)

    before = form(first)
    return form(tool(first)) == before


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Do what the order says and tell how it went."""
    tool = TOOLS[order["tool"]]
    importlib.import_module(MODULES.get(order["tool"], order["tool"]))
    model = onnx.load(order["model"])
    content = Path(order["model"]).stat().st_size
    resting = _resident_mb()
    started, wall = time.process_time(), time.perf_counter()
    result = tool(model)
    row: dict[str, Any] = {
        "cpu_seconds": time.process_time() - started,
        "wall_seconds": time.perf_counter() - wall,
        "memory_mb": peak_memory_mb() - resting,
        "model_mb": content / 2**20,
        "nodes": count(result),
    }
    if order.get("out"):
        onnx.save(result, order["out"])
    if order.get("again"):
        report(row)  # in case the second application fails
        row["idempotent"] = _same_again(tool, result)
    return row


if __name__ == "__main__":
    report(main(json.loads(sys.argv[1])))
