"""What a deep learning accelerator (DLA) can run: limits of each operator, each answering with what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from graphopt.rules.quantizers import dequantizer, weight_shape
from graphopt.rules.view import Node, Shape, View
from graphopt.targets.schema import Hardware

Limit: TypeAlias = Callable[[Node, View, Hardware], str]

# Windows of a transposed convolution beyond 32, for a kernel or stride of one row.
_WIDE = (64, 96, 128)


def _outside(name: str, values: Iterable[int] | None, low: int, high: int) -> str:
    wrong = next((value for value in values or () if not low <= value <= high), None)
    return "" if wrong is None else f"{name} {wrong}, outside {low} to {high}"


def _first(problems: Iterable[str]) -> str:
    return next((problem for problem in problems if problem), "")


def _two_dimensional(node: Node, view: View) -> str:
    shape = view.shape(node.input(0))
    return "" if shape is None or len(shape) == 4 else f"{len(shape)} axes, where only images (4 axes) are taken"


def convolution(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of Conv."""
    shape = weight_shape(view, node) or ()
    kernel = node.integers("kernel_shape") or shape[2:]
    pads = node.integers("pads") or ()
    sizes = (*kernel, *kernel)
    wide = next((pad for pad, size in zip(pads, sizes, strict=False) if pad >= size), None)
    return _first(
        (
            _two_dimensional(node, view),
            _outside("kernel size", kernel, 1, 32),
            _outside("stride", node.integers("strides"), 1, 8),
            _outside("padding", pads, 0, 31),
            "" if wide is None else f"padding {wide}, which must be less than the kernel",
            _outside("dilation", node.integers("dilations"), 1, 32),
            _outside("output channels", shape[:1], 1, 8192),
            _outside("number of groups", (node.integer("group", 1),), 1, 8192),
        )
    )


