"""The six nets, as PyTorch modules.

Every net takes ``image`` [batch, 1, 28, 28] (pixel / 255) and gives ``logits``
[batch, 10]. The blocks follow the papers; widths and strides are chosen for
28 x 28 images, so that the first stage keeps the full resolution, channel
counts are multiples of 16 and convolutions dominate the run time.

Sources: MobileNet arXiv:1704.04861, ResNet arXiv:1512.03385, ShuffleNet
arXiv:1707.01083, DenseNet arXiv:1608.06993, MobileNetV3 arXiv:1905.02244.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 10


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 even where the rest trains in bfloat16.

    The gradients of strided and of 5x5 depthwise convolutions take CPUs two to
    six times as long in bfloat16. Without autocast this is ``nn.Conv2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """Return convolution (same padding, no bias), BatchNorm and, if given, an activation."""
    depthwise = groups == inputs > 1
    conv = Float32Conv2d if depthwise and (stride > 1 or kernel > 3) else nn.Conv2d
    layers: list[nn.Module] = [
        conv(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` in channels-last memory layout."""
    return x.contiguous(memory_format=torch.channels_last)


def with_channels_last_gradient(x: Tensor) -> Tensor:
    """Return ``x``, and see to it that its gradient is in channels-last layout.

    The gradients of concatenation (slices with gaps) and of average pooling
    have another one, on which BatchNorm's backward pass is many times slower.
    Inference and export see nothing of this.
    """
    if x.requires_grad and not torch.compiler.is_compiling():
        x.register_hook(channels_last)  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    return x


def concatenate(*parts: Tensor) -> Tensor:
    """Concatenate along the channels."""
    return torch.cat([with_channels_last_gradient(part) for part in parts], dim=1)


def classifier(inputs: int) -> nn.Sequential:
    """Return global average pooling and one fully connected layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(inputs, CLASSES))


# --- 1. plain ---------------------------------------------------------------


def plain() -> nn.Module:
    """Full 3x3 convolutions where MobileNet has its separable blocks."""
    blocks: list[nn.Module] = [conv_bn(1, 32, 3, activation=nn.ReLU)]
    inputs = 32
    for outputs, stride in [(48, 1)] * 3 + [(80, 2), (80, 1), (80, 1), (128, 2), (128, 1)]:
        blocks.append(conv_bn(inputs, outputs, 3, stride=stride, activation=nn.ReLU))
        inputs = outputs
    return nn.Sequential(*blocks, classifier(inputs))


# --- 2. depthwise-separable -------------------------------------------------


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return MobileNet's block: depthwise 3x3, then pointwise 1x1."""
    return nn.Sequential(
        conv_bn(inputs, inputs, 3, stride=stride, groups=inputs, activation=nn.ReLU),
        conv_bn(inputs, outputs, 1, activation=nn.ReLU),
    )


