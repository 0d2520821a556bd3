"""Published latencies of TensorRT engines: a few nets on six devices, gathered from five sources.

They are far fewer and far less uniform than those of the eager runtime (other versions, other power modes, transfers
included or not), so they only bend the constants that the eager runtime taught, and tell how far those may be off.
"""

import csv
from dataclasses import dataclass, replace

import numpy as np
import onnx

from benchmarks.latency_data import DATA, graphs
from graphopt.latency.constants import Constants
from graphopt.latency.fitting import Measured, Parameter, Sample, fit
from graphopt.latency.kernels import kernels
from graphopt.targets import load_target
from graphopt.targets.schema import Device, Hardware
from models.mobilenet_v1 import Net, build

# Devices without a profile, by general knowledge: V100 (PCIe), Titan X (Pascal).
OTHERS = {
    "v100": Device("7.0", 80, {"float32": 14.0, "float16": 112.0, "int8": 56.0}, 900.0, 16.0, 5.0),
    "titan-x": Device("6.1", 28, {"float32": 10.97, "int8": 43.9}, 480.0, 12.0, 5.0),
}

COMPUTE = ("winograd", "dense_kxk", "pointwise", "grouped", "fully_connected")
MEMORY = ("product", "fully_connected", "few_rows", "elementwise", "normalization", "movement", "broadcast", "pooling")

# What engines may have otherwise than the eager runtime, and how far.
PARAMETERS = (
    Parameter("compute", tuple(f"compute.{kind}" for kind in COMPUTE), 0.3),
    Parameter("memory", tuple(f"memory.{kind}" for kind in MEMORY), 0.2),
    Parameter("winograd", ("compute.winograd",), 0.3),
    Parameter("depthwise", ("compute.depthwise",), 0.5),
    Parameter("small", ("small.product",), 0.8),
    Parameter("tensor cores, float16", ("matrix.float16",), 0.4),
    Parameter("tensor cores, int8", ("matrix.int8",), 0.4),
    Parameter("kernel", ("kernel.us",), 0.5),
)


# Every device counts as much as this many measurements: many nets on one tell less than as many on several.
MEASUREMENTS = 3.0


@dataclass(frozen=True)
class Engine:
    """A measured engine; ``ms`` is for the whole batch."""

    device: str
    precision: str
    net: str
    size: int
    batch: int
    ms: float


def engines() -> list[Engine]:
    with (DATA / "tensorrt.csv").open(encoding="utf-8") as file:
        return [
            Engine(row["device"], row["precision"], row["model"], int(row["size"]), int(row["batch"]), float(row["ms"]))
            for row in csv.DictReader(file)
        ]


def hardware(device: str) -> Hardware:
    if device in OTHERS:
        return replace(load_target("t4").hardware, name=device, device=OTHERS[device])
    return load_target(device).hardware


def measured(found: list[Engine]) -> dict[str, tuple[Measured, list[Engine]]]:
    """Device -> its measurements."""
    nets = graphs({engine.net for engine in found}) | {"MobileNet-v1": build(Net())}
    result = {}
    for device in dict.fromkeys(engine.device for engine in found):
        own = [engine for engine in found if engine.device == device]
        samples = [
            Sample(
                kernels(_sized(nets[e.net], e.size), fused=True, precision=e.precision, batch=e.batch),
                1,
                e.ms,
                MEASUREMENTS / len(own),
            )
            for e in own
        ]
        result[device] = (Measured(hardware(device), samples), own)
    return result


def _sized(graph: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The net for images of another size."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    for dim in copy.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = size
    return copy


def fitted(sets: dict[str, tuple[Measured, list[Engine]]], start: Constants) -> Constants:
    """One set of constants for all devices."""
    every = [own for own, _ in sets.values()]
    return fit(every, [start] * len(every), PARAMETERS).shared


def left_out(sets: dict[str, tuple[Measured, list[Engine]]], start: Constants) -> dict[str, np.ndarray]:
    """log(predicted / measured) for each device by constants that were fitted on the others."""
    result = {}
    for device, (own, _) in sets.items():
        rest = {other: value for other, value in sets.items() if other != device}
        result[device] = own.predict(fitted(rest, start)) - own.log_ms
    return result
