"""Writes the architectures of `benchmarks.counting_nets` as ONNX files without weights, and counts them another way.

    python -m benchmarks.counting_export [--out benchmarks/.cache/counting] [--only KEY,KEY]

Needs torch, torchvision, timm and onnxscript, in an environment of their own if you like; graphopt is not needed there.
Networks are made on torch's meta device, which knows shapes and no values: one with a billion parameters is written in
seconds and a few megabytes. The second count is torch's own (`torch.utils.flop_counter`), by the operators that run and
independent of ONNX; it goes to `counts.json` beside the files, with the parameters that torch knows. So do counts of
the networks of `benchmarks.prune_architectures`, whose files that module writes.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import prune_architectures
from benchmarks.counting_nets import NETS, Net

OUT = Path(__file__).parent / ".cache" / "counting"
OPSET = 18
ABSENT = "absent.weights"
LARGE = 1024  # elements; smaller constants keep their values, which may be sizes
# Output channels of ShuffleNet v1's first stage by groups: arXiv 1707.01083, table 1.
SHUFFLENET_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}

# Expansion, channels, repeats and stride of each stage: arXiv 1801.04381, table 2.
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def build(net: Net) -> nn.Module:
    """The network in inference mode, on the device in whose context this is called."""
    options: dict[str, Any] = dict(net.options)
    if net.library == "timm":
        import timm

        sized = {"img_size": net.size} if "deit" in net.name or "vit_" in net.name else {}
        made: nn.Module = timm.create_model(net.name, pretrained=False, exportable=True, **sized, **options)
    elif net.library == "shufflenet":
        made = _shufflenet_v1(**options)
    elif net.name == "densenet264":  # the deepest of arXiv 1608.06993's table 1, which torchvision does not name
        made = torchvision.models.DenseNet(growth_rate=32, block_config=(6, 12, 64, 48), num_init_features=64)
    elif "depth" in options:
        made = _deeper(net.name, options["depth"])
    else:
        made = torchvision.models.get_model(net.name, weights=None, **options)
    return made.eval()


def _deeper(name: str, factor: int) -> nn.Module:
    """The network with ``factor`` times as many blocks in every stage."""
    if name == "resnet50":
        blocks = [factor * count for count in (3, 4, 6, 3)]
        return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, blocks)
    setting = [[t, c, factor * n, s] for t, c, n, s in MOBILENET_V2]
    return torchvision.models.mobilenet_v2(inverted_residual_setting=setting)


def _shufflenet_v1(groups: int, scale: float) -> nn.Module:
    """Table 1 of arXiv 1707.01083 with all channels but the first convolution's times ``scale``."""
    from benchmarks.exact_nets import _ShuffleUnit

    stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages: list[nn.Module] = [stem]
    channels = 24
    for factor, repeats in ((1, 4), (2, 8), (4, 4)):
        outputs = int(SHUFFLENET_CHANNELS[groups] * scale) * factor
        for index in range(repeats):
            stages.append(_ShuffleUnit(channels, outputs, groups, 2 if index == 0 else 1, channels == 24))
            channels = outputs
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def counted(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds and parameters of a network by torch's own count, for one sample of ``shape``."""
    with torch.device("meta"):
        net, sample = make().eval(), torch.empty(1, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(sample)
    return {"macs": counter.get_total_flops() // 2, "parameters": sum(one.numel() for one in net.parameters())}


def export(net: Net, path: Path) -> None:
    """Write ``net`` with large weights that point to a file that is not there."""
    with torch.device("meta"):
        made, sample = build(net), torch.empty(1, 3, net.size, net.size)
    program = torch.onnx.export(
        made, (sample,), None, dynamo=True, opset_version=OPSET, input_names=["x"], optimize=False, verbose=False
    )
    for value in program.model.graph.initializers.values():
        tensor = value.const_value
        if tensor.size <= LARGE and "meta" not in str(getattr(tensor.raw, "device", "")):
            continue
        value.const_value = ir.ExternalTensor(
            ABSENT, 0, tensor.nbytes, tensor.dtype, name=value.name, shape=tensor.shape
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    partial = path.with_suffix(".partial")
    partial.write_bytes(ir.serde.serialize_model(program.model).SerializeToString())
    partial.replace(path)


def pruned_architectures() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Name of the file, how to make it and the sample's shape, for each network of `benchmarks.prune_architectures`."""
    for one in prune_architectures.ARCHITECTURES:
        yield f"ts_{one.name}", lambda one=one: prune_architectures._made(one), one.shape


def main() -> None:
    """Write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="", help="comma-separated keys; default: all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = set(filter(None, options.only.split(",")))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    kept = options.out / "counts.json"
    counts: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}

    def count(key: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
        if key not in counts or "error" in counts[key]:
            try:
                counts[key] = counted(make, shape)
            except Exception as error:  # a network that the meta device cannot run: reported, and left out
                counts[key] = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"[:200]}
            kept.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
            print(key, counts[key], flush=True)

    for net in NETS:
        if net.library in ("own", "latency") or (wanted and net.key not in wanted):
            continue
        count(net.key, lambda net=net: build(net), (3, net.size, net.size))
        path = options.out / f"{net.key}.onnx"
        if not path.exists():
            try:
                export(net, path)
                print(f"{path.stem}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
            except Exception as error:
                print(f"{path.stem}: failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
    for key, make, shape in pruned_architectures():
        if not wanted or key in wanted:
            count(key, make, shape)


if __name__ == "__main__":
    main()
