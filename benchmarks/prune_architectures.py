"""The architectures that pruning must understand: torchvision's, timm's and some of our own, as small ONNX files.

    python -m benchmarks.prune_architectures [--out benchmarks/.cache/architectures] [--only NAME,NAME] [--manifest]

Random weights, normalisations whose parameters and statistics are not trivial, and small images where the network
allows them: these files show whether surgery is exact and how much of a network can be cut, not how accurate or how
fast it is. `ts_*` comes from the TorchScript exporter with nothing folded (BatchNorm kept), `dyn_*` from the dynamo
exporter as it is by default. The batch is dynamic. Needs torch, torchvision and timm, which only writing the files
does; `--manifest` describes files that are there (nodes, parameters, multiply-adds) and needs none of them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

OUT = Path(__file__).parent / ".cache" / "architectures"
CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """One network: who makes it and for which input.

    Attributes:
        name: as its library knows it.
        library: "torchvision", "segmentation" (torchvision's), "timm", "exact" (benchmarks.exact_nets) or "own".
        shape: shape of one sample.
        options: passed to whoever makes it.
        dynamo: whether the dynamo exporter writes it too.
    """

    name: str
    library: str
    shape: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()
    dynamo: bool = False


def _vision(names: str, size: int = 64, dynamo: bool = False, **options: Any) -> Iterator[Architecture]:
    for name in names.split():
        yield Architecture(name, "torchvision", (3, size, size), tuple(options.items()), dynamo)


def _timm(names: str, size: int = 64, dynamo: bool = False, **options: Any) -> Iterator[Architecture]:
    for name in names.split():
        yield Architecture(name, "timm", (3, size, size), tuple(options.items()), dynamo)


def _segmentation(names: str, dynamo: bool = False) -> Iterator[Architecture]:
    for name in names.split():
        yield Architecture(name, "segmentation", (3, 64, 64), (), dynamo)


OWN = (
    "own_unet_transpose own_unet_upsample_silu own_yolo_c2f own_pyramid_shared own_mixer own_convmixer "
    "own_style_transpose own_style_upsample own_espcn own_wdsr own_wavenet own_conv1d own_crnn own_autoencoder "
    "own_hourglass own_mobileface own_multiplier own_siamese"
)
OWN_SHAPES = {
    "own_espcn": (3, 24, 24),
    "own_wdsr": (3, 24, 24),
    "own_wavenet": (1, 256),
    "own_conv1d": (4, 128),
    "own_crnn": (1, 32, 64),
    "own_autoencoder": (3, 32, 32),
    "own_multiplier": (3, 32, 32),
    "own_siamese": (6, 32, 32),
}

# The smallest of torchvision's own has 86 million parameters.
VIT = {"patch_size": 16, "num_layers": 6, "num_heads": 6, "hidden_dim": 192, "mlp_dim": 768}

ARCHITECTURES: tuple[Architecture, ...] = (
    *(Architecture(name, "own", OWN_SHAPES.get(name, (3, 64, 64)), (), True) for name in OWN.split()),
    *_vision("resnet18 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x1_0 efficientnet_b0 densenet121", dynamo=True),
    *_vision("regnet_x_400mf regnet_y_400mf squeezenet1_1 mnasnet1_0 resnext50_32x4d convnext_tiny", dynamo=True),
    *_vision("resnet34 resnet50 wide_resnet50_2 mobilenet_v3_large mnasnet0_5 shufflenet_v2_x0_5"),
    *_vision("shufflenet_v2_x1_5 shufflenet_v2_x2_0 efficientnet_b1 efficientnet_b2 efficientnet_v2_s densenet169"),
    *_vision("regnet_x_800mf regnet_x_1_6gf regnet_y_800mf regnet_y_1_6gf squeezenet1_0 swin_t"),
    *_vision("googlenet", dynamo=True),
    *_vision("inception_v3", 96),
    *_vision("alexnet vgg11_bn vgg16_bn maxvit_t", 224),
    *_vision("vit_small_16", dynamo=True, image_size=64, **VIT),
    *_vision("resnet18_groupnorm", dynamo=True),
    *(
        Architecture(name, "torchvision", (3, 4, 32, 32), (), name == "r3d_18")
        for name in ("r3d_18", "mc3_18", "r2plus1d_18")
    ),
    *_segmentation("lraspp_mobilenet_v3_large", dynamo=True),
    *_segmentation("fcn_resnet50 deeplabv3_mobilenet_v3_large deeplabv3_resnet50"),
    Architecture("shufflenet_v1_g3", "exact", (3, 64, 64), (), True),
    Architecture("ssdlite320_mobilenet_v3_large", "exact", (3, 320, 320)),
    *_timm("ghostnet_100 mobilenetv4_conv_small repvgg_a0 mobileone_s0 lcnet_050 hgnetv2_b0 fastvit_t8", dynamo=True),
    *_timm("resnet50_gn seresnet18 dla34 ese_vovnet19b_dw cs3darknet_s res2net50_26w_4s skresnet18", dynamo=True),
    *_timm("resnest14d poolformer_s12 edgenext_xx_small mobilevit_xxs gernet_s tf_efficientnet_b0", dynamo=True),
    *_timm("dpn68 dpn48b dla60_res2net dla46_c hrnet_w18_small ghostnetv2_100 ghostnetv3_050 repghostnet_050"),
    *_timm("mixnet_s hardcorenas_a fbnetc_100 fbnetv3_b tinynet_e semnasnet_075 spnasnet_100 mobilenet_edgetpu_100"),
    *_timm("mobilenetv1_100 mobilenetv4_hybrid_medium efficientnet_es efficientnet_lite0 tf_efficientnetv2_b0"),
    *_timm("tf_mobilenetv3_small_100 rexnet_100 rexnetr_100 selecsls42b vovnet39a cspresnet50 cspdarknet53"),
    *_timm("darknet17 darknet53 legacy_xception xception41 nasnetalarge tresnet_m dm_nfnet_f0 eca_nfnet_l0"),
    *_timm("nf_seresnet26 lambda_resnet26t gcresnet33ts gcresnext26ts eca_resnet33ts ecaresnet26t resnext26ts"),
    *_timm(
        "legacy_seresnet18 legacy_seresnext26_32x4d resnetv2_50 resnetaa50 resnetblur50 regnetz_005 convmixer_768_32"
    ),
    *_timm("convnext_atto convnextv2_atto inception_next_atto mambaout_femto starnet_s1 shvit_s1 repvit_m0_9"),
    *_timm("efficientvit_b0 efficientvit_m0 mobilevitv2_050 poolformerv2_s12 swiftformer_xs nextvit_small"),
    *_timm("focalnet_tiny_srf davit_tiny pvt_v2_b0 twins_svt_small tiny_vit_5m_224 xcit_nano_12_p8_224"),
    *_timm("inception_resnet_v2 inception_v4", 96),
    *_timm("efficientformer_l1", 224),
    *_timm("bat_resnext26ts", 256, dynamo=True),
    *_timm("coat_lite_mini coat_tiny pit_ti_224 levit_128s levit_conv_128s efficientformerv2_s0", img_size=64),
    *_timm(
        "coatnet_nano_rw_224 gmlp_ti16_224 resmlp_12_224 mixer_s32_224 gmixer_12_224 maxvit_pico_rw_256", img_size=64
    ),
    *_timm(
        "vit_tiny_patch16_224 swin_tiny_patch4_window7_224 visformer_tiny botnet26t_256 cait_xxs24_224", img_size=64
    ),
)


def build(architecture: Architecture) -> "nn.Module":
    """The network in inference mode, with random weights and fitted BatchNorm statistics."""
    import torch

    from benchmarks import exact_nets

    torch.manual_seed(0)
    net = _scattered(_made(architecture))
    return exact_nets.fitted(exact_nets.Net(architecture.name, lambda: net, architecture.shape))


def _made(architecture: Architecture) -> "nn.Module":
    import torchvision
    from torch import nn

    from benchmarks import exact_nets, prune_nets

    name, options = architecture.name, dict(architecture.options)
    if architecture.library == "own":
        return prune_nets.NETS[name][0]()
    if architecture.library == "exact":
        return next(net for net in exact_nets.NETS if net.name == name).build()
    if architecture.library == "segmentation":
        return exact_nets._SegmentationOutput(name)
    if architecture.library == "timm":
        import timm

        made: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
        return made
    if name == "resnet18_groupnorm":
        options["norm_layer"] = lambda channels: nn.GroupNorm(8, channels)
        name = "resnet18"
    if name in {"googlenet", "inception_v3"}:
        options |= {"init_weights": False, "aux_logits": False}
    if name == "vit_small_16":
        return torchvision.models.VisionTransformer(num_classes=CLASSES, **options)
    vision: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return vision


def _scattered(net: "nn.Module") -> "nn.Module":
    """Give random values to parameters that start all equal.

    Otherwise normalisations scale every channel alike, and branches that start at (nearly) zero, as residual ones with
    a layer scale do, would hide errors in what they hold.
    """
    import torch
    from torch import nn

    with torch.no_grad():
        for parameter in net.parameters():
            first = float(parameter.flatten()[0]) if parameter.numel() else 0.0
            if not parameter.numel() or not bool((parameter == first).all()):
                continue
            if parameter.numel() > max(parameter.shape, default=1):
                nn.init.kaiming_normal_(parameter)
            elif first == 0:
                nn.init.normal_(parameter, 0.0, 0.2)
            else:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return net


def files(wanted: set[str] | None = None) -> Iterator[tuple[Architecture, str]]:
    """Each architecture with each exporter that writes it."""
    for architecture in ARCHITECTURES:
        for exporter in ("ts", "dyn") if architecture.dynamo else ("ts",):
            stem = f"{exporter}_{architecture.name}"
            if not wanted or wanted & {architecture.name, stem}:
                yield architecture, exporter


def export_all(out: Path, wanted: set[str]) -> dict[str, str]:
    """Write what is missing; a network that cannot be exported is reported and left out.

    Returns:
        why files could not be written, by name.
    """
    import torch

    from benchmarks import exact_nets

    torch.set_num_threads(1)
    failures: dict[str, str] = {}
    made: tuple[str, nn.Module] | None = None
    for architecture, exporter in files(wanted):
        path = out / f"{exporter}_{architecture.name}.onnx"
        if path.exists():
            continue
        try:
            if made is None or made[0] != architecture.name:
                made = architecture.name, build(architecture)
            dynamic = ("batch",) if architecture.name != "ssdlite320_mobilenet_v3_large" else ()
            net = exact_nets.Net(architecture.name, lambda: made[1], architecture.shape, dynamic)  # noqa: B023
            exact_nets.export(net, made[1], exporter, path)
            _try(path, architecture.shape)
            print(f"{path.stem}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
        except Exception as error:
            path.unlink(missing_ok=True)
            path.with_suffix(".partial").unlink(missing_ok=True)
            failures[path.stem] = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"[:200]
            print(f"{path.stem}: failed: {failures[path.stem]}", flush=True)
    return failures


def _try(path: Path, shape: tuple[int, ...]) -> None:
    """Run a new file once, with another batch than it was exported with where it is dynamic."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (fed,) = session.get_inputs()
    batch = fed.shape[0] if isinstance(fed.shape[0], int) else 3
    values = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    for output in session.run(None, {fed.name: values}):
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise ValueError("the outputs are not finite")


def describe(out: Path, failures: dict[str, str]) -> dict[str, Any]:
    """What every file holds, and what could not be written."""
    import onnx

    from graphopt.graph.cost import cost

    rows = {}
    for architecture, exporter in files():
        path = out / f"{exporter}_{architecture.name}.onnx"
        if not path.exists():
            continue
        model = onnx.load(path)
        known = cost(model)
        rows[path.stem] = {
            "architecture": architecture.name,
            "library": architecture.library,
            "exporter": {"ts": "TorchScript", "dyn": "dynamo"}[exporter],
            "input": list(architecture.shape),
            "opset": next(one.version for one in model.opset_import if not one.domain),
            "bytes": path.stat().st_size,
            "nodes": len(model.graph.node),
            "parameters": known.parameters,
            "macs": known.macs,
        }
    return {"files": rows, "failures": failures, "architectures": len({row["architecture"] for row in rows.values()})}


def main() -> None:
    """Write the files, then describe them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="", help="comma-separated names; default: all")
    parser.add_argument("--manifest", action="store_true", help="only describe the files that are there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = options.out / "manifest.json"
    failures = json.loads(manifest.read_text())["failures"] if manifest.is_file() else {}
    wanted = set(filter(None, options.only.split(",")))
    if not options.manifest:
        tried = {f"{exporter}_{architecture.name}" for architecture, exporter in files(wanted)}
        failures = {name: why for name, why in failures.items() if name not in tried}
        failures |= export_all(options.out, wanted)
    described = describe(options.out, failures)
    manifest.write_text(json.dumps(described, indent=1) + "\n")
    print(f"{len(described['files'])} files, {described['architectures']} architectures, {len(failures)} failures")


if __name__ == "__main__":
    main()
