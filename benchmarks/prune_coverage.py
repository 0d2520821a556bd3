"""How much of an architecture can be cut: graphopt's groups beside what Torch-Pruning reaches.

    python -m benchmarks.prune_architectures --out FOLDER
    python -m benchmarks.prune_surgery FOLDER/*.onnx --out FOLDER/surgery.jsonl
    python -m benchmarks.prune_coverage --architectures FOLDER --torch-pruning      (needs torch, timm, torch-pruning)
    python -m benchmarks.prune_coverage --architectures FOLDER

Torch-Pruning works on the PyTorch modules, with group L2 importance and ratio 0.5 for every layer; layers from which
the outputs are made are left whole, as its users have to see to themselves. graphopt works on the ONNX files, as
exported and after its exact passes; half of every group goes. Both say how many parameters are left: where everything
can be cut, a quarter and a bit. The last command reads the others' findings and writes
`benchmarks/results/prune_coverage.json`; `python -m benchmarks.prune --report` makes the table.
"""

import argparse
import gc
import json
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.prune_architectures import ARCHITECTURES, OUT, Architecture

if TYPE_CHECKING:
    import onnx
    from torch import nn

RESULTS = Path(__file__).parent / "results" / "prune_coverage.json"
ENOUGH = 0.98  # share of convolution parameters in groups with which the exact passes are spared
LIMIT = 90  # CPU seconds for one network


def output_layers(net: "nn.Module", sample: Any) -> "list[nn.Module]":
    """Layers with weights that outputs are made from with none between."""
    import torch
    from torch import nn

    owners = {
        id(module.weight): module
        for module in net.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.weight is not None
    }
    outputs: list[Any] = [net(sample)]
    pending: list[Any] = []
    while outputs:
        one = outputs.pop()
        if isinstance(one, torch.Tensor):
            pending.append(one.grad_fn)
        else:
            outputs.extend(one.values() if isinstance(one, dict) else one)
    found: dict[int, nn.Module] = {}
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        behind = [each for each, _ in node.next_functions if each is not None]
        # A linear layer's weight is transposed on its way into the product.
        leaves = behind + [
            each for one in behind if one.name() == "TBackward0" for each, _ in one.next_functions if each is not None
        ]
        weights = [id(leaf.variable) for leaf in leaves if hasattr(leaf, "variable") and id(leaf.variable) in owners]
        if weights:
            found |= {key: owners[key] for key in weights}
        else:
            pending.extend(behind)
    return list(found.values())


def torch_pruning(architecture: Architecture) -> dict[str, Any]:
    """What Torch-Pruning leaves of a network at ratio 0.5, or why it fails."""
    import torch
    import torch_pruning as tool

    from benchmarks.prune_architectures import build

    torch.manual_seed(0)
    net = build(architecture)
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    sample = torch.randn(1, *architecture.shape)
    before = sum(parameter.numel() for parameter in net.parameters())
    heads = output_layers(net, sample)
    with torch.no_grad():
        shapes = _shapes(net(torch.cat([sample, sample])))
    pruner = tool.pruner.BasePruner(
        net,
        sample,
        importance=tool.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=heads,
    )
    pruner.step()
    with torch.no_grad():
        if _shapes(net(torch.cat([sample, sample]))) != shapes:
            raise ValueError("the outputs' shapes have changed")
    return {"left": sum(parameter.numel() for parameter in net.parameters()) / before}


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    if hasattr(outputs, "shape"):
        return [tuple(outputs.shape)]
    each: Iterable[Any] = outputs.values() if isinstance(outputs, dict) else outputs
    return [shape for one in each for shape in _shapes(one)]


class TooLongError(BaseException):
    """The CPU time of one network is used up; nothing within the tool is to catch it."""


