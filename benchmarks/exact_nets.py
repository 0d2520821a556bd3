"""torchvision and timm architectures with random weights, through both PyTorch exporters.

`ts_*` comes from the TorchScript exporter with nothing folded (BatchNorm kept), `dyn_*` from the dynamo exporter as it
is by default. Both have a dynamic batch; those whose output is an image have dynamic height and width too. BatchNorm
statistics are those of random images, so that activations stay in range.
"""

import contextlib
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn

OPSET = 17


@dataclass(frozen=True)
class Net:
    """How to make one network and what to feed it."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 224, 224)
    dynamic: tuple[str, ...] = ("batch",)  # names of the leading axes that are, '' for one that is not; none: batch 1
    exporters: tuple[str, ...] = ("ts", "dyn")


def _vision(
    name: str, *, size: int = 224, images: bool = False, exporters: Sequence[str] = ("ts", "dyn"), **options: object
) -> Net:
    def build() -> nn.Module:
        if name in {"googlenet", "inception_v3"}:
            return torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=False)  # type: ignore[no-any-return]
        return torchvision.models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]

    dynamic = ("batch", "", "height", "width") if images else ("batch",)
    return Net(name, build, (3, size, size), dynamic, tuple(exporters))


def _timm(name: str, *, size: int = 224, exporters: Sequence[str] = ("ts", "dyn")) -> Net:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False)  # type: ignore[no-any-return]

    return Net(name, build, (3, size, size), ("batch",), tuple(exporters))


class _SegmentationOutput(nn.Module):
    """The `out` head of a segmentation network alone: exporters return tensors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = torchvision.models.get_model(name, weights=None, weights_backbone=None)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.net(pixels)["out"]  # type: ignore[no-any-return]


