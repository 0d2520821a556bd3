"""Conv, ConvTranspose, Gemm and MatMul with constant weights, and affine maps folded into them.

All four are ``y = W * x + bias`` with a weight tensor that can be seen as (groups, outputs, inputs, kernel) or
(groups, inputs, outputs, kernel). A map of the outputs, ``a * y + b``, gives weights ``a * W`` (over outputs) and bias
``a * bias + b``. A map of the inputs, ``W * (a * x + b)``, gives weights ``W * a`` (over inputs) and adds the sum of
``W * b`` over inputs and kernel to the bias, provided that every output sees the whole kernel: no padding, and no
transposed convolution, unless ``b`` is 0. Computed in float64, cast back once. Weights that are one number, generated
by ConstantOfShape, stay that: they take up one factor for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, is_op, values_of
from graphopt.passes.affine.maps import FLOATS, Affine, Vector, all_finite, why_unknown
from graphopt.passes.affine.stock import Stock
from graphopt.passes.affine.uniform import fixed_values, is_uniform, one_number, repeated, uniform_of

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A linear node with constant weights.

    Attributes:
        node: the node; input 0 is ``x``, input 1 the weights, input 2 (if any) the bias.
        weights: as stored.
        bias: as added to the result (Gemm's beta applied), float64, one entry an output or one for all.
        groups: number of groups.
        outputs_first: whether the weights' axes are outputs, inputs (else inputs, outputs) within a group.
        gain: Gemm's alpha, which multiplies what the weights give; else 1.
        view_shape: shape of the weights with groups and kernel axes apart.
    """

    node: gs.Node
    weights: np.ndarray[Any, Any]
    bias: Vector | None
    groups: int
    outputs_first: bool
    gain: float
    view_shape: tuple[int, int, int, int]

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return self.groups * self.view_shape[1 if self.outputs_first else 2]

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return self.groups * self.view_shape[2 if self.outputs_first else 1]

    @property
    def label(self) -> str:
        """Operator and name for messages."""
        return label_of(self.node)


@dataclass(frozen=True)
class Folded:
    """New parameters of a linear node, in its dtype: weights (None: as they are) and bias (None: none, or as it is)."""

    weights: np.ndarray[Any, Any] | None
    bias: np.ndarray[Any, Any] | None


def label_of(node: gs.Node) -> str:
    """Operator and name of a node for messages."""
    return f"{node.op} '{node.name or node.outputs[0].name}'"


