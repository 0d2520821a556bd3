"""What each pass would find in a model: quick counts from the structure, without running the pass.

The passes themselves have the last word: they know more reasons to leave a place alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from graphopt.graph.cost import CONVOLUTIONS, MATRIX_PRODUCTS, ModelCost
from graphopt.inspection.separable import SeparableLayer
from graphopt.model.versions import initializers_are_constants

_STANDARD = ("", "ai.onnx")
_FOLDS_BATCHNORM = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_NEVER_CONSTANT = {
    "Bernoulli", "Constant", "ConstantOfShape", "DequantizeLinear", "If", "Loop", "Multinomial", "QuantizeLinear",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Scan",
}  # fmt: skip


@dataclass(frozen=True)
class Opportunity:
    """What one pass could do: how many places it would change, in words a person reads."""

    name: str
    places: int
    description: str


@dataclass(frozen=True)
class _Index:
    """The main graph with lookups; bodies of control flow are not searched."""

    graph: onnx.GraphProto
    nodes: tuple[onnx.NodeProto, ...]
    producers: Mapping[str, onnx.NodeProto]
    uses: Mapping[str, int]
    constants: frozenset[str]
    separable: tuple[SeparableLayer, ...]


def opportunities(
    model: onnx.ModelProto, cost: ModelCost, separable: Sequence[SeparableLayer], passes: Sequence[str]
) -> tuple[Opportunity, ...]:
    """One entry for each of ``passes`` that can be counted quickly, in the order given, each pass once."""
    graph = model.graph
    nodes = tuple(graph.node)
    uses = Counter(name for node in nodes for name in _read_by(node))
    uses.update(output.name for output in graph.output)
    constants = {tensor.name for tensor in graph.initializer}
    if not initializers_are_constants(model):
        constants -= {value.name for value in graph.input}
    constants |= {node.output[0] for node in nodes if node.op_type == "Constant" and node.domain in _STANDARD}
    producers = {name: node for node in nodes for name in node.output}
    index = _Index(graph, nodes, producers, uses, frozenset(constants), tuple(separable))
    return tuple(_COUNTERS[name](name, index, cost) for name in dict.fromkeys(passes) if name in _COUNTERS)


def _read_by(node: onnx.NodeProto) -> list[str]:
    """Names that ``node`` reads, those inside its bodies included."""
    names: list[str] = []
    pending = [node]
    while pending:
        current = pending.pop()
        names.extend(name for name in current.input if name)
        for attribute in current.attribute:
            for body in (attribute.g, *attribute.graphs):
                pending.extend(body.node)
                names.extend(output.name for output in body.output)
    return names


def _fold_constants(name: str, index: _Index, cost: ModelCost) -> Opportunity:
    known = set(index.constants)
    count = 0
    for node in index.nodes:
        if node.op_type in _NEVER_CONSTANT or node.domain not in _STANDARD or not node.input:
            continue
        if all(not tensor or tensor in known for tensor in node.input):
            known.update(node.output)
            count += 1
    return Opportunity(name, count, f"{count} nodes compute the same value every time")


def _eliminate_dead(name: str, index: _Index, cost: ModelCost) -> Opportunity:
    needed = {output.name for output in index.graph.output}
    unused = 0
    for node in reversed(index.nodes):
        if needed.isdisjoint(node.output):
            unused += 1
        else:
            needed.update(_read_by(node))
    trivial = sum(node.op_type == "Identity" or _is_inference_dropout(node, index) for node in index.nodes)
    idle = sum(tensor.name not in index.uses for tensor in index.graph.initializer)
    duplicates = _duplicates(index.graph)
    description = (
        f"{unused} unused nodes, {trivial} Identity or Dropout, {idle} unused and {duplicates} duplicate initializers"
    )
    return Opportunity(name, unused + trivial + idle + duplicates, description)


def _is_inference_dropout(node: onnx.NodeProto, index: _Index) -> bool:
    if node.op_type != "Dropout" or node.domain not in _STANDARD:
        return False
    training = len(node.input) > 2 and bool(node.input[2])
    mask_used = len(node.output) > 1 and node.output[1] in index.uses
    return not training and not mask_used


def _duplicates(graph: onnx.GraphProto) -> int:
    """Initializers whose type, shape and bytes another one has; absent external data is not compared."""
    groups: dict[tuple[int, tuple[int, ...]], list[onnx.TensorProto]] = {}
    for tensor in graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            groups.setdefault((tensor.data_type, tuple(tensor.dims)), []).append(tensor)
    duplicates = 0
    for tensors in groups.values():
        if len(tensors) > 1:
            duplicates += len(tensors) - len({_digest(tensor) for tensor in tensors})
    return duplicates


def _digest(tensor: onnx.TensorProto) -> bytes:
    if tensor.raw_data:
        return hashlib.sha1(tensor.raw_data, usedforsecurity=False).digest()
    unnamed = onnx.TensorProto()
    unnamed.CopyFrom(tensor)
    unnamed.ClearField("name")
    unnamed.ClearField("doc_string")
    return hashlib.sha1(unnamed.SerializeToString(deterministic=True), usedforsecurity=False).digest()


def _fold_batchnorm(name: str, index: _Index, cost: ModelCost) -> Opportunity:
    found = folded = 0
    for node in index.nodes:
        if node.op_type != "BatchNormalization" or any(a.name == "training_mode" and a.i for a in node.attribute):
            continue
        if any(parameter not in index.constants for parameter in node.input[1:]):
            continue
        found += 1
        before = index.producers.get(node.input[0])
        if before is not None and before.op_type in _FOLDS_BATCHNORM and index.uses[node.input[0]] == 1:
            folded += 1
    alone = found - folded
    description = f"{folded} of {found} BatchNormalization fold into the operator before them"
    return Opportunity(name, found, f"{description}, {alone} need another form" if alone else description)


def _quantize_int8(name: str, index: _Index, cost: ModelCost) -> Opportunity:
    layers = {layer.name: layer for layer in cost.layers}
    count = macs = 0
    for node in index.nodes:
        if node.op_type not in CONVOLUTIONS | MATRIX_PRODUCTS or len(node.input) < 2:
            continue
        if node.input[1] not in index.constants:  # computed, or behind DequantizeLinear and so int8 already
            continue
        count += 1
        macs += layers[node.name or node.output[0]].macs or 0
    share = f" with {macs / cost.macs:.1%} of the multiply-adds".replace("%", " %") if cost.macs else ""
    return Opportunity(name, count, f"{count} convolutions and matrix products are in float{share}")


def _separate_convolutions(name: str, index: _Index, cost: ModelCost) -> Opportunity:
    saving = [layer for layer in index.separable if layer.saves_up_to]
    macs = sum(layer.macs or 0 for layer in saving)
    share = f" with {macs / cost.macs:.1%} of the multiply-adds".replace("%", " %") if cost.macs else ""
    described = f"{len(saving)} convolutions would have less to do as depthwise and pointwise ones{share}"
    return Opportunity(
        name, len(saving), described if saving else "every convolution is pointwise or depthwise already"
    )


_COUNTERS: Mapping[str, Callable[[str, _Index, ModelCost], Opportunity]] = {
    "eliminate_dead": _eliminate_dead,
    "fold_batchnorm": _fold_batchnorm,
    "fold_constants": _fold_constants,
    "quantize_int8": _quantize_int8,
    "separate_convolutions": _separate_convolutions,
}
