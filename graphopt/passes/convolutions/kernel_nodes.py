"""Kernels written back into nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.graph import Index, constant, set_input
from graphopt.passes.affine.ledger import Ledger, released_by
from graphopt.passes.affine.linear import Folded, Linear
from graphopt.passes.affine.maps import all_finite
from graphopt.passes.convolutions.kernels import Kernel


def fitted(linear: Linear, kernel: Kernel, *, is_matrix: bool) -> Folded | None:
    """The parameters as the node stores them; None where its dtype, or a MatMul, cannot hold them.

    Args:
        linear: the node to be given them.
        kernel: what it is to compute.
        is_matrix: whether the input is known to have two axes, so that a MatMul may become a Gemm.
    """
    if linear.node.op == "MatMul" and kernel.bias is not None and not is_matrix:
        return None
    dtype = linear.weights.dtype
    shape = (*kernel.weights.shape[:2], *kernel.grid.taps)
    weights = kernel.weights.reshape(shape)
    if not linear.outputs_first:
        weights = weights.T
    with np.errstate(over="ignore"):  # The infinities are looked for.
        stored: npt.NDArray[np.generic] = np.ascontiguousarray(weights.astype(dtype))
        bias = None if kernel.bias is None else kernel.bias.astype(dtype)
    if not all_finite(stored, *(() if bias is None else (bias,))):
        return None
    return Folded(stored, bias)


def pays_in_bytes(ledger: Ledger, folded: Folded, gone: Sequence[gs.Node], saved: int) -> bool:
    """Whether constants do not grow beyond what ``saved`` nodes save; if so, it is booked.

    Args:
        ledger: of the pass.
        folded: the new constants.
        gone: the nodes that read the old ones.
        saved: how many nodes go.
    """
    growth = sum(values.nbytes for values in (folded.weights, folded.bias) if values is not None) - released_by(gone)
    if not ledger.affords(growth, saved):
        return False
    ledger.book(growth)
    return True


def write_kernel(index: Index, linear: Linear, kernel: Kernel, folded: Folded) -> None:
    """Let the node compute the kernel."""
    node = linear.node
    assert folded.weights is not None
    set_input(index, node, 1, constant(index, node.inputs[1].name, folded.weights))
    if folded.bias is not None:
        old = node.inputs[2].name if len(node.inputs) > 2 else ""
        set_input(index, node, 2, constant(index, old or f"{node.name or node.outputs[0].name}_bias", folded.bias))
        if node.op == "MatMul":
            node.op = "Gemm"
    if node.op == "Gemm":
        node.attrs["alpha"] = node.attrs["beta"] = 1.0
    if node.op == "Conv":
        grid = kernel.grid
        node.attrs.pop("auto_pad", None)
        node.attrs |= {
            "dilations": list(grid.dilations),
            "group": kernel.groups,
            "kernel_shape": list(grid.taps),
            "pads": [*grid.begins, *grid.ends],
            "strides": list(grid.strides),
        }
