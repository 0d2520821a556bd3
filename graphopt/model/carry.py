"""Carry what the version converter drops from the original graph over to the converted one."""

from __future__ import annotations

import onnx

from graphopt.model.walk import subgraphs


def take_over(converted: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Give ``original``, in place, the nodes and constants of ``converted``; all else of it stays.

    Kept: names, documentation, inputs, outputs, value information, metadata, sparse initializers, quantization
    annotations; initializers that still exist, in their order; metadata of each node that still has its output. The
    same holds for the subgraphs inside.
    """
    pending = [(converted, original)]
    while pending:
        new, old = pending.pop()
        former = onnx.GraphProto(node=old.node)
        produced = {output: node for node in former.node for output in node.output if output}
        del old.node[:]
        old.node.MergeFrom(new.node)
        for node in old.node:
            before = next((produced[output] for output in node.output if output in produced), None)
            if before is None:
                continue
            node.metadata_props.MergeFrom(before.metadata_props)
            if node.op_type != before.op_type:
                continue
            inner = dict(subgraphs(before))
            for attribute, graph in subgraphs(node):
                if attribute in inner:
                    new_graph = onnx.GraphProto()
                    new_graph.CopyFrom(graph)
                    graph.CopyFrom(inner[attribute])
                    pending.append((new_graph, graph))
        _take_initializers(new, old)


def _take_initializers(new: onnx.GraphProto, old: onnx.GraphProto) -> None:
    remaining = {tensor.name: tensor for tensor in new.initializer}
    merged = onnx.GraphProto()
    for tensor in old.initializer:
        if tensor.name in remaining:
            del remaining[tensor.name]
            merged.initializer.add().CopyFrom(tensor)
    for tensor in remaining.values():
        merged.initializer.add().CopyFrom(tensor)
    del old.initializer[:]
    old.initializer.MergeFrom(merged.initializer)
