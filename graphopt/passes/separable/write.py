"""Put factors into a graph in the place of the convolutions whose weights they are.

    x -> Conv 3x3 -> y      x -> depthwise 0 -> pointwise 0 -> Add -> y         (sum)
                              -> depthwise 1 -> pointwise 1 ---^

The last node writes what the convolution wrote. The node that holds the taps takes over strides, dilations, padding
and output sizes: in front of it a pointwise convolution without bias leaves the zeros of the padding zeros. The bias
goes to one node, the last convolution.

Layouts of the sum over ranks:

- ``sum``: one branch a rank, added up; each Add follows the convolution of its second operand, into which ONNX
  Runtime fuses it. Where all that reads the convolution's tensor is an Add with another tensor, as behind a residual
  block, the sum starts with that one, and the last node writes what the Add wrote: else that Add and the activation
  behind it would stay, two more kernels (measured: 10-20 % of blocks of 16 to 64 channels).
- ``concat``: the depthwise convolutions side by side, one pointwise convolution over all of them.
- ``multiplier``: one convolution with the taps of all ranks: before the pointwise one its filters give ``rank``
  channels each, behind it they read ``rank`` channels each.

``spatial`` has one layout, in which the ranks are the channels between the two convolutions; it goes by ``sum``.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from graphopt.errors import UsageError
from graphopt.model import upgrade_opset
from graphopt.passes.separable.decompose import geometry_of
from graphopt.passes.separable.factors import Factors, Form
from graphopt.passes.separable.names import Names
from graphopt.passes.separable.nodes import Layout, Separated, sums
from graphopt.recovery.net import Net

__all__ = ["Layout", "can_write", "write"]

# What ONNX Runtime's blocked kernels write (nchwc_transformer.cc). A sum that starts with a tensor in the plain layout
# cannot be fused; inputs of a net have too few channels for blocked kernels to add to.
_BLOCKED = frozenset(
    ("Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "HardSigmoid", "LeakyRelu", "MaxPool", "Mul")
) | frozenset(("Relu", "Resize", "Sigmoid", "Sum", "Tanh", "Upsample"))

_ADD_OPSET = 7


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

    The operator set stays; one before 7 rises to it where there are sums, for ONNX Runtime has no older Add.

    Args:
        model: the model; not written to.
        factors: for the tensor that each convolution of the main graph writes, the factors of its weights.
        layouts: how the sum over ranks is laid out, for the same tensors.

    Raises:
        UsageError: a tensor is not written by a convolution with constant weights of those sizes, or the form and
            layout cannot be written for it; the message names it.
        UnsupportedModelError: the operator set must rise, and cannot.
    """
    if any(sums(each, layouts[tensor]) for tensor, each in factors.items()):
        model, _ = upgrade_opset(model, _ADD_OPSET)
    net = Net(model)
    names = Names(model)
    gone: set[str] = set()
    for tensor, each in factors.items():
        step = net.producer.get(tensor)
        if step is None:
            raise UsageError(f"no node of the main graph writes '{tensor}'")
        (node,) = net.steps[step]
        reason = _refusal(net, node, each, layouts[tensor])
        if reason:
            raise UsageError(f"the node that writes '{tensor}' cannot be separated: {reason}")
        separated = Separated(net, names, node, each)
        addition = _addition(net, tensor) if sums(each, layouts[tensor]) else None
        if addition is None:
            net.replace(step, separated.nodes(layouts[tensor]))
        else:
            net.replace(step, ())
            net.replace(addition, separated.added_to(net.steps[addition][0]))
            gone.add(tensor)
    written = net.to_model()
    _forget(written, gone)
    return written


def _addition(net: Net, tensor: str) -> int | None:
    """The step of the Add that is all that reads a tensor, where runtimes have the other operand in their layout."""
    readers = net.readers.get(tensor, ())
    if len(readers) != 1 or tensor in net.outputs or len(net.steps[readers[0]]) != 1:
        return None
    (node,) = net.steps[readers[0]]
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    others = [name for name in node.input if name != tensor]
    if len(others) != 1 or others[0] in net.constants:
        return None
    before = net.steps[net.producer[others[0]]] if others[0] in net.producer else ()
    return readers[0] if not before or before[-1].op_type in _BLOCKED else None


def _forget(model: onnx.ModelProto, gone: set[str]) -> None:
    """Take the declarations of tensors away that nothing writes any more."""
    if gone:
        kept = [value for value in model.graph.value_info if value.name not in gone]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)


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
