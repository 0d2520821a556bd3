"""Compute at once what does not depend on the input.

1. *Constant nodes* become initializers; an Identity of one is seen through.
2. *Shape arithmetic*: ``Shape(x)`` and what is computed from it becomes an initializer wherever it is fixed, also when
   other sizes of ``x`` are open; what stays open gets a constant target all the same where the operator that reads it
   has a way to say so, and is computed once where it is computed often (``shape_folding``).
3. *Constant subgraphs*: nodes that read constants only are run by ONNX Runtime and replaced by their results.

Left alone: random operators; DequantizeLinear of what is stored quantized, with all that depends on it, unless it is
itself an answer of the model; QuantizeLinear of float weights, for targets that want them so; operators of other
domains; loops not known to be short; results that are no tensors; and whatever would make the file larger: results
larger than what they are computed from are only folded as far as other folds pay for them, plus ``max_growth_bytes``.
A model none of whose outputs depends on an input is the exception: it becomes its answers, up to 16 MB.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    TensorType,
    add_node,
    is_op,
    onnx_dtype,
    remove_unused,
    set_input,
    types_of,
    values_of,
    walk,
)
from graphopt.graph import replace_uses as let_read
from graphopt.graph.making import new_constant
from graphopt.graph.spare import spare_bytes
from graphopt.graph.values import StoredValues
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.constants.evaluate import Evaluated, evaluate
from graphopt.passes.constants.regions import SMALL_BYTES, Region, constant_regions, reads_constants, result_bytes
from graphopt.passes.sizes.folding import fold_shapes, has_shapes

_SHAPES = frozenset({"Shape", "Size"})
_Content: TypeAlias = tuple[str, str, tuple[int, ...], bytes] | None
# How much a model may grow that is nothing but constants.
_ANSWER_BYTES = 16_000_000
# A constant answer that nodes read too is stored twice, if it is this small: readers know a constant by its kind.
_TWICE_BYTES = 256
# All that a Constant node may hold before opset 9.
_OLD_CONSTANTS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})


@dataclass(frozen=True)
class FoldConstants:
    """Replace what does not depend on the input by its value.

    Attributes:
        max_growth_bytes: by how much the file may grow in all; 0 means never.
    """

    name: ClassVar[str] = "fold_constants"
    summary: ClassVar[str] = "compute at once what does not depend on the input"
    exact: ClassVar[bool] = True

    max_growth_bytes: int = 0

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        graphs = tuple(walk(graph))
        tally = _Tally(self.max_growth_bytes, kept=_weights_in_float(graphs, context))
        if _has_work(graphs):
            index = Index(graph)
            tally.lifted = _lift_constant_nodes(index)
            index.finish()
            tally.answers_only = not any(tensor.outputs or index.is_output(tensor) for tensor in graph.inputs)
            while _round(graph, tally):
                # Values found now let inference see further: the next round starts from there.
                remove_unused(graph)
        return PassReport(
            changes=tally.lifted + tally.shapes + tally.folded,
            skipped=tuple(tally.skipped.values()),
            details={
                "constant_nodes": tally.lifted,
                "shape_values": tally.shapes,
                "nodes_evaluated": tally.folded,
                "growth_bytes": tally.growth,
            },
        )


@dataclass
class _Tally:
    """What has been done so far, over all rounds.

    Attributes:
        allowance: bytes by which the file may grow.
        answers_only: whether no input of the model is used.
        spare: bytes by which results may be larger than what they replace; nothing is spent as long as other folds go
            on, which save more.
        current: whether nothing was folded since ``spare`` was told.
        waiting: what would be folded if there were more to spare: nodes to refuse in the end, where, and the reason.
        refused: ``id`` of a node -> the node and why it shall not be evaluated again.
        kept: ``id`` of a node that the target wants as it is -> the node.
    """

    allowance: int
    kept: Mapping[int, gs.Node]
    answers_only: bool = False
    lifted: int = 0
    shapes: int = 0
    folded: int = 0
    growth: int = 0
    spare: int = 0
    current: bool = False
    waiting: list[tuple[Sequence[gs.Node], str, str]] = field(default_factory=list)
    skipped: dict[str, Skip] = field(default_factory=dict)
    refused: dict[int, tuple[gs.Node, Skip]] = field(default_factory=dict)

    def refuse(self, nodes: Sequence[gs.Node], where: str, reason: str) -> None:
        """Note nodes that are left alone from now on."""
        self.refused.update((id(node), (node, Skip(where, reason))) for node in nodes)


def _weights_in_float(graphs: Sequence[gs.Graph], context: Context) -> dict[int, gs.Node]:
    """The quantizers that stay where a runtime wants weights as float constants with Q and DQ behind."""
    rules = context.hardware.int8
    if rules is None or rules.implicit or not rules.weight_nodes:
        return {}
    return {id(node): node for graph in graphs for node in graph.nodes if is_op(node, "QuantizeLinear")}


def _has_work(graphs: tuple[gs.Graph, ...]) -> bool:
    return any(node.op in _SHAPES or reads_constants(node) for graph in graphs for node in graph.nodes)


def _round(graph: gs.Graph, tally: _Tally) -> bool:
    """One pass over the graph; return whether another one may find more."""
    index = Index(graph)
    types = types_of(graph)
    shapes = fold_shapes(index, types, store) if has_shapes(index.graphs) else 0
    index.finish()
    refused = len(tally.refused)
    folded = _fold_regions(index, types, tally)
    index.finish()
    tally.shapes, tally.folded = tally.shapes + shapes, tally.folded + folded
    if shapes or folded:
        tally.current = False
        return True
    return len(tally.refused) > refused or _spends_more(graph, tally)


def _spends_more(graph: gs.Graph, tally: _Tally) -> bool:
    """When nothing else is left to do, ask how much the file has shrunk; give up what is too large even so."""
    if not tally.waiting:
        return False
    if not tally.current:
        before, tally.spare, tally.current = tally.spare, spare_bytes(graph) + tally.allowance, True
        if tally.spare > max(0, before):
            return True
    refused = len(tally.refused)
    for nodes, where, reason in tally.waiting:
        # What is left of a region may be folded the next time.
        tally.refuse(nodes, where, reason)
    return len(tally.refused) > refused


def store(
    index: Index, tensor: gs.Tensor, values: Any, home: gs.Graph, holder: gs.Constant | None = None
) -> gs.Constant | None:
    """Give ``tensor``, whose producer is dropped, a fixed value: an array, or values still stored.

    Args:
        index: of the whole model.
        tensor: gets the value.
        values: the value.
        home: the graph that the tensor stands in.
        holder: a constant that has the value already, if there is one.

    Returns:
        the constant that is read now; None where the tensor is an output, which a Constant node writes.
    """
    if not index.is_output(tensor):
        if holder is None:
            # Constants live in the outermost graph, where a name of a subgraph may be taken.
            holder = new_constant(tensor.name if home is index.graph else index.fresh_name(tensor.name), values)
        let_read(index, tensor, holder)
        if tuple(values.shape) == (1,):
            _let_ranges_read_scalars(index, holder, values)
        return holder
    # Outputs of a graph must be written by a node: not every runtime takes an initializer there.
    add_node(index, "Constant", [], [tensor], {"value": gs.Constant("", values)}, prefix=tensor.name, home=home)
    _let_readers_see(index, tensor, values)
    return None


def _let_ranges_read_scalars(index: Index, holder: gs.Constant, values: Any) -> None:
    """Runtimes take a list of one number as a bound of a Range; the checker does not, once it knows the number."""
    readers = {id(node): node for node in holder.outputs if is_op(node, "Range")}
    if readers:
        array = values.load() if isinstance(values, StoredValues) else values
        scalar = gs.Constant(index.fresh_name(holder.name), array.reshape(()))
        for node in readers.values():
            for slot in (slot for slot, tensor in enumerate(node.inputs) if tensor is holder):
                set_input(index, node, slot, scalar)


def _let_readers_see(index: Index, tensor: gs.Tensor, values: Any) -> bool:
    """Let the readers of a constant output read a constant of their own, if that is small."""
    if not tensor.outputs or values.nbytes > _TWICE_BYTES:
        return False
    let_read(index, tensor, gs.Constant(index.fresh_name(tensor.name), values))
    return True


def _lift_constant_nodes(index: Index) -> int:
    """Turn Constant nodes into initializers with their values as they are stored, and see through Identity of one."""
    found: list[gs.Node] = []
    edits = 0
    for home in index.graphs:
        for node in home.nodes:
            if not is_op(node, "Constant", "Identity"):
                continue
            if node.op == "Identity":
                if isinstance(node.inputs[0], gs.Constant) and not index.is_output(node.outputs[0]):
                    let_read(index, node.outputs[0], node.inputs[0])
                    found.append(node)
                continue
            held = node.attrs.get("value")
            values = held._values if isinstance(held, gs.Constant) else values_of(node.outputs[0])
            if values is None:
                continue
            if index.is_output(node.outputs[0]):
                edits += _let_readers_see(index, node.outputs[0], values)
            else:
                store(index, node.outputs[0], values, home)
                found.append(node)
    index.drop(found)
    return len(found) + edits


def _fold_regions(index: Index, types: Mapping[str, TensorType], tally: _Tally) -> int:
    """Evaluate constant regions, the ones that shrink the file first; return how many nodes went."""
    if tally.answers_only and not tally.current and _is_closed(index, types, tally):
        tally.spare, tally.current = _ANSWER_BYTES, True
    regions, skipped = constant_regions(index, types, max(0, tally.spare), tally.refused.keys() | tally.kept.keys())
    tally.skipped = {skip.where: skip for skip in skipped}
    tally.skipped.update((skip.where, skip) for _, skip in tally.refused.values())
    tally.waiting = [((), "", "")] if skipped else []
    ready: list[Region] = []
    for region in regions:
        growth = region.growth({id(tensor): result_bytes(tensor, types) or 0 for tensor in region.results}, index)
        # A small one may turn out to equal another, and then costs nothing.
        if growth <= max(0, tally.spare) or (tally.spare > 0 and growth <= SMALL_BYTES):
            ready.append(region)
        else:
            _wait(region, growth, types, tally)
    values, failed = _evaluated(index, ready, types, tally)
    sizes = {key: _bytes(array) for key, array in values.items()}
    sound = [region for region in ready if _is_sound(index, region, values, failed, types, tally)]
    growths = {id(region): region.growth(sizes, index) for region in sound}
    taken: list[Region] = []
    shared: dict[_Content, int] = {}
    for region in sorted(sound, key=lambda region: growths[id(region)]):
        contents = {
            id(tensor): _content(values[id(tensor)]) for tensor in region.results if not index.is_output(tensor)
        }
        growth = growths[id(region)] - sum(sizes[key] for key, content in contents.items() if content in shared)
        if growth > max(0, tally.spare):
            _wait(region, growth, types, tally)
            continue
        shared.update((content, key) for key, content in contents.items() if content is not None)
        tally.spare -= growth
        tally.growth += growth
        taken.append(region)
    folded = [node for region in taken for node in region.nodes]
    index.drop(folded)
    holders: dict[_Content, gs.Constant] = {}
    for region in taken:
        for tensor in region.results:
            content = _content(values[id(tensor)])
            holder = store(index, tensor, values[id(tensor)], region.home, holders.get(content))
            if holder is not None and content is not None:
                holders.setdefault(content, holder)
    return len(folded)


def _content(values: np.ndarray[Any, Any]) -> _Content:
    """What tells small values from others; None for large ones, of which equals are not looked for."""
    if values.dtype == object or values.nbytes > SMALL_BYTES:
        return None
    return values.dtype.str, values.dtype.name, values.shape, values.tobytes()


def _wait(region: Region, growth: int, types: Mapping[str, TensorType], tally: _Tally) -> None:
    reason = f"folding it would grow the file by {growth:,} bytes"
    tally.waiting.append((region.growers(types), region.name, reason))


def _is_closed(index: Index, types: Mapping[str, TensorType], tally: _Tally) -> bool:
    """Whether every output of the model is computed from constants only."""
    producers = [tensor.inputs for tensor in index.graph.outputs]
    if any(len(nodes) != 1 for nodes in producers):
        return False
    regions, _ = constant_regions(index, types, _ANSWER_BYTES, tally.refused)
    computed = {id(node) for region in regions for node in region.nodes}
    answers = [nodes[0] for nodes in producers]
    total = sum(result_bytes(tensor, types) or 0 for tensor in index.graph.outputs)
    return total <= _ANSWER_BYTES and all(id(node) in computed or is_op(node, "Constant") for node in answers)


def _evaluated(
    index: Index, regions: list[Region], types: Mapping[str, TensorType], tally: _Tally
) -> tuple[dict[int, np.ndarray[Any, Any]], set[int]]:
    """Run regions; return values by ``id`` of tensor, and the nodes that failed."""
    values: dict[int, np.ndarray[Any, Any]] = {}
    failed: set[int] = set()
    for home in index.graphs:
        # Sibling subgraphs may use one name for different tensors: each graph is run by itself.
        here = [region for region in regions if region.home is home]
        found = (
            evaluate([(region.nodes, region.results) for region in here], index.graph, types) if here else Evaluated()
        )
        values.update(found.values)
        failed.update(found.failed)
        for node in (node for region in here for node in region.nodes):
            if id(node) in found.failed:
                tally.refuse([node], node.name or node.outputs[0].name, f"{node.op}: {found.failed[id(node)]}")
    return values, failed


def _bytes(array: np.ndarray[Any, Any]) -> int:
    return sum(len(str(item)) + 2 for item in array.flat) if array.dtype == object else array.nbytes


def _is_sound(
    index: Index,
    region: Region,
    values: Mapping[int, np.ndarray[Any, Any]],
    failed: Container[int],
    types: Mapping[str, TensorType],
    tally: _Tally,
) -> bool:
    """Whether all results were computed and can be stored where they belong; refuse the nodes of those that cannot."""
    if any(id(node) in failed for node in region.nodes):
        return False
    sound = True
    for tensor in region.results:
        reason = _why_not_storable(index, tensor, values.get(id(tensor)), types)
        if reason is not None:
            node = tensor.inputs[0]
            if id(node) not in tally.refused:
                tally.refuse([node], node.name or tensor.name, f"{node.op}: {reason}")
            sound = False
    return sound


def _why_not_storable(
    index: Index, tensor: gs.Tensor, values: np.ndarray[Any, Any] | None, types: Mapping[str, TensorType]
) -> str | None:
    if values is None:
        return "its result is no tensor, or could not be computed"
    dtype = onnx.TensorProto.STRING if values.dtype == object else onnx_dtype(values.dtype)
    known = types.get(tensor.name)
    if known is not None and known.dtype not in {0, dtype}:
        return "its result has another type than it should"
    if index.is_output(tensor) and index.graph.opset < 9 and dtype not in _OLD_CONSTANTS:
        return "a Constant node cannot hold its result before opset 9"
    return None
