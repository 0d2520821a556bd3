"""Nodes and weights that no output of the model depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from graphopt.checking.catalog import UNUSED_NODES, UNUSED_WEIGHTS
from graphopt.model.order import used_names
from graphopt.model.tensors import byte_count
from graphopt.model.walk import bodies
from graphopt.rules import Finding

_NAMED = 3


def unused(model: onnx.ModelProto) -> Iterator[Finding]:
    """Yield one finding for the nodes and one for the weights of each graph that serve nothing.

    Nodes are in topological order (``graphopt.model.read`` sees to that). A node without outputs is taken to serve.
    Weights that only unused nodes read go with these nodes and are not named again.
    """
    for body in bodies(model):
        graph = body.proto
        if not isinstance(graph, onnx.GraphProto):
            continue
        inside = f" in {body.where}" if body.depth else ""
        needed = {info.name for info in graph.output}
        read = set(needed)
        dead = []
        for node in reversed(graph.node):
            names = used_names(node)
            read |= names
            written = [name for name in node.output if name]
            if not written or not needed.isdisjoint(written):
                needed |= names
            else:
                dead.append(node.name or written[0])
        if dead:
            dead.reverse()
            one = "1 node leads" if len(dead) == 1 else f"{len(dead)} nodes lead"
            yield UNUSED_NODES.finding(dead[0], f"{one} to no output{inside}: {shortened(dead)}")
        idle = [tensor for tensor in graph.initializer if tensor.name not in read]
        if idle:
            size = sum(byte_count(tensor) for tensor in idle)
            unread = [tensor.name for tensor in idle]
            one = "1 weight is" if len(idle) == 1 else f"{len(idle)} weights are"
            yield UNUSED_WEIGHTS.finding(
                unread[0], f"{one} read by no node{inside}, {size:,} bytes: {shortened(unread)}"
            )


def shortened(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
