"""Nodes that scale and shift channels by constants, read as ``y = scale * x + shift`` along one axis.

BatchNormalization at inference, with statistics m and v and parameters g and b (ONNX operator specification):
``y = g * (x - m) / sqrt(v + epsilon) + b``, so ``scale = g / sqrt(v + epsilon)`` and ``shift = b - m * scale``, along
axis 1. Mul, Add, Sub and Div by a constant that varies along at most one axis. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index
from graphopt.passes.affine.uniform import fixed_values, is_fixed, is_uniform

Vector: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
_GELU_GATES = frozenset({"Erf", "Tanh"})
FLOATS = frozenset(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div"})
# Below this many elements, asking each is quicker than the detour over the sum.
_FEW = 8192
_ZERO, _ONE = np.zeros(1), np.ones(1)


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

    @property
    def scales(self) -> bool:
        """Whether it multiplies by anything but 1."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether it adds anything but 0."""
        return bool(self.shift.any())


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


def may_be_link(node: gs.Node) -> bool:
    """Whether the node might be an affine map; quick, for a first look at all nodes."""
    op = node.op
    if op == "BatchNormalization":
        return not node.domain
    if op not in ELEMENTWISE or node.domain or len(node.inputs) != 2:
        return False
    return is_fixed(node.inputs[0]) is not is_fixed(node.inputs[1])


def read_link(node: gs.Node, rank_of: Callable[[gs.Tensor], int | None], index: Index) -> Link | str | None:
    """Read a node as an affine map.

    Args:
        node: any node.
        rank_of: number of axes of a tensor, None where it is not known.
        index: of the whole model.

    Returns:
        the map; or, for a BatchNormalization that is not one, why not; None for any other node.
    """
    if node.domain:
        return None
    if node.op == "BatchNormalization":
        return _batchnorm(node, index)
    if node.op in ELEMENTWISE and len(node.inputs) == 2 and index.graph.opset >= 7:
        return None if _is_part_of_gelu(node) else _elementwise(node, rank_of)
    return None


def _is_part_of_gelu(node: gs.Node) -> bool:
    """Whether a scale or shift belongs to a GELU written out with Erf or Tanh.

    ONNX Runtime makes one kernel of ``x * (1 + erf(x / sqrt 2)) * 0.5``, but only where it finds all of it: a factor
    folded into the next layer costs more than it saves (a small vision transformer 0.95x as fast, with it 1.07x).
    """
    for tensor in node.inputs:
        for producer in tensor.inputs:
            if producer.op in _GELU_GATES or (producer.op == "Mul" and any(map(_is_gate, producer.inputs))):
                return True
    if node.op not in {"Mul", "Div"} or not any(isinstance(t, gs.Constant) and not t.shape for t in node.inputs):
        return False  # a bias, or the scale of a normalization, is no part of it
    readers = node.outputs[0].outputs[:3]
    return any(
        reader.op in _GELU_GATES or (reader.op == "Mul" and any(map(_is_gate, reader.inputs))) for reader in readers
    )


def _is_gate(tensor: gs.Tensor) -> bool:
    """Whether a tensor is ``1 + erf(...)``."""
    return any(
        producer.op == "Add" and any(each.op in _GELU_GATES for operand in producer.inputs for each in operand.inputs)
        for producer in tensor.inputs
    )


def _batchnorm(node: gs.Node, index: Index) -> Link | str:
    """Read a BatchNormalization, or say why it is not a fixed affine map."""
    opset = index.graph.opset
    if node.attrs.get("training_mode", 0) or (opset < 7 and not node.attrs.get("is_test", 0)):
        return "it is in training mode"
    # Before training_mode (opset 14), further outputs are what turns training on, read or not; ONNX Runtime agrees.
    if 7 <= opset < 14 and any(not output.is_empty() for output in node.outputs[1:]):
        return "its statistics outputs put it in training mode"
    if opset < 9 and not node.attrs.get("spatial", 1):
        return "it normalizes each element by its own statistics (spatial=0)"
    arrays: list[np.ndarray[Any, Any]] = []
    for slot, name in enumerate(("scale", "bias", "mean", "variance"), 1):
        values = fixed_values(node.inputs[slot])
        if values is None:
            return f"its {name} is {why_unknown(node.inputs[slot], index)}"
        if values.ndim != 1 or values.dtype not in FLOATS:
            return f"its {name} is no vector of floats"
        if arrays and values.size != arrays[0].size:
            return "its parameters differ in length"
        arrays.append(values)
    gain, bias, mean, variance = (values.astype(np.float64) for values in arrays)
    with np.errstate(all="ignore"):
        variance += float(node.attrs.get("epsilon", 1e-5))
        gain /= np.sqrt(variance, variance)
        bias -= np.multiply(mean, gain, mean)
    if not all_finite(gain, bias):
        return "its parameters give infinite or undefined factors"
    return Link(node, 0, Affine(gain, bias), 1, arrays[0].dtype)


def all_finite(*arrays: np.ndarray[Any, Any]) -> bool:
    """Whether no element is infinite or undefined; a finite sum proves it in one sweep."""
    for given in arrays:
        few = given.flat[:1] if is_uniform(given) else given
        values = few if few.dtype.kind == "f" else few.astype(np.float64)
        if values.size < _FEW:
            if not np.isfinite(values).all():
                return False
            continue
        with np.errstate(all="ignore"):
            proven = math.isfinite(values.sum())
        if not proven and not np.isfinite(values).all():
            return False
    return True


def why_unknown(tensor: gs.Tensor, index: Index) -> str:
    """What a tensor without a fixed value is, to follow 'is' or 'are'."""
    if isinstance(tensor, gs.Constant):
        return "sparse or not loaded"
    inputs = (given for graph in index.graphs for given in graph.inputs)
    return "a graph input" if any(given is tensor for given in inputs) else "computed"


def _elementwise(node: gs.Node, rank_of: Callable[[gs.Tensor], int | None]) -> Link | None:
    known = [slot for slot in (0, 1) if is_fixed(node.inputs[slot])]
    if len(known) != 1 or (node.op == "Div" and known == [0]):
        return None
    constant = fixed_values(node.inputs[known[0]])
    if constant is None or constant.dtype not in FLOATS or not constant.size:
        return None
    # Without the rank of x, a constant with axes of its own might add axes to it.
    rank = rank_of(node.inputs[1 - known[0]]) if constant.ndim else None
    if constant.ndim and (rank is None or constant.ndim > rank):
        return None
    long_axes = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if len(long_axes) > 1:
        return None
    axis = None if not long_axes or rank is None else rank - constant.ndim + long_axes[0]
    affine = _as_affine(node.op, constant.astype(np.float64).ravel(), constant_first=known == [0])
    if not all_finite(affine.scale, affine.shift):
        return None
    return Link(node, 1 - known[0], affine, axis, constant.dtype)


def _as_affine(op: str, constant: Vector, *, constant_first: bool) -> Affine:
    if op == "Add":
        return Affine(_ONE, constant)
    if op == "Mul":
        return Affine(constant, _ZERO)
    if op == "Div":
        with np.errstate(divide="ignore"):  # The caller checks for infinities.
            return Affine(1.0 / constant, _ZERO)
    return Affine(-_ONE, constant) if constant_first else Affine(_ONE, -constant)


def compose(links: Sequence[Link]) -> Affine:
    """The map of a chain of links, the first applied first."""
    total = links[0].affine
    for link in links[1:]:
        total = total.then(link.affine)
    return total
