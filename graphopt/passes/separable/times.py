"""How long a convolution takes on this machine, whole and in each separable form, in the best mixture of precisions.

A convolution alone, with what ONNX Runtime merges into it (the Add of a residual, a Relu), is written in each form and
taken to pieces; the pieces' kernels are timed one by one and kept on disk by ``quantize_int8``'s ``KernelTimes``, so
that shapes which occur again, here or there, are not measured again. Where int8 is to follow, each piece runs in the
precision in which the whole is fastest (``quantize_int8.cut``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from time import perf_counter

import numpy as np
import onnx
from onnx import helper

from graphopt import runtime
from graphopt.cache import Store
from graphopt.calibration.collect import shapes as observed_shapes
from graphopt.errors import UnsupportedModelError
from graphopt.graph import infer_types
from graphopt.model import upgrade_opset
from graphopt.passes.quantize_int8.cut import cheapest, microseconds
from graphopt.passes.quantize_int8.kernels import BoundaryTime, Feed, KernelTimes, UnitTime, measure_all
from graphopt.passes.quantize_int8.merged import measured_pairs
from graphopt.passes.quantize_int8.units import Role, Unit, Units, find_units
from graphopt.passes.separable.factors import Form, Geometry
from graphopt.passes.separable.piece import OPSET, Piece, alone, known_shapes, model_of, separated_alone
from graphopt.passes.separable.write import Layout, can_write
from graphopt.targets.schema import Int8Rules

LAYOUTS: tuple[Layout, ...] = ("sum", "concat", "multiplier")
# Runs of the chain of tiny nodes that tells what the profiler itself takes.
CHAIN, CHAIN_RUNS = 64, 100
# Runs of a whole model.
NET_RUNS = 10
# Kernel times taken one by one may sum up to more than the whole: int8 is not believed to save more than the rest.
LEAST_SHARE = 0.1
# Layouts that are so many times as slow as the best at this rank are not measured at others.
TYPICAL_RANK, HOPELESS = 2, 1.3


class FormTimes:
    """Times of pieces, each measured once.

    Args:
        rules: how int8 is written on the target; None: everything stays in float.
        threads: intra-op threads that latency is judged at.
        store: keeps kernel times on disk; the caller saves it.
    """

    def __init__(self, rules: Int8Rules | None, threads: int, store: Store) -> None:
        self._rules = rules
        self._threads = threads
        self._store = store
        self._known: dict[tuple[object, ...], float] = {}
        self._layouts: dict[tuple[object, ...], tuple[Layout, ...]] = {}

    def whole(self, piece: Piece) -> float:
        """Microseconds of a piece as it is."""
        key = ("whole", *piece.key)
        if key not in self._known:
            self._known[key] = self.model(alone(piece))
        return self._known[key]

    def separated(self, piece: Piece, geometry: Geometry, form: Form, rank: int, layout: Layout) -> float:
        """Microseconds of a piece in a form; infinite where the form cannot be written so."""
        key = (form, rank, layout, *piece.key)
        if key not in self._known:
            self._known[key] = self._separated(piece, geometry, form, rank, layout)
        return self._known[key]

    def fastest(self, piece: Piece, geometry: Geometry, form: Form, rank: int) -> tuple[float, Layout] | None:
        """Microseconds of a piece in a form at a rank, and in which layout; None where it cannot be written so."""
        times = {
            each: self.separated(piece, geometry, form, rank, each) for each in self.layouts(piece, geometry, form)
        }
        best = min(times, key=lambda layout: times[layout], default=None)
        return None if best is None else (times[best], best)

    def layouts(self, piece: Piece, geometry: Geometry, form: Form) -> tuple[Layout, ...]:
        """The layouts of a form worth measuring; none where the piece cannot be written in the form."""
        key = (form, *piece.key)
        if key not in self._layouts:
            rank = min(TYPICAL_RANK, geometry.full_rank(form))
            times = {layout: self.separated(piece, geometry, form, rank, layout) for layout in LAYOUTS}
            limit = HOPELESS * min(times.values())
            self._layouts[key] = tuple(layout for layout in LAYOUTS if np.isfinite(limit) and times[layout] <= limit)
        return self._layouts[key]

    def _separated(self, piece: Piece, geometry: Geometry, form: Form, rank: int, layout: Layout) -> float:
        if can_write(piece.node, form, layout):
            return float("inf")
        return self.model(separated_alone(piece, geometry, form, rank, layout))

    def model(self, model: onnx.ModelProto) -> float:
        """Microseconds of a small model in the best mixture, between neighbours in the same precision on both sides.

        So conversions are paid once a layer, as in a chain of such pieces.
        """
        units = find_units(model)
        shapes = known_shapes(model)
        kernels = KernelTimes(model, units, shapes, self._rules, self._store)
        times = {unit.index: kernels.unit(unit, self._threads) for unit in units.all}
        pairs = measured_pairs(units, lambda first, second: kernels.saved(first, second, self._threads))
        each = self._profiling()

        def total(
            times: Mapping[int, UnitTime], boundary: Callable[[str], BoundaryTime], int8: frozenset[int]
        ) -> float:
            merged = sum(not int8 & {pair.first, pair.second} for pair in pairs)
            return microseconds(units, times, boundary, pairs, int8) - each * (len(units.all) - merged)

        found = [total(times, lambda name: BoundaryTime(0, 0), frozenset())]
        if self._rules is not None:
            ends = {*units.graph_inputs, *units.graph_outputs}
            crossing = {name: kernels.boundary(shape, self._threads) for name, shape in shapes.items()}
            inner = {name: BoundaryTime(0, 0) if name in ends else cost for name, cost in crossing.items()}
            shifted = {unit.index: _paid_in_float(unit, times[unit.index], ends, crossing) for unit in units.all}
            for there, costs in ((times, crossing), (shifted, inner)):
                int8 = cheapest(units, there, costs.__getitem__, pairs=pairs)
                found.append(total(there, costs.__getitem__, int8))
        return max(min(found), each)

    def net(self, model: onnx.ModelProto, feed: Feed) -> float:
        """Microseconds of a whole model for one input, in the best mixture."""
        key = f"net/{self._threads}/{_structure(model, feed)}"
        in_float = self._store.get(key)
        if in_float is None:
            profiled = runtime.profile(model, feed, runs=NET_RUNS, threads=self._threads)
            in_float = sum(max(each.quickest - self._profiling(), 0.0) for each in profiled)
            self._store.put(key, in_float)
        if self._rules is None:
            return float(in_float)
        cut = cut_into_units(model)
        if cut is None:
            return float(in_float)
        model, units = cut
        able = [unit for unit in units.all if unit.role is not Role.FLOAT]
        names = dict.fromkeys(name for unit in able for name in (*unit.inputs, *unit.outputs))
        shapes = observed_shapes(model, list(names), feed, self._threads) if names else {}
        kernels = KernelTimes(model, units, shapes, self._rules, self._store)
        times = measure_all(kernels, units, self._threads)
        pairs = measured_pairs(units, lambda first, second: kernels.saved(first, second, self._threads))

        def boundary(name: str) -> BoundaryTime:
            return kernels.boundary(shapes.get(name, ()), self._threads)

        mixed = cheapest(units, times, boundary, pairs=pairs)
        before, after = (microseconds(units, times, boundary, pairs, int8) for int8 in (frozenset[int](), mixed))
        return float(max(in_float - (before - after), LEAST_SHARE * in_float))

    def _profiling(self) -> float:
        """Microseconds by which ONNX Runtime's profiler makes a kernel look longer than it is with its dispatch."""
        key = f"profiling/{self._threads}"
        kept = self._store.get(key)
        if kept is None:
            kept = _profiling_overhead(self._threads)
            self._store.put(key, kept)
        return float(kept)


