"""Print the table of README.md from the ONNX files alone.

``python -m models.measure`` needs the data set, NumPy, onnx and ONNX Runtime,
not PyTorch. Times are taken in turns, one call of each net after the other, so
that a change of the machine's clock meets all of them alike.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from models import fashion_mnist

NETS = {
    "plain": "full 3x3 convolutions",
    "mobilenet": "depthwise-separable",
    "resnet20": "residual",
    "shufflenet": "grouped 1x1, channel shuffle",
    "densenet": "concatenation",
    "mobilenetv3": "inverted residual, SE, hard-swish",
}
"""Net -> the building block it stands for."""


@dataclass(frozen=True)
class Row:
    """What is known of one net: counts, share of right answers 0..1, milliseconds a call."""

    name: str
    macs: int
    parameters: int
    size: int
    top1: float
    milliseconds: float


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m models.measure", description="Print the table of README.md.")
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEFAULT_FOLDER)
    parser.add_argument("--calls", type=int, default=300, help="timed calls of each net")
    options = parser.parse_args(arguments)

    folder = Path(__file__).parent
    paths = {name: folder / f"{name}.onnx" for name in NETS if (folder / f"{name}.onnx").exists()}
    images = fashion_mnist.to_model_input(fashion_mnist.read_pixels("test", options.data))
    labels = fashion_mnist.read_labels("test", options.data)
    sessions = {name: _session(path) for name, path in paths.items()}
    times = _milliseconds(sessions, images[:1], options.calls)
    rows = []
    for name, path in paths.items():
        model = onnx.load(path)
        rows.append(
            Row(
                name=name,
                macs=_macs(model),
                parameters=_parameters(model),
                size=path.stat().st_size,
                top1=_top1(sessions[name], images, labels),
                milliseconds=times[name],
            )
        )
    print(table(rows))
    print(f"\nTogether {sum(row.size for row in rows):,} bytes; onnxruntime {onnxruntime.__version__}.")


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table; times are given relative to the first row's, too."""
    lines = [
        "| net | stands for | MACs | parameters | file | top-1 | ms a call | to `plain` |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{row.name}` | {NETS[row.name]} | {row.macs / 1e6:.1f} M | {row.parameters / 1e3:.0f} k "
        f"| {row.size / 1e6:.2f} MB | {100 * row.top1:.2f} % | {row.milliseconds:.2f} "
        f"| {row.milliseconds / rows[0].milliseconds:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _milliseconds(
    sessions: dict[str, onnxruntime.InferenceSession], image: NDArray[np.float32], calls: int
) -> dict[str, float]:
    """Return the median CPU time of one call at batch 1 of each net, in milliseconds."""
    spent: dict[str, list[float]] = {name: [] for name in sessions}
    warm_up = 20
    for call in range(warm_up + calls):
        for name, session in sessions.items():
            started = time.thread_time()
            session.run(None, {"image": image})
            if call >= warm_up:
                spent[name].append(1e3 * (time.thread_time() - started))
    return {name: float(np.median(values)) for name, values in spent.items()}


def _top1(
    session: onnxruntime.InferenceSession,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    batch: int = 100,
) -> float:
    right = 0
    for start in range(0, len(images), batch):
        logits = session.run(None, {"image": images[start : start + batch]})[0]
        right += int(np.sum(logits.argmax(axis=1) == labels[start : start + batch]))
    return right / len(images)


def _macs(model: onnx.ModelProto) -> int:
    """Return the multiply-accumulates of convolutions and Gemm for one image."""
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    sides = _output_pixels(model)
    return sum(
        weights[node.input[1]] * sides.get(node.output[0], 1)
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    )


def _output_pixels(model: onnx.ModelProto) -> dict[str, int]:
    """Return height times width of every 4-D tensor whose shape is known."""
    inferred = onnx.shape_inference.infer_shapes(model)
    pixels = {}
    for value in inferred.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            pixels[value.name] = dims[2].dim_value * dims[3].dim_value
    return pixels


def _parameters(model: onnx.ModelProto) -> int:
    """Return the number of floating-point initializer elements, BatchNorm statistics included."""
    return sum(
        math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    )


if __name__ == "__main__":
    main()
