"""Normalizations written with Reduce operators: which nodes belong to one, and what it is of.

Matching starts at the square root, the rarest operator of the pattern, and goes up to what is normalized and down to
scale and bias. Nothing but the result may be read from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Index, Shape, is_constant, is_op, sole_consumer, sole_producer, values_of
from graphopt.passes.patterns.scalar_terms import Terms, one_value
from graphopt.passes.patterns.softmax import reduced_axes

Parameter: TypeAlias = gs.Tensor | npt.NDArray[Any]


@dataclass(frozen=True)
class Normalization:
    """``op(source)`` times ``scale`` plus ``bias``, computed by ``nodes``, the last of which gives the result.

    Attributes:
        op: LayerNormalization, RMSNormalization or InstanceNormalization.
        dims: the shape that scale and bias must have.
        scale: a tensor of that shape, or values for a new constant; None where there is none.
        bias: likewise.
    """

    op: str
    source: gs.Tensor
    axis: int
    epsilon: float
    dims: tuple[int, ...]
    nodes: tuple[gs.Node, ...]
    scale: Parameter | None = None
    bias: Parameter | None = None


@dataclass(frozen=True)
class _Core:
    """``centered / sqrt(mean(centered ^ 2) + epsilon)``, with its nodes from the square to the quotient."""

    centered: gs.Tensor
    second: gs.Tensor
    mean: gs.Node
    epsilon: float
    nodes: tuple[gs.Node, ...]


def read_normalization(index: Index, terms: Terms, root: gs.Node, allowed: Set[str]) -> Normalization | None:
    """The normalization around a Sqrt, as the operator that the operator set in force has for it; None if none.

    ``allowed``: operators that the target takes.
    """
    core = _read_core(index, terms, root)
    if core is None:
        return None
    bare = (found for found in _bare(index, terms, core) if found.op in allowed)
    candidates = [_with_parameters(index, terms, found) for found in bare]
    fitting = [each for each in candidates if _is_private(index, each.nodes) and not _may_be_a_layer(terms, each)]
    # Of equals the first: max keeps it.
    return max(fitting, key=lambda each: len(each.nodes), default=None)


def _may_be_a_layer(terms: Terms, found: Normalization) -> bool:
    """Whether an InstanceNormalization of three axes would take the core of a LayerNormalization along the last.

    ONNX Runtime makes one node of that, also in operator sets without the operator.
    """
    shape = _shape(terms, found.source)
    return found.op == "InstanceNormalization" and found.scale is None and shape is not None and len(shape) == 3


def _read_core(index: Index, terms: Terms, root: gs.Node) -> _Core | None:
    add = sole_producer(root.inputs[0])
    if not is_op(root, "Sqrt") or add is None or not is_op(add, "Add"):
        return None
    slot = 0 if terms.scalar(add.inputs[1]) is not None else 1
    epsilon = terms.scalar(add.inputs[1 - slot])
    mean = sole_producer(add.inputs[slot])
    if epsilon is None or epsilon.value < 0 or mean is None or not is_op(mean, "ReduceMean"):
        return None
    square = sole_producer(mean.inputs[0])
    if square is None or not is_op(square, "Pow", "Mul"):
        return None
    centered, other = square.inputs
    if not (one_value(other) == 2 if square.op == "Pow" else other is centered):
        return None
    quotient = _quotient(index, terms, root)
    if quotient is None or not terms.has_rank(centered, epsilon.rank):
        return None
    second, after = quotient
    return _Core(centered, second, mean, epsilon.value, (square, mean, add, root, *after))


def _quotient(index: Index, terms: Terms, root: gs.Node) -> tuple[gs.Tensor, tuple[gs.Node, ...]] | None:
    """What is divided by the root, and the nodes that do it: Div, or Mul by Reciprocal or by 1 / root."""
    reader = sole_consumer(index, root.outputs[0])
    if reader is None:
        return None
    if is_op(reader, "Div") and reader.inputs[1] is root.outputs[0]:
        one = terms.scalar(reader.inputs[0])
        if one is None:
            return reader.inputs[0], (reader,)
        if one.value != 1 or one.rank:
            return None
    elif not is_op(reader, "Reciprocal"):
        return None
    product = sole_consumer(index, reader.outputs[0])
    if product is None or not is_op(product, "Mul"):
        return None
    first, second = product.inputs
    return (second if first is reader.outputs[0] else first), (reader, product)


def _bare(index: Index, terms: Terms, core: _Core) -> Iterator[Normalization]:
    """What the core may be without scale and bias, the larger pattern first."""
    opset = index.graph.opset
    subtract, again = sole_producer(core.centered), sole_producer(core.second)
    if subtract is not None and is_op(subtract, "Sub") and _same(subtract, again):
        source, average = subtract.inputs[0], sole_producer(subtract.inputs[1])
        shape = _shape(terms, source)
        if average is not None and is_op(average, "ReduceMean") and average.inputs[0] is source and shape is not None:
            axes = reduced_axes(core.mean, len(shape), opset, since=18)
            if axes is not None and axes == reduced_axes(average, len(shape), opset, since=18):
                assert again is not None
                nodes = tuple({id(node): node for node in (average, subtract, again, *core.nodes)}.values())
                rank = len(shape)
                if rank > 2 and axes == list(range(2, rank)) and isinstance(shape[1], int):
                    yield Normalization("InstanceNormalization", source, 1, core.epsilon, (shape[1],), nodes)
                dims = _trailing(shape, axes)
                if opset >= 17 and dims is not None:
                    yield Normalization("LayerNormalization", source, axes[0], core.epsilon, dims, nodes)
    shape = _shape(terms, core.centered)
    if opset >= 23 and core.second is core.centered and shape is not None:
        axes = reduced_axes(core.mean, len(shape), opset, since=18)
        dims = None if axes is None else _trailing(shape, axes)
        if axes is not None and dims is not None:
            yield Normalization("RMSNormalization", core.centered, axes[0], core.epsilon, dims, core.nodes)


def _same(first: gs.Node, second: gs.Node | None) -> bool:
    """Whether two nodes are one, or subtract the same tensors."""
    if second is None or first is second:
        return first is second
    return is_op(second, "Sub") and all(a is b for a, b in zip(first.inputs, second.inputs, strict=True))


def _shape(terms: Terms, tensor: gs.Tensor) -> Shape | None:
    found = terms.types.get(tensor.name)
    return None if found is None or found.dtype != onnx.TensorProto.FLOAT else found.shape


def _trailing(shape: Shape, axes: list[int]) -> tuple[int, ...] | None:
    """The sizes of the axes, if they are the last ones and their sizes are known."""
    rank = len(shape)
    dims = tuple(size for size in shape[axes[0] :] if isinstance(size, int))
    return dims if axes == list(range(axes[0], rank)) and len(dims) == len(axes) and 0 not in dims else None


def _with_parameters(index: Index, terms: Terms, bare: Normalization) -> Normalization:
    """Take the Mul and the Add behind a normalization in, as far as they fit."""
    whole = bare
    for op, word in (("Mul", "scale"), ("Add", "bias")):
        if op == "Add" and bare.op == "RMSNormalization":
            break
        result = whole.nodes[-1].outputs[0]
        reader = sole_consumer(index, result)
        if reader is None or not is_op(reader, op) or len(reader.inputs) != 2:
            continue
        other = reader.inputs[1] if reader.inputs[0] is result else reader.inputs[0]
        found = _parameter(terms, bare, other)
        if found is not None:
            grown = replace(whole, nodes=(*whole.nodes, reader))
            whole = replace(grown, scale=found) if word == "scale" else replace(grown, bias=found)
    return whole


def _parameter(terms: Terms, bare: Normalization, tensor: gs.Tensor) -> Parameter | None:
    """A scale or bias in the shape that the operator wants; None where it has another."""
    if not is_constant(tensor):
        found = terms.types.get(tensor.name)
        known = found is not None and found.dtype == onnx.TensorProto.FLOAT and found.shape == bare.dims
        return tensor if known and bare.op != "InstanceNormalization" else None
    values = values_of(tensor)
    if values is None or values.dtype != np.float32:
        return None
    shape = _shape(terms, bare.source) or ()
    if bare.op == "InstanceNormalization":
        wanted = (bare.dims[0], *[1] * (len(shape) - 2))
    else:
        wanted = bare.dims
        if tuple(values.shape) == wanted:
            return tensor
    extra = values.ndim - len(wanted)
    if values.ndim > len(shape) or extra < 0 or values.shape != (*[1] * extra, *wanted):
        return None
    return values.reshape(bare.dims)


def _is_private(index: Index, nodes: tuple[gs.Node, ...]) -> bool:
    """Whether all nodes stand in one graph and nothing but them reads what they compute, the last aside."""
    inside = {id(node) for node in nodes}
    home = index.home(nodes[-1])
    for node in nodes:
        if index.home(node) is not home or len(node.outputs) != 1:
            return False
        tensor = node.outputs[0]
        if node is not nodes[-1] and (
            index.is_output(tensor) or any(id(reader) not in inside for reader in tensor.outputs)
        ):
            return False
    return True
