"""Put factors into a graph in the place of the convolutions whose weights they are.

    x -> Conv 3x3 -> y      x -> depthwise 0 -> pointwise 0 -> Add -> y         (sum)
                              -> depthwise 1 -> pointwise 1 ---^

The last node writes what the convolution wrote. The node that holds the taps takes over strides, dilations, padding
and output sizes: in front of it a pointwise convolution without bias leaves the zeros of the padding zeros. The bias
goes to one node, the last.

Layouts of the sum over ranks:

- ``sum``: one branch a rank, added up; an Add follows the convolution of its second operand, into which runtimes fuse
  it (ONNX Runtime's Conv with a fourth input).
- ``concat``: the depthwise convolutions side by side, one pointwise convolution over all of them.
- ``multiplier``: one convolution with the taps of all ranks: before the pointwise one its filters give ``rank``
  channels each, behind it they read ``rank`` channels each.

``spatial`` has one layout, in which the ranks are the channels between the two convolutions; it goes by ``sum``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import helper

from graphopt.errors import UsageError
from graphopt.model.walk import bodies
from graphopt.passes.separable.decompose import geometry_of
from graphopt.passes.separable.factors import Array, Factors, Form
from graphopt.recovery.net import Net

Layout: TypeAlias = Literal["sum", "concat", "multiplier"]


def can_write(node: onnx.NodeProto, form: Form, layout: Layout) -> str:
    """Return why a convolution that ``geometry_of`` takes cannot be written in a form and layout; empty if it can."""
    given = {each.name: each for each in node.attribute}
    if form == "spatial":
        if layout != "sum":
            return "both convolutions of the spatial form are one each: it has no layouts"
        if node.op_type == "ConvTranspose" and "output_shape" in given:
            return "its output_shape cannot be split by axis"
    if layout == "concat":
        if form == "pointwise_first":
            return "what the pointwise convolutions read is one tensor: there is nothing to concatenate"
        if "group" in given and given["group"].i > 1:
            return "the concatenated channels of a group would lie apart"
    return ""


def write(model: onnx.ModelProto, factors: Mapping[str, Factors], layouts: Mapping[str, Layout]) -> onnx.ModelProto:
    """Return a model in which convolutions are written as their factors.

    Args:
        model: the model; not written to.
        factors: for the tensor that each convolution of the main graph writes, the factors of its weights.
        layouts: how the sum over ranks is laid out, for the same tensors.

    Raises:
        UsageError: a tensor is not written by a convolution with constant weights of those sizes, or the form and
            layout cannot be written for it; the message names it.
    """
    net = Net(model)
    names = _Names(model)
    for tensor, each in factors.items():
        step = net.producer.get(tensor)
        if step is None:
            raise UsageError(f"no node of the main graph writes '{tensor}'")
        (node,) = net.steps[step]
        reason = _refusal(net, node, each, layouts[tensor])
        if reason:
            raise UsageError(f"the node that writes '{tensor}' cannot be separated: {reason}")
        net.replace(step, _Writer(net, names, node, each).nodes_of(layouts[tensor]))
    return net.to_model()


def _refusal(net: Net, node: onnx.NodeProto, factors: Factors, layout: Layout) -> str:
    weight = net.constants.get(node.input[1]) if len(node.input) > 1 else None
    found = geometry_of(node, None if weight is None else weight.dims)
    if isinstance(found, str):
        return found
    if node.input[1] in net.overridable:
        return f"a caller may feed its weights '{node.input[1]}'"
    if found != factors.geometry:
        return f"it has the sizes {found}, the factors {factors.geometry}"
    return can_write(node, factors.form, layout)


class _Names:
    """Names that nothing in a model has: of tensors and of nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors: set[str] = set()
        self._nodes: set[str] = set()
        for body in bodies(model):
            self._nodes.update(node.name for node in body.proto.node)
            self._tensors.update(name for node in body.proto.node for name in node.output)
            if isinstance(body.proto, onnx.GraphProto):
                self._tensors.update(value.name for value in (*body.proto.input, *body.proto.value_info))
                self._tensors.update(tensor.name for tensor in body.proto.initializer)
                self._tensors.update(tensor.values.name for tensor in body.proto.sparse_initializer)
            else:
                self._tensors.update(body.proto.input)

    def tensor(self, prefix: str) -> str:
        """Return a name for a tensor, and take it."""
        return _fresh(prefix, self._tensors)

    def node(self, prefix: str) -> str:
        """Return a name for a node, and take it."""
        return _fresh(prefix, self._nodes)


def _fresh(prefix: str, taken: set[str]) -> str:
    name, count = prefix, 0
    while name in taken:
        count += 1
        name = f"{prefix}_{count}"
    taken.add(name)
    return name


class _Writer:
    """Makes the nodes that stand for one convolution.

    Indices of weights: g group, r rank, c channel and f filter of a group, t tap.
    """

    def __init__(self, net: Net, names: _Names, node: onnx.NodeProto, factors: Factors) -> None:
        self._net = net
        self._names = names
        self._node = node
        self._factors = factors
        self._sizes = factors.geometry
        self._dtype = net.values(node.input[1]).dtype
        self._given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self._nodes: list[onnx.NodeProto] = []

    def nodes_of(self, layout: Layout) -> list[onnx.NodeProto]:
        """The nodes in order; the last writes what the convolution wrote."""
        if self._factors.form == "spatial":
            self._spatial()
        elif self._factors.rank == 1 or layout == "multiplier":
            self._branch(range(self._factors.rank), "")
        elif layout == "concat":
            self._concatenated()
        else:
            self._sum()
        self._give_bias()
        self._nodes[-1].output[0] = self._node.output[0]
        return self._nodes

    def _give_bias(self) -> None:
        ends = [node for node in self._nodes if node.op_type in ("Conv", "ConvTranspose")][-1:]
        if self._nodes[-1].op_type == "Add":
            writers = {node.output[0]: node for node in self._nodes}
            ends = [writers[node.input[1]] for node in self._nodes if node.op_type == "Add"]
        if len(self._node.input) > 2 and self._node.input[2]:
            ends[-1].input.append(self._node.input[2])
        # Outside its blocked kernels ONNX Runtime fuses an Add only into a 2-D Conv that has a bias (its
        # conv_add_act_fusion.cc), so what is added on the way gets one of zeros.
        lacking = [node for node in ends if len(node.input) == 2 and node.op_type == "Conv"]
        if lacking and self._nodes[-1].op_type == "Add" and len(self._sizes.kernel) == 2:
            zeros = np.zeros(self._sizes.groups * self._sizes.filters, dtype=self._dtype)
            name = self._net.add_constant(self._names.tensor(f"{self._node.output[0]}_zero_bias"), zeros)
            for node in lacking:
                node.input.append(name)

    def _sum(self) -> None:
        total = self._branch([0], "_0")
        for term in range(1, self._factors.rank):
            total = self._add("Add", f"add_{term}", [total, self._branch([term], f"_{term}")])

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
        node = helper.make_node(operator, inputs, [result], name=name, **given)
        node.doc_string = self._node.doc_string
        node.metadata_props.extend(self._node.metadata_props)
        self._nodes.append(node)
        return result
