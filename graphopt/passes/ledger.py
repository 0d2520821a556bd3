"""What an edit does to the size of the model: constants made, less those that nothing reads any more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.graph import size_of, values_of

# What a node takes in the file beside its constants, names included; seldom less.
NODE_BYTES = 128


class Ledger:
    """Keeps the model from growing by copies of weights that several nodes share.

    Attributes:
        growth: bytes of constants gained so far; negative where they were saved.
    """

    def __init__(self) -> None:
        self.growth = 0

    def affords(self, growth: int, nodes: int) -> bool:
        """Whether constants may grow by so much when so many nodes go: what was saved before counts."""
        return growth <= 0 or self.growth + growth <= NODE_BYTES * nodes

    def book(self, growth: int) -> None:
        """Note an edit made."""
        self.growth += growth


def growth_of(node: gs.Node, replaced: Iterable[tuple[int, npt.NDArray[object] | None]]) -> int:
    """Bytes gained when inputs of a node become new constants (None: that input stays)."""
    total = 0
    for slot, values in replaced:
        if values is not None:
            total += values.nbytes
            if slot < len(node.inputs):
                total -= _released(node.inputs[slot])
    return total


def released_by(nodes: Sequence[gs.Node]) -> int:
    """Bytes of the constants that only these nodes read, each once."""
    return sum(_released(tensor) for node in nodes for tensor in node.inputs)


def _released(tensor: gs.Tensor) -> int:
    if len(tensor.outputs) != 1:
        return 0
    if isinstance(tensor, gs.Constant):
        return size_of(tensor)
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant":
        values = values_of(tensor)
        return 0 if values is None else values.nbytes
    return 0
