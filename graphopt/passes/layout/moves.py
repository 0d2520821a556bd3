"""What it takes to let a node work on permuted axes, and what its rules may know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.graph import Shape, TensorType, dtype_of, shape_of, size_of, values_of
from graphopt.passes.layout.permutations import Perm

# Exporters write "as far as it goes" and lists of axes; neither is ever long.
_SMALL = 4096
# A weight that others read too is copied for its new order only if the copy is small.
_COPIED = 16384


@dataclass(frozen=True)
class Move:
    """A node on permuted axes: what it computes is what it did, with axes in another order.

    Attributes:
        inputs: for each input the permutation of what it reads now; None where it reads on as it did.
        outputs: for each output the permutation of what it writes now.
        attrs: attributes that change.
        op: another operator in place of this one, or None.
        parameters: small constants (axes, pads, sizes) by input slot, with their new values.
        weights: constant operands by input slot: the rank to expand them to with leading axes, and the permutation.
        penalty: Transposes that ONNX Runtime makes inside the operator for the new order, less those it made before.
        gather: for Shape, the permutation that puts its sizes back in order.
    """

    inputs: tuple[Perm | None, ...]
    outputs: tuple[Perm, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    op: str | None = None
    parameters: Mapping[int, npt.NDArray[Any]] = field(default_factory=dict)
    weights: Mapping[int, tuple[int, Perm]] = field(default_factory=dict)
    penalty: int = 0
    gather: Perm | None = None


@dataclass(frozen=True)
class Knowledge:
    """What rules may use: the opset and inferred types by tensor name."""

    opset: int
    types: Mapping[str, TensorType]

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """The inferred shape; None where the rank is unknown."""
        if isinstance(tensor, gs.Constant):
            return shape_of(tensor)
        found = self.types.get(tensor.name)
        return None if found is None else found.shape

    def rank(self, tensor: gs.Tensor) -> int | None:
        """The rank, None where it is unknown."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def dtype(self, tensor: gs.Tensor) -> int:
        """The ONNX element type, 0 where it is unknown."""
        found = self.types.get(tensor.name)
        return 0 if found is None else found.dtype

    def is_single(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor has one element, whatever its rank."""
        shape = self.shape(tensor)
        return shape is not None and all(size == 1 for size in shape)


def has_input(node: gs.Node, slot: int) -> bool:
    """Whether an optional input is given."""
    return slot < len(node.inputs) and not node.inputs[slot].is_empty()


def small_values(node: gs.Node, slot: int) -> npt.NDArray[Any] | None:
    """The values of a small constant input; None where it is missing, computed or large."""
    if not has_input(node, slot):
        return None
    tensor = node.inputs[slot]
    if isinstance(tensor, gs.Constant) and size_of(tensor) > _SMALL:
        return None
    return values_of(tensor)


def setting(node: gs.Node, name: str, slot: int, known: Knowledge, since: int) -> npt.NDArray[Any] | None:
    """What was an attribute before opset ``since`` and is an input from there on; None where not given or computed."""
    if known.opset >= since:
        return small_values(node, slot)
    given = node.attrs.get(name)
    return None if given is None else np.asarray(given, dtype=np.int64)


def set_setting(name: str, slot: int, values: Sequence[int], known: Knowledge, since: int) -> dict[str, Any]:
    """The arguments of a Move that give such a setting new values."""
    if known.opset >= since:
        return {"parameters": {slot: np.asarray(values, dtype=np.int64)}}
    return {"attrs": {name: [int(value) for value in values]}}


def axes_in(values: npt.NDArray[Any] | Sequence[int] | int, rank: int) -> tuple[int, ...] | None:
    """Axes counted from the front; None where one is out of range or comes twice."""
    axes = tuple(int(axis) + rank if axis < 0 else int(axis) for axis in np.asarray(values, dtype=np.int64).reshape(-1))
    if len(set(axes)) != len(axes) or any(not 0 <= axis < rank for axis in axes):
        return None
    return axes


def is_movable_weight(tensor: gs.Tensor) -> bool:
    """Whether a permuted copy of a constant operand can be had, and takes the place of the original or is small."""
    if not isinstance(tensor, gs.Constant) or tensor.inputs:
        return False
    dtype = dtype_of(tensor)
    # The types of ml_dtypes have kinds of numpy's, too. Not `isbuiltin`: it is 0 for what onnx reads as little-endian.
    if dtype is None or dtype.kind not in "biuf" or dtype.type.__module__ != "numpy":
        return False
    return len(tensor.outputs) == 1 or size_of(tensor) <= _COPIED
