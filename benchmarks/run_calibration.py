"""Worker: what calibration costs graphopt on a torchvision net, samples streamed, in its own process.

Arguments (JSON): model, output, samples, observer. Runs `fold_batchnorm` and `quantize_int8`. All samples go to
calibration, which the public API would split; so the context of the passes is made here.
"""

import json
import sys
from functools import partial
from typing import Any

from benchmarks.corpus import SEED_CALIBRATION, SEED_EVALUATION
from benchmarks.costs import Stopwatch, measured
from benchmarks.images import ImageFeeds

# Samples for graphopt's choices, disjoint from those it calibrates on.
SELECTION = 32


def quantize(arguments: dict[str, Any]) -> dict[str, Any]:
    """Calibrate on the stream and quantize."""
    from graphopt.model import read, save
    from graphopt.passes.base import Context
    from graphopt.passes.fold_batchnorm import FoldBatchNorm
    from graphopt.passes.quantize_int8 import QuantizeInt8
    from graphopt.passes.quantize_int8.session import Quantization
    from graphopt.stages import run_ungated
    from graphopt.targets import load_target

    calibration = ImageFeeds(arguments["samples"], SEED_CALIBRATION)
    selection = ImageFeeds(SELECTION, SEED_EVALUATION)
    watch = Stopwatch(lambda: calibration.cpu_seconds + selection.cpu_seconds)
    calibrate = Quantization.calibrate

    def timed(self: Quantization, *positional: Any, **keywords: Any) -> None:
        watch.start()
        calibrate(self, *positional, **keywords)
        watch.stop()

    Quantization.calibrate = timed  # type: ignore[method-assign]
    context = Context(load_target("cpu").hardware, calibration, selection)
    model = read(arguments["model"]).proto
    passes = (FoldBatchNorm(), QuantizeInt8(observer=arguments["observer"], samples=arguments["samples"]))
    for one in passes:
        model = run_ungated(one, model, context)
    save(model, arguments["output"])
    return {
        "data_cpu_seconds": calibration.cpu_seconds + selection.cpu_seconds,
        "calibration_cpu_seconds": watch.seconds,
    }


def main() -> None:
    """Run what the command line says."""
    import graphopt
    import graphopt.optimize  # noqa: F401

    measured(partial(quantize, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
