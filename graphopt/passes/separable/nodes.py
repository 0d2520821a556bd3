"""The nodes that stand for one convolution; see ``write`` for what is laid out how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import helper

from graphopt.passes.separable.factors import Array, Factors
from graphopt.passes.separable.names import Names
from graphopt.recovery.net import Net

Layout: TypeAlias = Literal["sum", "concat", "multiplier"]


def sums(factors: Factors, layout: Layout) -> bool:
    """Whether there are branches that are added up."""
    return layout == "sum" and factors.form != "spatial" and factors.rank > 1


class Separated:
    """Makes the nodes that stand for one convolution.

    Indices of weights: g group, r rank, c channel and f filter of a group, t tap.
    """

    def __init__(self, net: Net, names: Names, node: onnx.NodeProto, factors: Factors) -> None:
        self._net = net
        self._names = names
        self._node = node
        self._factors = factors
        self._sizes = factors.geometry
        self._dtype = net.values(node.input[1]).dtype
        self._given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self._nodes: list[onnx.NodeProto] = []

    def nodes(self, layout: Layout) -> list[onnx.NodeProto]:
        """The nodes in order; the last writes what the convolution wrote."""
        if self._factors.form == "spatial":
            self._spatial()
        elif layout == "concat":
            self._concatenated()
        elif sums(self._factors, layout):
            self._sum()
        else:
            self._branch(range(self._factors.rank), "")
        if self._nodes[-1].op_type != "Add":
            self._give_bias(self._nodes[-1:])
        self._nodes[-1].output[0] = self._node.output[0]
        return self._nodes

    def added_to(self, addition: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes of the sum and of the Add of its result, in order; the last writes what the Add wrote."""
        (other,) = (name for name in addition.input if name != self._node.output[0])
        self._sum(other)
        total = onnx.NodeProto()
        total.CopyFrom(addition)
        total.input[:] = self._nodes.pop().input
        return [*self._nodes, total]

    def _sum(self, start: str = "") -> None:
        """Branches added up one by one, the first to ``start`` if there is one."""
        ends: list[onnx.NodeProto] = []
        total = start
        for term in range(self._factors.rank):
            branch = self._branch([term], f"_{term}")
            if total:
                ends.append(self._nodes[-1])
            total = self._add("Add", f"add_{term}", [total, branch]) if total else branch
        self._give_bias(ends)

    def _give_bias(self, ends: Sequence[onnx.NodeProto]) -> None:
        """Give the bias to the last of the convolutions that are added, and zeros to others that need one."""
        if len(self._node.input) > 2 and self._node.input[2]:
            ends[-1].input.append(self._node.input[2])
        if self._nodes[-1].op_type != "Add" or len(self._sizes.kernel) != 2:
            return
        # Outside its blocked kernels ONNX Runtime fuses an Add only into a 2-D Conv that has a bias (its
        # conv_add_act_fusion.cc).
        lacking = [node for node in ends if len(node.input) == 2 and node.op_type == "Conv"]
        if lacking:
            zeros = np.zeros(self._sizes.groups * self._sizes.filters, dtype=self._dtype)
            name = self._net.add_constant(self._names.tensor(f"{self._node.output[0]}_zero_bias"), zeros)
            for node in lacking:
                node.input.append(name)

    def _concatenated(self) -> None:
        first, second = self._factors.first, self._factors.second
        source = self._node.input[0]
        branches = [
            self._depthwise(f"depthwise_{term}", source, first[:, term, :, None]) for term in range(self._factors.rank)
        ]
        joined = self._add("Concat", "concat", branches, axis=1)
        self._pointwise("pointwise", joined, second.transpose(0, 3, 1, 2), second.shape[1] * second.shape[2])

    def _branch(self, terms: Sequence[int], suffix: str) -> str:
        """Some terms as one pair of convolutions."""
        first, second = self._factors.first[:, terms], self._factors.second[:, terms]
        source, channels = self._node.input[0], self._sizes.channels
        if self._factors.form == "depthwise_first":  # g r c t, g r c f
            inner = self._depthwise(f"depthwise{suffix}", source, first.transpose(0, 2, 1, 3))
            return self._pointwise(f"pointwise{suffix}", inner, second.transpose(0, 3, 2, 1), channels * len(terms))
        # g r c f, g r f t
        inner = self._pointwise(f"pointwise{suffix}", source, first.transpose(0, 3, 1, 2), channels)
        return self._depthwise(f"depthwise{suffix}", inner, second.transpose(0, 2, 1, 3), gather=True)

    def _depthwise(self, label: str, source: str, kernels: Array, gather: bool = False) -> str:
        """A convolution of each channel by itself.

        Args:
            label: what the node is called.
            source: what it reads.
            kernels: [groups, channels, ranks, taps].
            gather: whether each channel's ranks are read and added up, not written.
        """
        channels, ranks = self._sizes.groups * kernels.shape[1], kernels.shape[2]
        # Conv's weights are [filters, channels of a group, taps], ConvTranspose's [channels, filters of a group, taps].
        gathers = gather == (self._node.op_type == "Conv")
        shape = (channels, ranks) if gathers else (channels * ranks, 1)
        return self._tapped(label, source, kernels.reshape(*shape, *self._sizes.kernel), channels)

    def _pointwise(self, label: str, source: str, weights: Array, channels: int) -> str:
        """A convolution with one tap; weights are [groups, what it writes, what it reads], each of any axes."""
        ones = [1] * len(self._sizes.kernel)
        given = {"group": self._sizes.groups, "kernel_shape": ones}
        return self._convolution("Conv", label, source, weights.reshape(-1, channels, *ones), given)

    def _spatial(self) -> None:
        sizes, rank = self._sizes, self._factors.rank
        first, second = self._factors.first, self._factors.second  # g r c t0, g r f t1
        rows, columns = (sizes.kernel[0], *[1] * (len(sizes.kernel) - 1)), (1, *sizes.kernel[1:])
        if self._node.op_type == "Conv":
            first = first.reshape(sizes.groups * rank, sizes.channels, *rows)
            second = second.transpose(0, 2, 1, 3).reshape(sizes.groups * sizes.filters, rank, *columns)
        else:
            first = first.transpose(0, 2, 1, 3).reshape(sizes.groups * sizes.channels, rank, *rows)
            second = second.reshape(sizes.groups * rank, sizes.filters, *columns)
        inner = self._tapped("rows", self._node.input[0], first, sizes.groups, axes=slice(0, 1))
        self._tapped("columns", inner, second, sizes.groups, axes=slice(1, None))

    def _tapped(self, label: str, source: str, values: Array, groups: int, axes: slice = slice(None)) -> str:
        """A convolution with the original's attributes along some spatial axes, and none along the others."""
        rank = len(self._sizes.kernel)
        given: dict[str, Any] = {"group": groups, "kernel_shape": list(values.shape[2:])}
        for name, neutral in (("strides", 1), ("dilations", 1), ("output_padding", 0), ("pads", 0)):
            if name in self._given:
                old = np.asarray(self._given[name]).reshape(-1, rank)
                new = np.full_like(old, neutral)
                new[:, axes] = old[:, axes]
                given[name] = new.reshape(-1).tolist()
        given |= {name: self._given[name] for name in ("auto_pad", "output_shape") if name in self._given}
        return self._convolution(self._node.op_type, label, source, values, given)

    def _convolution(self, operator: str, label: str, source: str, values: Array, given: dict[str, Any]) -> str:
        name = self._names.tensor(f"{self._node.output[0]}_{label}_weight")
        weight = self._net.add_constant(name, values.astype(self._dtype))
        return self._add(operator, label, [source, weight], **given)

    def _add(self, operator: str, label: str, inputs: Sequence[str], **given: Any) -> str:
        """Append a node, and return what it writes."""
        written = self._node.output[0]
        name = self._names.node(f"{self._node.name or written}_{label}")
        result = self._names.tensor(f"{written}_{label}")
        node: onnx.NodeProto = helper.make_node(operator, inputs, [result], name=name, **given)
        node.doc_string = self._node.doc_string
        node.metadata_props.extend(self._node.metadata_props)
        self._nodes.append(node)
        return result