def read_linear(node: gs.Node | None, index: Index, *, generated: bool = False) -> Linear | str | None:
    """Read a node as linear with constant weights; else why it is not, or None for any other operator.

    Args:
        node: any node.
        index: of the whole model.
        generated: whether weights will do that are one number in every place, and repeat it in memory.
    """
    if node is None or not is_op(node, *LINEAR) or len(node.inputs) < 2:
        return None
    op, attrs = node.op, node.attrs
    if op == "Gemm" and (index.graph.opset < 7 or attrs.get("transA", 0)):
        return f"{label_of(node)} reads its input transposed, or broadcasts as it did before opset 7"
    weights = values_of(node.inputs[1])
    if weights is None and generated:
        weights = uniform_of(node.inputs[1])
    if weights is None:
        return f"the weights of {label_of(node)} are {why_unknown(node.inputs[1], index)}"
    if weights.dtype not in FLOATS or weights.ndim < 2 or not weights.size:
        return f"the weights of {label_of(node)} are no matrix of floats"
    if op == "MatMul" and weights.ndim != 2:
        return f"the weights of {label_of(node)} differ over the batch"
    bias: Vector | None = None
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        stored = fixed_values(node.inputs[2])
        if stored is None:
            return f"the bias of {label_of(node)} is {why_unknown(node.inputs[2], index)}"
        if stored.ndim > 1 and any(size != 1 for size in stored.shape[:-1]):
            return f"the bias of {label_of(node)} differs from row to row"
        bias = stored.astype(np.float64).ravel()
        if op == "Gemm":
            bias = bias * attrs.get("beta", 1.0)
    outputs_first = op == "Conv" or (op == "Gemm" and bool(attrs.get("transB", 0)))
    groups = int(attrs.get("group", 1)) if op in {"Conv", "ConvTranspose"} else 1
    gain = float(attrs.get("alpha", 1.0)) if op == "Gemm" else 1.0
    first, second = weights.shape[:2]
    view = (groups, first // groups, second, math.prod(weights.shape[2:]))
    return Linear(node, weights, bias, groups, outputs_first, gain, view)


def why_not_into_inputs(linear: Linear, shift: Vector) -> str | None:
    """Why a map of the inputs cannot be folded into the weights exactly; None if it can."""
    if not shift.any():
        return None
    if linear.node.op == "ConvTranspose":
        return f"{linear.label} reads it, whose outputs see different parts of the kernel, and it shifts its input"
    if linear.node.op == "Conv" and pads_with_zeros(linear.node, linear.weights.shape[2:]):
        return f"{linear.label} reads it and pads with zeros, which must not be shifted"
    return None


def pads_with_zeros(node: gs.Node, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution may read beyond its input."""
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        return any(size != 1 for size in kernel)
    return mode != "VALID" and any(node.attrs.get("pads", []))


def into_outputs(linear: Linear, affine: Affine) -> Folded | str:
    """Parameters of ``affine(linear(x))``; or why the dtype of the weights cannot hold them."""
    scaled = affine.scales
    if scaled and _would_write_out(linear, affine.scale):
        return _written_out(linear)
    weights = _times(linear, affine.scale, outputs=True) if scaled else None
    if linear.bias is None:
        bias = affine.shift if affine.shifts else None
    else:
        bias = linear.bias * affine.scale + affine.shift
    return _fit(linear, weights, bias)


def into_inputs(linear: Linear, affine: Affine) -> Folded | str:
    """Parameters of ``linear(affine(x))``; or why the dtype of the weights cannot hold them."""
    if affine.scales and _would_write_out(linear, affine.scale):
        return _written_out(linear)
    weights = _times(linear, affine.scale, outputs=False) if affine.scales else None
    bias = linear.bias
    if affine.shifts:
        moved = linear.gain * _seen(linear, affine.shift)
        bias = moved if bias is None else bias + moved
    return _fit(linear, weights, bias)


def _would_write_out(linear: Linear, factors: Vector) -> bool:
    return is_uniform(linear.weights) and one_number(factors) is None


def _written_out(linear: Linear) -> str:
    return f"the weights of {linear.label} are one number, and would have to be written out"


def _seen(linear: Linear, shift: Vector) -> Vector:
    """What the weights give for an input of ``shift`` everywhere, one entry an output."""
    if is_uniform(linear.weights):
        kernel = linear.view_shape[3] * float(linear.weights.flat[0])
        sums = np.broadcast_to(shift, (linear.inputs,)).reshape(linear.groups, -1).sum(axis=1)
        return np.repeat(kernel * sums, linear.outputs // linear.groups)
    shifted = _times(linear, shift, outputs=False).reshape(linear.view_shape)
    seen: Vector = shifted.sum(axis=(2, 3) if linear.outputs_first else (1, 3)).reshape(-1)
    return seen


def _times(linear: Linear, factors: Vector, *, outputs: bool) -> Vector:
    """The weights times one factor an output or an input, in the shape they are stored in."""
    if is_uniform(linear.weights):
        return np.broadcast_to(np.float64(linear.weights.flat[0]) * factors.flat[0], linear.weights.shape)
    view: Vector = linear.weights.astype(np.float64)
    if factors.size == 1:
        view *= factors[0]
        return view
    view = view.reshape(linear.view_shape)
    first = outputs == linear.outputs_first
    view *= factors.reshape((linear.groups, -1, 1, 1) if first else (linear.groups, 1, -1, 1))
    return view.reshape(linear.weights.shape)


def _fit(linear: Linear, weights: Vector | None, bias: Vector | None) -> Folded | str:
    dtype = linear.weights.dtype
    if bias is not None and bias.size != linear.outputs:
        bias = np.broadcast_to(bias, (linear.outputs,))
    new = None
    if weights is not None:
        new = repeated(linear.weights, weights.flat[0]) if is_uniform(weights) else weights.astype(dtype)
    fitted = Folded(new, None if bias is None else bias.astype(dtype))
    for values in (fitted.weights, fitted.bias):
        if values is not None and not all_finite(values):
            return f"the folded parameters of {linear.label} do not fit {dtype.name}"
    return fitted


def write_linear(stock: Stock, linear: Linear, folded: Folded) -> None:
    """Give the node its new parameters, as constants of its own; a MatMul that needs a bias becomes a Gemm."""
    node = linear.node
    if folded.weights is not None:
        stock.replace(node, 1, node.inputs[1].name, folded.weights)
    if folded.bias is None:
        return
    if node.op == "MatMul":
        node.op = "Gemm"
    node.attrs.pop("beta", None)
    old = node.inputs[2].name if len(node.inputs) > 2 else ""
    name = old or f"{node.name or node.outputs[0].name}_bias"
    stock.replace(node, 2, name, folded.bias)
