"""Fits the constants of the latency model to the published latencies and writes graphopt/latency/constants.toml.

python -m benchmarks.latency_fit
"""

from pathlib import Path

from benchmarks import latency_engines
from benchmarks.latency_data import DEVICES, measured, nets, points
from graphopt.latency.constants import DATASHEET, MEANINGS, Constants
from graphopt.latency.fitting import Fit, Measured, Parameter, fit

CONSTANTS = Path(__file__).parent.parent / "graphopt" / "latency" / "constants.toml"

# Constant -> (most likely value before anything is measured, standard deviation of its log, and that of a device's own
# deviation). What is known of the kernels of that time (cuDNN 7, PyTorch 0.4):
PRIORS: dict[str, tuple[float, float, float]] = {
    "compute.winograd": (1.6, 0.5, 0.4),  # Winograd saves up to 2.25 multiplications (Lavin and Gray, arXiv 1509.09308)
    "compute.dense_kxk": (0.6, 0.5, 0.3),
    "compute.pointwise": (0.7, 0.4, 0.3),
    "compute.grouped": (0.5, 0.6, 0.3),
    "compute.depthwise": (0.04, 0.7, 0.3),  # one thread an output, every tap read again
    "compute.fully_connected": (0.5, 0.5, 0.3),
    "memory.product": (0.7, 0.3, 0.2),
    "memory.fully_connected": (0.6, 0.4, 0.3),
    "memory.few_rows": (0.2, 0.5, 0.2),
    "memory.elementwise": (0.7, 0.3, 0.2),
    "memory.normalization": (0.7, 0.3, 0.2),
    "memory.movement": (0.6, 0.4, 0.2),
    "memory.broadcast": (0.4, 0.6, 0.3),
    "memory.pooling": (0.35, 0.5, 0.3),
    # Adaptive pooling to 1x1: one thread of a block of 256 reads the whole plane, 8 blocks a multiprocessor, four loads
    # in flight each: 8 * 4 * 4 bytes in 220 cycles, 7 GB/s a multiprocessor of a Titan Xp's 18 GB/s share: 0.05.
    "memory.plane_pooling": (0.05, 0.7, 0.3),
    "cache.pooling": (0.4, 0.5, 0.3),
    "small.product": (8192.0, 0.4, 0.3),  # one tile of 128x64 outputs, the common one
    "small.depthwise": (2048.0, 0.7, 0.2),  # threads that a multiprocessor keeps in flight
    "small.group": (16.0, 0.7, 0.2),
    "small.window": (9.0, 0.7, 0.1),
    "kernel.us": (2.0, 0.5, 0.5),
    # Processor time: a convolution sets up descriptors and a workspace, an activation does not.
    "launch.product_us": (25.0, 0.25, 0.25),
    "launch.normalization": (0.8, 0.3, 0.1),
    "launch.other": (0.5, 0.3, 0.1),
    "launch.bias": (0.3, 0.4, 0.1),  # inside the convolution, no call from Python
    "launch.view": (0.3, 0.5, 0.1),
    "launch.group": (0.3, 0.5, 0.1),
    "overlap": (3.0, 0.1, 0.1),
}
PARAMETERS = tuple(Parameter(name, (name,), sigma, own) for name, (_, sigma, own) in PRIORS.items())


def base(device: str) -> Constants:
    """The most likely constants before anything is measured; the processor's speed is the device's own."""
    sheet = DEVICES[device].device
    assert sheet is not None
    means = {name: mean for name, (mean, _, _) in PRIORS.items()}
    return {**DATASHEET, **means, "launch.product_us": sheet.launch_us}


def fit_all(sets: dict[str, Measured], keep: list | None = None, iterations: int = 15) -> Fit:
    return fit(list(sets.values()), [base(device) for device in sets], PARAMETERS, keep=keep, iterations=iterations)


def judged(shared: Constants) -> Constants:
    """The most likely constants of an engine that fuses, before any is measured: what the eager runtime taught."""
    return {
        **shared,
        "small.product": 4096.0,  # half a tile of 128x64; engines split the summed axis, too
        "compute.grouped": shared["compute.pointwise"],
        "compute.depthwise": 0.25,  # kernels of their own, near the bandwidth of memory
        "memory.pooling": shared["memory.elementwise"],  # windows from shared memory, in the tensors' own type
        "memory.plane_pooling": shared["memory.elementwise"],
        "cache.pooling": DATASHEET["cache.pooling"],
        "memory.few_rows": shared["memory.fully_connected"],
        "memory.broadcast": shared["memory.elementwise"],
        "matrix.float16": 0.6,  # tensor cores are harder to feed than other units
        "matrix.int8": 0.5,
        "launch.product_us": 0.0,
        "launch.normalization": 1.0,
        "launch.other": 1.0,
        "launch.bias": 1.0,
        "launch.view": 0.0,
        "launch.group": 0.0,
        "overlap": 3.0,
    }


def toml(sets: dict[str, Constants], titles: dict[str, str]) -> str:
    lines = [
        "# Constants of the latency model; graphopt/latency/constants.py says what they mean.",
        "# Written by: python -m benchmarks.latency_fit",
    ]
    for name, values in sets.items():
        lines += ["", f"# {titles[name]}", f"[{name}]"]
        changed = {key: values[key] for key in MEANINGS if values[key] != DATASHEET[key]}
        lines += [f"{key} = {float(f'{value:.4g}')!r}" for key, value in changed.items()]
    return "\n".join(lines) + "\n"


TITLES = {
    "titan-xp-eager": "Titan Xp, eager PyTorch 0.4 with cuDNN 7: fitted to arXiv 1810.00736.",
    "jetson-tx1-eager": "Jetson TX1, the same software: fitted to arXiv 1810.00736.",
    "eager": "What the two share, for the same software on other devices; launches at the device's own cost.",
    "tensorrt": "An engine that fuses: the same shares, bent by a few published latencies of TensorRT.",
}


def main() -> None:
    kernels_of = nets()
    sets = {device: measured(device, found, kernels_of) for device, found in points().items()}
    found = fit_all(sets)
    fitted = {f"{DEVICES[device].name}-eager": own for device, own in zip(sets, found.devices, strict=True)}
    # That VGG's first matrix product is slow from 2 rows on is peculiar to the software of that time.
    usual = {"memory.few_rows": found.shared["memory.fully_connected"]}
    fitted["eager"] = {**found.shared, **usual, "launch.product_us": 0.0}
    fitted["tensorrt"] = latency_engines.fitted(
        latency_engines.measured(latency_engines.engines()), judged(found.shared)
    )
    CONSTANTS.write_text(toml(fitted, TITLES), encoding="utf-8")
    for name in PRIORS:
        print(f"{name:26}{found.shared[name]:12.4g}" + "".join(f"{own[name]:12.4g}" for own in found.devices))


if __name__ == "__main__":
    main()
