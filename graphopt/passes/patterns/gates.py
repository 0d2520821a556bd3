"""Activations of the form ``x * gate(x)``, and gates by themselves, found by what they compute, however written.

A match starts at the *core*, the one operator that is not arithmetic (Clip, HardSigmoid, Erf, Tanh, Sigmoid, Exp), and
goes forward through nodes that are the only reader of the one before: arithmetic with scalars, the product with ``x``,
arithmetic again. Backward from the core, its argument must be a polynomial of that same ``x``. So all associations,
orders of operands and spellings of constants come out alike. ``activation_forms`` knows the names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    add_node,
    constant,
    is_op,
    onnx_dtype,
    sole_consumer,
    sole_producer,
    variable,
)
from graphopt.passes.patterns.clamps import read_clamp
from graphopt.passes.patterns.forms import Core, Form, Limits, alone, gated
from graphopt.passes.patterns.idle import drop_with_idle
from graphopt.passes.patterns.scalar_terms import FLOATS, Term, Terms

CORES = frozenset({"Clip", "HardSigmoid", "Erf", "Tanh", "Sigmoid", "Exp"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Reciprocal"})
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
_LONGEST = 8
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class _Walk:
    """A core and the nodes after it: ``scale * core + shift``, times ``other`` where that is given."""

    kind: str
    path: tuple[gs.Node, ...]
    scale: float = 1.0
    shift: float = 0.0
    rank: int = 0
    dtype: np.dtype[Any] | None = None
    other: gs.Tensor | None = None
    open: bool = False  # exp: not yet inverted


@dataclass(frozen=True)
class Match:
    """Nodes that together compute a form of ``source``, into the output of the last."""

    form: Form
    source: gs.Tensor
    path: tuple[gs.Node, ...]
    dtype: np.dtype[Any]


def worth_a_look(node: gs.Node) -> bool:
    """Whether the node could be the core of an activation, judged by the operators beside it; cheap."""
    if not node.outputs or len(node.outputs[0].outputs) > 1 or not node.inputs:
        return False
    after = node.outputs[0].outputs
    if after and after[0].op in _ARITHMETIC:
        return True
    before = node.inputs[0].inputs
    return node.op in {"Clip", "HardSigmoid"} and bool(before) and before[0].op in _ARITHMETIC


def find_gates(index: Index, terms: Terms, nodes: Iterable[gs.Node], limits: Limits) -> list[Match]:
    """The activations around the cores among ``nodes``; no node is in two of them."""
    found: list[Match] = []
    taken: set[int] = set()
    for node in nodes:
        match = _best(index, terms, node, limits)
        if match is not None and not any(id(member) in taken for member in match.path):
            taken.update(id(member) for member in match.path)
            found.append(match)
    return found


def write_gates(index: Index, matches: Iterable[Match]) -> Counter[str]:
    """Let new nodes write what the matches compute; drop what nothing reads any more."""
    counts: Counter[str] = Counter()
    dead: list[gs.Node] = []
    for match in matches:
        _write(index, match)
        dead += match.path
        counts[match.form.name] += 1
    drop_with_idle(index, dead)
    return counts


def _best(index: Index, terms: Terms, node: gs.Node, limits: Limits) -> Match | None:
    """The match that leaves the fewest nodes; of equals the shorter."""
    best: Match | None = None
    saved = 0
    for walk in _walks(index, terms, node):
        found = (
            _as_gated(index, terms, walk, limits) if walk.other is not None else _as_alone(index, terms, walk, limits)
        )
        if found is not None and found[1] > saved:
            best, saved = found
    return best


def _walks(index: Index, terms: Terms, core: gs.Node) -> Iterator[_Walk]:
    """The core, then it with one, two, ... of the nodes after it, as long as what they compute is understood."""
    kind = {"Clip": "clip", "HardSigmoid": "clip"}.get(core.op, core.op.lower())
    if not is_op(core, *CORES) or len(core.outputs) != 1:
        return
    current: _Walk | None = _Walk(kind, (core,), open=kind == "exp")
    while current is not None and len(current.path) <= _LONGEST:
        yield current
        tensor = current.path[-1].outputs[0]
        reader = sole_consumer(index, tensor)
        current = None if reader is None else _extended(terms, current, tensor, reader)


def _extended(terms: Terms, walk: _Walk, tensor: gs.Tensor, reader: gs.Node) -> _Walk | None:
    path = (*walk.path, reader)
    step = terms.step(reader)
    if step is not None and step.source is tensor:
        if walk.other is not None and step.shift != 0:
            return None
        rank, dtype = (0, None) if step.scalar is None else (step.scalar.rank, step.scalar.dtype)
        if walk.dtype is not None and dtype is not None and dtype != walk.dtype:
            return None
        return replace(
            walk,
            path=path,
            scale=walk.scale * step.scale,
            shift=walk.shift * step.scale + step.shift,
            rank=max(walk.rank, rank),
            dtype=walk.dtype or dtype,
        )
    if walk.open:
        return _inverted(terms, walk, tensor, reader, path)
    if walk.other is None and is_op(reader, "Mul") and len(reader.inputs) == 2:
        other = reader.inputs[1] if reader.inputs[0] is tensor else reader.inputs[0]
        return None if isinstance(other, gs.Constant) else replace(walk, path=path, other=other)
    return None


def _inverted(terms: Terms, walk: _Walk, tensor: gs.Tensor, reader: gs.Node, path: tuple[gs.Node, ...]) -> _Walk | None:
    """``n / (c + c * exp(-t))`` is ``n/c * sigmoid(t)``."""
    if walk.scale <= 0 or abs(walk.scale - walk.shift) > 1e-6 * walk.scale:
        return None
    if is_op(reader, "Reciprocal"):
        return replace(walk, path=path, scale=1 / walk.scale, shift=0.0, open=False)
    if not is_op(reader, "Div") or reader.inputs[1] is not tensor:
        return None
    above = reader.inputs[0]
    scalar = terms.scalar(above)
    if scalar is not None:
        return replace(
            walk, path=path, scale=scalar.value / walk.scale, shift=0.0, rank=max(walk.rank, scalar.rank), open=False
        )
    if isinstance(above, gs.Constant):
        return None
    return replace(walk, path=path, scale=1 / walk.scale, shift=0.0, open=False, other=above)


def _as_gated(index: Index, terms: Terms, walk: _Walk, limits: Limits) -> tuple[Match, int] | None:
    """A match of ``x * gate(x)`` with the number of nodes it saves at least."""
    assert walk.other is not None
    for source, factor in terms.ancestors(walk.other, scaled_only=True):
        core = _core(terms, walk, source)
        if core is None:
            continue
        form = gated(core, walk.scale * factor[1], walk.shift * factor[1], limits)
        rank = max(walk.rank, factor.rank, core.argument.rank)
        if form is not None and terms.has_rank(source, rank):
            before = _behind(index, terms, walk.path[0].inputs[0], source)
            return Match(form, source, walk.path, core.dtype), len(walk.path) + before - form.nodes
    return None


def _behind(index: Index, terms: Terms, tensor: gs.Tensor, source: gs.Tensor) -> int:
    """How many nodes between ``source`` and ``tensor`` go when the one reader of ``tensor`` does."""
    count = 0
    while tensor is not source:
        node = sole_producer(tensor)
        step = None if node is None else terms.step(node)
        if step is None or sole_consumer(index, tensor) is None:
            break
        count, tensor = count + 1, step.source
    return count


def _as_alone(index: Index, terms: Terms, walk: _Walk, limits: Limits) -> tuple[Match, int] | None:
    """A match of a gate by itself, reaching back as far as nothing else reads what is on the way."""
    first = walk.path[0]
    if walk.open or first.op not in {"Clip", "Exp", "HardSigmoid"}:
        return None
    best: tuple[Match, int] | None = None
    for back, (source, _) in enumerate(terms.ancestors(first.inputs[0])):
        if _behind(index, terms, first.inputs[0], source) < back:
            break
        core = _core(terms, walk, source)
        form = None if core is None else alone(core, walk.scale, walk.shift, limits)
        saved = len(walk.path) + back - 1
        if core is None or form is None or saved < 1 or not terms.has_rank(source, max(walk.rank, core.argument.rank)):
            continue
        producer = sole_producer(source)
        if len(walk.path) == 1 and producer is not None and producer.op in _LINEAR and first.op == "Clip":
            continue  # The arithmetic goes into that node's weights.
        best = Match(form, source, walk.path, core.dtype), saved
    return best


def _core(terms: Terms, walk: _Walk, source: gs.Tensor) -> Core | None:
    """What the core is of ``source``; None where it is something else's."""
    node = walk.path[0]
    dtype = walk.dtype or _FLOAT32
    if walk.kind == "tanh":
        inner = sole_producer(node.inputs[0])
        if inner is not None and is_op(inner, "Softplus"):
            # ONNX Runtime expands Mish of other dtypes into exp and log, which overflow.
            fits = inner.inputs[0] is source and terms.dtype(source) == onnx.TensorProto.FLOAT
            return Core("softplus", Term((0.0, 1.0)), dtype) if fits else None
    argument = terms.polynomial(node.inputs[0], source)
    if argument is None or argument.constant:
        return None
    if walk.kind == "exp":
        minus = tuple(-value if value else 0.0 for value in argument.coefficients)
        return Core("exp", replace(argument, coefficients=minus), dtype)
    if node.op == "HardSigmoid":
        alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
        line = tuple(alpha * value + (0.0 if power else beta) for power, value in enumerate(argument.coefficients))
        return Core("clip", replace(argument, coefficients=line), dtype)
    if node.op != "Clip":
        return Core(walk.kind, argument, dtype)
    clamp = read_clamp(terms, node, terms.graph.opset)
    if clamp is None:
        return None
    known = clamp.dtype or walk.dtype
    if known is None:
        code = terms.dtype(source)
        known = next((each for each in FLOATS if onnx_dtype(each) == code), None)
    return None if known is None else Core("clip", argument, known, clamp.low, clamp.high)


def _write(index: Index, match: Match) -> None:
    """Add the nodes of a form, the last of which writes what the match writes."""
    form, last = match.form, match.path[-1]
    target, home = last.outputs[0], index.home(last)
    name = last.name or target.name
    steps: list[tuple[str, dict[str, Any], gs.Tensor | None]] = [(form.op, dict(form.attrs), None)]
    if form.product:
        steps.append(("Mul", {}, match.source))
    if form.factor != 1.0:
        steps.append(("Mul", {}, constant(index, f"{name}_factor", np.asarray(form.factor, match.dtype))))
    current = match.source
    for position, (op, attrs, second) in enumerate(steps):
        result = target if position == len(steps) - 1 else variable(index, f"{name}_{op.lower()}")
        inputs = [current] if second is None else [current, second]
        add_node(index, op, inputs, [result], attrs, prefix=f"{name}_{op.lower()}", home=home)
        current = result
