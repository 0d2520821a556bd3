"""Nodes that scale and shift channels by constants, read as ``y = scale * x + shift`` along one axis.

BatchNormalization at inference, with statistics m and v and parameters g and b (ONNX operator specification):
``y = g * (x - m) / sqrt(v + epsilon) + b``, so ``scale = g / sqrt(v + epsilon)`` and ``shift = b - m * scale``, along
axis 1. Mul, Add, Sub and Div by a constant that varies along at most one axis. All in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, values_of

Vector: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class Affine:
    """``y = scale * x + shift``: float64 vectors with one entry a channel, or one entry for all."""

    scale: Vector
    shift: Vector

    def then(self, later: Affine) -> Affine:
        """This map followed by ``later``. Raises ValueError where the numbers of channels do not fit."""
        return Affine(self.scale * later.scale, self.shift * later.scale + later.shift)

    @property
    def channels(self) -> int:
        """Number of channels, 1 where all are treated alike."""
        return max(self.scale.size, self.shift.size)


@dataclass(frozen=True)
class Link:
    """A node read as an affine map.

    Attributes:
        node: the node.
        slot: which of its inputs is ``x``.
        affine: the map.
        axis: the axis that the vectors run along, counted from the left; None where all elements are treated alike.
        dtype: of the constants.
    """

    node: gs.Node
    slot: int
    affine: Affine
    axis: int | None
    dtype: np.dtype[Any]

    @property
    def source(self) -> gs.Tensor:
        """The tensor ``x``."""
        return self.node.inputs[self.slot]

    @property
    def is_batchnorm(self) -> bool:
        """Whether the node is a BatchNormalization, which never widens the shape of ``x``."""
        return bool(self.node.op == "BatchNormalization")


def read_link(node: gs.Node, ranks: Mapping[int, int], index: Index) -> Link | str | None:
    """Read a node as an affine map.

    Args:
        node: any node.
        ranks: number of axes by ``id`` of a tensor, for those where it is known.
        index: of the whole model.

    Returns:
        the map; or, for a BatchNormalization that is not one, why not; None for any other node.
    """
    if node.domain:
        return None
    if node.op == "BatchNormalization":
        return why_not_fixed(node, index) or _batchnorm(node)
    if node.op in _ELEMENTWISE and len(node.inputs) == 2 and index.graph.opset >= 7:
        return _elementwise(node, ranks)
    return None


def why_not_fixed(node: gs.Node, index: Index) -> str | None:
    """Why a BatchNormalization is not a fixed affine map; None if it is one."""
    opset = index.graph.opset
    if node.attrs.get("training_mode", 0) or (opset < 7 and not node.attrs.get("is_test", 0)):
        return "it is in training mode"
    # Before training_mode (opset 14), further outputs are what turns training on, read or not; ONNX Runtime agrees.
    if 7 <= opset < 14 and any(not output.is_empty() for output in node.outputs[1:]):
        return "its statistics outputs put it in training mode"
    if opset < 9 and not node.attrs.get("spatial", 1):
        return "it normalizes each element by its own statistics (spatial=0)"
    sizes = set()
    for name, tensor in zip(("scale", "bias", "mean", "variance"), node.inputs[1:5], strict=True):
        values = values_of(tensor)
        if values is None:
            return f"its {name} is {why_unknown(tensor, index)}"
        if values.dtype.name not in FLOATS or values.ndim != 1:
            return f"its {name} is no vector of floats"
        sizes.add(values.size)
    if len(sizes) > 1:
        return "its parameters differ in length"
    affine = _batchnorm(node).affine
    if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        return "its parameters give infinite or undefined factors"
    return None


def why_unknown(tensor: gs.Tensor, index: Index) -> str:
    """What a tensor without a fixed value is, to follow 'is' or 'are'."""
    if isinstance(tensor, gs.Constant):
        return "sparse or not loaded"
    inputs = (given for graph in index.graphs for given in graph.inputs)
    return "a graph input" if any(given is tensor for given in inputs) else "computed"


def _batchnorm(node: gs.Node) -> Link:
    arrays = [values_of(tensor) for tensor in node.inputs[1:5]]
    gain, bias, mean, variance = (np.asarray(array).astype(np.float64) for array in arrays)
    with np.errstate(all="ignore"):  # The caller checks for infinities.
        scale = gain / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
        shift = bias - mean * scale
    return Link(node, 0, Affine(scale, shift), 1, np.asarray(arrays[0]).dtype)


def _elementwise(node: gs.Node, ranks: Mapping[int, int]) -> Link | None:
    values = [values_of(tensor) for tensor in node.inputs]
    known = [slot for slot in (0, 1) if values[slot] is not None]
    if len(known) != 1 or (node.op == "Div" and known == [0]):
        return None
    constant = np.asarray(values[known[0]])
    if constant.dtype.name not in FLOATS or not constant.size:
        return None
    # Without the rank of x, a constant with axes of its own might add axes to it.
    rank = ranks.get(id(node.inputs[1 - known[0]]))
    if constant.ndim and (rank is None or constant.ndim > rank):
        return None
    long_axes = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if len(long_axes) > 1:
        return None
    axis = None if not long_axes or rank is None else rank - constant.ndim + long_axes[0]
    affine = _as_affine(node.op, constant.astype(np.float64).ravel(), constant_first=known == [0])
    if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        return None
    return Link(node, 1 - known[0], affine, axis, constant.dtype)


def _as_affine(op: str, constant: Vector, *, constant_first: bool) -> Affine:
    zero, one = np.zeros(1), np.ones(1)
    if op == "Add":
        return Affine(one, constant)
    if op == "Mul":
        return Affine(constant, zero)
    if op == "Div":
        with np.errstate(divide="ignore"):  # The caller checks for infinities.
            return Affine(1.0 / constant, zero)
    return Affine(-one, constant) if constant_first else Affine(one, -constant)


def compose(links: Sequence[Link]) -> Affine:
    """The map of a chain of links, the first applied first."""
    total = links[0].affine
    for link in links[1:]:
        total = total.then(link.affine)
    return total
