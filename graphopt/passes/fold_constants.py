"""Compute at once what does not depend on the input.

1. *Constant nodes* become initializers; an Identity of one is seen through.
2. *Shape arithmetic*: ``Shape(x)`` and what is computed from it becomes an initializer wherever it is fixed, also when
   other sizes of ``x`` are open. ``Reshape(x, s)`` with partly open ``s`` gets a constant ``s`` where each open size
   is either the size of the same axis of ``x`` (written 0) or the only one left over (written -1).
3. *Constant subgraphs*: nodes that read constants only are run by ONNX Runtime and replaced by their results.

Left alone: random operators; QuantizeLinear and DequantizeLinear with all that depends on them (a folded weight would
no longer be quantized); operators of other domains; Loop and Scan; results that are no tensors; values that subgraphs
hand on; and whatever would make the file larger: results larger than what they are computed from are only folded as
far as other folds pay for them, plus ``max_growth_bytes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

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
    replace_uses,
    set_input,
    types_of,
    values_of,
)
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.constant_regions import Region, constant_regions, result_bytes
from graphopt.passes.evaluate import evaluate
from graphopt.passes.shape_arithmetic import ShapeArithmetic

# Shape arithmetic deals in shapes and indices; longer results count as data and must pay for their bytes.
_SHORT = 64
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
        tally = _Tally()
        while _round(graph, tally, self.max_growth_bytes):
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
    """What has been done so far, over all rounds."""

    lifted: int = 0
    shapes: int = 0
    folded: int = 0
    growth: int = 0
    skipped: dict[str, Skip] = field(default_factory=dict)


def _round(graph: gs.Graph, tally: _Tally, allowance: int) -> bool:
    """One pass over the graph; return whether anything changed."""
    index = Index(graph)
    lifted = _lift_constant_nodes(index)
    shapes = _fold_shapes(index)
    folded = _fold_regions(index, tally, allowance)
    tally.lifted, tally.shapes, tally.folded = tally.lifted + lifted, tally.shapes + shapes, tally.folded + folded
    return bool(lifted + shapes + folded)


def _store(index: Index, tensor: gs.Tensor, values: Any, home: gs.Graph) -> None:
    """Give ``tensor``, whose producer is dropped, a fixed value: an array, or values still stored."""
    if index.is_output(tensor):
        # Outputs of a graph must be written by a node: not every runtime takes an initializer there.
        holder = gs.Constant("", values)
        add_node(index, "Constant", [], [tensor], {"value": holder}, prefix=tensor.name, home=home)
        return
    # Constants live in the outermost graph, where a name of a subgraph may be taken.
    name = tensor.name if home is index.graph else index.fresh_name(tensor.name)
    replace_uses(index, tensor, gs.Constant(name, values))


def _lift_constant_nodes(index: Index) -> int:
    """Turn Constant nodes into initializers with their values as they are stored, and see through Identity of one."""
    found: list[gs.Node] = []
    for home in index.graphs:
        for node in home.nodes:
            if not is_op(node, "Constant", "Identity") or index.is_output(node.outputs[0]):
                continue
            if node.op == "Identity":
                if isinstance(node.inputs[0], gs.Constant):
                    replace_uses(index, node.outputs[0], node.inputs[0])
                    found.append(node)
                continue
            held = node.attrs.get("value")
            values = held._values if isinstance(held, gs.Constant) else values_of(node.outputs[0])
            if values is not None:
                _store(index, node.outputs[0], values, home)
                found.append(node)
    index.drop(found)
    index.finish()
    return len(found)


def _fold_shapes(index: Index) -> int:
    """Fold shape arithmetic; return how many tensors got a constant value or a constant target shape."""
    if not any(is_op(node, "Shape", "Size") for home in index.graphs for node in home.nodes):
        return 0
    state = ShapeArithmetic(index.graph.opset, types_of(index.graph, distinct=True))
    nodes = [(node, home) for home in index.graphs for node in home.nodes]
    for node, _ in nodes:
        state.visit(node)
    fixed = {id(tensor) for node, _ in nodes for tensor in node.outputs if _value(state, tensor) is not None}
    wanted = [(node, home) for node, home in nodes if _is_read_on(index, node, fixed)]
    reshapes = [node for node, _ in nodes if is_op(node, "Reshape") and len(node.inputs) == 2]
    closed = [(node, target) for node in reshapes if (target := _closed_target(state, node)) is not None]
    for node, target in closed:
        name = index.fresh_name(node.inputs[1].name)
        set_input(index, node, 1, gs.Constant(name, target))
    results = [(node.outputs[0], home) for node, home in wanted]
    index.drop([node for node, _ in wanted])
    for tensor, home in results:
        _store(index, tensor, _value(state, tensor), home)
    index.finish()
    return len(wanted) + len(closed)


def _value(state: ShapeArithmetic, tensor: gs.Tensor) -> np.ndarray[Any, Any] | None:
    """The value of a short integer tensor that shape arithmetic fixes, None where it does not."""
    found = state.found.get(id(tensor))
    if found is None or not found.known or isinstance(tensor, gs.Constant) or found.elements.size > _SHORT:
        return None
    try:
        return found.values()
    except OverflowError:
        return None


def _is_read_on(index: Index, node: gs.Node, fixed: set[int]) -> bool:
    """Whether the node's result is fixed, and read by something whose own result is not."""
    if len(node.outputs) != 1 or id(node.outputs[0]) not in fixed or node.op == "Constant":
        return False
    tensor = node.outputs[0]
    # An output would need a Constant node, which is larger than the Shape it replaces.
    return not index.is_output(tensor) and any(
        not reader.outputs or any(id(output) not in fixed for output in reader.outputs) for reader in tensor.outputs
    )


