"""Affine maps taken up further away: through nodes that only move values, or that add and multiply them.

``A(f(x))`` becomes ``f(A'(x))``, from node to node upwards, until nodes with constant parameters take the map up:

| node | map | goes on to |
|---|---|---|
| Conv, ConvTranspose, Gemm, MatMul with constant weights | any, along the outputs | taken up |
| normalization with constant scale and bias | any, along their axis | taken up |
| Add and Sub, Mul and Div by a constant | shift, scale | taken up |
| Transpose, Identity, pooling by average | any | its input |
| pooling by maximum / Relu, LeakyRelu | scale above 0 / and no shift | its input |
| Reshape, Flatten, Squeeze, Unsqueeze | a number; a vector that still runs along one axis | its input |
| Slice, DepthToSpace | a number | its input |
| Split, Gather of one place | what leaves the other parts as they are | its input |
| Concat | any | all its inputs, piece by piece |
| Add, Sub of two | shift | one of the two |
| Mul, MatMul of two; Div | a number, without shift | one of the two; the dividend |

Every tensor on the way must have no other reader. All or nothing: no node is added, so that each map taken up is a
node less. A tensor whose value changes gets a new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.passes.affine.absorb_arithmetic import ARITHMETIC
from graphopt.passes.affine.absorb_moves import MOVES
from graphopt.passes.affine.absorb_search import Demand, Edit, Search, Step
from graphopt.passes.affine.ledger import Ledger
from graphopt.passes.affine.maps import Affine
from graphopt.passes.affine.ranks import Knowledge
from graphopt.passes.affine.stock import Stock

_STEPS: Mapping[str, Step] = {**MOVES, **ARITHMETIC}


@dataclass(frozen=True)
class Absorbed:
    """How a map can be taken up.

    Attributes:
        edit: does it; is told which tensor the mapped value is to be written to.
        changed: ``id`` of the nodes that it may change.
        growth: bytes gained in all.
    """

    edit: Edit
    changed: frozenset[int]
    growth: int


def absorb(
    stock: Stock,
    known: Knowledge,
    source: gs.Tensor,
    affine: Affine,
    axis: int | None,
    *,
    ledger: Ledger,
    growth: int,
    may_add: bool,
) -> Absorbed | None:
    """Look for nodes that take a map of ``source``, which only the caller reads, up; None where there are none.

    Args:
        stock: of new constants.
        known: for ranks and shapes.
        source: what is mapped.
        affine: the map.
        axis: the axis that it runs along; None where all elements are treated alike.
        ledger: of the pass.
        growth: what the file grows by when the nodes of the map go: less than 0.
        may_add: whether a MatMul that cannot hold a bias may get an Add behind it.
    """
    search = Search(stock, known, -growth, _STEPS, may_add=may_add)
    edit = search.edit(source, Demand(affine, axis))
    if edit is None and search.short and ledger.credit > 0:
        search = Search(stock, known, ledger.credit - growth, _STEPS, may_add=may_add)
        edit = search.edit(source, Demand(affine, axis))
    if edit is None:
        return None
    return Absorbed(edit, frozenset(id(node) for node in search.met), search.spent + growth)
