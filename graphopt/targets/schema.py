"""The facts about a target that passes read: what its runtime accepts and what its kernels reward.

A target profile is a TOML file; this module holds the values that it is read into. Values only, no behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Int8Rules:
    """How a runtime wants static int8 quantization written.

    Attributes:
        activation_dtype: ``uint8`` or ``int8``.
        weight_bits: 8, or 7 where the CPU sums pairs of u8*s8 products in 16 bits and would saturate
            (x86 without VNNI; ONNX Runtime doc 'Quantize ONNX models', section 'When to use reduce-range').
        per_channel: whether convolution weights carry a scale for each output channel.
        quantize_bias: whether the bias is stored as int32 with scale = activation scale * weight scale.
    """

    activation_dtype: str = "uint8"
    weight_bits: int = 8
    per_channel: bool = True
    quantize_bias: bool = True


@dataclass(frozen=True)
class Hardware:
    """What a device and its runtime accept and like.

    Attributes:
        name: for reports and cache keys only; no pass may branch on it.
        runtime: the runtime that executes the result, e.g. ``onnxruntime``.
        providers: execution providers, the preferred first.
        opset: lowest and highest opset version of the default domain that the runtime accepts.
        precisions: data types that the runtime executes natively.
        channel_multiple: data type -> multiple of channels that its kernels want.
        int8: how to write int8; None means that int8 is refused.
    """

    name: str
    runtime: str
    providers: tuple[str, ...]
    opset: tuple[int, int]
    precisions: tuple[str, ...]
    channel_multiple: dict[str, int] = field(default_factory=dict)
    int8: Int8Rules | None = None


@dataclass(frozen=True)
class Target:
    """A named device: its facts and the order of passes that serves it.

    Attributes:
        name: what the user types.
        summary: one line for ``graphopt targets``.
        hardware: the facts.
        recipe: pass names in the order they run.
    """

    name: str
    summary: str
    hardware: Hardware
    recipe: tuple[str, ...]
