"""The published latencies (Bianco et al. 2018, arXiv 1810.00736) and the graphs that they belong to."""

import csv
import io
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx

from graphopt.latency.fitting import Measured, Sample
from graphopt.latency.kernels import Kernel, kernels
from graphopt.targets.schema import Device, Hardware, RuntimeModel

DATA = Path(__file__).parent / "data" / "latency"

# By how much a batch counts in a fit. What is asked for most is one image and full batches; at 2 and 4 the fully
# connected layers of that software leave the matrix-vector path (VGG) and at 64 measurements are missing.
WEIGHTS = {1: 1.0, 2: 0.3, 4: 0.3, 8: 0.7, 16: 1.0, 32: 0.7, 64: 0.4}


def hardware(name: str, peak: float, bandwidth: float, multiprocessors: int, launch_us: float) -> Hardware:
    """A device of the data sheet's figures, float32 alone, that runs operator after operator."""
    device = Device("", multiprocessors, {"float32": peak}, bandwidth, 1.0, launch_us)
    eager = RuntimeModel("eager-fp32", fused=False, precision="float32", constants=f"{name}-eager", fitted=True)
    return Hardware(name, "pytorch", (), (7, 17), ("float32",), device=device, runtimes=(eager,))


# TFLOPS in float32, GB/s, multiprocessors. Launches by an x86 desktop processor and by an A57 at about a fifth of its
# single-thread speed.
DEVICES = {
    "titan_xp": hardware("titan-xp", 12.15, 547.7, 30, 25.0),
    "jetson_tx1": hardware("jetson-tx1", 0.511, 25.6, 2, 125.0),
}


@dataclass(frozen=True)
class Point:
    """A measured latency; ``ms`` is for the whole batch."""

    net: str
    family: str
    batch: int
    ms: float


def families() -> dict[str, str]:
    with (DATA / "nets.csv").open(encoding="utf-8") as file:
        return {row["model"]: row["family"] for row in csv.DictReader(file)}


def points() -> dict[str, list[Point]]:
    """Device -> what was measured on it."""
    family = families()
    result: dict[str, list[Point]] = {name: [] for name in DEVICES}
    with (DATA / "published.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            net, batch = row["model"], int(row["batch"])
            result[row["device"]].append(Point(net, family[net], batch, float(row["ms_per_image"]) * batch))
    return result


def graphs(names: Collection[str] = ()) -> dict[str, onnx.ModelProto]:
    """Net -> its graph without weights; all nets unless ``names`` chooses."""
    with (DATA / "published.csv").open(encoding="utf-8") as file:
        rows = [(row["model"], Path(row["graph"]).name) for row in csv.DictReader(file)]
    files = {net: name for net, name in rows if not names or net in names}
    with tarfile.open(DATA / "graphs.tar.xz") as archive:
        read = {Path(member.name).name: archive.extractfile(member) for member in archive.getmembers()}
        return {net: onnx.load(io.BytesIO(read[name].read()), load_external_data=False) for net, name in files.items()}


def nets(names: Collection[str] = ()) -> dict[str, list[Kernel]]:
    """Net -> what an eager runtime launches for one image."""
    return {net: kernels(graph, fused=False) for net, graph in graphs(names).items()}


def measured(device: str, found: list[Point], kernels_of: dict[str, list[Kernel]]) -> Measured:
    samples = [Sample(kernels_of[p.net], p.batch, p.ms, WEIGHTS[p.batch]) for p in found]
    return Measured(DEVICES[device], samples)
