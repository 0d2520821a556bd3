"""What removing channel shuffles is worth: nodes, data movement and CPU time, against the model as it is.

``python -m benchmarks.shuffle MODEL...`` optimizes each model with the exact passes up to ``fuse_channel_shuffle`` and
prints nodes, data-moving nodes and the ratio of median CPU times in ONNX Runtime (one thread, interleaved rounds, 95 %
interval by resampling) against the original, and against the same passes without this one.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from graphopt.graph import export_graph, import_graph
from graphopt.passes import PASSES
from graphopt.passes.base import Context, ExactPass
from graphopt.targets import load_target

BEFORE = (
    "fold_constants",
    "eliminate_dead",
    "eliminate_common",
    "simplify_reshapes",
    "eliminate_dead",
    "fold_batchnorm",
)
AFTER = ("fuse_channel_shuffle", "fold_constants", "eliminate_dead")
MOVING = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Gather",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def run_passes(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Apply exact passes by name."""
    work = import_graph(model)
    context = Context(hardware=load_target("cpu").hardware)
    for name in names:
        one = PASSES[name]()
        if not one.exact:
            raise ValueError(f"'{name}' is not an exact pass")
        exact: ExactPass = one  # type: ignore[assignment]
        exact.apply(work.gs, context)
    return export_graph(work)


def times(
    models: Sequence[onnx.ModelProto], batch: int, rounds: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """CPU seconds of each model in each round; all take turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for model in models
    ]
    rng = np.random.default_rng(0)
    feed = {
        given.name: rng.normal(
            size=[
                size if isinstance(size, int) else batch if axis == 0 else 224 for axis, size in enumerate(given.shape)
            ]
        ).astype(np.float32)
        for given in sessions[0].get_inputs()
    }
    for session in sessions:
        for _ in range(3):
            session.run(None, feed)
    found = np.zeros((rounds, len(sessions)))
    for one in found:
        for number in rng.permutation(len(sessions)):
            start = time.thread_time()
            sessions[number].run(None, feed)
            one[number] = time.thread_time() - start
    return found


def ratio(found: np.ndarray[tuple[int, int], np.dtype[np.float64]], first: int, second: int) -> str:
    """Ratio of medians with a 95 % interval."""
    rng = np.random.default_rng(0)
    drawn = [np.median(found[rng.integers(0, len(found), len(found))], axis=0) for _ in range(500)]
    low, high = np.percentile([medians[first] / medians[second] for medians in drawn], [2.5, 97.5])
    medians = np.median(found, axis=0)
    return f"{medians[first] / medians[second]:.3f} ({low:.3f}-{high:.3f})"


def describe(model: onnx.ModelProto) -> str:
    """Number of nodes, and of data-moving ones by kind."""
    kinds = Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")
    moving = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if kind in MOVING)
    return f"{kinds.total()} nodes ({moving or 'no data movement'})"


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    for path in given.models:
        original = onnx.load(path)
        without = run_passes(original, BEFORE)
        fused = run_passes(without, AFTER)
        found = times([original, without, fused], given.batch, given.rounds)
        print(f"{path.name}: {describe(without)} -> {describe(fused)}")
        print(
            f"  faster than the original {ratio(found, 0, 2)}, than without this pass {ratio(found, 1, 2)}", flush=True
        )


if __name__ == "__main__":
    main()
