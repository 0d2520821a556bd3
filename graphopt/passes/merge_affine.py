"""A chain of affine nodes with no linear node beside it, in the fewest nodes that compute it."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.graph import Index, add_node, constant, replace_uses, variable
from graphopt.passes.affine import Vector, all_finite
from graphopt.passes.affine_chains import Chain

# Measured; see the docstring of fold_batchnorm.
ALONE = "stands alone, where one BatchNormalization is the cheapest form there is"


def merge(index: Index, chain: Chain) -> str | None:
    """Replace a chain by fewer nodes; None if done, else why not ('' where it is not worth a word).

    One that changes nothing goes. One that only shifts becomes an Add, one that only scales a Mul, any other along
    axis 1 a BatchNormalization with mean 0 and variance 1, else Mul and Add.
    """
    scales, shifts = chain.affine.scales, chain.affine.shifts
    nodes = chain.nodes
    source, target = chain.source, chain.target
    if not scales and not shifts and not index.is_output(target) and not chain.may_widen():
        replace_uses(index, target, source)
        index.drop(nodes)
        return None
    if len(nodes) == 1:
        return ALONE if chain.has_batchnorm else ""
    if chain.dtype.name not in {"float32", "float64"}:
        return f"merging it with its neighbours would round {chain.dtype.name} in another order"
    with np.errstate(over="ignore"):  # The infinities are looked for.
        fits = all_finite(chain.affine.scale.astype(chain.dtype), chain.affine.shift.astype(chain.dtype))
    if not fits:
        return f"merged with its neighbours, its factors do not fit {chain.dtype.name}"
    home, name = index.home(nodes[-1]), nodes[-1].name or target.name
    if scales and shifts and _fits_batchnorm(chain):
        count = chain.affine.channels
        vectors = (chain.affine.scale, chain.affine.shift, np.zeros(count), np.ones(count))
        inputs = [
            constant(index, f"{name}_{role}", np.broadcast_to(vector, (count,)).astype(chain.dtype))
            for role, vector in zip(("scale", "bias", "mean", "var"), vectors, strict=True)
        ]
        base: dict[str, Any] = next((link.node.attrs for link in chain.links if link.is_batchnorm), {})
        index.drop(nodes)
        attrs = {**base, "epsilon": 0.0}
        add_node(index, "BatchNormalization", [source, *inputs], [target], attrs, prefix=f"{name}_merged", home=home)
        return None
    steps = [("Mul", chain.affine.scale)] * scales + [("Add", chain.affine.shift)] * shifts
    # BatchNormalization alone may come without a known rank; then a constant cannot be laid along its axis.
    if len(steps) >= len(nodes) or not steps or (chain.axis is not None and chain.rank is None):
        return ALONE if chain.has_batchnorm else ""
    layout = None if chain.axis is None else chain.rank
    index.drop(nodes)
    for position, (op, vector) in enumerate(steps):
        values = constant(index, f"{name}_{op.lower()}", laid_out(vector, chain.axis, layout).astype(chain.dtype))
        last = position == len(steps) - 1
        output = target if last else variable(index, f"{name}_scaled", like=target)
        add_node(index, op, [source, values], [output], prefix=f"{name}_merged", home=home)
        source = output
    return None


def _fits_batchnorm(chain: Chain) -> bool:
    """BatchNormalization wants vectors along axis 1; with two axes only, Mul and Add are as fast."""
    if chain.has_batchnorm:
        return True
    return chain.axis == 1 and chain.rank is not None and chain.rank > 2 and not chain.may_widen()


def laid_out(vector: Vector, axis: int | None, rank: int | None) -> Vector:
    """A vector in the shape that broadcasts along its axis."""
    if vector.size == 1 or axis is None or rank is None:
        return vector.reshape(())
    return vector.reshape((-1,) + (1,) * (rank - axis - 1))
