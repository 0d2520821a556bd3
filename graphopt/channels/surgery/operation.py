"""A graph made narrower, node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import onnx_graphsurgeon as gs

from graphopt.channels.surgery.convolution import narrow_convolution
from graphopt.channels.surgery.narrowing import Narrowing, Surgery, described
from graphopt.channels.surgery.normalization import narrow_group_normalization, narrow_layer_normalization
from graphopt.channels.surgery.parameters import slice_parameters
from graphopt.channels.surgery.pieces import narrow_gather, narrow_pad, narrow_slice, narrow_split, regather
from graphopt.channels.surgery.sizes import freeze, narrow_expand, narrow_reshape, narrow_shape_input
from graphopt.channels.surgery.weights import is_convolution
from graphopt.channels.trace import Trace
from graphopt.errors import PassError
from graphopt.graph import Index, is_op, remove_unused

# Operators that say in attributes or inputs how wide they are; all others just come out narrower.
_RULES: Mapping[str, Callable[[Surgery, gs.Node], None]] = {
    "ConstantOfShape": partial(narrow_shape_input, 0),
    "Expand": narrow_expand,
    "Gather": narrow_gather,
    "GroupNormalization": narrow_group_normalization,
    "LayerNormalization": narrow_layer_normalization,
    "Pad": narrow_pad,
    "RMSNormalization": narrow_layer_normalization,
    "Reshape": narrow_reshape,
    "Resize": partial(narrow_shape_input, 3),
    "Slice": narrow_slice,
    "Split": narrow_split,
}


def operate(trace: Trace, narrowing: Narrowing) -> None:
    """Edit the graph of a trace so that tensors have only what remains of them."""
    graph = trace.graph
    index = Index(graph)
    surgery = Surgery(index, trace, narrowing)
    written = _write_shuffles(surgery)
    nodes = [node for node in graph.nodes if id(node) not in written and _is_touched(surgery, node)]
    for node in nodes:
        if is_convolution(node):
            narrow_convolution(surgery, node)
    slice_parameters(surgery)
    freeze(surgery)
    for node in nodes:
        rule = _RULES.get(node.op) if is_op(node, node.op) else None
        if rule is not None:
            rule(surgery, node)
    index.finish()
    remove_unused(graph)
    surgery.keep_names()
    _declare_shapes(surgery)


def _write_shuffles(surgery: Surgery) -> set[int]:
    """Put one Gather in place of each shuffle that becomes narrower, what was in between goes; return the new nodes."""
    before = {id(node) for node in surgery.trace.graph.nodes}
    tensors = {id(tensor): tensor for node in surgery.trace.graph.nodes for tensor in node.outputs}
    moved = [key for key in surgery.trace.moved if key in tensors and key in surgery.narrowing.kept]
    for key in moved:
        regather(surgery, tensors[key], surgery.trace.moved[key])
    if moved:
        surgery.index.finish()
        remove_unused(surgery.trace.graph)
    for node in surgery.trace.graph.nodes:
        for tensor in node.outputs:
            if id(tensor) in surgery.narrowing.ragged:
                raise PassError(f"{described(node)}: cutting these channels leaves no rectangular '{tensor.name}'")
    return {id(node) for node in surgery.trace.graph.nodes} - before


def _is_touched(surgery: Surgery, node: gs.Node) -> bool:
    kept = surgery.narrowing.kept
    return any(id(tensor) in kept for tensor in node.inputs) or any(id(tensor) in kept for tensor in node.outputs)


def _declare_shapes(surgery: Surgery) -> None:
    """Declared shapes tell the sizes that remain."""
    for node in surgery.trace.graph.nodes:
        for tensor in node.outputs:
            kept = surgery.narrowing.of(tensor)
            shape = None if tensor.shape is None else list(tensor.shape)
            if not kept or shape is None:
                continue
            if len(shape) != len(surgery.shape(tensor)):
                tensor.shape = None
                continue
            for axis, indices in kept.items():
                shape[axis] = len(indices)
            tensor.shape = tuple(shape)
