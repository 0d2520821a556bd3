"""Nodes with constant scale and bias, or weights, that take an affine map of their output up.

Beside the linear nodes these are the normalizations: BatchNormalization, InstanceNormalization, GroupNormalization
(from opset 21, one scale a channel), LayerNormalization over the last axis, RMSNormalization (a scale only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, constant, is_op, set_output, values_of, variable
from graphopt.passes.affine.linear import LINEAR, Folded, Linear, into_outputs, read_linear, write_linear
from graphopt.passes.affine.maps import FLOATS, Affine, all_finite, read_link
from graphopt.passes.affine.ranks import Knowledge
from graphopt.passes.affine.stock import Stock
from graphopt.passes.affine.uniform import Values
from graphopt.passes.constants.regions import node_bytes

_ALONG_CHANNELS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization"})
_ALONG_LAST = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass
class Site:
    """Where a map is to be taken up.

    Attributes:
        stock: of new constants.
        known: for ranks and shapes.
        spare: bytes that constants may still grow by.
        may_add: whether a MatMul that cannot hold a bias may get one Add behind it.
        spent: bytes that constants grow by.
        short: whether anything was refused for want of bytes.
    """

    stock: Stock
    known: Knowledge
    spare: int
    may_add: bool = False
    spent: int = field(default=0, init=False)
    short: bool = field(default=False, init=False)

    @property
    def index(self) -> Index:
        """Of the whole model."""
        return self.stock.index

    def pays(self, node: gs.Node, replaced: Sequence[tuple[int, Values | None]], more: int = 0) -> bool:
        """Whether inputs of a node may become new constants, and some bytes more be written; they are then counted."""
        growth = self.stock.growth(node, replaced) + more
        if growth > max(self.spare - self.spent, 0):
            self.short = True
            return False
        self.spent += growth
        return True


def channel_axis(linear: Linear, rank: Callable[[], int | None]) -> int | None:
    """The axis of a linear node's input and output channels; None where it is not known."""
    if linear.node.op != "MatMul":
        return 1
    found = rank()
    return None if found is None else found - 1


def can_hold_bias(linear: Linear, folded: Folded, rank: Callable[[], int | None]) -> bool:
    """Whether the node takes the bias itself: a MatMul only as a Gemm, which wants two axes."""
    return folded.bias is None or linear.node.op != "MatMul" or rank() == 2


def write_with_add(stock: Stock, linear: Linear, folded: Folded, target: gs.Tensor) -> None:
    """Give a MatMul its weights, and an Add behind it, that writes ``target``, its bias."""
    index, node = stock.index, linear.node
    write_linear(stock, linear, replace(folded, bias=None))
    # The value without its bias is a new one, and must not go by the name of another.
    unbiased = variable(index, f"{target.name}_unbiased", like=target)
    set_output(index, node, 0, unbiased)
    assert folded.bias is not None
    name = node.name or target.name
    bias = constant(index, f"{name}_bias", folded.bias)
    add_node(index, "Add", [unbiased, bias], [target], prefix=f"{name}_add", home=index.home(node))


def absorb_in_linear(site: Site, node: gs.Node, affine: Affine, axis: int | None) -> Callable[[gs.Tensor], None] | None:
    """How a linear node takes the map up without any node more; None where it does not."""
    index, known = site.index, site.known
    if not is_op(node, *LINEAR):
        return None
    linear = read_linear(node, index, generated=True)
    if not isinstance(linear, Linear) or affine.channels not in {1, linear.outputs}:
        return None

    def rank() -> int | None:
        return known.rank(node.outputs[0])

    if axis is not None and axis != channel_axis(linear, rank):
        return None
    folded = into_outputs(linear, affine)
    if isinstance(folded, str):
        return None
    adds = not can_hold_bias(linear, folded, rank)
    if adds and not site.may_add:
        return None
    if not site.pays(node, ((1, folded.weights), (2, folded.bias)), node_bytes(node) if adds else 0):
        return None
    site.may_add &= not adds

    def apply(target: gs.Tensor) -> None:
        if adds:
            write_with_add(site.stock, linear, folded, target)
            return
        write_linear(site.stock, linear, folded)
        set_output(index, node, 0, target)

    return apply


def absorb_in_normalization(
    site: Site, node: gs.Node, affine: Affine, axis: int | None
) -> Callable[[gs.Tensor], None] | None:
    """How a normalization takes the map up into its scale and bias; None where it does not."""
    index, known = site.index, site.known
    if node.op not in _ALONG_CHANNELS | _ALONG_LAST or node.domain or len(node.inputs) < 2:
        return None
    if node.op == "GroupNormalization" and index.graph.opset < 21:
        return None
    if node.op == "BatchNormalization" and not _is_fixed(node, known, index):
        return None
    scale = values_of(node.inputs[1])
    has_bias = len(node.inputs) > 2 and not node.inputs[2].is_empty()
    bias = values_of(node.inputs[2]) if has_bias else None
    if scale is None or scale.ndim != 1 or scale.dtype not in FLOATS or affine.channels not in {1, scale.size}:
        return None
    if (has_bias and (bias is None or bias.dtype != scale.dtype or bias.shape != scale.shape)) or not _lies(
        node, known, axis
    ):
        return None
    shifts = affine.shifts
    if node.op == "RMSNormalization" and shifts:
        return None
    with np.errstate(over="ignore"):  # The infinities are looked for.
        new_scale = np.array(np.broadcast_to(scale.astype(np.float64) * affine.scale, scale.shape)).astype(scale.dtype)
        new_bias = None
        if has_bias or shifts:
            old = np.zeros(scale.size) if bias is None else bias.astype(np.float64)
            new_bias = np.asarray(old * affine.scale + affine.shift).astype(scale.dtype)
    if not all_finite(new_scale, *(() if new_bias is None else (new_bias,))):
        return None
    if not site.pays(node, ((1, new_scale), (2, new_bias))):
        return None

    def apply(target: gs.Tensor) -> None:
        name = node.name or target.name
        site.stock.replace(node, 1, node.inputs[1].name or f"{name}_scale", new_scale)
        if new_bias is not None:
            prefix = node.inputs[2].name if has_bias else f"{name}_bias"
            site.stock.replace(node, 2, prefix, new_bias)
        set_output(index, node, 0, target)

    return apply


def _is_fixed(node: gs.Node, known: Knowledge, index: Index) -> bool:
    link = read_link(node, known.rank, index)
    return link is not None and not isinstance(link, str)


def _lies(node: gs.Node, known: Knowledge, axis: int | None) -> bool:
    """Whether the vectors of the node lie along the axis."""
    if node.op in _ALONG_CHANNELS:
        return axis in {None, 1}
    own = int(node.attrs.get("axis", -1))
    rank = known.rank(node.inputs[0])
    # Over several axes, a scale with one axis only would be stretched over the others.
    return rank is not None and own in {-1, rank - 1} and axis in {None, rank - 1}
