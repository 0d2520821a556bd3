"""What data movement costs, in elements copied: in ONNX Runtime on this machine, or in an engine on a device.

Of forms that move the same channels, ONNX Runtime 1.31 (CPU, one thread, float32) takes, in microseconds:

| tensor, groups | Reshape-Transpose-Reshape, 5-D / 4-D | Gather | Split-Unsqueeze-Concat-Reshape |
|---|---|---|---|
| 116x28x28, 2 | 48 / 45 | **27** | 61 |
| 464x7x7, 2 | 23 / 24 | **14** | 24 |
| 112x56x56, 4 | 128 / 130 | **74** | |
| 28x28x116, 2 (channels last) | **72 / 71** | 698 | |

From 4 entries behind each channel on Gather is the faster (1.2-2.7 times), below that Reshape and Transpose are.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.targets.schema import Hardware

_HALF_BYTES = 2


@dataclass(frozen=True)
class Prices:
    """Prices in elements copied.

    Attributes:
        renaming: a node that only renames data (Reshape).
        node: a node that moves data, beside what it copies.
        split: a Split, beside what it copies.
        taken: each piece that a Split gives out.
        joined: each tensor that a Concat takes.
        concat: a Concat, beside what it copies; None where its inputs are written in their place.
        transpose: a Transpose, for each element.
        scattered: a Gather with fewer than ``few`` entries behind each channel, for each element.
        few: see ``scattered``.
        gathers: whether one Gather is faster than Reshape, Transpose and Reshape.
    """

    renaming: float
    node: float
    split: float
    taken: float
    joined: float
    concat: float | None
    transpose: float
    scattered: float
    few: int
    gathers: bool


# Measured: a node takes about 1.2 microseconds, one more input or output of one 0.15.
CPU = Prices(
    renaming=4096,
    node=4096,
    split=4096,
    taken=512,
    joined=512,
    concat=4096,
    transpose=1.7,
    scattered=10.0,
    few=4,
    gathers=True,
)


def prices_for(hardware: Hardware) -> Prices:
    """Prices on a target.

    An engine launches a kernel for every piece that is taken out, writes the inputs of a Concat in their place, and
    renames for nothing ('Types of Fusions' in TensorRT's Developer Guide; docs/latency.md). In the time of a launch a
    device copies as many elements as its memory's bandwidth lets it.
    """
    device = hardware.device
    if device is None or not hardware.runtimes or not hardware.runtimes[0].fused:
        return CPU
    launch = device.launch_us * device.bandwidth_gb_s * 1e3 / (2 * _HALF_BYTES)
    return Prices(
        renaming=0.0,
        node=launch,
        split=0.0,
        taken=launch,
        joined=0.0,
        concat=None,
        transpose=1.0,
        scattered=1.0,
        few=0,
        gathers=False,
    )
