"""What units and conversions cost: measured on this machine, or predicted for a device that is not at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import onnx

from graphopt.cache import Store
from graphopt.latency.roofline import kernel_us, runtime_of
from graphopt.latency.work import BYTES, KernelWork, convolution_kind, movement
from graphopt.passes.quantize_int8.explicit import channels
from graphopt.passes.quantize_int8.kernels import BoundaryTime, KernelTimes, UnitTime, measure_all
from graphopt.passes.quantize_int8.merged import Pair, measured_pairs
from graphopt.passes.quantize_int8.units import Role, Unit, Units
from graphopt.targets.schema import Hardware, Int8Rules

Shapes = Mapping[str, tuple[int, ...]]


class Prices(Protocol):
    """Tells what an assignment of precisions costs, in microseconds.

    Attributes:
        units: time of every unit that has an int8 form, by its index; ``int8`` is None where it cannot run so.
        pairs: units that take less time together than apart where both are in float.
        slower: what to say of a unit that is slower in int8, before the two times.
        impossible: what to say of one that cannot run in int8.
        no_gain: what to say where no layer is faster in int8.
    """

    units: Mapping[int, UnitTime]
    pairs: tuple[Pair, ...]
    slower: str
    impossible: str
    no_gain: str

    def boundary(self, name: str) -> BoundaryTime:
        """Return what it costs to convert tensor ``name``."""


class Measured:
    """Times of ONNX Runtime's kernels on this machine, kept on disk."""

    slower = "int8 is slower on this CPU"
    impossible = "ONNX Runtime has no int8 kernel for it"
    no_gain = "measured kernel times say that no convolution or matrix product gains from int8 on this CPU"

    def __init__(
        self,
        model: onnx.ModelProto,
        units: Units,
        shapes: Shapes,
        rules: Int8Rules,
        machine: str,
        threads: int,
        progress: Callable[[int, int], None],
    ) -> None:
        store = Store("kernels", machine)
        self._kernels = KernelTimes(model, units, shapes, rules, store)
        self._shapes = shapes
        self._threads = threads
        self.units: Mapping[int, UnitTime] = measure_all(self._kernels, units, threads, progress)
        self.pairs: tuple[Pair, ...] = measured_pairs(
            units, lambda first, second: self._kernels.saved(first, second, threads)
        )
        self.boundary("")
        store.save()

    def boundary(self, name: str) -> BoundaryTime:
        """Return what it costs to convert tensor ``name``, a change of memory layout included."""
        return self._kernels.boundary(self._shapes.get(name, ()), self._threads)


class Predicted:
    """Times by the latency model (docs/latency.md) for a runtime that fuses Q and DQ into kernels where it can.

    A convolution or matrix product answers in the precision that is asked for, and what runs between kernels quantizes
    its answer on the way. Only what a kernel in float, or nobody, has written must be quantized in a kernel of its own.

    Only time on the device counts. Launches run ahead of it or are replayed from a CUDA graph; a net so small that its
    launches take longer than its kernels gains nothing from any choice of precisions, and loses nothing.
    """

    slower = "int8 is predicted to be slower on the target"
    impossible = "the target computes nothing in int8"
    no_gain = "by the latency model no convolution or matrix product gains from int8 on the target"
    pairs: tuple[Pair, ...] = ()

    def __init__(self, units: Units, shapes: Shapes, hardware: Hardware) -> None:
        assert hardware.device is not None
        self._units = units
        self._shapes = shapes
        self._hardware = hardware
        self._float = float_precision(hardware)
        self._int8 = "int8" in hardware.device.peak_tops
        able = [unit for unit in units.all if unit.role is not Role.FLOAT]
        self.units: Mapping[int, UnitTime] = {unit.index: self._unit(unit) for unit in able}

    def boundary(self, name: str) -> BoundaryTime:
        """Return what it costs to quantize tensor ``name``; integer kernels answer in float at no extra cost."""
        producer = self._units.producer.get(name)
        maker = None if producer is None else self._units.all[producer]
        if maker is not None and maker.role is Role.FLOAT and maker.node.op_type not in _KERNELS_OF_THEIR_OWN:
            return BoundaryTime(0.0, 0.0)
        elements = float(np.prod(self._shapes.get(name, ())))
        moved = movement(elements * BYTES[self._float], elements, precision="int8")  # bytes, at one each
        return BoundaryTime(float(kernel_us(moved, self._hardware)), 0.0)

    def _unit(self, unit: Unit) -> UnitTime:
        if not self._int8:
            return UnitTime(0.0, None)
        if unit.role is not Role.HEAVY or any(name not in self._shapes for name in (*unit.inputs, *unit.outputs)):
            # It runs inside another kernel, or moves bytes that are counted where they are computed with.
            return UnitTime(0.0, 0.0)
        in_float, in_int8 = (self._work(unit, precision) for precision in (self._float, "int8"))
        return UnitTime(float(kernel_us(in_float, self._hardware)), float(kernel_us(in_int8, self._hardware)))

    def _work(self, unit: Unit, precision: str) -> KernelWork:
        weight = self._units.constants.get(unit.node.input[1])
        read = float(sum(np.prod(self._shapes[name]) for name in unit.inputs))
        outputs = float(np.prod(self._shapes[unit.outputs[0]]))
        weights = float(np.prod(weight.dims)) if weight is not None else 0.0
        size = BYTES[precision]
        if weight is not None and unit.node.op_type in ("Conv", "ConvTranspose"):
            taken, made, groups = channels(unit, self._units)
            window = int(np.prod(weight.dims[2:]))
            transposed = unit.node.op_type == "ConvTranspose"
            places = (read / taken if transposed else outputs / made) if taken and made else 0.0
            return KernelWork(
                kind="transposed" if transposed else convolution_kind(taken, groups, window),
                precision=precision,
                macs=weights * places,
                outputs=outputs,
                activation_bytes=(read + outputs) * size,
                weight_bytes=weights * size,
                in_channels=taken,
                out_channels=made,
                groups=groups,
                window=window,
                stride=_strides(unit.node),
            )
        depth = self._shapes[unit.inputs[0]][-1]
        return KernelWork(
            kind="matmul" if weight is None else "fully_connected",
            precision=precision,
            macs=outputs * depth,
            outputs=outputs,
            activation_bytes=(read + outputs) * size,
            weight_bytes=weights * size,
            in_channels=float(depth),
            out_channels=float(self._shapes[unit.outputs[0]][-1]),
        )


# Operators that a quantizer after them is not merged into (elementwise ones are written by one generated kernel).
_KERNELS_OF_THEIR_OWN = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "AveragePool",
                         "GlobalAveragePool", "Softmax", "Resize", "Gather", "TopK", "ReduceMean")  # fmt: skip


def float_precision(hardware: Hardware) -> str:
    """Return what float layers will run in: half precision where the target has it and the graph does not forbid it."""
    assert hardware.device is not None
    if hardware.strongly_typed and "float16" in hardware.precisions and "float16" in hardware.device.peak_tops:
        return "float16"  # a later pass declares it
    return runtime_of(hardware).precision


def _strides(node: onnx.NodeProto) -> int:
    return next((int(np.prod(found.ints)) for found in node.attribute if found.name == "strides"), 1)