def mobilenet() -> nn.Module:
    """MobileNet v1 with three stages."""
    blocks: list[nn.Module] = [conv_bn(1, 32, 3, activation=nn.ReLU)]
    inputs = 32
    widths = [(64, 1), (96, 1), (96, 1)]
    widths += [(192, 2), (192, 1), (192, 1), (192, 1), (256, 2), (256, 1), (256, 1)]
    for outputs, stride in widths:
        blocks.append(separable(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*blocks, classifier(inputs))


# --- 3. residual ------------------------------------------------------------


class Residual(nn.Module):
    """ResNet's basic block: two 3x3 convolutions and a shortcut.

    Where the shape changes, the shortcut is a strided 1x1 convolution with
    BatchNorm (the paper's option B).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride=stride, activation=nn.ReLU)
        self.second = conv_bn(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride=stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return result


def resnet20() -> nn.Module:
    """ResNet-20 (three stages of three blocks) with widths 32, 48 and 80 for 16, 32 and 64."""
    blocks: list[nn.Module] = [conv_bn(1, 32, 3, activation=nn.ReLU)]
    inputs = 32
    for stage, outputs in enumerate((32, 48, 80)):
        for block in range(3):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(Residual(inputs, outputs, stride))
            inputs = outputs
    return nn.Sequential(*blocks, classifier(inputs))


# --- 4. grouped with channel shuffle ----------------------------------------


class ChannelShuffle(nn.Module):
    """Interleave the channels of the groups: reshape, transpose, reshape.

    The shapes are constants of the module, the batch is left open, so that the
    exported net has exactly these three operators.
    """

    def __init__(self, channels: int, groups: int, side: int) -> None:
        super().__init__()
        self.split = (-1, groups, channels // groups, side, side)
        self.merged = (-1, channels, side, side)

    def forward(self, x: Tensor) -> Tensor:
        shuffled = with_channels_last_gradient(x).reshape(self.split).transpose(1, 2).reshape(self.merged)
        # Training keeps channels last; the exporter writes nothing for this.
        return channels_last(shuffled)


class ShuffleUnit(nn.Module):
    """ShuffleNet v1's unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    With stride 1 the input is added; with stride 2 the average-pooled input is
    concatenated, so the branch makes only the channels that are missing. The
    bottleneck has a quarter of the output's channels. ``side`` is the height and
    width of the input in pixels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, side: int) -> None:
        super().__init__()
        middle = outputs // 4
        made = outputs - inputs if stride == 2 else outputs
        self.branch = nn.Sequential(
            conv_bn(inputs, middle, 1, groups=groups, activation=nn.ReLU),
            ChannelShuffle(middle, groups, side),
            conv_bn(middle, middle, 3, stride=stride, groups=middle),
            conv_bn(middle, made, 1, groups=groups),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = with_channels_last_gradient(x)
        joined = x + self.branch(x) if self.pool is None else concatenate(self.pool(x), self.branch(x))
        result: Tensor = self.activation(joined)
        return result


def shufflenet() -> nn.Module:
    """ShuffleNet v1 with four groups and three stages."""
    groups, inputs, side = 4, 128, 28
    blocks: list[nn.Module] = [conv_bn(1, inputs, 3, activation=nn.ReLU)]
    for outputs, units in ((128, 2), (256, 6), (512, 6)):
        for _ in range(units):
            stride = 1 if inputs == outputs else 2
            blocks.append(ShuffleUnit(inputs, outputs, stride, groups, side))
            inputs, side = outputs, side // stride
    return nn.Sequential(*blocks, classifier(inputs))


# --- 5. concatenation -------------------------------------------------------


class DenseLayer(nn.Module):
    """DenseNet-BC's layer: BatchNorm, ReLU, 1x1, BatchNorm, ReLU, 3x3, concatenate."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        middle = 4 * growth
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            conv_bn(inputs, middle, 1, activation=nn.ReLU),
            nn.Conv2d(middle, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return concatenate(x, self.branch(x))


def densenet() -> nn.Module:
    """DenseNet-BC with growth 16, compression one half and two dense blocks at 14 and 7 pixels."""
    growth, channels = 16, 32
    blocks: list[nn.Module] = [conv_bn(1, channels, 3, activation=nn.ReLU), nn.MaxPool2d(2)]
    for block, layers in enumerate((10, 8)):
        if block > 0:
            blocks += [
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels // 2, 1, bias=False),
                nn.AvgPool2d(2),
            ]
            channels //= 2
        for _ in range(layers):
            blocks.append(DenseLayer(channels, growth))
            channels += growth
    blocks += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*blocks, classifier(channels))


# --- 6. inverted residuals with squeeze-and-excitation ----------------------


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = channels // 4
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, middle, 1),
            nn.ReLU(),
            nn.Conv2d(middle, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.gate(x)
        return result


class InvertedResidual(nn.Module):
    """MobileNetV3's block: expand 1x1, depthwise, squeeze-and-excitation, project 1x1."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        excite: bool,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(conv_bn(inputs, expanded, 1, activation=activation))
        layers.append(conv_bn(expanded, expanded, kernel, stride=stride, groups=expanded, activation=activation))
        if excite:
            layers.append(SqueezeExcitation(expanded))
        layers.append(conv_bn(expanded, outputs, 1))
        self.branch = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.branch(x)
        return x + result if self.adds else result


def mobilenetv3() -> nn.Module:
    """MobileNetV3 in small, with ReLU in the early blocks and hard-swish in the later ones."""
    inputs, head = 32, 384
    blocks: list[nn.Module] = [conv_bn(1, inputs, 3, activation=nn.Hardswish)]
    # Expanded channels, outputs, kernel, stride, squeeze-and-excitation, activation.
    rows: list[tuple[int, int, int, int, bool, Callable[[], nn.Module]]] = [
        (32, 32, 3, 1, True, nn.ReLU),
        (96, 48, 3, 2, False, nn.ReLU),
        (144, 48, 3, 1, False, nn.ReLU),
        (192, 64, 3, 1, True, nn.Hardswish),
        (288, 64, 3, 1, True, nn.Hardswish),
        (288, 96, 5, 2, True, nn.Hardswish),
        (384, 96, 5, 1, True, nn.Hardswish),
    ]
    for expanded, outputs, kernel, stride, excite, activation in rows:
        blocks.append(
            InvertedResidual(
                inputs,
                expanded,
                outputs,
                kernel=kernel,
                stride=stride,
                excite=excite,
                activation=activation,
            )
        )
        inputs = outputs
    blocks.append(conv_bn(inputs, head, 1, activation=nn.Hardswish))
    return nn.Sequential(*blocks, classifier(head))


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "mobilenet": mobilenet,
    "resnet20": resnet20,
    "shufflenet": shufflenet,
    "densenet": densenet,
    "mobilenetv3": mobilenetv3,
}
"""Name of a net (and of its ONNX file) -> function that makes it, untrained."""


def build(name: str, seed: int) -> nn.Module:
    """Return the named net with Kaiming-initialised weights, the same for the same seed."""
    torch.manual_seed(seed)
    net = NETS[name]()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return net
