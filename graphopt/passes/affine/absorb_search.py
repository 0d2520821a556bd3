"""The search upwards for nodes that take an affine map up; see ``absorb``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_graphsurgeon as gs

from graphopt.graph import set_input, set_output, sole_consumer, sole_producer, variable
from graphopt.passes.affine.maps import Affine
from graphopt.passes.affine.parameters import Site, absorb_in_linear, absorb_in_normalization
from graphopt.passes.affine.ranks import Knowledge
from graphopt.passes.affine.stock import Stock

# A call lets the node that was looked at write the mapped value into a tensor.
Edit: TypeAlias = Callable[[gs.Tensor], None]
# Given the search, a node, which of its outputs is wanted mapped, and the map.
Step: TypeAlias = "Callable[[Search, gs.Node, gs.Tensor, Demand], Edit | None]"
# Nodes looked at for one map; enough for what exporters write, and it keeps the cost linear.
_REACH = 24


@dataclass(frozen=True)
class Demand:
    """A map wanted of a tensor, along one of its axes (None: all elements alike)."""

    affine: Affine
    axis: int | None

    @property
    def is_number(self) -> bool:
        """Whether every element is treated alike."""
        return self.axis is None or self.affine.channels == 1


class Search(Site):
    """Looks for nodes that take a map up; counts the nodes it looked at.

    Attributes:
        steps: by operator, how a map goes on to the inputs of a node.
        left: how many more nodes it may look at.
        met: the nodes it would change.
    """

    def __init__(self, stock: Stock, known: Knowledge, spare: int, steps: Mapping[str, Step], *, may_add: bool) -> None:
        super().__init__(stock, known, spare, may_add)
        self.steps = steps
        self.left = _REACH
        self.met: list[gs.Node] = []

    def edit(self, tensor: gs.Tensor, demand: Demand) -> Edit | None:
        """How to make ``tensor``, which only the caller reads, come out mapped; None where it cannot."""
        node = sole_producer(tensor)
        self.left -= 1
        if node is None or node.domain or self.left < 0 or sole_consumer(self.index, tensor) is None:
            return None
        spent = self.spent
        self.met.append(node)
        found = self._edit(node, tensor, demand)
        if found is None:
            self.spent = spent
        return found

    def _edit(self, node: gs.Node, tensor: gs.Tensor, demand: Demand) -> Edit | None:
        # Split tells its outputs apart; of other nodes, nobody may read a second one.
        if node.op != "Split" and any(output is not tensor and output.outputs for output in node.outputs):
            return None
        for leaf in (absorb_in_linear, absorb_in_normalization):
            found = leaf(self, node, demand.affine, demand.axis)
            if found is not None:
                return found
        step = self.steps.get(node.op)
        return None if step is None else step(self, node, tensor, demand)

    def through(self, node: gs.Node, slot: int, demand: Demand) -> Edit | None:
        """Map one input of a node, so that its output comes out mapped."""
        source = node.inputs[slot]
        before = self.edit(source, demand)
        if before is None:
            return None

        def apply(target: gs.Tensor) -> None:
            mapped = variable(self.index, f"{source.name}_mapped", like=source)
            before(mapped)
            set_input(self.index, node, slot, mapped)
            set_output(self.index, node, 0, target)

        return apply

    def spread(self, source: gs.Tensor, readers: list[gs.Node], demand: Demand, node: gs.Node) -> Edit | None:
        """Map a tensor that several nodes read, of which all but ``node`` see parts that stay as they are."""
        producer = sole_producer(source)
        self.left -= 1
        if producer is None or producer.domain or self.left < 0 or producer.op == "Split":
            return None
        spent = self.spent
        self.met.append(producer)
        before = self._edit(producer, source, demand)
        if before is None:
            self.spent = spent
            return None

        def apply(target: gs.Tensor) -> None:
            mapped = variable(self.index, f"{source.name}_mapped", like=source)
            before(mapped)
            for reader in readers:
                set_input(self.index, reader, 0, mapped)
            set_output(self.index, node, 0, target)

        return apply
