"""Relu, Clip, and Min and Max by constants: runs of them become one, those without effect go.

A *clamp* cuts to an interval. Two in a row cut to one interval: ``clip(clip(x, a, b), c, d)`` is
``clip(x, clip(a, c, d), clip(b, c, d))``. One whose interval holds that of the clamp before it changes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    add_node,
    constant,
    is_op,
    replace_uses,
    sole_consumer,
    sole_producer,
    take_over,
    values_of,
)
from graphopt.passes.patterns.scalar_terms import FLOATS, Terms

_LARGE = 3e38
CLAMPS = frozenset({"Relu", "Clip", "Min", "Max", "LeakyRelu", "PRelu"})


@dataclass(frozen=True)
class Clamp:
    """``min(max(source, low), high)``; ``dtype`` is None where nothing tells it."""

    source: gs.Tensor
    low: float
    high: float
    dtype: np.dtype[Any] | None


def worth_a_look(node: gs.Node) -> bool:
    """Whether the node might go or change, judged by itself and its neighbours' operators; cheap."""
    if node.op == "Clip":
        open_above = node.attrs.get("max", math.inf) > _LARGE and len(node.inputs) < 3
        return open_above or _after_clamp(node)
    if node.op == "Relu":
        return _after_clamp(node)
    if node.op == "LeakyRelu":
        return bool(node.attrs.get("alpha", 0.01) == 0)
    return node.op == "PRelu" or len(node.inputs) == 2


def _after_clamp(node: gs.Node) -> bool:
    producer = sole_producer(node.inputs[0]) if node.inputs else None
    return producer is not None and producer.op in CLAMPS


def merge_clamps(index: Index, terms: Terms, nodes: Iterable[gs.Node]) -> Counter[str]:
    """Merge every run of clamps among ``nodes``, in order; return how many edits of each kind."""
    counts: Counter[str] = Counter()
    clamps: dict[int, tuple[gs.Node, Clamp]] = {}
    dead: list[gs.Node] = []
    for node in nodes:
        if _uniform_slope(index, node):
            counts["prelu_to_leaky_relu"] += 1
            dead.append(node)
        clamp = read_clamp(terms, node, index.graph.opset)
        if clamp is not None:
            clamps[id(node)] = (node, clamp)
    done: set[int] = set()
    for key, (node, clamp) in clamps.items():
        if key in done:
            continue
        run = list(_run(index, node, clamp, clamps, done))
        final, whole = run[-1]
        if len(run) > 1 or _as_relu(index, final, whole):
            kind = "clamps_merged" if len(run) > 1 else "clamp_to_relu" if whole.low == 0 else "minmax_to_clip"
            if _write(index, final, whole):
                dead += [member for member, _ in run]
                counts[kind] += max(1, len(run) - 1)
    counts["clamp_without_effect"] += _remove_idle(index, clamps, dead)
    index.drop(dead)
    return +counts


def _run(
    index: Index, node: gs.Node, clamp: Clamp, clamps: dict[int, tuple[gs.Node, Clamp]], done: set[int]
) -> Iterator[tuple[gs.Node, Clamp]]:
    """The clamps from ``node`` on, each the only reader of the one before, with what they do together."""
    while True:
        done.add(id(node))
        yield node, clamp
        reader = sole_consumer(index, node.outputs[0])
        if reader is None or id(reader) not in clamps or id(reader) in done:
            return
        following = clamps[id(reader)][1]
        if following.source is not node.outputs[0]:
            return
        if clamp.dtype is not None and following.dtype is not None and clamp.dtype != following.dtype:
            return
        low = min(max(clamp.low, following.low), following.high)
        high = min(max(clamp.high, following.low), following.high)
        node, clamp = reader, Clamp(clamp.source, low, high, clamp.dtype or following.dtype)


def _as_relu(index: Index, node: gs.Node, clamp: Clamp) -> bool:
    """Whether a single clamp has a better form: Relu, or Clip for Min and Max (both run inside a convolution)."""
    if node.op in {"Min", "Max", "LeakyRelu"}:
        return True
    return node.op == "Clip" and clamp.low == 0 and clamp.high == math.inf