def _limited(seconds: int) -> None:
    def stop(*_: object) -> None:
        raise TooLongError(f"not done after {seconds} CPU s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def run_torch(folder: Path, wanted: set[str]) -> None:
    """Append a line for every architecture that has none yet."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = folder / "torch-pruning.jsonl"
    known = {row["architecture"] for row in _lines(path)}
    for architecture in ARCHITECTURES:
        if architecture.name in known or (wanted and architecture.name not in wanted):
            continue
        row: dict[str, Any] = {"architecture": architecture.name, "left": None, "error": None}
        started = time.process_time()
        _limited(LIMIT)
        try:
            row |= torch_pruning(architecture)
        except (Exception, TooLongError) as error:
            row["error"] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        row["cpu_seconds"] = time.process_time() - started
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
        gc.collect()


def graphopt_row(path: Path) -> dict[str, Any]:
    """Groups as exported and after the exact passes, what is left at half of every group, and the walls."""
    import graphopt
    from benchmarks.prune_graphopt import exact_passes
    from graphopt import channels

    row: dict[str, Any] = {"file": path.stem, "error": None}
    try:
        model = graphopt.load(path)
        found = channels.dependency_groups(model)
        row |= {"raw": dict(found.share), "groups": len(found), "channels": sum(group.size for group in found)}
        if found.share.get("convolution", 1.0) < ENOUGH:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = graphopt.run(model, exact_passes())
            found = channels.dependency_groups(model)
            row["exact"] = dict(found.share)
        row["left"] = left(found, model)
        reasons = Counter[str]()
        for fixed in found.fixed:
            reasons[fixed.reason] += len(fixed.indices)
        row["walls"] = reasons.most_common(5)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    return row


def left(found: Any, model: "onnx.ModelProto") -> float:
    """Share of parameters that remain when half of every group is cut."""
    import numpy as np

    from graphopt import channels
    from graphopt.graph.cost import cost

    rng = np.random.default_rng(0)
    scores = {group.number: rng.random(group.size) for group in found}
    selection = channels.select(found, scores, {group.number: group.size // 2 for group in found})
    return cost(channels.cut(found, selection).model).parameters / cost(model).parameters


def run_graphopt(folder: Path, wanted: set[str], out: Path) -> None:
    """Append a line for every file that has none yet."""
    known = {row["file"] for row in _lines(out)}
    for path in sorted(folder.glob("*.onnx"), key=lambda one: one.stat().st_size):
        if path.stem in known or (wanted and path.stem not in wanted):
            continue
        row = graphopt_row(path)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {key: value for key, value in row.items() if key != "walls"}
        print(shown, *row.get("walls", [])[:1], flush=True)
        gc.collect()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        for line in path.read_text().splitlines():
            yield json.loads(line)


def gathered(folder: Path) -> dict[str, Any]:
    """One row for each architecture and exporter, with what all parties found."""
    manifest = json.loads((folder / "manifest.json").read_text())
    rivals = {row["architecture"]: row for row in _lines(folder / "torch-pruning.jsonl")}
    ours = {row["file"]: row for row in _lines(folder / "coverage.jsonl")}
    surgery = {row["model"]: row for row in _lines(folder / "surgery.jsonl")}
    rows = {}
    for name, about in manifest["files"].items():
        if name not in ours:
            continue
        rows[name] = about | {
            "graphopt": ours.get(name),
            "surgery": surgery.get(name),
            "torch_pruning": rivals.get(about["architecture"]),
        }
    return {"files": rows, "failures": manifest["failures"]}


def main() -> None:
    """One of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=Path, default=OUT)
    parser.add_argument("--only", default="", help="comma-separated names; default: all")
    parser.add_argument("--torch-pruning", action="store_true", help="run Torch-Pruning instead")
    parser.add_argument("--gather", action="store_true", help="only gather what was found")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    folder: Path = options.architectures
    if options.torch_pruning:
        run_torch(folder, wanted)
        return
    if not options.gather:
        run_graphopt(folder, wanted, folder / "coverage.jsonl")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(gathered(folder), indent=1) + "\n")


if __name__ == "__main__":
    main()
