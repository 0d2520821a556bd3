"""A chain of affine nodes with no linear node beside it, in the fewest nodes that compute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, TensorType, add_node, constant, replace_uses
from graphopt.passes.affine import Vector
from graphopt.passes.affine_chains import Chain

# Measured; see the docstring of fold_batchnorm.
ALONE = "stands alone, where one BatchNormalization is the cheapest form there is"


def merge(index: Index, chain: Chain, types: Mapping[str, TensorType]) -> str | None:
    """Replace a chain by fewer nodes; None if done, else why not ('' where it is not worth a word).

    One that changes nothing goes. One that only shifts becomes an Add, one that only scales a Mul, any other along
    axis 1 a BatchNormalization with mean 0 and variance 1, else Mul and Add.
    """
    scales, shifts = bool((chain.affine.scale != 1).any()), bool(chain.affine.shift.any())
    nodes = [link.node for link in chain.links]
    source, target = chain.source, chain.target
    if not scales and not shifts and not index.is_output(target) and not chain.may_widen(types):
        replace_uses(index, target, source)
        index.drop(nodes)
        return None
    if len(nodes) == 1:
        return ALONE if chain.has_batchnorm else ""
    if chain.dtype.name not in {"float32", "float64"}:
        return f"merging it with its neighbours would round {chain.dtype.name} in another order"
    home, name = index.home(nodes[-1]), nodes[-1].name or target.name
    if scales and shifts and _fits_batchnorm(chain, types):
        count = chain.affine.channels
        vectors = (chain.affine.scale, chain.affine.shift, np.zeros(count), np.ones(count))
        inputs = [
            constant(index, f"{name}_{role}", np.broadcast_to(vector, (count,)).astype(chain.dtype))
            for role, vector in zip(("scale", "bias", "mean", "var"), vectors, strict=True)
        ]
        base: dict[str, Any] = next((link.node.attrs for link in chain.links if link.is_batchnorm), {})
        index.drop(nodes)
        add_node(
            index,
            "BatchNormalization",
            [source, *inputs],
            [target],
            {**base, "epsilon": 0.0},
            prefix=f"{name}_merged",
            home=home,
        )
        return None
    steps = [("Mul", chain.affine.scale)] * scales + [("Add", chain.affine.shift)] * shifts
    # BatchNormalization alone may come without a known rank; then a constant cannot be laid along its axis.
    if len(steps) >= len(nodes) or not steps or (chain.axis is not None and chain.rank is None):
        return ALONE if chain.has_batchnorm else ""
    index.drop(nodes)
    for position, (op, vector) in enumerate(steps):
        values = constant(index, f"{name}_{op.lower()}", _laid_out(vector, chain).astype(chain.dtype))
        last = position == len(steps) - 1
        output = target if last else gs.Variable(index.fresh_name(f"{name}_scaled"), target.dtype, target.shape)
        add_node(index, op, [source, values], [output], prefix=f"{name}_merged", home=home)
        source = output
    return None


def _fits_batchnorm(chain: Chain, types: Mapping[str, TensorType]) -> bool:
    """BatchNormalization wants vectors along axis 1; with two axes only, Mul and Add are as fast."""
    if chain.has_batchnorm:
        return True
    return chain.axis == 1 and chain.rank is not None and chain.rank > 2 and not chain.may_widen(types)


def _laid_out(vector: Vector, chain: Chain) -> Vector:
    if vector.size == 1 or chain.axis is None or chain.rank is None:
        return vector.reshape(())
    return vector.reshape((-1,) + (1,) * (chain.rank - chain.axis - 1))