def cut_into_units(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Units] | None:
    """The model at an opset that has int8, and its units; None where it cannot be brought there."""
    try:
        model, _ = upgrade_opset(model, OPSET)
    except UnsupportedModelError:
        return None
    return model, find_units(model, {name: found.dtype for name, found in infer_types(model).items() if found.dtype})


def _paid_in_float(unit: Unit, time: UnitTime, ends: Collection[str], crossing: Mapping[str, BoundaryTime]) -> UnitTime:
    """The times of a unit whose neighbours outside are in int8: in float it pays the conversions from and to them."""
    read = {name for node in unit.nodes for name in node.input if name in ends}
    more = sum(crossing[name].to_float for name in read)
    more += sum(crossing[name].to_int8 for name in unit.outputs if name in ends)
    return UnitTime(time.float32 + more, time.int8)


def _structure(model: onnx.ModelProto, feed: Feed) -> str:
    """Name what decides the time of a model: nodes, sizes of weights and of inputs."""
    digest = hashlib.sha256()
    for node in model.graph.node:
        if node.op_type != "Constant":
            digest.update(node.SerializeToString(deterministic=True))
    sizes = [(tensor.name, list(tensor.dims)) for tensor in model.graph.initializer]
    sizes += [(name, list(values.shape)) for name, values in sorted(feed.items())]
    digest.update(repr(sizes).encode())
    return digest.hexdigest()[:32]


def _profiling_overhead(threads: int) -> float:
    """Measure it on a chain of nodes that have next to nothing to do."""
    names = ["x", *(f"t{number}" for number in range(CHAIN))]
    nodes = [helper.make_node("Sqrt", [before], [after]) for before, after in pairwise(names)]
    model = model_of(nodes, {"x": (16,)}, names[-1], [])
    feed = {"x": np.ones(16, np.float32)}
    profiled = sum(each.quickest for each in runtime.profile(model, feed, runs=CHAIN_RUNS, threads=threads)) / CHAIN
    opened = runtime.session(model, threads=threads)
    taken = []
    for _ in range(CHAIN_RUNS):
        started = perf_counter()
        runtime.run(opened, feed)
        taken.append(perf_counter() - started)
    return max(profiled - 1e6 * float(np.percentile(taken, 25)) / CHAIN, 0.0)
