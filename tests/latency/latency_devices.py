"""Devices for the tests, made by hand: round figures, so that times can be computed in one's head."""

from __future__ import annotations

from dataclasses import replace

from graphopt.targets.schema import Device, Hardware, RuntimeModel

# 1 TFLOPS is 10^6 operations a microsecond, 100 GB/s are 10^5 bytes a microsecond.
DEVICE = Device(
    compute_capability="8.7",
    multiprocessors=8,
    peak_tops={"float32": 1.0, "float16": 4.0, "int8": 8.0},
    bandwidth_gb_s=100.0,
    memory_gb=8.0,
    launch_us=5.0,
)
SHEET = RuntimeModel("sheet", fused=True, precision="float32", constants="datasheet")
EAGER = RuntimeModel("eager", fused=False, precision="float32", constants="datasheet")
ENGINE = RuntimeModel("tensorrt", fused=True, precision="float16", constants="tensorrt")


def board(*runtimes: RuntimeModel, **facts: object) -> Hardware:
    """A target with these runtimes; ``facts`` replace those of the device."""
    device = replace(DEVICE, **facts)  # type: ignore[arg-type]
    return Hardware(
        name="board",
        runtime="tensorrt",
        providers=("CPUExecutionProvider",),
        opset=(9, 17),
        precisions=("float32", "float16", "int8"),
        channel_multiple={"float16": 8, "int8": 16},
        device=device,
        runtimes=runtimes or (SHEET,),
    )
