"""Worker: ONNX Runtime's `quant_pre_process` and `quantize_static`, one configuration, in its own process.

Arguments (JSON): model, prepared (path of the pre-processed model, made when absent), calibration (.npz) or stream
(true: synthetic images instead), output, samples, method, per_channel, activation (u8|s8), operators (all|heavy),
reduce_range, cache (ranges file or null).
Sessions inside ONNX Runtime's calibration run on one thread: with more, idle threads spin and its CPU time, which is
what we compare, only grows.
"""

import json
import logging
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

from benchmarks.corpus import SEED_CALIBRATION
from benchmarks.costs import Stopwatch, measured
from benchmarks.images import ImageFeeds

OPSET = 17
HEAVY = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds batches of one sample."""

    def __init__(self, feeds: Iterator[dict[str, npt.NDArray[np.generic]]]) -> None:
        self.feeds = feeds

    def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
        """The next feed, or None at the end (ONNX Runtime's protocol)."""
        return next(self.feeds, None)


def npz_feeds(path: str, samples: int) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Feeds of one sample from the first `samples` of an .npz."""
    with np.load(path, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files if name != "labels"}
    count = min(samples, len(next(iter(columns.values()))))
    return ({name: rows[i : i + 1] for name, rows in columns.items()} for i in range(count))


def one_thread_sessions() -> None:
    """Make every ONNX Runtime session of this process run on one thread."""
    session = onnxruntime.InferenceSession

    def single(model: Any, sess_options: Any = None, **rest: Any) -> Any:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return session(model, sess_options=options, **rest)

    onnxruntime.InferenceSession = single


def time_calibration(watch: Stopwatch) -> None:
    """Have `watch` run from the making of a calibrator until its ranges are there."""
    # The package has a function of the same name, which hides the module.
    ort_quantize = import_module("onnxruntime.quantization.quantize")
    create = ort_quantize.create_calibrator

    def timed(*positional: Any, **keywords: Any) -> Any:
        watch.start()
        calibrator = create(*positional, **keywords)
        compute = calibrator.compute_data

        def until_done() -> Any:
            ranges = compute()
            watch.stop()
            return ranges

        calibrator.compute_data = until_done
        return calibrator

    ort_quantize.create_calibrator = timed  # type: ignore[attr-defined]


def prepare(model: str, prepared: Path) -> None:
    """Opset 17 where older (per-channel Q/DQ needs 13) and `quant_pre_process`, the best start the tool can have.

    Symbolic shape inference is left out where it fails.
    """
    loaded = onnx.load(model)
    if next(entry.version for entry in loaded.opset_import if not entry.domain) < OPSET:
        model = str(prepared.with_suffix(".opset.onnx"))
        onnx.save(version_converter.convert_version(loaded, OPSET), model)
    try:
        quant_pre_process(model, prepared)
    except Exception as error:
        print(f"symbolic shape inference failed ({error}); without it", file=sys.stderr)
        quant_pre_process(model, prepared, skip_symbolic_shape=True)


def quantize(arguments: dict[str, Any]) -> dict[str, Any]:
    """One configuration."""
    samples = arguments["samples"]
    stream = ImageFeeds(samples, SEED_CALIBRATION) if arguments.get("stream") else None
    calibration = Stopwatch(lambda: stream.cpu_seconds if stream else 0.0)
    time_calibration(calibration)
    prepared = Path(arguments["prepared"])
    if not prepared.is_file():
        prepare(arguments["model"], prepared)
    activation = QuantType.QUInt8 if arguments["activation"] == "u8" else QuantType.QInt8
    quantize_static(
        prepared,
        arguments["output"],
        Reader(iter(stream) if stream else npz_feeds(arguments["calibration"], samples)),
        calibration_cache_path=arguments.get("cache"),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=HEAVY if arguments["operators"] == "heavy" else None,
        per_channel=arguments["per_channel"],
        reduce_range=arguments["reduce_range"],
        activation_type=activation,
        weight_type=QuantType.QInt8,
        calibrate_method=METHODS[arguments["method"]],
    )
    return {
        "data_cpu_seconds": stream.cpu_seconds if stream else 0.0,
        "calibration_cpu_seconds": calibration.seconds,
    }


def main() -> None:
    """Run the configuration given on the command line."""
    logging.disable(logging.WARNING)
    arguments = json.loads(sys.argv[1])
    one_thread_sessions()
    measured(partial(quantize, arguments))


if __name__ == "__main__":
    main()
