"""Shape arithmetic taken out of a graph: what is fixed, what can be said without it, and what is computed twice.

1. A small tensor whose elements are all known becomes a constant where something reads it that is not known itself.
2. A target that is partly open becomes a constant where its reader can tell the rest by itself (``closed_targets``).
3. Of several tensors with the same open elements, all read the first: each layer of an exported net asks its own
   input for the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, TensorType, replace_uses, set_input
from graphopt.passes.sizes.arithmetic import ShapeArithmetic
from graphopt.passes.sizes.closed_targets import CLOSERS
from graphopt.passes.sizes.rules import RULES
from graphopt.passes.sizes.symbolic import UNKNOWN, Open

# Longer results count as data and must pay for their bytes.
_SHORT = 64
Store = Callable[[Index, gs.Tensor, Any, gs.Graph], Any]


def has_shapes(graphs: Iterable[gs.Graph]) -> bool:
    """Whether there is any shape arithmetic."""
    return any(node.op in {"Shape", "Size"} for graph in graphs for node in graph.nodes)


def fold_shapes(index: Index, types: Mapping[str, TensorType], store: Store) -> int:
    """Fold shape arithmetic; return how many tensors got a constant value, a constant target or a twin's place.

    Args:
        index: of the whole model; the caller calls ``finish``.
        types: inferred types by tensor name, every open size with a symbol of its own.
        store: gives a tensor, whose producer is dropped, a fixed value.
    """
    state = ShapeArithmetic(index.graph.opset, types, RULES)
    for home in index.graphs:
        for node in home.nodes:
            if not index.is_dropped(node):
                state.visit(node)
    if not state.found:
        return 0
    return _close_targets(index, state) + _store_known(index, state, store) + _share(index, state)


def _store_known(index: Index, state: ShapeArithmetic, store: Store) -> int:
    fixed = {key: values for key in state.found if (values := _value(state, key)) is not None}
    wanted: list[tuple[gs.Node, gs.Graph]] = []
    for home in index.graphs:
        for node in home.nodes:
            if any(id(tensor) in fixed for tensor in node.outputs) and _is_read_on(index, node, fixed):
                wanted.append((node, home))
    results = [(node.outputs[0], home) for node, home in wanted]
    index.drop([node for node, _ in wanted])
    for tensor, home in results:
        store(index, tensor, fixed[id(tensor)], home)
    return len(wanted)


def _value(state: ShapeArithmetic, key: int) -> np.ndarray[Any, Any] | None:
    """The value of a short tensor that shape arithmetic fixes, None where it does not."""
    found = state.found[key]
    if len(found.items) > _SHORT or not found.known:
        return None
    try:
        return found.values()
    except OverflowError:
        return None


def _is_read_on(index: Index, node: gs.Node, fixed: dict[int, np.ndarray[Any, Any]]) -> bool:
    """Whether the node's result is read by something whose own result is not fixed."""
    if index.is_dropped(node) or len(node.outputs) != 1 or node.op == "Constant":
        return False
    tensor = node.outputs[0]
    # An output would need a Constant node, which is larger than the Shape it replaces.
    return not index.is_output(tensor) and any(
        not reader.outputs or any(id(output) not in fixed for output in reader.outputs) for reader in tensor.outputs
    )


def _close_targets(index: Index, state: ShapeArithmetic) -> int:
    closed = 0
    for home in index.graphs:
        for node in home.nodes:
            closer = CLOSERS.get(node.op)
            if closer is None or node.domain or index.is_dropped(node):
                continue
            for slot, values in closer(state, node):
                if values is None:
                    set_input(index, node, slot, gs.Variable.empty())
                else:
                    prefix = node.inputs[slot].name or f"{node.outputs[0].name}/target"
                    set_input(index, node, slot, gs.Constant(index.fresh_name(prefix), values))
                closed += 1
    return closed


def _share(index: Index, state: ShapeArithmetic) -> int:
    """Let the readers of a tensor with open elements read the first one that has the same."""
    shared = 0
    for home in index.graphs:
        first: dict[Any, gs.Tensor] = {}
        for node in home.nodes:
            if index.is_dropped(node):
                continue
            for tensor in node.outputs:
                found = state.found.get(id(tensor))
                if found is None or not _is_telling(found.items) or not tensor.outputs:
                    continue
                twin = first.setdefault((found.dtype, found.shape, found.items), tensor)
                if twin is not tensor:
                    replace_uses(index, tensor, twin)
                    shared += 1
    return shared


def _is_telling(items: Iterable[Any]) -> bool:
    """Whether some elements are open and all open ones are sizes that could turn up again."""
    opened = [item for item in items if isinstance(item, Open)]
    return bool(opened) and not any(
        name.startswith(UNKNOWN) for item in opened for names, _ in item.terms for name in names
    )
