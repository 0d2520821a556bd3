"""Worker: other tools' structured pruning of a zoo net to given shares of its multiply-adds, without fine-tuning.

Arguments (JSON): tool ("torch-pruning" or "onnxsim"), name, model, folder, shares. Each tool runs in every variant that
has a say in accuracy, its ratio searched so that the multiply-adds just meet each share; what it made is written as
`folder/NAME.TOOL.VARIANT.SHARE.onnx`. Torch-Pruning gets the same trained weights in PyTorch (the initializers of the
ONNX file, checked to give equal outputs), group L2 importance, the classifier left whole. Needs torch and torch-pruning
for the one, onnxsim for the other.
"""

import copy
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from benchmarks.costs import measured

if TYPE_CHECKING:
    from torch import nn

GRID = tuple(step / 32 for step in range(1, 32))  # ratios
STEPS = 4  # of bisection: ratios to 0.2 %


def macs(model: onnx.ModelProto) -> int:
    """Multiply-adds for one sample."""
    from graphopt.graph.cost import cost

    return cost(model).known_macs


class Search:
    """Ratios tried so far for one variant of a tool, and what share of the multiply-adds each left.

    A tool may fail at some ratios and not at others, and cut less at a higher one, so a grid comes before bisection.
    """

    def __init__(self, prune: Callable[[float], onnx.ModelProto], original: onnx.ModelProto) -> None:
        self._prune, self._full = prune, macs(original)
        self._shares: dict[float, float] = {}
        self._failure = ""
        for ratio in GRID:
            self._try(ratio)

    def _try(self, ratio: float) -> float:
        if ratio not in self._shares:
            try:
                self._shares[ratio] = macs(self._prune(ratio)) / self._full
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                self._failure = f"{type(error).__name__}: {lines[0]}"[:160]
                self._shares[ratio] = float("inf")
        return self._shares[ratio]

    def meet(self, wanted: float) -> tuple[onnx.ModelProto, float, float]:
        """The mildest result that costs at most ``wanted`` of the original, its share and its ratio."""
        holding = [ratio for ratio in sorted(self._shares) if self._try(ratio) <= wanted]
        if not holding:
            least = min(self._shares.values())
            reached = (
                f"reaches {100 * least:.0f} % of the multiply-adds at most" if least < 2 else "fails at every ratio"
            )
            raise ValueError(f"{reached} {self._failure}".strip())
        high = holding[0]
        low = max((ratio for ratio in self._shares if ratio < high), default=0.0)
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._try(middle) <= wanted else (middle, high)
        best = max((ratio for ratio in self._shares if self._try(ratio) <= wanted), key=self._try)
        return self._prune(best), self._try(best), best


def trained(name: str, model: Path) -> "nn.Module":
    """The PyTorch net with the weights of its ONNX file."""
    import torch

    from models import architectures

    net = architectures.build(name, 0)
    graph = onnx.load(model).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in values:  # of equal tensors the exporter keeps one
            values[node.output[0]] = values[node.input[0]]
    state = net.state_dict()
    missing = [key for key in state if key not in values and not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{model} lacks {', '.join(missing[:3])}")
    net.load_state_dict({key: torch.from_numpy(np.array(values[key])) for key in state if key in values}, strict=False)
    return _shapeless(net.eval())


def _shapeless(net: "nn.Module") -> "nn.Module":
    """Let channel shuffles take their shapes from their input: the zoo's have them as constants."""
    from models import architectures

    class Shuffle(architectures.ChannelShuffle):
        def forward(self, x: Any) -> Any:
            batch, channels, height, width = x.shape
            groups = self.split[1]
            split = x.reshape(batch, groups, channels // groups, height, width)
            return split.transpose(1, 2).reshape(batch, channels, height, width)

    for module in net.modules():
        if type(module) is architectures.ChannelShuffle:
            module.__class__ = Shuffle
    return net


def prune_torch(net: "nn.Module", ratio: float, everywhere: bool) -> "nn.Module":
    """Torch-Pruning's ``BasePruner`` with group L2 importance; one ranking for the whole net, or a ratio per layer."""
    import torch
    import torch_pruning
    from torch import nn

    pruned = copy.deepcopy(net)
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        torch.zeros(1, 1, 28, 28),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=ratio,
        ignored_layers=[module for module in pruned.modules() if isinstance(module, nn.Linear)],
    )
    pruner.step()
    with torch.no_grad():
        pruned(torch.zeros(2, 1, 28, 28))  # what it broke shows here
    return pruned


def run_torch(name: str, model: Path, folder: Path, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Every share, with one ranking for the whole net ("global") and with equal ratios ("uniform")."""
    import torch

    from models.export import export

    torch.set_num_threads(1)
    net = trained(name, model)
    _check_equal(net, model)
    original = onnx.load(model)
    rows = []
    for variant, everywhere in (("global", True), ("uniform", False)):

        def prune(ratio: float, everywhere: bool = everywhere) -> onnx.ModelProto:
            path = folder / f"{name}.partial.onnx"
            export(prune_torch(net, ratio, everywhere), path)
            found = onnx.load(path)
            path.unlink()
            return found

        rows += _rows(folder / f"{name}.torch-pruning.{variant}", prune, original, shares)
    return rows


def run_onnxsim(name: str, model: Path, folder: Path, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Every share: as exported and simplified first (BatchNorm folded), equal ratios and one ranking."""
    import onnxsim

    original = onnx.load(model)
    simplified, _ = onnxsim.simplify(copy.deepcopy(original))
    rows = []
    for start, source in (("raw", original), ("simplified", simplified)):
        for variant, everywhere in (("uniform", False), ("global", True)):

            def prune(ratio: float, source: onnx.ModelProto = source, everywhere: bool = everywhere) -> onnx.ModelProto:
                return onnxsim.apply_structured_pruning(copy.deepcopy(source), ratio, global_sparsity=everywhere)

            rows += _rows(folder / f"{name}.onnxsim.{start}-{variant}", prune, original, shares)
    return rows


def _rows(
    stem: Path, prune: Callable[[float], onnx.ModelProto], original: onnx.ModelProto, shares: Sequence[float]
) -> list[dict[str, Any]]:
    """One row a share: the file, or why there is none."""
    searched = Search(prune, original)
    rows = []
    for wanted in shares:
        row: dict[str, Any] = {"variant": stem.name.split(".")[-1], "wanted": wanted, "path": None, "error": None}
        path = stem.parent / f"{stem.name}.{wanted:g}.onnx"
        try:
            found, reached, ratio = searched.meet(wanted)
            onnx.save(found, path)
            rows.append(row | {"path": str(path), "macs_share": reached, "ratio": ratio})
        except ValueError as error:
            path.unlink(missing_ok=True)
            rows.append(row | {"error": str(error)})
    return rows


def _check_equal(net: "nn.Module", model: Path) -> None:
    from models.export import largest_difference

    images = np.random.default_rng(0).random((16, 1, 28, 28), np.float32)
    found = largest_difference(net, model, images)
    if found > 1e-3:
        raise ValueError(f"the weights do not fit: outputs differ by {found:.2g}")


TOOLS = {"torch-pruning": run_torch, "onnxsim": run_onnxsim}


def main() -> None:
    """Run what the command line says."""
    order = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    run = TOOLS[order["tool"]]
    measured(lambda: {"rows": run(order["name"], Path(order["model"]), folder, order["shares"])})


if __name__ == "__main__":
    main()
