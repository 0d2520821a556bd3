"""Worker: graphopt's `prune_filters` after its exact passes, on one model and to one share of its multiply-adds.

Arguments (JSON): model, output, data (a file of samples), samples, share (null: the exact passes alone), options (of
the passes). No labels, no gates: what comes out is what the pass makes of that budget.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.corpus import load
from benchmarks.costs import measured


def exact_passes() -> list[str]:
    """The exact passes of the recipe for CPUs."""
    from graphopt import PASSES, load_target

    return [name for name in load_target("cpu").recipe if PASSES[name].exact]


def prune(arguments: dict[str, Any]) -> dict[str, Any]:
    """Prune and save."""
    import graphopt

    passes, options = exact_passes(), dict(arguments["options"])
    data = None
    if arguments["share"] is not None:
        passes.append("prune_filters")
        options["prune_filters.max_macs"] = arguments["share"]
        options["prune_filters.samples"] = arguments["samples"]
        columns = load(Path(arguments["data"]), arguments["samples"])
        data = {name: values for name, values in columns.items() if name != "labels"}
    model = graphopt.run(arguments["model"], passes, data=data, options=options)
    graphopt.save(model, arguments["output"])
    return {}


def main() -> None:
    """Run what the command line says."""
    import graphopt
    import graphopt.passes  # imports are not part of the cost, as for the other tools

    _ = graphopt.PASSES
    measured(partial(prune, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