def read_clamp(terms: Terms, node: gs.Node, opset: int) -> Clamp | None:
    """What a node cuts to; None where it is no clamp of a float type with known bounds."""
    if not node.inputs or len(node.outputs) != 1 or node.outputs[0].is_empty():
        return None
    source = node.inputs[0]
    if is_op(node, "Relu"):
        return Clamp(source, 0.0, math.inf, None)
    if is_op(node, "LeakyRelu"):
        return Clamp(source, 0.0, math.inf, None) if node.attrs.get("alpha", 0.01) == 0 else None
    if is_op(node, "Clip"):
        return _read_clip(terms, node, opset)
    if not is_op(node, "Min", "Max") or len(node.inputs) != 2 or opset < 8:
        return None
    bound = terms.scalar(node.inputs[1])
    if bound is None:
        bound, source = terms.scalar(node.inputs[0]), node.inputs[1]
    if bound is None or terms.scalar(source) is not None or not terms.has_rank(source, bound.rank):
        return None
    if bound.dtype != np.float32 and opset < 12:
        return None  # ONNX Runtime's Clip knows float32 alone before opset 12.
    low, high = (bound.value, math.inf) if node.op == "Max" else (-math.inf, bound.value)
    return Clamp(source, low, high, bound.dtype)


def _read_clip(terms: Terms, node: gs.Node, opset: int) -> Clamp | None:
    if opset < 11:
        low, high = node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf)
        dtype = None
    else:
        bounds, dtype = [-math.inf, math.inf], None
        for slot, tensor in enumerate(node.inputs[1:3]):
            if tensor.is_empty():
                continue
            scalar = terms.scalar(tensor)
            if scalar is not None:  # One read for all that share it.
                dtype, bounds[slot] = scalar.dtype, scalar.value
                continue
            values = values_of(tensor)
            if values is None or values.size != 1 or values.dtype not in FLOATS:
                return None
            dtype, bounds[slot] = values.dtype, float(values.reshape(-1)[0])
        low, high = bounds
    greatest = float(np.finfo(dtype or np.float32).max)
    low, high = (-math.inf if low <= -greatest else low), (math.inf if high >= greatest else high)
    return Clamp(node.inputs[0], low, high, dtype) if low <= high else None


def _write(index: Index, final: gs.Node, clamp: Clamp) -> bool:
    """Let one node write what ``final`` writes now; the caller drops the old ones."""
    name, home = final.name or final.outputs[0].name, index.home(final)
    target = final.outputs[0]
    if clamp.low == 0 and clamp.high == math.inf:
        add_node(index, "Relu", [clamp.source], [target], prefix=f"{name}_relu", home=home)
        return True
    if index.graph.opset < 11:
        bounds = {"min": clamp.low, "max": clamp.high}
        attrs = {key: value for key, value in bounds.items() if math.isfinite(value)}
        add_node(index, "Clip", [clamp.source], [target], attrs, prefix=f"{name}_clip", home=home)
        return True
    if clamp.dtype is None:
        return False
    inputs: list[gs.Tensor] = [clamp.source]
    for word, value in (("min", clamp.low), ("max", clamp.high)):
        if math.isfinite(value):
            inputs.append(constant(index, f"{name}_{word}", np.asarray(value, clamp.dtype)))
        elif word == "min":
            inputs.append(gs.Variable.empty())
    add_node(index, "Clip", inputs, [target], prefix=f"{name}_clip", home=home)
    return True


def _remove_idle(index: Index, clamps: dict[int, tuple[gs.Node, Clamp]], dead: list[gs.Node]) -> int:
    """Take out clamps that follow one with several readers and change nothing after it."""
    gone = {id(node) for node in dead}
    removed = 0
    for key, (node, clamp) in clamps.items():
        before = sole_producer(clamp.source)
        if key in gone or before is None or id(before) in gone or id(before) not in clamps:
            continue
        inner = clamps[id(before)][1]
        if not (clamp.low <= inner.low and inner.high <= clamp.high):
            continue
        target = node.outputs[0]
        if not (target.outputs or index.is_output(target)):
            continue
        if not index.is_output(target):
            replace_uses(index, target, clamp.source)
        elif not index.is_output(clamp.source) and index.home(before) is index.home(node):
            index.drop([node])
            take_over(index, clamp.source, target)
            removed += 1
            continue
        else:
            continue
        dead.append(node)
        gone.add(key)
        removed += 1
    return removed


def _uniform_slope(index: Index, node: gs.Node) -> bool:
    """Write PRelu with one slope for all as LeakyRelu, which a convolution runs inside; the caller drops the old."""
    if not is_op(node, "PRelu") or len(node.inputs) != 2:
        return False
    slope = values_of(node.inputs[1])
    if slope is None or slope.dtype != np.float32 or not slope.size or not (slope == slope.flat[0]).all():
        return False
    value, (target,) = float(slope.flat[0]), node.outputs
    if not math.isfinite(value):
        return False
    op, attrs = ("Relu", {}) if value == 0 else ("LeakyRelu", {"alpha": value})
    home = index.home(node)
    add_node(index, op, [node.inputs[0]], [target], attrs, prefix=f"{node.name or target.name}_leaky", home=home)
    return True
