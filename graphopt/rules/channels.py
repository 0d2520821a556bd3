"""GO401: channel counts between the steps of a target's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import TensorProto

from graphopt.rules.quantizers import CONVOLUTIONS, WEIGHTED, channels, comes_quantized
from graphopt.rules.rule import WARNING, Place, Rule
from graphopt.rules.view import Node, Tensor, View
from graphopt.targets.schema import Hardware

_FLOATS: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}


# Channels of a CPU's kernels that a part of a block holds.
_PART = 4


def _channels_off_step(view: View, hardware: Hardware) -> Iterator[Place]:
    found: dict[tuple[int, str], list[Node]] = {}
    for node in _followed(view):
        precision = _precision(view, node, hardware)
        step = hardware.channel_multiple.get(precision, 1)
        sizes = channels(view, node)
        if sizes is not None and _is_off(sizes[1], step, hardware) and not _is_one_pixel(view, node):
            found.setdefault((sizes[1], precision), []).append(node)
    for (size, precision), nodes in found.items():
        step = hardware.channel_multiple[precision]
        padded = -(-size // step) * step
        layers = "a layer" if len(nodes) == 1 else f"{len(nodes)} layers"
        yield Place(
            nodes[0].name,
            f"{layers} of {size} output channels, which {precision} kernels compute as {padded} "
            f"({padded / size - 1:.0%} more work): make them a multiple of {step}",
        )


def _is_off(size: int, step: int, hardware: Hardware) -> bool:
    """Whether padding ``size`` channels to a multiple of ``step`` costs much.

    A CPU (no device figures: times are measured) takes part of a block in steps of 4, and fewer channels are less work
    for the next layer: 24 instead of 32 still pay. On a GPU a misaligned count costs its tensor cores.
    """
    if hardware.device is not None:
        return size % step != 0
    padded = -(-size // step) * step
    return size % min(step, _PART) != 0 or padded * 3 > size * 4


def _followed(view: View) -> list[Node]:
    """Convolutions and products with fixed weights that another one follows: the model's own outputs are given."""
    heavy = [
        node for node in view.nodes if node.op in WEIGHTED and (node.op in CONVOLUTIONS or _has_weights(view, node))
    ]
    seen: set[Tensor] = {tensor for node in heavy if (tensor := node.input(0)) is not None}
    pending = list(seen)
    while pending:
        node = pending.pop().producer
        fresh = [tensor for tensor in node.inputs if tensor is not None and tensor not in seen] if node else []
        seen.update(fresh)
        pending += fresh
    return [node for node in heavy if node.output() in seen]


def _is_one_pixel(view: View, node: Node) -> bool:
    """Whether a convolution runs on one pixel, as in squeeze-and-excitation: little work, however much is padded."""
    shape = view.shape(node.output())
    return node.op in CONVOLUTIONS and shape is not None and all(size == 1 for size in shape[2:])


def _has_weights(view: View, node: Node) -> bool:
    return view.is_fixed(node.input(1))


def _precision(view: View, node: Node, hardware: Hardware) -> str:
    """The data type that a layer is computed in."""
    if comes_quantized(node.input(0)) is not None and comes_quantized(node.input(1)) is not None:
        return "int8"
    declared = _FLOATS.get(view.dtype(node.input(0)), "float32")
    if declared == "float32" and not hardware.strongly_typed and hardware.runtimes:
        return hardware.runtimes[0].precision
    return declared


CHANNELS: Mapping[str, Rule] = {
    "channels_off_step": Rule(
        code="GO401",
        name="channels_off_step",
        summary="channel counts are multiples of what the kernels work on at a time",
        explanation="Kernels compute blocks of channels; a block begun is a block paid. Tensor cores want 8 channels "
        "in float16 and 16 in int8, a deep learning accelerator 16 and 32. On a CPU a part of a block counts: "
        "multiples of 4 that padding makes at most a third larger are left alone; a depthwise convolution of 30 "
        "channels ran 4 times slower than one of 32 (float32). Prune or widen to the next multiple. Outputs of the "
        "model, which are given, and convolutions on a single pixel are left out; equal counts are told once.",
        source="ONNX Runtime, MlasNchwcGetBlockSize, and measured with 1.31.1; NVIDIA/cutlass#75; "
        "NVIDIA/TensorRT#3876; TensorRT, NvInfer.h, TensorFormat (kCHW16, kCHW32)",
        check=_channels_off_step,
        fix=("prune_filters",),
        level=WARNING,
    )
}
