"""Worker: graphopt's `separate_convolutions` on one model, after its exact passes.

Arguments (JSON): model, output, data (.npz; null: without samples), samples, keep_first (the convolutions that read the
model's input stay), options (of the pass), and either nothing more, for a fixed rank without labels or gates, or
max_drop with calibration and evaluation (.npz with labels), for `graphopt.optimize` with these passes alone. The
details have what the pass did, and the report where there is one.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from benchmarks.corpus import load
from benchmarks.costs import measured
from benchmarks.prune_graphopt import exact_passes

NAME = "separate_convolutions"


def first_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that read an input of the model."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - constants
    found = [node for node in model.graph.node if node.op_type == "Conv" and node.input[0] in inputs]
    return [node.name or node.output[0] for node in found]


def separate(arguments: dict[str, Any]) -> dict[str, Any]:
    """Separate and save."""
    import graphopt

    options = {f"{NAME}.{key}": value for key, value in arguments["options"].items()}
    exact = graphopt.run(arguments["model"], exact_passes())
    if arguments["keep_first"]:
        options[f"{NAME}.exclude"] = " ".join(first_convolutions(exact))
    if "max_drop" in arguments:
        result = graphopt.optimize(
            arguments["model"],
            passes=[*exact_passes(), NAME],
            calibration_data=arguments["calibration"],
            eval_data=arguments["evaluation"],
            max_drop=arguments["max_drop"],
            options=options,
        )
        report = json.loads(result.report.to_json())
        report["input"]["path"] = Path(report["input"]["path"]).name  # where it lay says nothing
        if report["result"] == "ok":
            result.save(arguments["output"])
        return {"report": report}
    data = None
    if arguments["data"] is not None:
        columns = load(Path(arguments["data"]), arguments["samples"])
        data = {name: values for name, values in columns.items() if name != "labels"}
        options[f"{NAME}.samples"] = arguments["samples"]
    graphopt.save(graphopt.run(exact, [NAME], data=data, options=options), arguments["output"])
    return {}


def main() -> None:
    """Run what the command line says."""
    import graphopt
    import graphopt.passes  # imports are not part of the cost, as for the other tools

    _ = graphopt.PASSES
    measured(partial(separate, json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
