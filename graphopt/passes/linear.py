"""Conv, ConvTranspose, Gemm and MatMul with constant weights, and affine maps folded into them.

All four are ``y = W * x + bias`` with a weight tensor that can be seen as (groups, outputs, inputs, kernel) or
(groups, inputs, outputs, kernel). A map of the outputs, ``a * y + b``, gives weights ``a * W`` (over outputs) and bias
``a * bias + b``. A map of the inputs, ``W * (a * x + b)``, gives weights ``W * a`` (over inputs) and adds the sum of
``W * b`` over inputs and kernel to the bias, provided that every output sees the whole kernel: no padding, and no
transposed convolution, unless ``b`` is 0. Computed in float64, cast back once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, constant, is_op, set_input, values_of
from graphopt.passes.affine import FLOATS, Affine, Vector, why_unknown

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
    """

    node: gs.Node
    weights: np.ndarray[Any, Any]
    bias: Vector | None
    groups: int
    outputs_first: bool
    gain: float

    @property
    def view_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weights with groups and kernel axes apart."""
        first, second = self.weights.shape[:2]
        return self.groups, first // self.groups, second, int(np.prod(self.weights.shape[2:]))

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
        return f"{self.node.op} '{self.node.name or self.node.outputs[0].name}'"


@dataclass(frozen=True)
class Folded:
    """New parameters of a linear node: weights (None: as they are) in float64, and bias (None: none)."""

    weights: np.ndarray[Any, np.dtype[np.float64]] | None
    bias: Vector | None


def read_linear(node: gs.Node | None, index: Index) -> Linear | str | None:
    """Read a node as linear with constant weights; else why it is not, or None for any other operator."""
    if node is None or not is_op(node, *LINEAR):
        return None
    label = f"{node.op} '{node.name or node.outputs[0].name}'"
    if node.op == "Gemm" and (index.graph.opset < 7 or node.attrs.get("transA", 0)):
        return f"{label} reads its input transposed, or broadcasts as it did before opset 7"
    weights = values_of(node.inputs[1])
    if weights is None:
        return f"the weights of {label} are {why_unknown(node.inputs[1], index)}"
    if weights.dtype.name not in FLOATS or weights.ndim < 2 or not weights.size:
        return f"the weights of {label} are no matrix of floats"
    if node.op == "MatMul" and weights.ndim != 2:
        return f"the weights of {label} differ over the batch"
    bias: Vector | None = None
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        stored = values_of(node.inputs[2])
        if stored is None:
            return f"the bias of {label} is {why_unknown(node.inputs[2], index)}"
        if any(size != 1 for size in stored.shape[:-1]):
            return f"the bias of {label} differs from row to row"
        bias = stored.astype(np.float64).ravel() * (node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0)
    outputs_first = node.op == "Conv" or (node.op == "Gemm" and bool(node.attrs.get("transB", 0)))
    groups = int(node.attrs.get("group", 1)) if node.op in {"Conv", "ConvTranspose"} else 1
    gain = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    return Linear(node, weights, bias, groups, outputs_first, gain)


def why_not_into_inputs(linear: Linear, shift: Vector) -> str | None:
    """Why a map of the inputs cannot be folded into the weights exactly; None if it can."""
    if not shift.any():
        return None
    if linear.node.op == "ConvTranspose":
        return f"{linear.label} reads it, whose outputs see different parts of the kernel, and it shifts its input"
    if linear.node.op == "Conv" and _pads(linear):
        return f"{linear.label} reads it and pads with zeros, which must not be shifted"
    return None


def _pads(linear: Linear) -> bool:
    mode = linear.node.attrs.get("auto_pad", "NOTSET")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        return any(size != 1 for size in linear.weights.shape[2:])
    return mode != "VALID" and any(linear.node.attrs.get("pads", []))


def into_outputs(linear: Linear, affine: Affine) -> Folded:
    """Parameters of ``affine(linear(x))``."""
    scale = np.broadcast_to(affine.scale, (linear.outputs,))
    weights = None if (scale == 1).all() else _times(linear, outputs=scale)
    bias = affine.shift if linear.bias is None else linear.bias * affine.scale + affine.shift
    return Folded(weights, _bias(linear, bias))


def into_inputs(linear: Linear, affine: Affine) -> Folded:
    """Parameters of ``linear(affine(x))``."""
    scale = np.broadcast_to(affine.scale, (linear.inputs,))
    shift = np.broadcast_to(affine.shift, (linear.inputs,))
    weights = None if (scale == 1).all() else _times(linear, inputs=scale)
    shifted = _times(linear, inputs=shift).reshape(linear.view_shape)
    moved = linear.gain * shifted.sum(axis=(2, 3) if linear.outputs_first else (1, 3)).reshape(-1)
    return Folded(weights, _bias(linear, moved if linear.bias is None else linear.bias + moved))


def _bias(linear: Linear, bias: Vector) -> Vector | None:
    if linear.bias is None and not bias.any():
        return None
    return np.array(np.broadcast_to(bias, (linear.outputs,)))


def _times(
    linear: Linear, *, outputs: Vector | None = None, inputs: Vector | None = None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The weights times one factor an output or an input, in the shape they are stored in."""
    view = linear.weights.astype(np.float64).reshape(linear.view_shape)
    if outputs is not None:
        view *= outputs.reshape((linear.groups, -1, 1, 1) if linear.outputs_first else (linear.groups, 1, -1, 1))
    if inputs is not None:
        view *= inputs.reshape((linear.groups, 1, -1, 1) if linear.outputs_first else (linear.groups, -1, 1, 1))
    return view.reshape(linear.weights.shape)


def why_not_representable(linear: Linear, folded: Folded) -> str | None:
    """Why the new parameters cannot be stored in the dtype of the old; None if they can."""
    for values in (folded.weights, folded.bias):
        if values is not None and not np.isfinite(_cast(values, linear.weights.dtype).astype(np.float64)).all():
            return f"the folded parameters of {linear.label} do not fit {linear.weights.dtype.name}"
    return None


def write_linear(index: Index, linear: Linear, folded: Folded) -> None:
    """Give the node its new parameters, as constants of its own; a MatMul that needs a bias becomes a Gemm."""
    node = linear.node
    if folded.weights is not None:
        values = _cast(folded.weights, linear.weights.dtype)
        set_input(index, node, 1, constant(index, node.inputs[1].name, values))
    if folded.bias is None:
        return
    if node.op == "MatMul":
        node.op = "Gemm"
    if node.op == "Gemm":
        node.attrs["beta"] = 1.0
    old = node.inputs[2].name if len(node.inputs) > 2 else ""
    name = old or f"{node.name or node.outputs[0].name}_bias"
    set_input(index, node, 2, constant(index, name, _cast(folded.bias, linear.weights.dtype)))


def _cast(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):  # why_not_representable looks for the infinities.
        return values.astype(dtype)
