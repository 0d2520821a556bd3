"""GO221 to GO224: shapes that a runtime cannot work with, or only with more information."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from graphopt.rules.rule import NOTE, Place, Rule
from graphopt.rules.view import Input, Shape, View
from graphopt.targets.schema import Hardware

MOST_ELEMENTS = 2**31 - 1


def open_axes(given: Input) -> list[int]:
    """Axes of an input whose size the model leaves open."""
    return [axis for axis, size in enumerate(given.shape or ()) if not isinstance(size, int)]


def spelled(shape: Shape) -> str:
    """A shape as people write it: ``[N, 3, 224, 224]``."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _unknown_rank(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.dynamic_shapes == "any":
        return
    for given in view.inputs:
        if given.is_tensor and given.shape is None:
            yield Place(given.name, "an input without a declared shape: give it one with --input-shape")
        elif not given.is_tensor:
            yield Place(given.name, "an input that is no tensor: only tensors can be fed")


def _fixed_shapes(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.dynamic_shapes != "fixed":
        return
    for given in view.inputs:
        if given.shape is not None and open_axes(given):
            example = ",".join(str(size) if isinstance(size, int) else "1" for size in given.shape)
            yield Place(
                given.name,
                f"an input of open shape {spelled(given.shape)}, where sizes must be fixed: give them with "
                f"--input-shape {given.name}:{example}",
            )


def _optimization_profile(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.dynamic_shapes != "profiles":
        return
    for given in view.inputs:
        if given.shape is not None and open_axes(given):
            yield Place(
                given.name,
                f"an input of open shape {spelled(given.shape)}: building the engine takes a range for it (trtexec "
                "--minShapes, --optShapes, --maxShapes), or fix it with --input-shape",
            )


def _tensor_volume(view: View, hardware: Hardware) -> Iterator[Place]:
    for tensor in view.tensors:
        shape = view.shape(tensor) or ()
        # Open sizes count as 1: too large is said only of what surely is.
        known = [size for size in shape if isinstance(size, int)]
        if (elements := math.prod(known)) > MOST_ELEMENTS:
            yield Place(tensor.name, f"a tensor of {spelled(shape)}, {elements:,} elements; at most {MOST_ELEMENTS:,}")


_HEADER = "TensorRT, NvInfer.h"

SHAPES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO221",
            name="unknown_rank",
            summary="every input is a tensor of declared rank",
            explanation="An engine is built for ranges of sizes; without the number of axes there is nothing to give "
            "ranges for.",
            source="TensorRT Developer Guide, 'Working with Dynamic Shapes': 'The rank must be fixed'",
            check=_unknown_rank,
            fix=("fix_shapes",),
        ),
        Rule(
            code="GO222",
            name="fixed_shapes",
            summary="all sizes of the inputs are fixed where the device needs that",
            explanation="A deep learning accelerator has no dynamic dimensions: the least, the usual and the largest "
            "size must be equal.",
            source="docs.nvidia.com/deeplearning/tensorrt, 'DLA Supported Layers and Restrictions', General "
            "Restrictions",
            check=_fixed_shapes,
            fix=("fix_shapes",),
        ),
        Rule(
            code="GO223",
            name="optimization_profile",
            summary="inputs of open shape need a range when the engine is built",
            explanation="Nothing is wrong with the model. Each input with an open size takes an optimization profile: "
            "the smallest, the usual and the largest shape. `graphopt optimize` prints the trtexec line with them.",
            source="TensorRT Developer Guide, 'Working with Dynamic Shapes', 'Optimization Profiles'",
            check=_optimization_profile,
            fix=("fix_shapes",),
            level=NOTE,
        ),
        Rule(
            code="GO224",
            name="tensor_volume",
            summary="no tensor has 2^31 elements or more",
            explanation="Indices inside the engine are 32-bit numbers. Take a smaller batch or input.",
            source=f"{_HEADER} ('the volume must be less than 2^31 elements')",
            check=_tensor_volume,
        ),
    )
}
