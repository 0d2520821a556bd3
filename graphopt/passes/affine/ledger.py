"""What an edit does to the size of the model: constants made, less those that nothing reads any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_graphsurgeon as gs

from graphopt.graph import size_of, values_of
from graphopt.passes.affine.uniform import generator_of
from graphopt.passes.constants.regions import TENSOR_BYTES, node_bytes

# What a node takes in the file beside its constants, names included; seldom less.
NODE_BYTES = 128


class Ledger:
    """Keeps the model from growing by copies of weights that several nodes share.

    Attributes:
        growth: bytes gained so far; negative where they were saved.
    """

    def __init__(self, spare: Callable[[], int] = lambda: 0) -> None:
        """``spare`` tells by how much the file has shrunk since it was opened; asked once, if anything is too large."""
        self.growth = 0
        self._spare = spare
        self._limit: int | None = None

    @property
    def credit(self) -> int:
        """Bytes by which the file may still grow, for what was saved before the pass began."""
        if self._limit is None:
            self._limit = self.growth + max(0, self._spare())
        return max(0, self._limit - self.growth)

    def affords(self, growth: int, nodes: int = 0) -> bool:
        """Whether the file may grow by so much when so many nodes go: what was saved before counts."""
        return growth <= 0 or self.growth + growth <= NODE_BYTES * nodes or growth <= self.credit

    def book(self, growth: int) -> None:
        """Note an edit made."""
        self.growth += growth


def freed_by(nodes: Sequence[gs.Node]) -> int:
    """About what the file loses with these nodes: themselves, and what only they read."""
    return released_by(nodes, names=True) + sum(map(node_bytes, nodes))


def released_by(nodes: Sequence[gs.Node], *, names: bool = False) -> int:
    """Bytes of the constants that only these nodes read, each once; with what their names take, or without."""
    gone = {id(node) for node in nodes}
    seen: set[int] = set()
    total = 0
    for node in nodes:
        for tensor in node.inputs:
            readers = tensor.outputs
            if len(readers) > 1:
                # One node may read a constant several times, seldom more than these nodes have inputs.
                if id(tensor) in seen or len(readers) > 4 * len(nodes) or any(id(one) not in gone for one in readers):
                    continue
                seen.add(id(tensor))
            size = _bytes_of(tensor)
            total += size + (TENSOR_BYTES + len(tensor.name) if size and names else 0)
    return total


def released(tensor: gs.Tensor) -> int:
    """What the file loses with a constant that one node reads once, and what generates it; 0 if others read it."""
    if len(tensor.outputs) != 1:
        return 0
    size = _bytes_of(tensor)
    return size + TENSOR_BYTES + len(tensor.name) if size else 0


def _bytes_of(tensor: gs.Tensor) -> int:
    if type(tensor) is gs.Constant:
        return size_of(tensor)
    if len(tensor.inputs) != 1:
        return 0
    if tensor.inputs[0].op == "Constant":
        values = values_of(tensor)
        return 0 if values is None else values.nbytes
    node = generator_of(tensor)
    return 0 if node is None else node_bytes(node) + released(node.inputs[0])
