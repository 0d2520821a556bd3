"""Elements of small integer tensors, as sizes; a view of ``shape_arithmetic`` for ``simplify_reshapes``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.movement.reshape_sizes import KnownSizes, Size, Sizes, product
from graphopt.passes.sizes.arithmetic import ShapeArithmetic
from graphopt.passes.sizes.rules import RULES
from graphopt.passes.sizes.symbolic import Open


@dataclass(frozen=True)
class Elements:
    """A small tensor of integers.

    Attributes:
        shape: of the tensor.
        items: its elements in order.
        dtype: numpy's name of its element type.
    """

    shape: tuple[int, ...]
    items: Sizes
    dtype: str

    @property
    def known(self) -> bool:
        """Whether every element is a number."""
        return not any(names for _, names in self.items)


@dataclass
class SmallValues:
    """What is known of the small integer tensors of a graph."""

    sizes: KnownSizes
    state: ShapeArithmetic

    def of(self, tensor: gs.Tensor) -> Elements | None:
        """What is known of the elements of a tensor."""
        found = self.state.of(tensor)
        if found is None or found.dtype.kind != "i":
            return None
        items = []
        for item in found.items:
            if isinstance(item, Open):
                items.append(self._size(item))
            elif isinstance(item, (int, np.integer)):
                items.append((int(item), ()))
            else:
                return None
        return Elements(found.shape, tuple(items), found.dtype.str)

    def _size(self, item: Open) -> Size:
        """A single product, or a symbol for the whole formula."""
        if len(item.terms) == 1 and item.terms[0][1] > 0:
            names, count = item.terms[0]
            return product([(count, ()), *(self.sizes.named(name) for name in names)])
        return (1, (str(item),))


def small_values(sizes: KnownSizes, graphs: Iterable[gs.Graph]) -> SmallValues:
    """Follow the small tensors of a graph; each node must stand after its producers."""
    state = ShapeArithmetic(sizes.opset, sizes.types, RULES)
    for home in graphs:
        for node in home.nodes:
            state.visit(node)
    return SmallValues(sizes, state)
