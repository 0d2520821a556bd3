"""Worker: what calibration costs graphopt on a torchvision net, samples streamed, in its own process.

Arguments (JSON): model, output, samples, observer. Runs `fold_batchnorm` and `quantize_int8` through the Python API.
"""

import json
import sys
from functools import partial
from typing import Any

from benchmarks.costs import measured
from benchmarks.images import ImageFeeds


def quantize(arguments: dict[str, Any]) -> dict[str, Any]:
    """Calibrate on the stream and quantize."""
    import graphopt

    stream = ImageFeeds(arguments["samples"])
    options = {"quantize_int8.observer": arguments["observer"]}
    graphopt.run(arguments["model"], ["fold_batchnorm", "quantize_int8"], data=stream, options=options)
    return {"data_cpu_seconds": stream.cpu_seconds}


def main() -> None:
    """Run what the command line says."""
    import graphopt  # noqa: F401  imports are not part of the cost, as for the other tools

    measured(partial(quantize, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