class _ShuffleUnit(nn.Module):
    """ShuffleNet v1's unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, and a shortcut (added, or beside it)."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, first: bool) -> None:
        super().__init__()
        middle = outputs // 4
        branch = outputs - inputs if stride == 2 else outputs
        self.groups, self.stride = groups, stride
        opening = 1 if first else groups
        self.reduce = nn.Sequential(
            nn.Conv2d(inputs, middle, 1, groups=opening, bias=False), nn.BatchNorm2d(middle), nn.ReLU()
        )
        self.depth = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False), nn.BatchNorm2d(middle)
        )
        self.expand = nn.Sequential(nn.Conv2d(middle, branch, 1, groups=groups, bias=False), nn.BatchNorm2d(branch))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.reduce(pixels)
        batch, channels, height, width = found.shape
        found = found.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2)
        found = self.expand(self.depth(found.reshape(batch, channels, height, width)))
        if self.stride == 1:
            return torch.relu(pixels + found)
        return torch.cat([nn.functional.avg_pool2d(pixels, 3, 2, 1), torch.relu(found)], 1)


def _shufflenet_v1(groups: int = 3) -> nn.Module:
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    ]
    channels = 24
    for outputs, repeats in ((240, 4), (480, 8), (960, 4)):
        for index in range(repeats):
            first = channels == 24
            stages.append(_ShuffleUnit(channels, outputs, groups, 2 if index == 0 else 1, first))
            channels = outputs
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


NETS = (
    _vision("mobilenet_v3_small"),
    _vision("shufflenet_v2_x1_0"),
    _vision("mobilenet_v2"),
    _vision("resnet18"),
    _vision("squeezenet1_1"),
    _timm("repvgg_a0"),
    _timm("vit_tiny_patch16_224"),
    _timm("ghostnet_100"),
    _timm("mobilevit_xxs", size=256),
    _timm("mobileone_s0"),
    _vision("densenet121"),
    _vision("efficientnet_b0"),
    _vision("mnasnet0_5"),
    _vision("googlenet"),
    _vision("regnet_y_400mf"),
    _vision("convnext_tiny"),
    _vision("swin_t", exporters=("ts",)),
    _vision("inception_v3", size=299),
    Net(
        "lraspp_mobilenet_v3_large",
        lambda: _SegmentationOutput("lraspp_mobilenet_v3_large"),
        (3, 128, 160),
        ("batch", "", "height", "width"),
    ),
    Net(
        "fcn_resnet50",
        lambda: _SegmentationOutput("fcn_resnet50"),
        (3, 128, 160),
        ("batch", "", "height", "width"),
        ("ts",),
    ),
    Net("shufflenet_v1_g3", _shufflenet_v1),
    Net(
        "r2plus1d_18",
        lambda: torchvision.models.get_model("r2plus1d_18", weights=None),
        (3, 8, 64, 64),
        ("batch",),
        ("ts",),
    ),
    Net(
        "ssdlite320_mobilenet_v3_large",
        lambda: torchvision.models.get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None),
        (3, 320, 320),
        (),
        ("ts",),
    ),
    _vision("resnet50"),
    _vision("maxvit_t", exporters=("ts",)),
    _timm("fastvit_t8", size=256),
    _timm("efficientformerv2_s0", exporters=("ts",)),
    _timm("edgenext_xx_small", size=256, exporters=("ts",)),
    _timm("hardcorenas_a", exporters=("ts",)),
    _timm("lcnet_050"),
    _timm("tf_efficientnet_lite0", exporters=("ts",)),
    _timm("levit_128s", exporters=("ts",)),
    _timm("poolformer_s12", exporters=("ts",)),
    _timm("res2net50_14w_8s", exporters=("ts",)),
    _timm("mixnet_s", exporters=("ts",)),
    _timm("dla34", exporters=("ts",)),
    _timm("coat_tiny", exporters=("ts",)),
)


def fitted(net: Net) -> nn.Module:
    """The network in inference mode; scales, shifts and statistics of its BatchNorms are not trivial."""
    torch.manual_seed(0)
    module = net.build().eval()
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.weight is not None:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what follows
        norm.train()
    with torch.no_grad(), contextlib.suppress(ValueError):
        module(_samples(8, net.shape))
    for norm in norms:
        # A channel that hardly varies over so few samples would be blown up, and rounding with it.
        norm.running_var.clamp_(min=0.05 * float(norm.running_var.mean()))
    return module.eval()


def _samples(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Inputs that differ in level, in contrast and in what is where, not only in their noise."""
    ones = (1,) * (len(shape) - 1)
    level = torch.randn(count, shape[0], *ones)
    contrast = 0.5 + torch.rand(count, 1, *ones)
    coarse = torch.randn(count, shape[0], *(max(size // 32, 1) for size in shape[1:]))
    smooth = nn.functional.interpolate(coarse, size=shape[1:], mode="nearest")
    return level + contrast * (smooth + 0.3 * torch.randn(count, *shape))


def export(net: Net, module: nn.Module, exporter: str, path: Path) -> None:
    """Write one model."""
    sample = _samples(2 if net.dynamic else 1, net.shape)
    axes = {axis: name for axis, name in enumerate(net.dynamic) if name}
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "ts":
            torch.onnx.export(
                module,
                (sample,),
                str(partial),
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": axes, "output": {0: "batch"}} if axes else None,
                # EVAL (the default) would fuse Conv and BatchNorm; PRESERVE of a net in inference mode keeps both.
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )
        else:
            torch.onnx.export(
                module,
                (sample,),
                str(partial),
                dynamo=True,
                external_data=False,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
                verbose=False,
            )
    partial.replace(path)


def export_all(out: Path, exporters: Sequence[str], wanted: set[str]) -> None:
    """Write what is missing; a network that cannot be exported is reported and left out."""
    torch.set_num_threads(1)
    for net in NETS:
        modules: list[nn.Module] = []
        for exporter in exporters:
            path = out / f"{exporter}_{net.name}.onnx"
            skipped = exporter not in net.exporters or path.exists()
            if skipped or (wanted and net.name not in wanted and path.stem not in wanted):
                continue
            try:
                modules = modules or [fitted(net)]
                export(net, modules[0], exporter, path)
                print(f"{path.stem}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
            except Exception:
                print(f"{path.stem}: {traceback.format_exc(limit=-2)[-600:]}", flush=True)
