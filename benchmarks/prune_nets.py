"""Networks with structure that torchvision and timm lack, small and with random weights: a test bed for pruning.

Detection heads, decoders, style transfer, super-resolution, sound, video, shared weights. Each function makes one
network; `NETS` names them all with the shape of one sample.

Sources: U-Net arXiv:1505.04597, YOLO's C2f and SPPF as published for YOLOv8, MLP-Mixer arXiv:2105.01601, ConvMixer
arXiv:2201.09792, style transfer arXiv:1603.08155, ESPCN arXiv:1609.05158, WDSR arXiv:1808.08718, WaveNet
arXiv:1609.03499, CRNN arXiv:1507.05717, hourglass arXiv:1603.06937, MobileFaceNets arXiv:1804.07573, feature pyramids
arXiv:1612.03144, RetinaNet's shared heads arXiv:1708.02002, squeeze-and-excitation arXiv:1709.01507.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution with same padding, BatchNorm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), activation())


class UNet(nn.Module):
    """Encoder and decoder with concatenated skips; upsampling by transposed convolution or by interpolation."""

    def __init__(self, up: str, activation: type[nn.Module], widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Module:
            first = conv_bn(inputs, outputs, activation=activation)
            return nn.Sequential(first, conv_bn(outputs, outputs, activation=activation))

        self.down = nn.ModuleList(double(one, two) for one, two in zip((3, *widths), widths, strict=False))
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(deep, shallow, 2, 2)
            if up == "transpose"
            else nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(deep, shallow, 1))
            for deep, shallow in pairs
        )
        self.up = nn.ModuleList(double(2 * shallow, shallow) for _, shallow in pairs)
        self.head = nn.Conv2d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for grow, stage, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            x = stage(torch.cat([skip, grow(x)], 1))
        return self.head(x)  # type: ignore[no-any-return]


class C2f(nn.Module):
    """A 1x1 convolution split in halves, bottlenecks in a row on one, all of them concatenated."""

    def __init__(self, inputs: int, outputs: int, repeats: int, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.open = conv_bn(inputs, outputs, 1, activation=nn.SiLU)
        self.steps = nn.ModuleList(
            nn.Sequential(conv_bn(half, half, activation=nn.SiLU), conv_bn(half, half, activation=nn.SiLU))
            for _ in range(repeats)
        )
        self.close = conv_bn((2 + repeats) * half, outputs, 1, activation=nn.SiLU)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.open(x).chunk(2, 1))
        for step in self.steps:
            found = step(parts[-1])
            parts.append(parts[-1] + found if self.shortcut else found)
        return self.close(torch.cat(parts, 1))  # type: ignore[no-any-return]


class Sppf(nn.Module):
    """Max-pooling three times over, all four concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.open = conv_bn(channels, channels // 2, 1, activation=nn.SiLU)
        self.close = conv_bn(2 * channels, channels, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.open(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        return self.close(torch.cat(parts, 1))  # type: ignore[no-any-return]


class Yolo(nn.Module):
    """Backbone of C2f blocks, SPPF, a path down and one up again, three heads decoded into one list of boxes."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 128), classes: int = 5) -> None:
        super().__init__()
        a, b, c, d, e = widths
        silu = nn.SiLU
        self.stem = nn.Sequential(conv_bn(3, a, 3, 2, activation=silu), conv_bn(a, b, 3, 2, activation=silu))
        self.two = nn.Sequential(C2f(b, b, 1), conv_bn(b, c, 3, 2, activation=silu), C2f(c, c, 2))
        self.three = nn.Sequential(conv_bn(c, d, 3, 2, activation=silu), C2f(d, d, 2))
        self.four = nn.Sequential(conv_bn(d, e, 3, 2, activation=silu), C2f(e, e, 1), Sppf(e))
        self.lift_three, self.lift_two = C2f(d + e, d, 1, False), C2f(c + d, c, 1, False)
        self.down_two, self.join_three = conv_bn(c, c, 3, 2, activation=silu), C2f(c + d, d, 1, False)
        self.down_three, self.join_four = conv_bn(d, d, 3, 2, activation=silu), C2f(d + e, e, 1, False)
        self.boxes = nn.ModuleList(self._head(width, 4 * 8) for width in (c, d, e))
        self.classes = nn.ModuleList(self._head(width, classes) for width in (c, d, e))
        self.register_buffer("bins", torch.arange(8.0).view(1, 8, 1, 1))

    @staticmethod
    def _head(inputs: int, outputs: int) -> nn.Module:
        width = 32
        body = nn.Sequential(conv_bn(inputs, width, activation=nn.SiLU), conv_bn(width, width, activation=nn.SiLU))
        return nn.Sequential(body, nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        two = self.two(self.stem(x))
        three = self.three(two)
        four = self.four(three)
        three = self.lift_three(torch.cat([functional.interpolate(four, scale_factor=2.0), three], 1))
        two = self.lift_two(torch.cat([functional.interpolate(three, scale_factor=2.0), two], 1))
        three = self.join_three(torch.cat([self.down_two(two), three], 1))
        four = self.join_four(torch.cat([self.down_three(three), four], 1))
        found = [
            torch.cat([boxes(level), classes(level)], 1).flatten(2)
            for level, boxes, classes in zip((two, three, four), self.boxes, self.classes, strict=True)
        ]
        every = torch.cat(found, 2)
        sides = every[:, :32].unflatten(1, (4, 8)).transpose(1, 2).softmax(1)
        return torch.cat([(sides * self.bins).sum(1), every[:, 32:].sigmoid()], 1)


class Pyramid(nn.Module):
    """A feature pyramid by addition with one head that all levels share; every level is an output."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [conv_bn(3, 32, 3, 4), conv_bn(32, 64, 3, 2), conv_bn(64, 96, 3, 2), conv_bn(96, 128, 3, 2)]
        )
        self.sides = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (64, 96, 128))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.head = nn.Sequential(conv_bn(width, width), conv_bn(width, width), nn.Conv2d(width, 9, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        merged = [side(level) for side, level in zip(self.sides, levels[1:], strict=True)]
        for index in (1, 0):
            merged[index] = merged[index] + functional.interpolate(merged[index + 1], scale_factor=2.0)
        return tuple(self.head(smooth(level)) for smooth, level in zip(self.smooth, merged, strict=True))


class MixerBlock(nn.Module):
    """Two-layer perceptrons over tokens, then over channels, on a residual stream."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.second(x))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """MLP-Mixer: patches, mixing, mean over tokens, classifier."""

    def __init__(self, width: int = 64, patch: int = 8, size: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock((size // patch) ** 2, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """What a branch makes, scaled, on top of what came in."""

    def __init__(self, *branch: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.branch, self.scale = nn.Sequential(*branch), scale

    def forward(self, x: Tensor) -> Tensor:
        found = self.branch(x)
        return x + (found if self.scale == 1 else self.scale * found)  # type: ignore[no-any-return]


def convmixer(width: int = 64, depth: int = 6) -> nn.Module:
    """ConvMixer: depthwise with a shortcut, then pointwise, BatchNorm after each activation."""

    def after(conv: nn.Module) -> nn.Sequential:
        return nn.Sequential(conv, nn.GELU(), nn.BatchNorm2d(width))

    blocks = [
        nn.Sequential(
            Residual(after(nn.Conv2d(width, width, 5, groups=width, padding=2))), after(nn.Conv2d(width, width, 1))
        )
        for _ in range(depth)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(after(nn.Conv2d(3, width, 4, 4)), *blocks, head)


def style_transfer(up: str) -> nn.Module:
    """Image to image with InstanceNorm and reflected borders."""

    def layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride)
        return [nn.ReflectionPad2d(kernel // 2), conv, nn.InstanceNorm2d(outputs, affine=True)]

    def grow(inputs: int, outputs: int) -> list[nn.Module]:
        if up == "transpose":
            conv = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, 1)
            return [conv, nn.InstanceNorm2d(outputs, affine=True), nn.ReLU()]
        return [nn.Upsample(scale_factor=2), *layer(inputs, outputs, 3), nn.ReLU()]

    down = [*layer(3, 16, 9), nn.ReLU(), *layer(16, 32, 3, 2), nn.ReLU(), *layer(32, 64, 3, 2), nn.ReLU()]
    body = [Residual(*layer(64, 64, 3), nn.ReLU(), *layer(64, 64, 3)) for _ in range(3)]
    return nn.Sequential(*down, *body, *grow(64, 32), *grow(32, 16), nn.ReflectionPad2d(4), nn.Conv2d(16, 3, 9))


def espcn(scale: int = 3) -> nn.Module:
    """Super-resolution by pixel shuffle at the end, and one in the middle that convolutions follow."""
    head = [nn.Conv2d(3, 32, 5, padding=2), nn.Tanh(), nn.Conv2d(32, 48, 3, padding=1), nn.Tanh()]
    middle = [nn.Conv2d(48, 16 * 4, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1)]
    return nn.Sequential(*head, *middle, nn.ReLU(), nn.Conv2d(32, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))


class Wdsr(nn.Module):
    """Super-resolution with wide activations, two paths, a mean taken away and put back."""

    def __init__(self, width: int = 24, scale: int = 2) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.41]).view(1, 3, 1, 1))
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            *(
                Residual(
                    nn.Conv2d(width, 6 * width, 1), nn.ReLU(), nn.Conv2d(6 * width, width, 3, padding=1), scale=0.5
                )
                for _ in range(4)
            )
        )
        self.tail = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.skip = nn.Sequential(nn.Conv2d(3, 3 * scale**2, 5, padding=2), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean
        return self.tail(self.body(self.head(x))) + self.skip(x) + self.mean  # type: ignore[no-any-return]


class WaveNet(nn.Module):
    """Dilated 1-D convolutions with tanh x sigmoid gates, a residual stream and summed skips."""

    def __init__(self, width: int = 32, layers: int = 6) -> None:
        super().__init__()
        self.open = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, dilation=2**index, padding=2**index) for index in range(layers)
        )
        self.outs = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(width, 64, 1), nn.ReLU(), nn.Conv1d(64, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.open(x), torch.zeros(1)
        for gate, out in zip(self.gates, self.outs, strict=True):
            one, two = gate(x).chunk(2, 1)
            stream, skip = out(one.tanh() * two.sigmoid()).chunk(2, 1)
            x, total = x + stream, total + skip
        return self.head(total)  # type: ignore[no-any-return]


def conv1d() -> nn.Module:
    """A 1-D classifier with depthwise-separable layers, flattened into two Gemms."""
    layers: list[nn.Module] = [nn.Conv1d(4, 32, 7, 2, 3), nn.BatchNorm1d(32), nn.PReLU(32)]
    for inputs, outputs in ((32, 48), (48, 64), (64, 64)):
        layers += [nn.Conv1d(inputs, inputs, 5, 2, 2, groups=inputs), nn.Conv1d(inputs, outputs, 1)]
        layers += [nn.BatchNorm1d(outputs), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


class Crnn(nn.Module):
    """Convolutions, columns as a sequence, a bidirectional LSTM, a classifier for each column."""

    def __init__(self) -> None:
        super().__init__()
        convs = [conv_bn(1, 32), nn.MaxPool2d(2), conv_bn(32, 64), nn.MaxPool2d(2), conv_bn(64, 64)]
        self.convs = nn.Sequential(*convs, nn.MaxPool2d((4, 1)))
        self.lstm = nn.LSTM(128, 32, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        found = self.convs(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.lstm(found)[0])  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """Flattened into a code and unflattened again, with transposed convolutions on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(conv_bn(3, 16, 3, 2), conv_bn(16, 32, 3, 2), conv_bn(32, 64, 3, 2), nn.Flatten())
        self.middle = nn.Sequential(nn.Linear(64 * 16, 48), nn.ReLU(), nn.Linear(48, 64 * 16), nn.ReLU())
        grow = [nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ELU()]
        grow += [nn.ConvTranspose2d(32, 32, 4, 2, 1, groups=4), nn.BatchNorm2d(32), nn.ELU()]
        self.decode = nn.Sequential(
            nn.Unflatten(1, (64, 4, 4)), *grow, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.middle(self.encode(x)))  # type: ignore[no-any-return]


class Hourglass(nn.Module):
    """Down and up again with residuals at every level, twice, with intermediate maps fed back and given out."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()

        def block() -> nn.Module:
            return Residual(
                conv_bn(width, width // 2, 1), conv_bn(width // 2, width // 2), nn.Conv2d(width // 2, width, 1)
            )

        self.stem = conv_bn(3, width, 7, 2)
        self.skips = nn.ModuleList(nn.ModuleList(block() for _ in range(depth)) for _ in range(2))
        self.downs = nn.ModuleList(nn.ModuleList(block() for _ in range(depth)) for _ in range(2))
        self.maps = nn.ModuleList(nn.Conv2d(width, 7, 1) for _ in range(2))
        self.back = nn.Conv2d(7, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        outputs: list[Tensor] = []
        for skips, downs, maps in zip(self.skips, self.downs, self.maps, strict=True):
            start, kept = x, []
            for skip, down in zip(skips, downs, strict=True):
                kept.append(skip(x))
                x = down(functional.max_pool2d(x, 2))
            for skip in kept[::-1]:
                x = functional.interpolate(x, scale_factor=2.0) + skip
            outputs.append(maps(x))
            x = start + x + self.back(outputs[-1])
        return outputs[0], outputs[1]


def mobileface() -> nn.Module:
    """Face embedding: PReLU, inverted residuals, a depthwise convolution over the whole map, L2-normalised."""

    class Normalised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.normalize(x.flatten(1))

    def conv(
        inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, padding: int = 0
    ) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        middle = 2 * inputs
        layers = [*conv(inputs, middle, 1), nn.PReLU(middle)]
        layers += [*conv(middle, middle, 3, stride, middle, 1), nn.PReLU(middle), *conv(middle, outputs, 1)]
        return Residual(*layers) if stride == 1 and inputs == outputs else nn.Sequential(*layers)

    stem = [*conv(3, 32, 3, 2, padding=1), nn.PReLU(32), *conv(32, 32, 3, 1, 32, 1), nn.PReLU(32)]
    blocks = [block(32, 48, 2), block(48, 48, 1), block(48, 64, 2), block(64, 64, 1), block(64, 96, 2)]
    head = [*conv(96, 128, 1), nn.PReLU(128), *conv(128, 128, 4, groups=128), *conv(128, 64, 1), Normalised()]
    return nn.Sequential(*stem, *blocks, *head)


class Multiplier(nn.Module):
    """Depthwise convolutions with a channel multiplier, a gate by a Gemm, a split into unequal parts, a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 24)
        self.deep = nn.Sequential(nn.Conv2d(24, 72, 3, 2, 1, groups=24), nn.BatchNorm2d(72), nn.Hardswish())
        self.gate = nn.Sequential(nn.Linear(72, 18), nn.ReLU(), nn.Linear(18, 72), nn.Sigmoid())
        self.parts = nn.ModuleList(conv_bn(width, width) for width in (16, 24, 32))
        self.close = conv_bn(72 + 12, 40, 1)
        self.head = nn.Linear(40 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        found = self.deep(self.stem(x))
        found = found * self.gate(found.mean((2, 3)))[:, :, None, None]
        parts = [part(one) for part, one in zip(self.parts, found.split((16, 24, 32), 1), strict=True)]
        joined = self.close(torch.cat([*parts, found[:, 6:30:2]], 1))
        return self.head(functional.adaptive_avg_pool2d(joined, 4).flatten(1))  # type: ignore[no-any-return]


class Siamese(nn.Module):
    """One encoder run on both halves of the input, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv_bn(3, 32, 3, 2), conv_bn(32, 64, 3, 2), conv_bn(64, 64, 3, 2))
        self.head = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        one, two = (self.encoder(half).mean((2, 3)) for half in x.chunk(2, 1))
        return self.head(torch.cat([(one - two).abs(), one * two], 1))  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "own_unet_transpose": (lambda: UNet("transpose", nn.ReLU), (3, 64, 64)),
    "own_unet_upsample_silu": (lambda: UNet("nearest", nn.SiLU), (3, 64, 64)),
    "own_yolo_c2f": (Yolo, (3, 64, 64)),
    "own_pyramid_shared": (Pyramid, (3, 64, 64)),
    "own_mixer": (Mixer, (3, 64, 64)),
    "own_convmixer": (convmixer, (3, 64, 64)),
    "own_style_transpose": (lambda: style_transfer("transpose"), (3, 64, 64)),
    "own_style_upsample": (lambda: style_transfer("nearest"), (3, 64, 64)),
    "own_espcn": (espcn, (3, 24, 24)),
    "own_wdsr": (Wdsr, (3, 24, 24)),
    "own_wavenet": (WaveNet, (1, 256)),
    "own_conv1d": (conv1d, (4, 128)),
    "own_crnn": (Crnn, (1, 32, 64)),
    "own_autoencoder": (Autoencoder, (3, 32, 32)),
    "own_hourglass": (Hourglass, (3, 64, 64)),
    "own_mobileface": (mobileface, (3, 64, 64)),
    "own_multiplier": (Multiplier, (3, 32, 32)),
    "own_siamese": (Siamese, (6, 32, 32)),
}
