"""Connected parts of a graph that depend on constants only, and what folding each would do to the file's size."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Index, TensorType, reads_of, size_of, subgraphs_of
from graphopt.graph.values import numpy_dtype
from graphopt.passes.base import Skip
from graphopt.passes.constants.nodes import why_not_evaluable

# Results up to this size may be larger than their operands; the sum over a region is what counts then.
SMALL_BYTES = 4096
# Protobuf framing of an initializer, and of a Constant node around one, beside names and values.
TENSOR_BYTES = 14
CONSTANT_NODE_BYTES = 40
# The size of their results lies in values, not in shapes: never run them before it is known.
_GROWS = frozenset(
    {
        "CenterCropPad", "ConstantOfShape", "Expand", "EyeLike", "If", "Loop", "OneHot", "Pad", "Range", "Resize",
        "Tile", "Upsample",
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
        added = sum(stored_bytes(tensor, sizes[id(tensor)]) for tensor in self.results)
        added += sum(CONSTANT_NODE_BYTES + len(t.name) for t in self.results if index.is_output(t))
        return added - self.freed_bytes

    def growers(self, types: Mapping[str, TensorType]) -> list[gs.Node]:
        """The nodes whose results are larger than what they read; where there are none, those that write results."""
        found = [node for node in self.nodes if _grown_by(node, types) > 0]
        if found:
            return found
        results = {id(tensor) for tensor in self.results}
        return [node for node in self.nodes if any(id(tensor) in results for tensor in node.outputs)]


def constant_regions(
    index: Index, types: Mapping[str, TensorType], allowance: int, refused: Container[int]
) -> tuple[list[Region], list[Skip]]:
    """Find all regions, and the nodes that keep out of one with the reason.

    Args:
        index: of the whole model.
        types: inferred types by tensor name.
        allowance: bytes by which a result may exceed what it is computed from, beside a small slack.
        refused: ``id`` of nodes that are not to be part of one.
    """
    regions: list[Region] = []
    skipped: list[Skip] = []
    for home in index.graphs:
        chosen = _chosen(index, home, types, allowance, refused, skipped)
        if chosen:
            chosen = _without_stored_quantized(index, chosen)
            regions.extend(_split(index, home, chosen))
    return regions, skipped


def _chosen(
    index: Index,
    home: gs.Graph,
    types: Mapping[str, TensorType],
    allowance: int,
    refused: Container[int],
    skipped: list[Skip],
) -> dict[int, gs.Node]:
    """The nodes of one graph to be run, by ``id``, in order."""
    chosen: dict[int, gs.Node] = {}
    fixed: set[int] = set()
    for node in home.nodes:
        if not _reads_fixed(node, fixed) or id(node) in refused or index.is_dropped(node):
            continue
        if node.op == "Constant" or not any(not tensor.is_empty() for tensor in node.outputs):
            continue
        reason = why_not_evaluable(node, types, index.graph.opset)
        if reason is not None:
            skipped.append(Skip(node.name or node.outputs[0].name, f"{node.op}: {reason}"))
            continue
        reason = _why_too_large(node, types, allowance)
        if reason is None:
            chosen[id(node)] = node
            fixed.update(id(tensor) for tensor in node.outputs)
        else:
            skipped.append(Skip(node.name or node.outputs[0].name, reason))
    return chosen


def reads_constants(node: gs.Node) -> bool:
    """Whether every input of a node is a constant: a quick question."""
    for tensor in node.inputs:  # noqa: SIM110 (asked of every node of every graph)
        if type(tensor) is not gs.Constant and tensor.name:
            return False
    return True


def _reads_fixed(node: gs.Node, fixed: set[int]) -> bool:
    for tensor in node.inputs:
        if type(tensor) is not gs.Constant and id(tensor) not in fixed and tensor.name:
            return False
    if not node.attrs:
        return True
    inner: set[int] = set()
    for subgraph in subgraphs_of(node):
        inner.update(id(tensor) for tensor in subgraph.inputs)
        for child in subgraph.nodes:
            inner.update(id(tensor) for tensor in child.outputs)
    return not inner or all(
        isinstance(tensor, gs.Constant) or id(tensor) in fixed or id(tensor) in inner or tensor.is_empty()
        for tensor in reads_of(node)
    )


def _without_stored_quantized(index: Index, chosen: dict[int, gs.Node]) -> dict[int, gs.Node]:
    """Leave out each DequantizeLinear on whose result something depends that stays, and what is computed from it.

    Such a weight is kept quantized on purpose: it takes less space, and runtimes have integer kernels for it.
    """
    if not any(node.op == "DequantizeLinear" for node in chosen.values()):
        return chosen
    owner = {id(child): key for key, node in chosen.items() for body in subgraphs_of(node) for child in body.nodes}
    own_outputs = {id(tensor) for tensor in index.graph.outputs}
    needed: set[int] = set()  # nodes that something which stays depends on
    for key, node in reversed(chosen.items()):
        for tensor in node.outputs:
            if index.is_output(tensor) and id(tensor) not in own_outputs:
                needed.add(key)
            for reader in tensor.outputs:
                reader_key = owner.get(id(reader), id(reader))
                if reader_key not in chosen or reader_key in needed:
                    needed.add(key)
    kept: dict[int, gs.Node] = {}
    lost: set[int] = set()
    for key, node in chosen.items():
        stays = node.op == "DequantizeLinear" and key in needed
        if stays or any(id(tensor) in lost for tensor in reads_of(node)):
            lost.update(id(tensor) for tensor in node.outputs)
        else:
            kept[key] = node
    return kept


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
    return math.prod(sizes) * (
        16 if known.dtype == onnx.TensorProto.STRING else numpy_dtype(known.dtype, tensor.name).itemsize
    )


def _grown_by(node: gs.Node, types: Mapping[str, TensorType]) -> int:
    read = sum(result_bytes(tensor, types) or 0 for tensor in {id(t): t for t in node.inputs}.values())
    return sum(result_bytes(tensor, types) or 0 for tensor in node.outputs if not tensor.is_empty()) - read


def _why_too_large(node: gs.Node, types: Mapping[str, TensorType], allowance: int) -> str | None:
    sizes = [result_bytes(tensor, types) for tensor in node.outputs if tensor.name]
    total = 0
    for size in sizes:
        if size is None and node.op in _GROWS and not _is_sequence_loop(node, types):
            return f"{node.op}: the size of its result is not known before it runs"
        total += size or 0
    if total <= SMALL_BYTES + allowance:
        return None
    read = sum(result_bytes(tensor, types) or 0 for tensor in {id(t): t for t in node.inputs}.values())
    if total > read + SMALL_BYTES + allowance:
        return f"{node.op}: its result ({total:,} bytes) is larger than what it is computed from ({read:,} bytes)"
    return None


def _is_sequence_loop(node: gs.Node, types: Mapping[str, TensorType]) -> bool:
    return node.op in {"If", "Loop"}


def _split(index: Index, home: gs.Graph, chosen: dict[int, gs.Node]) -> Iterator[Region]:
    """Split the chosen nodes of one graph into regions, by union-find over the tensors between them."""
    leader = {key: key for key in chosen}

    def find(key: int) -> int:
        while leader[key] != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for node in chosen.values():
        for tensor in reads_of(node) if node.attrs else node.inputs:
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


def _freed(index: Index, nodes: Sequence[gs.Node], inside: Container[int]) -> int:
    constants = {id(t): t for node in nodes for t in reads_of(node) if isinstance(t, gs.Constant)}
    freed = sum(
        stored_bytes(constant, size_of(constant))
        for constant in constants.values()
        if not index.is_output(constant) and all(id(reader) in inside for reader in constant.outputs)
    )
    return freed + sum(map(node_bytes, nodes))


def node_bytes(node: gs.Node) -> int:
    """About what a node takes in the file."""
    names = len(node.name or "") + len(node.op) + 6
    for tensor in node.inputs:
        names += len(tensor.name) + 2
    for tensor in node.outputs:
        names += len(tensor.name) + 2
        if tensor.dtype is not None:  # Its type is declared.
            names += len(tensor.name) + 14 + 4 * len(tensor.shape or ())
    return names + 8 * len(node.attrs)


def stored_bytes(tensor: gs.Tensor, values: int) -> int:
    """About what an initializer of so many bytes takes in the file."""
    return values + len(tensor.name) + TENSOR_BYTES
