"""Takes residual blocks out of a graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from graphopt.graph import Index, add_node, drop_node, export_graph, import_graph, remove_unused, replace_uses
from graphopt.passes.blocks.find import Block


def without_blocks(model: onnx.ModelProto, blocks: Iterable[Block]) -> onnx.ModelProto:
    """The model in which the branches of blocks are zero, with nothing computed for them.

    Tensors that are left keep their names.
    """
    work = import_graph(model)
    index = Index(work.gs)
    wanted = {block.output: block for block in blocks}
    closing = [
        (node, wanted[node.outputs[0].name])
        for node in work.gs.nodes
        if node.outputs and node.outputs[0].name in wanted
    ]
    for add, block in closing:
        stream, output = add.inputs[block.slot], add.outputs[0]
        drop_node(index, add)
        replace_uses(index, output, stream)
        if index.is_output(output):
            add_node(index, "Identity", [stream], [output], prefix=f"{block.name}_stream")
    index.finish()
    remove_unused(work.gs)
    return export_graph(work)
