"""Put the nodes of a subgraph in the place of the node that holds it.

A name needs to be unique only within its graph, and a constant is declared in the graph that it came with. So what
moves outwards is given a new name where another tensor has its own, and constants become new ones of the outermost
graph, which every graph sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, replace_uses, set_output, walk
from graphopt.graph.making import new_constant
from graphopt.passes.no_ops.knowledge import ambiguous_names


class Splicer:
    """Edits a graph and its subgraphs; call ``index.finish`` at the end.

    Attributes:
        index: what the edits go through.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._ambiguous = ambiguous_names(index.graphs)
        self._node_names = Counter(node.name for graph in index.graphs for node in graph.nodes)

    def is_hidden(self, tensor: gs.Tensor, readers: Sequence[gs.Node], home: gs.Graph) -> bool:
        """Whether readers outside ``home`` might see another tensor of the same name."""
        return tensor.name in self._ambiguous and any(self.index.home(reader) is not home for reader in readers)

    def splice(self, node: gs.Node, body: gs.Graph, home: gs.Graph, outputs: Sequence[gs.Tensor | None]) -> None:
        """Replace ``node`` by the nodes of ``body``, one of its attributes whose inputs nothing reads any more.

        Args:
            node: stands in ``home``; all other subgraphs of it go.
            body: emptied.
            home: the graph that takes the nodes in.
            outputs: for each output of the body what takes over from it, a tensor of ``home`` that ``node`` wrote or
                that nothing writes; None where it is not asked for.
        """
        self._own_constants(body)
        results = list(body.outputs)
        for name in [name for name, value in node.attrs.items() if value is body]:
            del node.attrs[name]
        self.index.drop([node])
        self.index.touch(home)
        moved = {id(inner) for inner in body.nodes}
        for inner in body.nodes:
            self._rename(inner)
            self.index.add(inner, home)
        body.nodes = []
        body.outputs = []
        taken: set[int] = set()
        for position, (result, target) in enumerate(zip(results, outputs, strict=True)):
            if target is None or target.is_empty():
                continue
            # What has taken over from a result already is the node's own no more: it is handed on from there.
            produced = len(result.inputs) == 1 and id(result.inputs[0]) in moved and id(result) not in taken
            if produced and not self.is_hidden(target, _nested(result, moved), home):
                producer = result.inputs[0]
                slot = next(slot for slot, tensor in enumerate(producer.outputs) if tensor is result)
                replace_uses(self.index, result, target)
                set_output(self.index, producer, slot, target)
                taken.add(id(target))
                results[position:] = [target if later is result else later for later in results[position:]]
            else:
                self.hand_on(result, target, home)

    def hand_on(self, source: gs.Tensor, target: gs.Tensor, home: gs.Graph) -> None:
        """Let the readers of ``target``, which nothing writes any more, read ``source``."""
        if self.index.is_output(target) or self.is_hidden(source, target.outputs, home):
            add_node(self.index, "Identity", [source], [target], prefix=f"{target.name}_is", home=home)
        else:
            replace_uses(self.index, target, source)

    def _rename(self, node: gs.Node) -> None:
        if self._node_names[node.name] > 1:
            self._node_names[node.name] -= 1
            node.name = self.index.fresh_name(node.name) if node.name else ""
        for tensor in node.outputs:
            if tensor.name in self._ambiguous and tensor.name:
                tensor.name = self.index.fresh_name(tensor.name)

    def _own_constants(self, body: gs.Graph) -> None:
        """Give the body's constants new ones of the outermost graph in their place.

        Which graph declares a constant is not to be seen here; one that is read elsewhere cannot be the body's.
        """
        bodies = list(walk(body))
        inside = {id(node) for each in bodies for node in each.nodes}
        found: dict[int, gs.Constant] = {}
        for each in bodies:
            read = [tensor for node in each.nodes for tensor in node.inputs] + list(each.outputs)
            found.update((id(tensor), tensor) for tensor in read if isinstance(tensor, gs.Constant))
        for tensor in found.values():
            if any(id(reader) not in inside for reader in tensor.outputs):
                continue
            name = self.index.fresh_name(tensor.name) if tensor.name in self._ambiguous else tensor.name
            own = new_constant(name, tensor._values)
            own._export_dtype = tensor._export_dtype
            replace_uses(self.index, tensor, own)
            for each in bodies:
                if any(output is tensor for output in each.outputs):
                    each.outputs = [own if output is tensor else output for output in each.outputs]


def _nested(tensor: gs.Tensor, moved: set[int]) -> list[gs.Node]:
    """The readers of a tensor in subgraphs of the nodes moved."""
    return [reader for reader in tensor.outputs if id(reader) not in moved]
