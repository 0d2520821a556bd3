"""Connected parts of a graph that depend on constants only, and what folding each would do to the file's size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    TensorType,
    reads_of,
    size_of,
    subgraphs_of,
    values_of,
)
from graphopt.graph.values import numpy_dtype
from graphopt.passes.base import Skip

# Results up to this size may be larger than their operands; the sum over a region is what counts then.
_SMALL_BYTES = 4096
# Protobuf framing of an initializer, and of a Constant node around one, beside names and values.
_TENSOR_BYTES = 14
_CONSTANT_NODE_BYTES = 40
_NEVER = frozenset(
    {
        "Bernoulli", "Constant", "DequantizeLinear", "Dropout", "DynamicQuantizeLinear", "Loop", "Multinomial",
        "QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Scan",
    }
)  # fmt: skip
# The size of their results lies in values, not in shapes: never run them before it is known.
_GROWS = frozenset(
    {
        "CenterCropPad", "ConstantOfShape", "Expand", "EyeLike", "If", "OneHot", "Pad", "Range", "Resize", "Tile",
        "Upsample",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Region:
    """Nodes that hang together and read constants only.

    Attributes:
        home: the graph they stand in.
        nodes: sorted.
        results: their outputs that something else reads.
        freed_bytes: what goes with them: the nodes, and constants that nothing else reads.
    """

    home: gs.Graph
    nodes: tuple[gs.Node, ...]
    results: tuple[gs.Tensor, ...]
    freed_bytes: int

    @property
    def name(self) -> str:
        """A name for reports: that of the last node, or of its result."""
        return str(self.nodes[-1].name or self.results[0].name)

    def growth(self, sizes: Mapping[int, int], index: Index) -> int:
        """Bytes by which the file grows, given the ``sizes`` of results by ``id``."""
        added = sum(_stored_bytes(tensor, sizes[id(tensor)]) for tensor in self.results)
        added += sum(_CONSTANT_NODE_BYTES + len(t.name) for t in self.results if index.is_output(t))
        return added - self.freed_bytes


def constant_regions(index: Index, types: Mapping[str, TensorType], allowance: int) -> tuple[list[Region], list[Skip]]:
    """Find all regions, and the nodes that keep out of one because their result would be too large.

    Args:
        index: of the whole model.
        types: inferred types by tensor name.
        allowance: bytes by which a result may exceed what it is computed from, beside a small slack.
    """
    regions: list[Region] = []
    skipped: list[Skip] = []
    for home in index.graphs:
        chosen: dict[int, gs.Node] = {}
        for node in home.nodes:
            if not _reads_constants_only(node, chosen):
                continue
            reason = _too_large(node, types, allowance)
            if reason is None:
                chosen[id(node)] = node
            else:
                skipped.append(Skip(node.name or node.outputs[0].name, reason))
        regions.extend(_split(index, home, chosen))
    return regions, skipped


def result_bytes(tensor: gs.Tensor, types: Mapping[str, TensorType]) -> int | None:
    """Bytes of a tensor's values, None where its inferred shape is not fixed."""
    if isinstance(tensor, gs.Constant):
        return size_of(tensor)
    known = types.get(tensor.name)
    if known is None or known.shape is None or not known.dtype:
        return None
    sizes = [size for size in known.shape if isinstance(size, int)]
    if len(sizes) < len(known.shape):
        return None
    return math.prod(sizes) * numpy_dtype(known.dtype, tensor.name).itemsize


def _reads_constants_only(node: gs.Node, chosen: Mapping[int, gs.Node]) -> bool:
    if node.domain or node.op in _NEVER or not any(not tensor.is_empty() for tensor in node.outputs):
        return False
    if node.op in {"Div", "Mod"} and not _divides_safely(node):
        return False
    inner: set[int] = set()
    for subgraph in subgraphs_of(node):
        for child in subgraph.nodes:
            if child.domain or (child.op in _NEVER and child.op != "Constant"):
                return False
            inner.update(id(tensor) for tensor in child.outputs)
    return all(_is_fixed(tensor, chosen) for tensor in reads_of(node) if id(tensor) not in inner)


def _divides_safely(node: gs.Node) -> bool:
    """Some versions of ONNX Runtime die of an integer division by zero: the divisor must be at hand, and have none."""
    divisor = values_of(node.inputs[1])
    return divisor is not None and (divisor.dtype.kind not in "iu" or bool(divisor.all()))


def _is_fixed(tensor: gs.Tensor, chosen: Mapping[int, gs.Node]) -> bool:
    if tensor.is_empty() or isinstance(tensor, gs.Constant):
        return True
    return len(tensor.inputs) == 1 and (id(tensor.inputs[0]) in chosen)


def _too_large(node: gs.Node, types: Mapping[str, TensorType], allowance: int) -> str | None:
    sizes = [result_bytes(tensor, types) for tensor in node.outputs if not tensor.is_empty()]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return f"{node.op}: the size of its result is not known before it runs" if node.op in _GROWS else None
    read = sum(result_bytes(tensor, types) or 0 for tensor in {id(t): t for t in node.inputs}.values())
    if sum(known) > read + _SMALL_BYTES + allowance:
        return f"{node.op}: its result ({sum(known):,} bytes) is larger than what it is computed from ({read:,} bytes)"
    return None


def _split(index: Index, home: gs.Graph, chosen: dict[int, gs.Node]) -> Iterator[Region]:
    """Split the chosen nodes of one graph into regions, by union-find over the tensors between them."""
    leader = {key: key for key in chosen}

    def find(key: int) -> int:
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for node in chosen.values():
        for tensor in reads_of(node):
            if len(tensor.inputs) == 1 and id(tensor.inputs[0]) in chosen:
                leader[find(id(tensor.inputs[0]))] = find(id(node))
    groups: dict[int, list[gs.Node]] = {}
    for key, node in chosen.items():
        groups.setdefault(find(key), []).append(node)
    for nodes in groups.values():
        inside = {id(node) for node in nodes}
        for node in nodes:
            inside.update(id(child) for subgraph in subgraphs_of(node) for child in subgraph.nodes)
        results = [
            tensor
            for node in nodes
            for tensor in node.outputs
            if index.is_output(tensor) or any(id(reader) not in inside for reader in tensor.outputs)
        ]
        if results:
            yield Region(home, tuple(nodes), tuple(results), _freed(index, nodes, inside))


def _freed(index: Index, nodes: list[gs.Node], inside: set[int]) -> int:
    constants = {id(t): t for node in nodes for t in reads_of(node) if isinstance(t, gs.Constant)}
    freed = sum(
        _stored_bytes(constant, size_of(constant))
        for constant in constants.values()
        if not index.is_output(constant) and all(id(reader) in inside for reader in constant.outputs)
    )
    for node in nodes:
        names = [node.name or "", node.op, *(tensor.name for tensor in (*node.inputs, *node.outputs))]
        freed += 2 + sum(len(name) + 2 for name in names) + 8 * len(node.attrs)
    return freed


def _stored_bytes(tensor: gs.Tensor, values: int) -> int:
    return values + len(tensor.name) + _TENSOR_BYTES
