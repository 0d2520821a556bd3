"""Is surgery exact? Random channels cut out of networks, against the originals with the same channels at zero.

    python -m benchmarks.prune_surgery MODEL.onnx ... [--draws 20] [--share 0.5] [--out results.jsonl]

For each network: the groups that ``dependency_groups`` finds, the share of convolution parameters that lie in them, and
for every draw (random groups, random channels, as many of every block of a grouped convolution) the largest difference
between the answers of ``cut`` and ``mask`` over the largest answer. Both run in ONNX Runtime with its optimizations
off, so that it cannot simplify one as the other; the cut model must pass onnx's checker. Open sizes of inputs and
inputs that a network needs are those of ``benchmarks.exact_feeds``. One JSON line a network, and a table.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.exact_feeds import feeds
from graphopt import channels, runtime
from graphopt.graph import verify
from graphopt.model import load

LIMIT = 1e-4


@dataclass
class Result:
    """What was found of one network.

    Attributes:
        seconds: CPU seconds of ``dependency_groups`` and of the median ``cut``.
        difference: the largest of all draws.
        effect: how far the answers of ``mask`` are off those of the original, likewise.
        parameters: share of parameters that the draws left, on average.
        faults: what went wrong, with the number of the draw.
    """

    model: str
    nodes: int = 0
    groups: int = 0
    channels: int = 0
    balances: int = 0
    share: float = 0.0
    seconds: tuple[float, float] = (0.0, 0.0)
    draws: int = 0
    difference: float = 0.0
    effect: float = 0.0
    parameters: float = 1.0
    faults: list[str] = field(default_factory=list)


def measured(path: Path, draws: int, share: float, first: int = 0) -> Result:
    """Draw selections for one network and compare."""
    result = Result(path.stem)
    try:
        model = load(path)
        result.nodes = len(model.graph.node)
        began = time.thread_time()
        found = channels.dependency_groups(model)
        result.seconds = (time.thread_time() - began, 0.0)
        result.groups, result.balances = len(found), len(found.balances)
        result.channels = sum(group.size for group in found)
        result.share = round(found.share.get("convolution", 0.0), 4)
        if not found.groups:
            return result
        feed = next(iter(feeds(model, path.stem)))
        before = answers(model, feed)
        untouched = model.SerializeToString(deterministic=True) if model.ByteSize() < 5e7 else b""
    except Exception as error:
        result.faults.append(f"{type(error).__name__}: {error}"[:500])
        return result
    times, sizes = [], []
    for draw in range(first, first + draws):
        try:
            # Each draw its own density, from a few groups to all of them.
            selection = channels.random_selection(found, draw, share, groups=(0.2, 0.5, 1.0)[draw % 3])
            if not selection:
                continue
            began = time.thread_time()
            smaller = channels.cut(found, selection).model
            times.append(time.thread_time() - began)
            verify(smaller)
            masked = answers(channels.mask(found, selection), feed)
            fault, difference = compared(masked, answers(smaller, feed), before)
            result.effect = max(result.effect, compared(before, masked)[1])
            sizes.append(elements(smaller) / elements(model))
            result.difference = max(result.difference, difference)
            result.draws += 1
            if fault:
                result.faults.append(f"draw {draw}: {fault}")
            if smaller.ByteSize() > model.ByteSize():
                result.faults.append(f"draw {draw}: the file grew by {smaller.ByteSize() - model.ByteSize()} bytes")
        except Exception as error:
            result.faults.append(f"draw {draw}: {type(error).__name__}: {error}"[:500])
    if untouched and untouched != model.SerializeToString(deterministic=True):
        result.faults.append("the model given was changed")
    result.seconds = (result.seconds[0], float(np.median(times)) if times else 0.0)
    result.parameters = round(float(np.mean(sizes)), 3) if sizes else 1.0
    return result


def answers(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """The outputs of a model."""
    return runtime.run(runtime.session(model, threads=2, optimize=False), feed)


def compared(
    wanted: Mapping[str, Any], given: Mapping[str, Any], scales: Mapping[str, Any] | None = None
) -> tuple[str, float]:
    """What is wrong with answers, and how far they are off.

    Relative to the largest of each output of what is wanted, or of ``scales`` where that is larger: a sigmoid that
    masking left at 1e-5 is not known to seven digits.
    """
    worst = 0.0
    for name, one in wanted.items():
        other = given[name]
        if not isinstance(one, np.ndarray):
            continue
        if one.shape != other.shape:
            return f"output '{name}' has shape {other.shape}, not {one.shape}", worst
        if one.dtype.kind != "f":
            continue
        finite = np.isfinite(one)
        if not np.array_equal(finite, np.isfinite(other)):
            return f"output '{name}' is not finite in the same places", worst
        scale = float(np.abs(one[finite]).max(initial=0.0))
        if scales is not None:
            usual = np.abs(scales[name][np.isfinite(scales[name])])
            scale = max(scale, float(usual.max(initial=0.0)))
        scale = scale or 1.0
        off = float(np.abs(one[finite].astype(np.float64) - other[finite]).max(initial=0.0)) / scale
        limit = LIMIT if one.dtype.itemsize >= 4 else 2e-2
        worst = max(worst, off)
        if off > limit:
            return f"output '{name}' is off by {off:.2e}", worst
    return "", worst


def elements(model: onnx.ModelProto) -> int:
    """Elements of all constants."""
    held = [attribute.t for node in model.graph.node if node.op_type == "Constant" for attribute in node.attribute]
    return sum(int(np.prod(tensor.dims)) for tensor in (*model.graph.initializer, *held))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    parser.add_argument("--share", type=float, default=0.5, help="most channels of a group that go")
    parser.add_argument("--out", type=Path, help="append one JSON line a network")
    options = parser.parse_args()
    print(f"{'model':34s} {'nodes':>6s} {'groups':>6s} {'chan.':>6s} {'share':>6s} {'find s':>6s} {'cut s':>6s} "
          f"{'draws':>5s} {'param.':>6s} {'effect':>8s} {'off':>8s}")  # fmt: skip
    wrong = 0
    for path in options.models:
        result = measured(path, options.draws, options.share, options.first)
        print(f"{result.model[:34]:34s} {result.nodes:6d} {result.groups:6d} {result.channels:6d} {result.share:6.3f} "
              f"{result.seconds[0]:6.2f} {result.seconds[1]:6.2f} {result.draws:5d} {result.parameters:6.3f} "
              f"{result.effect:8.1e} {result.difference:8.1e}", flush=True)  # fmt: skip
        for fault in result.faults[:3]:
            print(f"    {fault}", flush=True)
        wrong += bool(result.faults)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
        gc.collect()
    print(f"{len(options.models)} networks, {wrong} with faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
