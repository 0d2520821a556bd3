"""Multiply-adds of each operator that has a kernel of them.

Counted as the literature counts (MobileNet, arXiv 1704.04861; ShuffleNet, arXiv 1707.01083): convolutions, matrix
products and recurrences. Elementwise operators, normalization, pooling and biases count 0.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import onnx

from graphopt.graph.cost.kinds import CONVOLUTIONS, MATRIX_PRODUCTS, RECURRENT, attribute, known_operator, weight_name
from graphopt.graph.cost.shapes import Scope, Shape


class UnknownSizeError(Exception):
    """A size that the count needs is not known; the message says which."""


def macs(node: onnx.NodeProto, scope: Scope) -> int:
    """Multiply-adds of one run of ``node``; raises ``UnknownSizeError`` where a size is unknown.

    The body of a Loop or Scan counts once, whatever the number of turns.
    """
    if not known_operator(node):
        raise UnknownSizeError(f"operator {_called(node)} is not known")
    for operators, rule in _RULES:
        if node.op_type in operators:
            return rule(node, scope)
    return 0


def _called(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _size(shape: Shape) -> int:
    return prod(size for size in shape if size is not None)


def _shape(scope: Scope, name: str) -> tuple[int, ...]:
    shape = scope.shapes.get(name)
    if shape is None:
        raise UnknownSizeError(f"the shape of {name!r} is unknown")
    if None in shape:
        shown = ",".join("?" if size is None else str(size) for size in shape)
        raise UnknownSizeError(f"the shape of {name!r} is [{shown}]")
    if 0 in shape:  # nothing would be computed; exporters write 0 for what they do not know
        raise UnknownSizeError(f"the shape of {name!r} is {list(shape)}, which holds no element")
    return tuple(size for size in shape if size is not None)


def _convolution(node: onnx.NodeProto, scope: Scope) -> int:
    """Output elements * input channels a group * kernel size; weight [M, C/group, k...]."""
    return _size(_shape(scope, node.output[0])) * _size(_shape(scope, weight_name(node))[1:])


def _transposed(node: onnx.NodeProto, scope: Scope) -> int:
    """Input elements * output channels a group * kernel size; weight [C, M/group, k...]. Cropped borders count."""
    return _size(_shape(scope, node.input[0])) * _size(_shape(scope, weight_name(node))[1:])


def _matrix_product(node: onnx.NodeProto, scope: Scope) -> int:
    """Output elements * the summed axis, which is the last of the first operand (or the first, with transA)."""
    first = _shape(scope, node.input[0])
    if node.op_type == "MatMulNBits":
        return _size(first[:-1]) * attribute(node, "K", 0) * attribute(node, "N", 0)
    if not first:
        raise UnknownSizeError(f"operand {node.input[0]!r} is a scalar")
    transposed = attribute(node, "transA", 0) == 1 and len(first) > 1
    return _size(_shape(scope, node.output[0])) * first[-2 if transposed else -1]


def _recurrent(node: onnx.NodeProto, scope: Scope) -> int:
    """Steps * batch * (input weights + recurrent weights); X [steps, batch, features] in either layout."""
    steps, batch, _ = _shape(scope, node.input[0])
    return steps * batch * (_size(_shape(scope, node.input[1])) + _size(_shape(scope, node.input[2])))


def _einsum(node: onnx.NodeProto, scope: Scope) -> int:
    """The product of all index sizes, for two operands; more are not counted, for the order of the products is open."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) > 2:
        raise UnknownSizeError(f"Einsum {equation!r} is not counted: more than two operands")
    if len(terms) < 2:
        return 0
    sizes: dict[str | int, int] = {}
    for term, name in zip(terms, node.input, strict=False):
        shape = _shape(scope, name)
        indices = _indices(term, len(shape))
        if len(indices) != len(shape) or len(terms) != len(node.input):
            raise UnknownSizeError(f"Einsum {equation!r} does not fit its operands")
        for index, size in zip(indices, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return prod(sizes.values())


def _indices(term: str, rank: int) -> list[str | int]:
    """The index of each axis; those of an ellipsis are numbers, the last of them -1."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *range(-hidden, 0), *after]


def _causal(node: onnx.NodeProto, scope: Scope) -> int:
    """Input elements * kernel size: a depthwise convolution that is as long as its input."""
    return _size(_shape(scope, node.input[0])) * _shape(scope, weight_name(node))[-1]


def _attention(node: onnx.NodeProto, scope: Scope) -> int:
    """Queries * keys * (query features + value features); Q, K, V as [batch, heads, length, head] or 3-D."""
    if node.domain or node.op_type != "Attention":
        raise UnknownSizeError(f"operator {_called(node)} is not counted")
    if len(node.input) > 4 and node.input[4]:
        raise UnknownSizeError("Attention with past keys is not counted")
    query, key, value = (_shape(scope, name) for name in node.input[:3])
    if len(query) == 4:
        return _size(query[:3]) * key[2] * (query[3] + value[3])
    heads, kv_heads = attribute(node, "q_num_heads", 1), attribute(node, "kv_num_heads", 1)
    return query[0] * query[1] * key[1] * (query[2] + value[2] // kv_heads * heads)


_RULES: tuple[tuple[set[str], Callable[[onnx.NodeProto, Scope], int]], ...] = (
    (CONVOLUTIONS, _convolution),
    ({"ConvTranspose"}, _transposed),
    (MATRIX_PRODUCTS, _matrix_product),
    (RECURRENT, _recurrent),
    ({"Einsum"}, _einsum),
    ({"Attention", "GroupQueryAttention", "LinearAttention", "MultiHeadAttention"}, _attention),
    ({"CausalConvWithState"}, _causal),
)
