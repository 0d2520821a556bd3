"""Names that nothing in a model has yet."""

from __future__ import annotations

import onnx

from graphopt.model.fresh import fresh
from graphopt.model.walk import bodies


class Names:
    """Names that nothing in a model has: of tensors and of nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors: set[str] = set()
        self._nodes: set[str] = set()
        for body in bodies(model):
            self._nodes.update(node.name for node in body.proto.node)
            self._tensors.update(name for node in body.proto.node for name in node.output)
            if isinstance(body.proto, onnx.GraphProto):
                self._tensors.update(value.name for value in (*body.proto.input, *body.proto.value_info))
                self._tensors.update(tensor.name for tensor in body.proto.initializer)
                self._tensors.update(tensor.values.name for tensor in body.proto.sparse_initializer)
            else:
                self._tensors.update(body.proto.input)

    def tensor(self, prefix: str) -> str:
        """Return a name for a tensor, and take it."""
        return fresh(self._tensors, prefix, first=1)

    def node(self, prefix: str) -> str:
        """Return a name for a node, and take it."""
        return fresh(self._nodes, prefix, first=1)
