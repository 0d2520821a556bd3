"""The architectures that `benchmarks.counting` builds, and which published figures each must show.

`data/architectures.csv` holds parameters and multiply-adds as papers print them. Every row with a figure is either one
of `NETS` here or named in `LEFT_OUT` with the reason.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "architectures.csv"


@dataclass(frozen=True)
class Net:
    """One architecture for one size of image.

    Attributes:
        library: "timm", "torchvision", "shufflenet" (ShuffleNet v1, built in `benchmarks.counting_export`), "own"
            (`models.mobilenet_v1`, which needs no torch) or "latency" (a graph of `data/latency`).
        name: as the library knows it.
        size: height and width of the image.
        options: for whoever builds it.
    """

    library: str
    name: str
    size: int
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """A file name of its own."""
        shown = "".join(f"-{name}{_plain(value)}" for name, value in self.options)
        return f"{self.library}-{self.name}{shown}-{self.size}"


def _plain(value: Any) -> str:
    return "".join(letter if letter.isalnum() or letter == "." else "_" for letter in str(value)).strip("_")


@dataclass(frozen=True)
class Row:
    """One row of the table; figures in millions, None where the paper gives none."""

    paper: str
    table: str
    architecture: str
    size: int | None
    parameters: float | None
    macs: float | None
    note: str


def _timm(name: str, size: int = 224, **options: Any) -> Net:
    return Net("timm", name, size, tuple(options.items()))


def _vision(name: str, size: int = 224, **options: Any) -> Net:
    return Net("torchvision", name, size, tuple(options.items()))


def _mobilenet(width: float = 1.0, size: int = 224, plain: bool = False) -> Net:
    return Net("own", "mobilenet_v1", size, (("width", width), ("plain", plain)))


def _shufflenet(groups: int, scale: float = 1.0) -> Net:
    return Net("shufflenet", "shufflenet_v1", 224, (("groups", groups), ("scale", scale)))


_EFFICIENTNET = (224, 240, 260, 300, 380, 456, 528, 600, 672)  # arXiv 1905.11946 and the published code
_NFNET = (256, 320, 352, 416, 512, 544, 576)  # test resolutions, arXiv 2102.06171, table 1
_RESNET_50 = _vision("resnet50")


def _efficientnet(number: int) -> Net:
    return _timm(f"tf_efficientnet_b{number}", _EFFICIENTNET[number])


# (paper, architecture, input size or None for any) -> the net.
_PUBLISHED: dict[tuple[str, str, int | None], Net] = {
    ("1704.04861", "Conv MobileNet", None): _mobilenet(plain=True),
    ("1704.04861", "MobileNet", None): _mobilenet(),
    **{("1707.01083", f"ShuffleNet 1x (g={g})", None): _shufflenet(g) for g in (1, 2, 3, 4, 8)},
    ("1707.01083", "ShuffleNet 2x (g=3)", None): _shufflenet(3, 2.0),
    ("1707.01083", "ShuffleNet 1.5x (g=3)", None): _shufflenet(3, 1.5),
    ("1707.01083", "VGG-16", None): _vision("vgg16"),
    ("1707.01083", "AlexNet", None): _vision("alexnet"),
    ("1707.01083", "SqueezeNet", None): _vision("squeezenet1_0"),
    **{("1707.01083", f"{width} MobileNet-224", None): _mobilenet(float(width))
       for width in ("1.0", "0.75", "0.5", "0.25")},
    ("1801.04381", "MobileNetV1", None): _mobilenet(),
    ("1801.04381", "ShuffleNet (1.5)", None): _shufflenet(3, 1.5),
    ("1801.04381", "ShuffleNet (x2)", None): _shufflenet(3, 2.0),
    ("1801.04381", "NasNet-A", None): Net("latency", "NASNet-A-Mobile", 224),
    ("1801.04381", "MobileNetV2", None): _vision("mobilenet_v2"),
    ("1801.04381", "MobileNetV2 (1.4)", None): _vision("mobilenet_v2", width_mult=1.4),
    **{("1905.11946", f"EfficientNet-B{number}", None): _efficientnet(number) for number in range(8)},
    ("1905.11946", "ResNet-50 (He et al., 2016)", None): _RESNET_50,
    ("1905.11946", "DenseNet-169 (Huang et al., 2017)", None): _vision("densenet169"),
    ("1905.11946", "ResNet-152 (He et al., 2016)", None): _vision("resnet152"),
    ("1905.11946", "DenseNet-264 (Huang et al., 2017)", None): _vision("densenet264"),
    ("1905.11946", "Inception-v3 (Szegedy et al., 2016)", None): _timm("inception_v3", 299),
    ("1905.11946", "Xception (Chollet, 2017)", None): _timm("legacy_xception", 299),
    ("1905.11946", "Inception-v4 (Szegedy et al., 2017)", None): _timm("inception_v4", 299),
    ("1905.11946", "Inception-resnet-v2 (Szegedy et al., 2017)", None): _timm("inception_resnet_v2", 299),
    ("1905.11946", "ResNeXt-101 (Xie et al., 2017)", None): _timm("resnext101_64x4d", 320),
    ("1905.11946", "SENet (Hu et al., 2018)", None): _timm("legacy_senet154", 320),
    ("1905.11946", "NASNet-A (Zoph et al., 2018)", None): _timm("nasnetalarge", 331),
    ("1905.11946", "PNASNet (Liu et al., 2018)", None): _timm("pnasnet5large", 331),
    ("1905.11946", "Baseline MobileNetV1 (Howard et al., 2017)", None): _mobilenet(),
    ("1905.11946", "Scale MobileNetV1 by width (w=2)", None): _mobilenet(2.0),
    ("1905.11946", "Scale MobileNetV1 by resolution (r=2)", None): _mobilenet(size=448),
    ("1905.11946", "Baseline MobileNetV2 (Sandler et al., 2018)", None): _vision("mobilenet_v2"),
    ("1905.11946", "Scale MobileNetV2 by width (w=2)", None): _vision("mobilenet_v2", width_mult=2.0),
    ("1905.11946", "Scale MobileNetV2 by resolution (r=2)", None): _vision("mobilenet_v2", 448),
    ("1905.11946", "Scale MobileNetV2 by depth (d=4)", None): _vision("mobilenet_v2", depth=4),
    ("1905.11946", "Baseline ResNet-50 (He et al., 2016)", None): _RESNET_50,
    ("1905.11946", "Scale ResNet-50 by depth (d=4)", None): _vision("resnet50", depth=4),
    ("1905.11946", "Scale ResNet-50 by resolution (r=2)", None): _vision("resnet50", 448),
    ("1802.07088", "ResNet", None): _RESNET_50,
    ("2102.06171", "ResNet-50", None): _RESNET_50,
    **{("2102.06171", f"EffNet-B{number}", None): _efficientnet(number) for number in (0, 3, 4, 5, 6, 7)},
    ("2102.06171", "EffNet-B8+MaxUp", None): _efficientnet(8),
    ("2102.06171", "SENet-50", None): _timm("seresnet50"),
    **{("2102.06171", f"NFNet-F{number}", None): _timm(f"dm_nfnet_f{number}", _NFNET[number]) for number in range(6)},
    ("2102.06171", "NFNet-F5+SAM", None): _timm("dm_nfnet_f5", _NFNET[5]),
    ("2102.06171", "NFNet-F6+SAM", None): _timm("dm_nfnet_f6", _NFNET[6]),
    ("2102.06171", "DeiT 1000 epochs", None): _timm("deit_base_distilled_patch16_384", 384),
    ("2201.03545", "RegNetY-4G", None): _timm("regnety_040"),
    ("2201.03545", "RegNetY-8G", None): _timm("regnety_080"),
    ("2201.03545", "RegNetY-16G", None): _timm("regnety_160"),
    **{("2201.03545", f"EffNet-B{number}", None): _efficientnet(number) for number in (3, 4, 5, 6, 7)},
    ("2201.03545", "DeiT-S", None): _timm("deit_small_patch16_224"),
    ("2201.03545", "DeiT-B", None): _timm("deit_base_patch16_224"),
    ("2201.03545", "ResNet-50", None): _RESNET_50,
    ("2201.03545", "R-101x3 (22K pre-trained)", None): _timm("resnetv2_101x3_bit", 384),
    ("2201.03545", "R-152x4 (22K pre-trained)", None): _timm("resnetv2_152x4_bit", 480),
    ("2201.03545", "ViT-B/16 (22K pre-trained)", None): _timm("vit_base_patch16_384", 384),
    ("2201.03545", "ViT-L/16 (22K pre-trained)", None): _timm("vit_large_patch16_384", 384),
    **{("2201.03545", f"ConvNeXt-{letter}{trained}", size): _timm(f"convnext_{name}", size)
       for letter, name in {"T": "tiny", "S": "small", "B": "base", "L": "large", "XL": "xlarge"}.items()
       for trained in ("", " (22K pre-trained)") for size in (224, 384)},
    **{("2201.03545", f"Swin-{letter}{trained}", size): _timm(f"swin_{name}_patch4_window{window}_{size}", size)
       for letter, name in {"T": "tiny", "S": "small", "B": "base", "L": "large"}.items()
       for trained in ("", " (22K pre-trained)") for size, window in ((224, 7), (384, 12))},
}  # fmt: skip

# (paper, how the architecture's name begins) -> why no net of NETS stands for it.
_NOT_PUBLIC = "no public definition in torchvision or timm"
LEFT_OUT: dict[tuple[str, str], str] = {
    ("1707.01083", "PVANET"): _NOT_PUBLIC,
    ("1707.01083", "ShuffleNet 0.5x (arch2"): "the paper does not say how arch2 divides its units over the stages",
    ("1707.01083", "ShuffleNet 0.5x (shallow"): "the paper does not say which units the shallow variant leaves out",
    ("1707.01083", "VGG-like structure"): "the paper does not give the widths of these structures",
    ("1707.01083", "ResNet structure"): "the paper does not give the widths of these structures",
    ("1707.01083", "ResNeXt structure"): "the paper does not give the widths of these structures",
    ("1707.01083", "Xception-like structure"): "the paper does not give the widths of these structures",
    ("1707.01083", "ShuffleNet (ours) structure"): "the same nets as in its table 2, by their nominal class",
    (
        "1801.04381",
        "NasNet-A",
    ): "timm has the large variant only; the mobile one is among the nets with measured latency",
    ("1905.11946", "PolyNet"): _NOT_PUBLIC,
    ("1905.11946", "AmoebaNet"): _NOT_PUBLIC,
    ("1905.11946", "GPipe"): _NOT_PUBLIC,
    ("1905.11946", "compound scale (d=1.4"): "how depth 1.4 rounds for a net without stages is not said",
    ("1905.11946", "MobileNetV2 compound scale"): "the factors are not given",
    ("1905.11946", "ResNet-50 compound scale"): "the factors are not given",
    ("1905.11946", "Scale ResNet-50 by width"): "which of the block's widths are doubled is not said",
    ("1802.07088", "RevNet"): _NOT_PUBLIC,
    ("1802.07088", "i -RevNet"): _NOT_PUBLIC,
    ("2102.06171", "LambdaNet"): _NOT_PUBLIC,
    ("2102.06171", "BoTNet"): _NOT_PUBLIC,
    ("2102.06171", "SENet-152"): "the input size is not given",
    ("2102.06171", "SENet-350"): _NOT_PUBLIC,
}
NOMINAL = "nominal class"

# Published figures that a right count misses by more than 5 %, and why. `parameters` or `macs`.
EXPLAINED: dict[tuple[str, str, str], str] = {
    ("1801.04381", "MobileNetV2 (1.4)", "parameters"): "torchvision's and timm's have 6.1 M, by the paper's own widths",
    (
        "1905.11946",
        "Inception-v4 (Szegedy et al., 2017)",
        "macs",
    ): "rounded up: timm's has 12.25 G",
    ("1905.11946", "Inception-v4 (Szegedy et al., 2017)", "parameters"): "timm's has 42.7 M; the 48 M are copied there",
    ("1905.11946", "SENet (Hu et al., 2018)", "parameters"): (
        "SENet-154 has 115 M in timm and among the nets with measured latency; what the 146 M count is not known"
    ),
    ("1905.11946", "PNASNet (Liu et al., 2018)", "macs"): (
        "timm's PNASNet-5-Large; the figure is copied there, its source was not opened"
    ),
    ("1905.11946", "Scale ResNet-50 by depth (d=4)", "macs"): (
        "four times the blocks in every stage; the paper's figure is near four times the whole net's, and it does not"
        " say which layers it repeats"
    ),
    ("1905.11946", "Baseline MobileNetV1 (Howard et al., 2017)", "macs"): "one digit: 569 M is printed as 0.6 G",
}


def rows() -> Iterator[Row]:
    """Every row of the table that has a figure."""
    with DATA.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            parameters, macs = line["params_M"], line["madds_or_flops_M"]
            if parameters or macs:
                yield Row(
                    paper=line["source_paper"].removeprefix("arXiv:"),
                    table=line["table"],
                    architecture=line["architecture"],
                    size=int(line["input_size"]) if line["input_size"] else None,
                    parameters=float(parameters) if parameters else None,
                    macs=float(macs) if macs else None,
                    note=line["note"],
                )


def net_of(row: Row) -> Net | str:
    """The net that a row describes, or why there is none."""
    if NOMINAL in row.note:
        return "the paper gives the class of the net, not its count"
    for size in (None, row.size):
        if (net := _PUBLISHED.get((row.paper, row.architecture, size))) is not None:
            return net
    for (paper, beginning), reason in LEFT_OUT.items():
        if row.paper == paper and row.architecture.startswith(beginning):
            return reason
    raise LookupError(f"{DATA.name}: nothing is said about {row.paper}, {row.architecture}")


# Every net that a row describes, once, in the order of the table.
NETS: tuple[Net, ...] = tuple({net.key: net for row in rows() if isinstance(net := net_of(row), Net)}.values())
