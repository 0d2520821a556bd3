"""How long each unit takes in float and in int8 on this machine, measured kernel by kernel and kept on disk.

Every different unit (operator, attributes, shapes) is run alone in ONNX Runtime in both precisions; ONNX Runtime's own
profiler tells the time of its kernels apart from that of conversions and layout changes, which are accounted for where
precisions meet. Times are stored per CPU model, thread count and ONNX Runtime version, so that the same machine takes
the same decisions again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from graphopt import runtime
from graphopt.cache import Store
from graphopt.calibration.observers import Range
from graphopt.errors import UnsupportedModelError
from graphopt.passes.quantize_int8.fused import INT8_OPERATORS
from graphopt.passes.quantize_int8.placement import place
from graphopt.passes.quantize_int8.units import Role, Unit, Units, clip_bounds, find_units
from graphopt.passes.quantize_int8.write import write
from graphopt.targets.detect import cpu_description
from graphopt.targets.schema import Int8Rules

RUNS = 15
Shapes = Mapping[str, tuple[int, ...]]
Feed = Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput")
NOT_FUSED = -1.0
# Part of every key: times taken in another way are not comparable.
METHOD = 2
EXTENT: Range = (-3.0, 3.0)


@dataclass(frozen=True)
class UnitTime:
    """Microseconds of a unit in each precision; ``int8`` is None where ONNX Runtime keeps the unit in float."""

    float32: float
    int8: float | None


@dataclass(frozen=True)
class BoundaryTime:
    """Microseconds to quantize a tensor, and to dequantize it, layout change included."""

    to_int8: float
    to_float: float


def machine() -> str:
    """Name what times hold for: the CPU and ONNX Runtime's version."""
    import onnxruntime as ort

    return f"{cpu_description()} onnxruntime {ort.__version__}"