def _closed_target(state: ShapeArithmetic, node: gs.Node) -> np.ndarray[Any, Any] | None:
    """A constant target shape for a Reshape whose target is computed and partly open; None if there is none.

    ``0`` copies the size of the same axis, ``-1`` takes what is left over.
    """
    target, dims = state.of(node.inputs[1]), state.dims(node.inputs[0])
    if target is None or target.known or target.elements.ndim != 1:
        return None
    copies = dims if dims is not None and not node.attrs.get("allowzero", 0) else []
    sizes: list[int] = []
    for axis, element in enumerate(target.elements):
        if isinstance(element, int):
            sizes.append(element)
        else:
            sizes.append(0 if axis < len(copies) and copies[axis] == element else -1)
    return None if sizes.count(-1) > 1 else np.array(sizes, dtype=np.int64)


def _fold_regions(index: Index, tally: _Tally, allowance: int) -> int:
    """Evaluate constant regions, the ones that shrink the file first; return how many nodes went."""
    types = types_of(index.graph)
    regions, skipped = constant_regions(index, types, allowance)
    tally.skipped = {skip.where: skip for skip in skipped}
    results: dict[int, np.ndarray[Any, Any]] = {}
    for home in index.graphs:
        here = [
            region for region in regions if region.home is home and _may_fit(index, region, types, tally, allowance)
        ]
        nodes = [node for region in here for node in region.nodes]
        found, failed = evaluate(nodes, [tensor for region in here for tensor in region.results], index.graph)
        results.update(found)
        for node in nodes:
            if id(node) in failed:
                tally.skipped[node.name] = Skip(node.name or node.outputs[0].name, f"{node.op}: {failed[id(node)]}")
    sizes = {key: array.nbytes for key, array in results.items()}
    ready = [region for region in regions if all(_is_sound(index, t, results, types) for t in region.results)]
    folded = 0
    for region in sorted(ready, key=lambda region: region.growth(sizes, index)):
        growth = region.growth(sizes, index)
        if tally.growth + growth > allowance and growth > 0:
            tally.skipped[region.name] = Skip(region.name, f"folding it would grow the file by {growth:,} bytes")
            continue
        tally.growth += growth
        folded += len(region.nodes)
        index.drop(region.nodes)
        for tensor in region.results:
            _store(index, tensor, results[id(tensor)], region.home)
    index.finish()
    return folded


def _is_sound(
    index: Index, tensor: gs.Tensor, results: Mapping[int, np.ndarray[Any, Any]], types: Mapping[str, TensorType]
) -> bool:
    """Whether a result was computed, has the dtype it should, and can be stored where it belongs."""
    if id(tensor) not in results:
        return False
    dtype = onnx_dtype(results[id(tensor)].dtype)
    known = types.get(tensor.name)
    # ONNX Runtime hands float8 out as bytes.
    if known is not None and known.dtype not in {0, dtype}:
        return False
    return not index.is_output(tensor) or index.graph.opset >= 9 or dtype in _OLD_CONSTANTS


def _may_fit(index: Index, region: Region, types: Mapping[str, TensorType], tally: _Tally, allowance: int) -> bool:
    """Whether it is worth running a region: false where its known size alone forbids to keep it."""
    sizes = {id(tensor): result_bytes(tensor, types) or 0 for tensor in region.results}
    growth = region.growth(sizes, index)
    if growth <= max(0, allowance - tally.growth):
        return True
    tally.skipped[region.name] = Skip(region.name, f"folding it would grow the file by {growth:,} bytes")
    return False
