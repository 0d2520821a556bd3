"""Computing parts of a graph that depend on nothing but its constants, with ONNX Runtime's own kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt import runtime
from graphopt.errors import GraphoptError
from graphopt.graph import TensorType, export_part, is_op, reads_of, size_of
from graphopt.graph.values import numpy_dtype
from graphopt.passes.constants.moved_constants import moved

Array = np.ndarray[Any, Any]

# One session takes so many nodes, and weights of so many bytes (or one part that has more): few sessions, and never a
# copy of all weights at once.
_BATCH_NODES = 4096
_BATCH_BYTES = 32_000_000
_T = onnx.TensorProto
# Types that ONNX Runtime does not hand out to Python: a wider type that holds all their values. The way there and
# back loses nothing.
_CARRIERS: Mapping[int, int] = {
    _T.BFLOAT16: _T.FLOAT,
    _T.FLOAT8E4M3FN: _T.FLOAT,
    _T.FLOAT8E4M3FNUZ: _T.FLOAT,
    _T.FLOAT8E5M2: _T.FLOAT,
    _T.FLOAT8E5M2FNUZ: _T.FLOAT,
    _T.FLOAT8E8M0: _T.FLOAT,
    _T.FLOAT4E2M1: _T.FLOAT,
    _T.INT4: _T.INT8,
    _T.UINT4: _T.UINT8,
    _T.INT2: _T.INT8,
    _T.UINT2: _T.UINT8,
}


# Domain and operator with the element types of the inputs.
_Kind: TypeAlias = tuple[str, str, tuple[int, ...]]
_NO_KERNEL = "NOT_IMPLEMENTED"


@dataclass(frozen=True)
class Evaluated:
    """What was computed: ``id`` of a tensor -> values; ``id`` of a node -> why it could not be run.

    ``missing`` has the kinds of nodes that ONNX Runtime has no kernel for: one of a kind is tried.
    """

    values: dict[int, Array] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    missing: dict[_Kind, str] = field(default_factory=dict)


def evaluate(
    parts: Sequence[tuple[Sequence[gs.Node], Sequence[gs.Tensor]]],
    graph: gs.Graph,
    types: Mapping[str, TensorType],
) -> Evaluated:
    """Run parts of a graph, all graph optimizations off.

    What only moves constants is left to numpy. Many parts share a session. Where one fails, its nodes are halved until
    the one at fault is found; what depends on that one is left out.

    Args:
        parts: sorted nodes whose inputs are constants or outputs of earlier ones, with the tensors wanted of them.
        graph: the graph they come from, for operator set versions.
        types: inferred types by tensor name.
    """
    found = Evaluated()
    for batch in _batches([_without_moves(part, graph.opset, found.values) for part in parts]):
        nodes = [node for part, _ in batch for node in part]
        wanted = [tensor for _, results in batch for tensor in results]
        # Depth is logarithmic, but a list serves as well; the last is next, so that halves are run in order.
        pending: list[tuple[list[gs.Node], list[gs.Tensor]]] = [(nodes, wanted)]
        while pending:
            nodes, wanted = pending.pop()
            if found.missing:
                _leave_out_missing(nodes, types, found)
            nodes = [node for node in nodes if id(node) not in found.failed]
            if not _attempt(nodes, wanted, graph, types, found):
                pending.extend(reversed(_halves(nodes, wanted)))
    return found


def _without_moves(
    part: tuple[Sequence[gs.Node], Sequence[gs.Tensor]], opset: int, values: dict[int, Array]
) -> tuple[Sequence[gs.Node], Sequence[gs.Tensor]]:
    """The nodes of a part that are left when those are done that only move constants."""
    left: list[gs.Node] = []
    for node in part[0]:
        made = moved(node, values, opset)
        if made is None:
            left.append(node)
        else:
            values[id(node.outputs[0])] = made
    return left, part[1]


def _batches(
    parts: Sequence[tuple[Sequence[gs.Node], Sequence[gs.Tensor]]],
) -> Iterator[list[tuple[Sequence[gs.Node], Sequence[gs.Tensor]]]]:
    batch: list[tuple[Sequence[gs.Node], Sequence[gs.Tensor]]] = []
    nodes = weights = 0
    for part in parts:
        if not part[0]:
            continue
        read = sum(size_of(t) for node in part[0] for t in reads_of(node) if isinstance(t, gs.Constant))
        if batch and (nodes + len(part[0]) > _BATCH_NODES or weights + read > _BATCH_BYTES):
            yield batch
            batch, nodes, weights = [], 0, 0
        batch.append(part)
        nodes, weights = nodes + len(part[0]), weights + read
    if batch:
        yield batch


def _attempt(
    nodes: Sequence[gs.Node],
    wanted: Sequence[gs.Tensor],
    graph: gs.Graph,
    types: Mapping[str, TensorType],
    found: Evaluated,
) -> bool:
    """Run some nodes; note the results, or why the only one fails. False: several, and one of them fails."""
    ready = _runnable(nodes, found.values)
    written = {id(tensor) for node in ready for tensor in node.outputs}
    wanted = [tensor for tensor in wanted if id(tensor) in written]
    if not wanted:
        return True
    try:
        found.values.update(_run(ready, wanted, graph, types, found.values))
    except GraphoptError as error:
        if len(ready) > 1:
            return False
        found.failed[id(ready[0])] = str(error)
        kind = _kind(ready[0], types)
        if _NO_KERNEL in str(error) and kind is not None:
            found.missing[kind] = str(error)
    return True


def _kind(node: gs.Node, types: Mapping[str, TensorType]) -> _Kind | None:
    """What a kernel is chosen by; None where a type is not known."""
    if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
        return None
    known = [types.get(tensor.name) for tensor in (*node.inputs, *node.outputs) if not tensor.is_empty()]
    dtypes = tuple(each.dtype for each in known if each is not None)
    return (node.domain or "", node.op, dtypes) if len(dtypes) == len(known) and all(dtypes) else None


def _leave_out_missing(nodes: Sequence[gs.Node], types: Mapping[str, TensorType], found: Evaluated) -> None:
    operators = {op for _, op, _ in found.missing}
    for node in nodes:
        if node.op in operators and (kind := _kind(node, types)) in found.missing and kind is not None:
            found.failed[id(node)] = found.missing[kind]


def _runnable(nodes: Sequence[gs.Node], values: Mapping[int, Array]) -> list[gs.Node]:
    """The nodes that do not depend on one that failed."""
    ready: list[gs.Node] = []
    written: set[int] = set()
    inner: set[int] = set()
    for node in nodes:
        inner.clear()
        for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
            inner.update(_made_in(body))
        known = all(
            isinstance(t, gs.Constant) or t.is_empty() or id(t) in written or id(t) in values or id(t) in inner
            for t in reads_of(node)
        )
        if known:
            ready.append(node)
            written.update(id(tensor) for tensor in node.outputs)
    return ready


def _made_in(body: gs.Graph) -> Iterator[int]:
    pending = [body]
    while pending:
        graph = pending.pop()
        yield from (id(tensor) for tensor in graph.inputs)
        for node in graph.nodes:
            yield from (id(tensor) for tensor in node.outputs)
            pending.extend(value for value in node.attrs.values() if isinstance(value, gs.Graph))


def _halves(nodes: Sequence[gs.Node], wanted: Sequence[gs.Tensor]) -> list[tuple[list[gs.Node], list[gs.Tensor]]]:
    first, second = list(nodes[: len(nodes) // 2]), list(nodes[len(nodes) // 2 :])
    asked = {id(tensor) for tensor in wanted}
    asked.update(id(tensor) for node in second for tensor in reads_of(node))
    early = [tensor for node in first for tensor in node.outputs if id(tensor) in asked and not tensor.is_empty()]
    return [(first, early), (second, list(wanted))]


def _run(
    nodes: Sequence[gs.Node],
    wanted: Sequence[gs.Tensor],
    graph: gs.Graph,
    types: Mapping[str, TensorType],
    given: Mapping[int, Array],
) -> dict[int, Array]:
    model = export_part(nodes, wanted, graph)
    names: set[str] = set()
    for tensor in (tensor for node in nodes for tensor in reads_of(node)):
        if id(tensor) in given and tensor.name not in names and not isinstance(tensor, gs.Constant):
            names.add(tensor.name)
            model.graph.initializer.append(onnx.numpy_helper.from_array(given[id(tensor)], tensor.name))
    _declare_counters(nodes, model.graph)
    asked = [_handed_out(model, tensor, types) for tensor in wanted]
    opened = runtime.session(model, optimize=False)
    results = runtime.run(opened, {}, [name for name, _ in asked])
    found: dict[int, Array] = {}
    for tensor, (name, dtype) in zip(wanted, asked, strict=True):
        result = results[name]
        if isinstance(result, np.ndarray):
            found[id(tensor)] = result if dtype is None else result.astype(dtype)
    return found


def _declare_counters(nodes: Sequence[gs.Node], graph: onnx.GraphProto) -> None:
    """Say what number and condition of a Loop's body are; ONNX Runtime wants to know, and a part declares nothing."""
    pending = list(zip(nodes, graph.node, strict=True))
    while pending:
        node, proto = pending.pop()
        bodies = {attribute.name: attribute.g for attribute in proto.attribute if attribute.HasField("g")}
        for name, body in bodies.items():
            made = node.attrs[name]
            pending.extend(zip(made.nodes, body.node, strict=True))
            kinds = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL) if is_op(node, "Loop") else ()
            for tensor, info, kind in zip(made.inputs, body.input, kinds, strict=False):
                shape = [size for size in tensor.shape or () if isinstance(size, int)]
                info.CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, kind, shape))


def _handed_out(
    model: onnx.ModelProto, tensor: gs.Tensor, types: Mapping[str, TensorType]
) -> tuple[str, np.dtype[Any] | None]:
    """Let the model hand a tensor out as numpy knows it; return the output's name, and what to convert it back to."""
    known = types.get(tensor.name)
    carrier = None if known is None else _CARRIERS.get(known.dtype)
    if known is None or carrier is None:
        return tensor.name, None
    name = f"{tensor.name}/carried"
    model.graph.node.add(op_type="Cast", input=[tensor.name], output=[name]).attribute.append(
        onnx.helper.make_attribute("to", carrier)
    )
    for output in model.graph.output:
        if output.name == tensor.name:
            output.name = name
    return name, numpy_dtype(known.dtype, tensor.name)