class KernelTimes:
    """Measures units and boundaries on demand, each once; ``store`` keeps the results on disk.

    Without ``rules`` units are measured in float only.
    """

    def __init__(
        self, model: onnx.ModelProto, units: Units, shapes: Shapes, rules: Int8Rules | None, store: Store
    ) -> None:
        self._opset = list(model.opset_import)
        self._ir_version = model.ir_version
        self._units = units
        self._shapes = shapes
        self._rules = rules
        self._store = store

    def unit(self, unit: Unit, threads: int) -> UnitTime:
        """Return the times of one unit with int8-capable role."""
        key = self._key(unit, threads)
        kept = self._store.get(key)
        if kept is None:
            kept = list(self._measure(unit, threads))
            self._store.put(key, kept)
        return UnitTime(kept[0], None if kept[1] == NOT_FUSED else kept[1])

    def saved(self, first: Unit, second: Unit, threads: int) -> float:
        """Return what ONNX Runtime saves by merging ``second`` into ``first`` before it, both in float."""
        if any(name not in self._shapes for name in self._read(first, second)):
            return 0.0
        key = f"merged/{self._key(first, threads)}/{self._key(second, threads)}"
        kept = self._store.get(key)
        if kept is None:
            kept = [self._measure_together(first, second, threads)]
            self._store.put(key, kept)
        one, other = self.unit(first, threads).float32, self.unit(second, threads).float32
        return float(np.clip(one + other - kept[0], 0.0, other))

    def boundary(self, shape: tuple[int, ...], threads: int) -> BoundaryTime:
        """Return what it costs to cross precisions with a tensor of ``shape``.

        A convolution's int8 kernel works channels-last, so an image pays a transposition too. Measured once on a large
        tensor and scaled by elements: both are passes over memory.
        """
        key = f"boundary/{threads}"
        kept = self._store.get(key)
        if kept is None:
            kept = _measure_boundary(threads)
            self._store.put(key, kept)
        quantize, dequantize, transpose = kept
        elements = float(np.prod(shape))
        layout = transpose if len(shape) == 4 else 0.0
        overhead = 1.0
        return BoundaryTime(overhead + elements * (quantize + layout), overhead + elements * (dequantize + layout))

    def _measure(self, unit: Unit, threads: int) -> tuple[float, float]:
        if any(name not in self._shapes for name in self._read(unit)):
            # A shape or index computed at run time: plain data movement, whose time is that of its bytes.
            return 1.0, 1.0
        model = self._alone(unit)
        feed = self._feed(model)
        try:
            in_float = _kernels(model, feed, threads, unit.node.op_type)[0]
        except UnsupportedModelError:
            return 0.0, NOT_FUSED
        if self._rules is None:
            return in_float, NOT_FUSED
        alone = find_units(model)
        chosen = [found.index for found in alone.all if found.role is not Role.FLOAT]
        if not chosen:
            return in_float, NOT_FUSED
        extent = _Extents(dict.fromkeys(unit.outputs, self._clipped(unit)))
        quantized = write(model, alone, place(alone, chosen, extent, self._rules), self._rules)
        try:
            in_int8, operators = _kernels(quantized, feed, threads, unit.node.op_type)
        except UnsupportedModelError:
            return in_float, NOT_FUSED
        moves = unit.role is Role.MOVEMENT
        if not moves and not any(operator.startswith(INT8_OPERATORS) for operator in operators):
            return in_float, NOT_FUSED
        return in_float, in_int8

    def _measure_together(self, first: Unit, second: Unit, threads: int) -> float:
        """Return microseconds of two units in float, one after the other.

        What ``second`` reads besides, as the other operand of an Add, comes from a convolution as it would in the net:
        ONNX Runtime merges the two only where both operands are in a convolution's memory layout.
        """
        model = self._alone(first, second)
        nodes, apart = list(model.graph.node), 0.0
        for name in self._read(second):
            if name in first.outputs or name in self._read(first) or len(self._shapes[name]) != 4:
                continue
            constants: list[onnx.TensorProto] = []
            convolution = _depthwise(name, f"{name}_graphopt", self._shapes[name], constants)
            model.graph.initializer.extend(constants)
            for node in nodes[len(first.nodes) :]:
                for position, read in enumerate(node.input):
                    if read == name:
                        node.input[position] = f"{name}_graphopt"
            nodes.insert(0, convolution)
            apart += self._depthwise_time(self._shapes[name], threads)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        try:
            return _kernels(model, self._feed(model), threads, "")[0] - apart
        except UnsupportedModelError:
            return float("inf")

    def _depthwise_time(self, shape: tuple[int, ...], threads: int) -> float:
        """Return microseconds of the convolution that stands for another operand's origin."""
        key = f"depthwise/{threads}/{'x'.join(map(str, shape))}"
        kept = self._store.get(key)
        if kept is None:
            constants: list[onnx.TensorProto] = []
            node = _depthwise("x", "y", shape, constants)
            inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(shape))]
            outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, list(shape))]
            graph = onnx.helper.make_graph([node], "depthwise", inputs, outputs, initializer=constants)
            model = onnx.helper.make_model(graph, opset_imports=self._opset, ir_version=self._ir_version)
            feed = {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
            kept = [_kernels(model, feed, threads, "")[0]]
            self._store.put(key, kept)
        return float(kept[0])

    def _feed(self, model: onnx.ModelProto) -> Feed:
        generator = np.random.default_rng(0)
        return {
            value.name: generator.standard_normal(self._shapes[value.name], dtype=np.float32)
            for value in model.graph.input
        }

    def _read(self, *units: Unit) -> list[str]:
        """Return the tensors that the units read from elsewhere, their constants left out."""
        nodes = [node for unit in units for node in unit.nodes]
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        return [name for name in read if name not in self._units.constants and name not in made]

    def _clipped(self, unit: Unit) -> Range:
        """Return a range that lies within what the unit's activation cuts to, so that int8 absorbs it."""
        if unit.activation is None:
            return EXTENT
        low, high = clip_bounds(unit.activation, self._units.constants)
        return max(low, EXTENT[0]), min(high, EXTENT[1])

    def _alone(self, *units: Unit) -> onnx.ModelProto:
        """Return a model of just these units, their constants included, with static shapes; the last one's answer."""
        unit = units[-1]
        names = dict.fromkeys(name for each in units for node in each.nodes for name in node.input)
        constants = [self._units.constants[name] for name in names if name in self._units.constants]
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(self._shapes[name]))
            for name in self._read(*units)
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in unit.outputs]
        for value in outputs:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        nodes = [node for each in units for node in each.nodes]
        if unit.node.op_type == "MaxPool":
            nodes = [*self._conv_before(unit, constants), *nodes[1:]]
        graph = onnx.helper.make_graph(nodes, "unit", inputs, outputs, initializer=constants)
        return onnx.helper.make_model(graph, opset_imports=self._opset, ir_version=self._ir_version)

    def _conv_before(self, unit: Unit, constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
        """Put a 1x1 depthwise convolution before a pooling, which takes over the memory layout that it answers in.

        Alone, the int8 pooling would be timed in channels-first layout, in which it is many times slower.
        """
        name = unit.node.input[0]
        pool = onnx.NodeProto()
        pool.CopyFrom(unit.node)
        pool.input[0] = "graphopt_convolved"
        return [_depthwise(name, pool.input[0], self._shapes[name], constants), pool]

    def _key(self, unit: Unit, threads: int) -> str:
        """Name the unit by what decides its time: operators, attributes, shapes; not by its weights' values."""
        parts: list[object] = [
            METHOD,
            threads,
            self._rules.activation_dtype if self._rules else "",
            self._rules.per_channel if self._rules else False,
            self._clipped(unit),
        ]
        for node in unit.nodes:
            parts.append(node.op_type)
            attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
            parts.extend(attribute.SerializeToString(deterministic=True).hex() for attribute in attributes)
            for name in node.input:
                if name in self._units.constants:
                    tensor = self._units.constants[name]
                    small = tensor.data_type == onnx.TensorProto.INT64
                    value = onnx.numpy_helper.to_array(tensor).tolist() if small else ""
                    parts.append(("constant", tuple(tensor.dims), str(value)))
                else:
                    parts.append(("tensor", self._shapes.get(name, ())))
        return "unit/" + hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


class _Extents(dict[str, Range]):
    """Ranges by tensor, ``EXTENT`` for one that has none of its own: only speed is at stake."""

    def __missing__(self, key: str) -> Range:
        return EXTENT


def _depthwise(source: str, output: str, shape: tuple[int, ...], constants: list[onnx.TensorProto]) -> onnx.NodeProto:
    """Return a 1x1 depthwise convolution of weights 1, which are added to ``constants``."""
    weight = np.ones((shape[1], 1, *(1 for _ in shape[2:])), np.float32)
    constants.append(onnx.numpy_helper.from_array(weight, f"{output}_weight"))
    return onnx.helper.make_node("Conv", [source, constants[-1].name], [output], group=shape[1])


def _kernels(
    model: onnx.ModelProto,
    feed: Feed,
    threads: int,
    own: str,
) -> tuple[float, set[str]]:
    """Return microseconds of the kernels proper, and which operators ran."""
    times = runtime.profile(model, feed, runs=RUNS, warmup=3, threads=threads)
    ignored = (*_CONVERSIONS, *(() if own == "Transpose" else ("Transpose",)))
    proper = [time for time in times if time.operator not in ignored]
    if own == "MaxPool":  # not the convolution that was put before it
        proper = [time for time in proper if time.operator.endswith(own)]
    return sum(time.quickest for time in proper), {time.operator for time in proper}


def _measure_boundary(threads: int) -> list[float]:
    """Return microseconds an element of QuantizeLinear, DequantizeLinear and a uint8 NCHW <-> NHWC transposition."""
    shape = (1, 64, 56, 56)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{",".join(map(str, shape))}] x) => (float[1,56,56,64] y)
        <float scale = {{0.02}}, uint8 zero_point = {{128}}>
        {{ q = QuantizeLinear(x, scale, zero_point)
           t = Transpose<perm = [0, 2, 3, 1]>(q)
           y = DequantizeLinear(t, scale, zero_point) }}"""
    model = onnx.parser.parse_model(text)
    feed = {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    measured: dict[str, float] = {}
    for time in runtime.profile(model, feed, runs=RUNS, warmup=3, threads=threads):
        measured[time.operator] = measured.get(time.operator, 0.0) + time.quickest / float(np.prod(shape))
    return [measured.get(name, 0.0) for name in ("QuantizeLinear", "DequantizeLinear", "Transpose")]


def measure_all(
    times: KernelTimes, units: Units, threads: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[int, UnitTime]:
    """Measure every unit that could run in int8; by unit index."""
    able = [unit for unit in units.all if unit.role is not Role.FLOAT]
    measured = {}
    for done, unit in enumerate(able):
        measured[unit.index] = times.unit(unit, threads)
        progress(done + 1, len(able))
    return measured
