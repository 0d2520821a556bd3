"""Compares a simplified model with the original, in a process of its own: what it holds may crash ONNX Runtime.

    python -m benchmarks.exact_judge '{"name": "resnet18", "original": "a.onnx", "results": {"onnxsim": "b.onnx"}}'

Outputs are compared with ONNX Runtime's optimizations off, since with them both sides would be simplified alike.
Latency and session load are measured with all of them on, one thread, CPU time, the models taking turns.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.exact_feeds import Array, feeds, inputs
from benchmarks.exact_process import report
from benchmarks.exact_tools import count

# What rounding explains, relative to the largest value of the output.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
NOISE, JUDGEABLE = 3.0, 1e-2
ROUNDS, SECONDS, LOADS = 21, 3.0, 5


def session(path: str, *, optimize: bool) -> Any:
    """One thread, with all optimizations or none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def difference(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Largest difference over all outputs, each relative to its largest value; infinite where they do not compare."""
    worst = 0.0
    for known, other in zip(expected, found, strict=True):
        if not isinstance(known, np.ndarray) or known.dtype.kind not in "fiub":
            worst = max(worst, 0.0 if np.array_equal(known, other) else float("inf"))
            continue
        if not isinstance(other, np.ndarray) or (known.dtype, known.shape) != (other.dtype, other.shape):
            return float("inf")
        if not known.size:
            continue
        old, new = known.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(old)
        if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
            return float("inf")
        scale = float(np.abs(old[finite]).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(old[finite] - new[finite]).max(initial=0.0)) / scale)
    return worst


def interface(model: onnx.ModelProto) -> list[Any]:
    """What a caller sees: names, order, types and shapes of inputs and outputs; a size of -1 is an open one."""
    outputs = []
    for value in model.graph.output:
        kind = onnx.TypeProto()
        kind.CopyFrom(value.type)
        for dim in kind.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()
        outputs.append((value.name, kind.SerializeToString(deterministic=True)))
    return [list(inputs(model).items()), outputs]


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Versions by domain, the default one under ''."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}


def _why_invalid(model: onnx.ModelProto) -> str | None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return str(error).strip().splitlines()[0][:200]
    return None


def judged(
    original: onnx.ModelProto, path: str, given: Sequence[dict[str, Array]], wanted: Sequence[Any]
) -> dict[str, Any]:
    """Everything about one result but its speed."""
    model = onnx.load(path)
    before, after = opsets(original), opsets(model)
    row: dict[str, Any] = {
        "nodes": count(model),
        "checker": _why_invalid(model),
        "interface": interface(model) == interface(original),
        "opset_kept": before.get("", 0) == after.get("", 0)
        and not {n.domain for n in model.graph.node} - set(before) - {"", "ai.onnx"},
        "bytes": Path(path).stat().st_size,
    }
    try:
        runner = session(path, optimize=False)
        names = {value.name for value in runner.get_inputs()}
        fed = [{name: array for name, array in feed.items() if name in names} for feed in given]
        row["difference"] = max(
            difference(known, runner.run(None, feed)) for known, feed in zip(wanted, fed, strict=True)
        )
    except Exception as error:
        row["error"] = str(error).strip().splitlines()[0][:200]
    return row


def tolerance(outputs: Sequence[Any]) -> float:
    """The widest that an output's dtype asks for."""
    return max((TOLERANCE.get(getattr(each, "dtype", np.dtype(bool)).name, 0.0) for each in outputs), default=0.0)


def latencies(paths: dict[str, str], feed: dict[str, Array]) -> dict[str, float]:
    """Median CPU milliseconds a run, the models taking turns."""
    runners = {name: session(path, optimize=True) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    started = time.thread_time()
    for turn in range(ROUNDS + 2):
        for name, runner in runners.items():
            begin = time.thread_time()
            runner.run(None, feed)
            if turn > 1:
                times[name].append(1e3 * (time.thread_time() - begin))
        if turn > 4 and time.thread_time() - started > SECONDS * len(paths):
            break
    return {name: statistics.median(taken) for name, taken in times.items()}


def loads(paths: dict[str, str]) -> dict[str, float]:
    """Least CPU milliseconds to open a session."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(LOADS):
        for name, path in paths.items():
            begin = time.thread_time()
            session(path, optimize=True)
            times[name].append(1e3 * (time.thread_time() - begin))
    return {name: min(taken) for name, taken in times.items()}


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Judge every result of one model."""
    original = onnx.load(order["original"])
    given = list(feeds(original, order["name"]))
    runner = session(order["original"], optimize=False)
    wanted = [runner.run(None, feed) for feed in given]
    optimized = session(order["original"], optimize=True)
    noise = max(difference(known, optimized.run(None, feed)) for known, feed in zip(wanted, given, strict=True))
    # A network that ONNX Runtime's own optimizations change more than rounding should is not judged finer than they do.
    limit = max(*(tolerance(outputs) for outputs in wanted), NOISE * noise)
    del optimized, runner
    row: dict[str, Any] = {
        "nodes": count(original),
        "bytes": Path(order["original"]).stat().st_size,
        "opset": opsets(original).get(""),
        "noise": noise,
        # Where ONNX Runtime's own optimizations give other results (boxes that change places), numbers tell nothing.
        "judgeable": noise < JUDGEABLE,
        "tolerance": limit,
        "checker": _why_invalid(original),
        "results": {},
    }
    for tool, path in order["results"].items():
        found = judged(original, path, given, wanted)
        found["right"] = found.get("difference", float("inf")) <= limit
        row["results"][tool] = found
        report(row)  # what is known if the next one crashes
    if order.get("speed"):
        same = {tool: path for tool, path in order["results"].items() if "difference" in row["results"][tool]}
        paths = {"original": order["original"], **same}
        row["milliseconds"], row["load_milliseconds"] = latencies(paths, given[0]), loads(paths)
    return row


if __name__ == "__main__":
    report(main(json.loads(sys.argv[1])))
