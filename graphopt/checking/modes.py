"""Operators that a finished model no longer needs: normalizations not folded, and what belongs to training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from graphopt.checking.catalog import TRAINING_MODE, UNFOLDED_BATCHNORM
from graphopt.checking.unused import shortened
from graphopt.model import initializers_are_constants
from graphopt.rules import Finding
from graphopt.rules.view import Node, Tensor, View

_LINEAR = ("Conv", "ConvTranspose", "Gemm")
_LOSSES = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
_TRAINING_DOMAIN = "ai.onnx.preview.training::"
_MICROSOFT = "com.microsoft::"
BATCHNORM_WITH_MODE = 14
"""The opset from which on BatchNormalization states its mode; before, it shows in the number of its outputs."""


def unfolded_batchnorms(view: View) -> Iterator[Finding]:
    """Yield one finding for the BatchNormalizations in inference mode that the layer before could take over exactly.

    That is a convolution, transposed convolution or Gemm whose weight and bias are constants that nothing else reads
    and whose result goes nowhere else. ``fold_batchnorm`` folds more than these, after costlier looks. Those behind
    quantized weights are a finding of their own, as they cannot be folded any more.
    """
    open_names = _overridable(view.model)
    exact: list[str] = []
    quantized: list[str] = []
    for node in view.nodes:
        layer = _foldable_into(node, view)
        if layer is not None and not _reads(open_names, node, layer):
            (quantized if _is_quantized(layer.input(1)) else exact).append(node.name)
    for names, advice in (
        (exact, "fold_batchnorm does it"),
        (quantized, "their weights are quantized already: fold before quantizing"),
    ):
        if names:
            one = "1 BatchNormalization" if len(names) == 1 else f"{len(names)} BatchNormalizations"
            yield UNFOLDED_BATCHNORM.finding(
                names[0], f"{one} could be part of the layer before: {shortened(names)}; {advice}"
            )


def training_mode(model: onnx.ModelProto, view: View) -> Iterator[Finding]:
    """Yield what answers otherwise in training than in use, and what only training needs."""
    if model.training_info:
        yield TRAINING_MODE.finding(
            "", "the model carries training information (training_info), which use does not need"
        )
    for node in view.nodes:
        if _in_training(node, view):
            yield TRAINING_MODE.finding(
                node.name, f"{node.op} is in training mode; export the model in evaluation mode"
            )
        elif _is_of_training(node):
            yield TRAINING_MODE.finding(node.name, f"{node.op} belongs to training; export the model without its loss")


def _foldable_into(node: Node, view: View) -> Node | None:
    if node.op != "BatchNormalization" or _in_training(node, view):
        return None
    if not all(_is_fixed(tensor, view) for tensor in node.inputs[1:5]):
        return None
    source = node.input(0)
    layer = source.producer if source is not None else None
    if source is None or layer is None or layer.op not in _LINEAR or source.is_output or len(source.readers) != 1:
        return None
    weight, bias = layer.input(1), layer.input(2)
    if not _is_weight(weight, view) or not (bias is None or _is_weight(bias, view)):
        return None
    return layer


def _overridable(model: onnx.ModelProto) -> frozenset[str]:
    """Initializers that are inputs too: from IR version 4 on the caller may give others."""
    if initializers_are_constants(model):
        return frozenset()
    return frozenset(info.name for info in model.graph.input).intersection(t.name for t in model.graph.initializer)


def _reads(names: frozenset[str], *nodes: Node) -> bool:
    return any(tensor is not None and tensor.name in names for node in nodes for tensor in node.inputs)


def _is_weight(tensor: Tensor | None, view: View) -> bool:
    """Whether it is a constant, or a quantized one, that this node alone reads."""
    if tensor is None or len(tensor.readers) != 1 or tensor.is_output:
        return False
    if tensor.producer is not None and _is_quantized(tensor):
        return view.is_constant(tensor.producer.input(0))
    return _is_fixed(tensor, view)


def _is_quantized(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.producer is not None and tensor.producer.op == "DequantizeLinear"


def _is_fixed(tensor: Tensor | None, view: View) -> bool:
    return tensor is not None and view.is_constant(tensor)


def _in_training(node: Node, view: View) -> bool:
    if node.op == "BatchNormalization":
        if view.opset >= BATCHNORM_WITH_MODE:
            return node.integer("training_mode", 0) == 1
        if view.opset < 7:
            return node.integer("is_test", 0) == 0
        return any(output is not None for output in node.outputs[1:])
    if node.op == "Dropout":
        if view.opset < 7:
            return node.integer("is_test", 0) == 0
        mode = view.values(node.input(2))
        return mode is not None and bool(np.any(mode))
    return False


def _is_of_training(node: Node) -> bool:
    gradient = node.op.startswith(_MICROSOFT) and node.op.endswith("Grad")
    return gradient or node.op in _LOSSES or node.op.startswith(_TRAINING_DOMAIN)
