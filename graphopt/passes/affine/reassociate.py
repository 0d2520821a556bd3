"""Two additions, or two multiplications, of constants in a row become one: ``(x + c) + d`` is ``x + (c + d)``.

Constants of any shape, and no shape of ``x`` needs to be known: broadcasting against c and then d is broadcasting
against their sum. Sub and Div count as additions and multiplications, with ``x`` on either side. Integers of any width
are exact, since both sides wrap around alike; integer Div is left alone. Floats are computed in float64; half precision
is left alone, where the order of rounding shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, constant, is_constant, set_input, sole_consumer, sole_producer, values_of
from graphopt.passes.affine.ledger import Ledger, released_by
from graphopt.passes.affine.maps import ELEMENTWISE, all_finite
from graphopt.passes.constants.regions import node_bytes

Values: TypeAlias = np.ndarray[Any, Any]
_SUMS = frozenset({"Add", "Sub"})


@dataclass(frozen=True)
class Term:
    """``x + c``, ``c - x``, ``x * c`` or ``c / x``.

    Attributes:
        slot: which input is ``x``.
        is_sum: whether it adds, else it multiplies.
        forward: whether ``x`` is taken as it is; else its negative, or its inverse.
        value: c, in float64 or in the dtype of the integers.
    """

    slot: int
    is_sum: bool
    forward: bool
    value: Values


def reassociate(index: Index, candidates: Sequence[gs.Node], ledger: Ledger) -> int:
    """Merge every pair there is, runs of any length from the front; return how many nodes went.

    Args:
        index: of the whole model.
        candidates: Add, Sub, Mul and Div of one constant, each after those that it reads.
        ledger: of the pass.
    """
    if index.graph.opset < 7:
        return 0
    gone = 0
    for node in candidates:
        if index.is_dropped(node) or node.op not in ELEMENTWISE:
            continue
        slot = 1 if is_constant(node.inputs[0]) else 0
        before = sole_producer(node.inputs[slot])
        if before is None or before.domain or before.op not in ELEMENTWISE:
            continue
        if (before.op in _SUMS) is not (node.op in _SUMS) or not _is_candidate(before):
            continue
        if sole_consumer(index, before.outputs[0]) is node and _merge(index, before, node, ledger):
            gone += 1
    return gone


def _is_candidate(node: gs.Node) -> bool:
    return len(node.inputs) == 2 and is_constant(node.inputs[0]) is not is_constant(node.inputs[1])


def _merge(index: Index, before: gs.Node, node: gs.Node, ledger: Ledger) -> bool:
    first, second = _read(before), _read(node)
    dtype = _dtype(node)
    if first is None or second is None or dtype is None or dtype != _dtype(before):
        return False
    with np.errstate(all="ignore"):  # Integers wrap around, infinities are looked for.
        if first.is_sum:
            value = first.value + second.value if second.forward else second.value - first.value
        else:
            value = first.value * second.value if second.forward else second.value / first.value
        stored = np.asarray(value).astype(dtype)
    if not _holds(stored, value, (first.value, second.value)):
        return False
    growth = stored.nbytes - released_by([before, node]) - node_bytes(before)
    if not ledger.affords(growth):
        return False
    ledger.book(growth)
    source, prefix = before.inputs[first.slot], node.inputs[1 - second.slot].name
    index.drop([before])
    forward = first.forward is second.forward
    # Only what takes the negative or the inverse of x has the constant first.
    node.op = ("Add" if forward else "Sub") if first.is_sum else ("Mul" if forward else "Div")
    pair = (source, constant(index, prefix, stored)) if forward else (constant(index, prefix, stored), source)
    for place, tensor in enumerate(pair):
        set_input(index, node, place, tensor)
    return True


def _dtype(node: gs.Node) -> np.dtype[Any] | None:
    values = values_of(node.inputs[0] if is_constant(node.inputs[0]) else node.inputs[1])
    return None if values is None else values.dtype


def _read(node: gs.Node) -> Term | None:
    slot = 1 if is_constant(node.inputs[0]) else 0
    values = values_of(node.inputs[1 - slot])
    if values is None:
        return None
    is_sum = node.op in _SUMS
    forward = node.op in {"Add", "Mul"} or slot == 0
    if values.dtype.kind in "iu":
        if node.op == "Div":
            return None
        with np.errstate(over="ignore"):
            return Term(slot, is_sum, forward, np.negative(values) if node.op == "Sub" and slot == 0 else values)
    if values.dtype.name not in {"float32", "float64"} or not all_finite(values):
        return None
    wide = values.astype(np.float64)
    if is_sum:
        return Term(slot, is_sum, forward, -wide if node.op == "Sub" and slot == 0 else wide)
    if not wide.all():
        return None
    return Term(slot, is_sum, forward, 1.0 / wide if node.op == "Div" and slot == 0 else wide)


def _holds(stored: Values, value: Values, terms: tuple[Values, Values]) -> bool:
    """Whether a float dtype holds the result: finite, and neither 0 nor denormal where a product is not."""
    if stored.dtype.kind != "f":
        return True
    if not all_finite(stored):
        return False
    small = np.abs(stored) < np.finfo(stored.dtype).tiny
    return not (small & (value != 0)).any()