def transposed_convolution(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of ConvTranspose."""
    shape = weight_shape(view, node) or ()
    kernel = node.integers("kernel_shape") or shape[2:]
    strides = node.integers("strides") or ()
    return _first(
        (
            _two_dimensional(node, view),
            "" if node.integer("group", 1) == 1 else "groups",
            "padding" if any(node.integers("pads") or ()) or any(node.integers("output_padding") or ()) else "",
            "dilation" if any(step != 1 for step in node.integers("dilations") or ()) else "",
            "" if _wide(kernel) else _outside("kernel size", kernel, 1, 32),
            "" if _wide(strides) else _outside("stride", strides, 1, 32),
        )
    )


def _wide(sizes: tuple[int, ...]) -> bool:
    return len(sizes) == 2 and min(sizes) == 1 and max(sizes) in _WIDE


def pooling(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of MaxPool and AveragePool."""
    return _first(
        (
            _two_dimensional(node, view),
            _outside("window", node.integers("kernel_shape"), 1, 8),
            _outside("stride", node.integers("strides"), 1, 16),
            _outside("padding", node.integers("pads"), 0, 7),
            "dilation" if any(step != 1 for step in node.integers("dilations") or ()) else "",
        )
    )


def slope(node: Node, view: View, hardware: Hardware) -> str:
    """Limit of PRelu."""
    return "" if view.is_fixed(node.input(1)) else "a computed slope, which must be a constant"


def local_response(node: Node, view: View, hardware: Hardware) -> str:
    """Limit of LRN."""
    size = node.integer("size", 1)
    return "" if size in (3, 5, 7, 9) else f"a window of {size}, which must be 3, 5, 7 or 9"


def elementwise(node: Node, view: View, hardware: Hardware) -> str:
    """Limit of sums, products and the like: integers must have one scale on both sides."""
    ends = [dequantizer(tensor) for tensor in node.inputs if tensor is not None]
    values = [view.values(end.input(1)) for end in ends if end is not None]
    known = [value for value in values if value is not None]
    different = any(value.shape != known[0].shape or (value != known[0]).any() for value in known)
    return "int8 inputs of different ranges, which must be equal" if different else ""


def concatenation(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of Concat."""
    shape = view.shape(node.output())
    axis = node.integer("axis", 1)
    axis += len(shape) if axis < 0 and shape is not None else 0
    if axis not in (1, -3):
        return f"axis {axis}; only channels are joined"
    return "a single input" if len(node.inputs) < 2 else ""


def softmax(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of Softmax."""
    if hardware.device is not None and hardware.device.compute_capability.startswith("7."):
        return "no Softmax on Xavier's accelerator"
    shape = view.shape(node.input(0))
    if shape is None:
        return ""
    axis = node.integer("axis", -1 if view.opset >= 13 else 1)
    if not -len(shape) <= axis < len(shape):
        return ""
    axis %= len(shape)
    # Below operator set 13 all axes from this one on are one.
    end = axis + 1 if view.opset >= 13 else len(shape)
    sizes, others = shape[axis:end], (*shape[:axis], *shape[end:])
    size = math.prod(one for one in sizes if isinstance(one, int))
    most = 8192 if all(other == 1 for other in others) else 1024
    return f"{size} values, more than {most}" if size > most else ""


def slicing(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of Slice."""
    if not all(view.is_fixed(tensor) for tensor in node.inputs[1:] if tensor is not None):
        return "computed bounds, which must be constants"
    starts, ends, axes, steps = (
        _numbers(node, view, index, name) for index, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    if steps is not None and any(step != 1 for step in steps):
        return "steps other than 1"
    shape = view.shape(node.input(0))
    if starts is not None and ends is not None:
        for axis, start, end in zip(range(len(starts)) if axes is None else axes, starts, ends, strict=False):
            if _is_batch(axis, shape) and not (start == 0 and _reaches_end(end, shape)):
                return "a slice of the batch"
    return _two_dimensional(node, view)


def _numbers(node: Node, view: View, index: int, name: str) -> tuple[int, ...] | None:
    """Numbers that newer operator sets give as a constant input and older ones as an attribute."""
    values = view.values(node.input(index))
    return node.integers(name) if values is None else tuple(int(value) for value in values.flat)


def _is_batch(axis: int, shape: Shape | None) -> bool:
    return axis == 0 or (shape is not None and axis == -len(shape))


def _reaches_end(end: int, shape: Shape | None) -> bool:
    size = shape[0] if shape else None
    return end >= (size if isinstance(size, int) else 2**31 - 1)


def splitting(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of Split, which becomes slices."""
    batch = _is_batch(node.integer("axis", 0), view.shape(node.input(0)))
    return "a split of the batch" if batch else _two_dimensional(node, view)


def resizing(node: Node, view: View, hardware: Hardware) -> str:
    """Limits of Resize and Upsample: whole factors, 1 to 32 for nearest, 1 to 4 for linear, height and width only."""
    mode = node.text("mode", "nearest")
    most = {"nearest": 32, "linear": 4}.get(mode)
    if most is None:
        return f"mode '{mode}'"
    before, after = view.shape(node.input(0)) or (), view.shape(node.output()) or ()
    factors = [
        new / old
        for old, new in zip(before, after, strict=False)
        if isinstance(old, int) and isinstance(new, int) and old
    ]
    if len(factors) != 4:
        stored = view.values(node.input(2 if node.op == "Resize" and view.opset >= 11 else 1))
        factors = [float(value) for value in stored.astype(np.float64).flat] if stored is not None else []
    if len(factors) != 4:
        return ""
    if factors[0] != 1 or factors[1] != 1:
        return "a change of batch or channels"
    wrong = next((factor for factor in factors[2:] if factor != int(factor) or not 1 <= factor <= most), None)
    return "" if wrong is None else f"factor {wrong:g}, which must be a whole number from 1 to {most} for '{mode}'"


def moving(node: Node, view: View, hardware: Hardware) -> str:
    """Limit of Transpose: the batch stays where it is."""
    order, shape = node.integers("perm"), view.shape(node.input(0))
    if order is None:  # all axes in reverse
        order = tuple(range(len(shape or ())))[::-1]
    return "a change of the batch axis" if order and order[0] != 0 else ""


def none(node: Node, view: View, hardware: Hardware) -> str:
    """No limit beyond those of all operators."""
    return ""


# What runs on the accelerator. Marked «unverified»: not named in the documents that could be opened.
NATIVE: Mapping[str, Limit] = {
    "Abs": none,
    "Add": elementwise,
    "Atan": none,
    "AveragePool": pooling,
    "BatchNormalization": none,  # a Scale layer
    "Clip": none,
    "Concat": concatenation,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "Cos": none,
    "Div": elementwise,
    "Dropout": none,  # nothing at inference
    "Equal": none,
    "Flatten": none,  # «unverified», a Shuffle layer
    "Gemm": none,  # a fully connected layer
    "Greater": none,
    "Identity": none,
    "LRN": local_response,
    "LeakyRelu": none,
    "Less": none,
    "Max": elementwise,
    "MaxPool": pooling,
    "Min": elementwise,
    "Mul": elementwise,
    "PRelu": slope,
    "Pow": elementwise,
    "ReduceMax": none,  # «unverified»
    "Relu": none,
    "Reshape": none,  # «unverified», a Shuffle layer
    "Resize": resizing,
    "Sigmoid": none,
    "Sin": none,
    "Slice": slicing,
    "Softmax": softmax,
    "Split": splitting,  # «unverified», as slices
    "Squeeze": none,  # «unverified», a Shuffle layer
    "Sub": elementwise,
    "Sum": elementwise,
    "Tanh": none,
    "Transpose": moving,  # «unverified», a Shuffle layer
    "Unsqueeze": none,  # «unverified», a Shuffle layer
    "Upsample": resizing,
}
