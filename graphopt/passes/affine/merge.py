"""A chain of affine nodes with no linear node beside it, in the fewest nodes that compute it."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.graph import add_node, constant, replace_uses, set_output, variable
from graphopt.passes.affine.chains import Chain
from graphopt.passes.affine.ledger import Ledger, freed_by
from graphopt.passes.affine.maps import Vector, all_finite, compose
from graphopt.passes.affine.stock import Stock
from graphopt.passes.affine.uniform import fixed_values, one_number
from graphopt.passes.constants.regions import TENSOR_BYTES, node_bytes

# Measured; see the docstring of fold_batchnorm.
ALONE = "stands alone, where one BatchNormalization is the cheapest form there is"


TOO_LARGE = "merged with its neighbours, its constants would take more than all of theirs"


def merge(stock: Stock, chain: Chain, ledger: Ledger, growth: int) -> str | None:
    """Replace a chain by fewer nodes; None if done, else why not ('' where it is not worth a word).

    One that changes nothing goes. One that only shifts becomes an Add, one that only scales a Mul, any other along
    axis 1 a BatchNormalization, where its vectors do not make the model larger, else Mul and Add.

    Args:
        stock: of new constants.
        chain: the chain.
        ledger: of the pass.
        growth: what the file grows by when the nodes of the chain go: less than 0.
    """
    index = stock.index
    scales, shifts = chain.affine.scales, chain.affine.shifts
    nodes = chain.nodes
    source, target = chain.source, chain.target
    if not scales and not shifts and not index.is_output(target) and not chain.may_widen():
        ledger.book(growth)
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
    begins = chain.links[0].is_batchnorm and not any(link.is_batchnorm for link in chain.links[1:])
    wanted = scales and shifts and (begins or _fits_batchnorm(chain))
    if wanted and (_takes_up(stock, chain, ledger) if begins else _becomes_batchnorm(stock, chain, ledger, growth)):
        return None
    vectors = [chain.affine.scale, chain.affine.shift]
    numbers = [one_number(vector) for vector in vectors]
    alike = None not in numbers and not chain.may_widen()
    if alike:
        vectors = [np.full(1, number) for number in numbers]
    steps = [("Mul", vectors[0])] * scales + [("Add", vectors[1])] * shifts
    # BatchNormalization alone may come without a known rank; then a constant cannot be laid along its axis.
    if len(steps) >= len(nodes) or not steps or (chain.axis is not None and chain.rank is None and not alike):
        return TOO_LARGE if wanted else ALONE if chain.has_batchnorm else ""
    layout = None if chain.axis is None else chain.rank
    operands = [laid_out(vector, chain.axis, layout).astype(chain.dtype) for _, vector in steps]
    home, name = index.home(nodes[-1]), nodes[-1].name or target.name
    growth += sum(node_bytes(nodes[-1]) + TENSOR_BYTES + len(name) + values.nbytes for values in operands)
    if not ledger.affords(growth):
        return TOO_LARGE
    ledger.book(growth)
    index.drop(nodes)
    for position, (op, operand) in enumerate(zip((op for op, _ in steps), operands, strict=True)):
        values = constant(index, f"{name}_{op.lower()}", operand)
        last = position == len(steps) - 1
        output = target if last else variable(index, f"{name}_scaled", like=target)
        add_node(index, op, [source, values], [output], prefix=f"{name}_merged", home=home)
        source = output
    return None


def _becomes_batchnorm(stock: Stock, chain: Chain, ledger: Ledger, growth: int) -> bool:
    """Replace a chain by a BatchNormalization with mean 0 and variance 1, if that is small."""
    index, nodes, target = stock.index, chain.nodes, chain.target
    source, home, name = chain.source, index.home(nodes[-1]), nodes[-1].name or target.name
    count = chain.affine.channels
    vectors = [
        np.broadcast_to(vector, (count,)).astype(chain.dtype)
        for vector in (chain.affine.scale, chain.affine.shift, np.zeros(count), np.ones(count))
    ]
    growth += node_bytes(nodes[-1]) + sum(stock.size(name, vector) for vector in vectors)
    if not ledger.affords(growth):
        return False
    ledger.book(growth)
    inputs = [
        stock.constant(f"{name}_{role}", vector)
        for role, vector in zip(("scale", "bias", "mean", "var"), vectors, strict=True)
    ]
    base: dict[str, Any] = next((link.node.attrs for link in chain.links if link.is_batchnorm), {})
    index.drop(nodes)
    attrs = {**base, "epsilon": 0.0}
    add_node(index, "BatchNormalization", [source, *inputs], [target], attrs, prefix=f"{name}_merged", home=home)
    return True


def _takes_up(stock: Stock, chain: Chain, ledger: Ledger) -> bool:
    """Let the BatchNormalization that begins a chain take all others up in its scale and bias, if that is small."""
    index, node = stock.index, chain.links[0].node
    rest = compose(chain.links[1:])
    scale, bias = fixed_values(node.inputs[1]), fixed_values(node.inputs[2])
    if scale is None or bias is None:
        return False
    new_scale = (scale.astype(np.float64) * rest.scale).astype(scale.dtype)
    new_bias = (bias.astype(np.float64) * rest.scale + rest.shift).astype(bias.dtype)
    growth = stock.growth(node, ((1, new_scale), (2, new_bias))) - freed_by(chain.nodes[1:])
    if not all_finite(new_scale, new_bias) or new_scale.shape != scale.shape or not ledger.affords(growth):
        return False
    target = chain.target
    index.drop(chain.nodes[1:])
    stock.replace(node, 1, node.inputs[1].name, new_scale)
    stock.replace(node, 2, node.inputs[2].name, new_bias)
    set_output(index, node, 0, target)
    ledger.book(growth)
    return True


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
